#!/bin/sh
# Builds the extensions with AddressSanitizer in a copy of the tree (build/asan; the real build stays as it is) and runs the unit
# tests that use them. A finding ends the run with the sanitizer's report. $1: the Python of the environment; then pytest's arguments.
set -eu
python=$1
shift
[ $# -gt 0 ] || set -- tests/unit/ec tests/unit/wire/test_awschunked.py tests/unit/wire/test_awschunked_fuzz.py tests/unit/wire/test_http2.py tests/unit/wire/test_grpc.py tests/unit/wire/test_fuzz_targets.py tests/unit/auth/test_sigv4.py tests/unit/bench/test_exchange.py tests/unit/bench/test_http.py tests/unit/bench/test_operations.py
copy=build/asan
mkdir -p "$copy"
rm -rf "$copy/tests"
# The copy keeps its objects, so that only what changed is compiled again.
for part in anvil tests; do
    tar -cf - --exclude='*.so' --exclude='__pycache__' "$part" | tar -xf - -C "$copy"
done
cp setup.py pyproject.toml README.md LICENSE "$copy/"
cd "$copy"
echo "Compiling the extensions with AddressSanitizer"
ANVIL_SANITIZE=1 "$python" setup.py -q build_ext --inplace
# Python's own small-block allocator would hide overruns inside its arenas, and its leaks at exit are not ours.
LD_PRELOAD=$(cc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0:abort_on_error=0:halt_on_error=1 PYTHONMALLOC=malloc \
    PYTHONPATH=. exec "$python" -m pytest -n 0 "$@"
