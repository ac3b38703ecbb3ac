"""Counts the instructions of paths that run the same way every time: a figure that neither a busy machine nor a slow one changes.

Owns: the run below valgrind's callgrind and the form of the figures. A path of Python is counted in yardsticks, one of which is a fixed
piece of plain Python (`paths.yardstick`), so that the build of the interpreter cancels out; a kernel in instructions per byte, with the
kernels for AVX2, which is what valgrind shows of the processor.
Run: python -m bench.counted [words a path's name contains]. Takes about a minute; needs valgrind.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from bench.figures import figure
from bench.native import compiled

TIMEOUT_S = 600
CHILD = "--below-valgrind"


def marks() -> ctypes.CDLL:
    return compiled(Path(__file__).with_name("marks.c"))


def count(words: list[str]) -> dict[str, int]:
    """By name of a path, the instructions of all its calls together. Raises CalledProcessError, FileNotFoundError (no valgrind)."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={folder}/out", "--log-file=/dev/null", sys.executable]
        # Hashes decide the order of sets and the collisions of dictionaries; assertions are on, as in production.
        env = {**os.environ, "PYTHONHASHSEED": "0"}
        subprocess.run([*command, "-m", "bench.counted", CHILD, *words], check=True, env=env, timeout=TIMEOUT_S)
        found = {}
        for dump in Path(folder).iterdir():
            text = dump.read_text(errors="replace")
            name = re.search(r"^desc: Trigger: Client Request: (.*)$", text, re.MULTILINE)
            totals = re.search(r"^(?:summary|totals): (\d+)", text, re.MULTILINE)
            if name is not None and totals is not None:
                found[name[1]] = int(totals[1])
        return found


def run_paths(words: list[str]) -> None:
    """In the process that is counted: each path so often, after it has been warmed up."""
    from bench.counted.paths import paths

    library = marks()
    if not library.counted_here():
        sys.exit("not below valgrind")
    gc.disable()
    for path in paths():
        if not selected(path.name, words):
            continue
        with path.ready() as call:
            counted(library, path.name, call, path.calls)


def counted(library: ctypes.CDLL, name: str, call: Callable[[], object], calls: int) -> None:
    for _ in range(max(3, calls // 10)):
        call()
    gc.collect()
    library.counted_begin()
    for _ in range(calls):
        call()
    library.counted_end(name.encode())


def selected(name: str, words: list[str]) -> bool:
    """The yardstick always is."""
    return name == "yardstick" or not words or any(word in name for word in words)


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == [CHILD]:
        run_paths(words[1:])
        return
    from bench.counted.paths import paths

    found = count(words)
    known = {path.name: path for path in paths()}
    yardstick = found["yardstick"] / known["yardstick"].calls
    for name, instructions in found.items():
        path = known[name]
        each = instructions / path.calls
        if name == "yardstick":
            figure("counted: the yardstick", each, "instructions")
        elif path.nbytes:
            figure(f"counted: {name}", each / path.nbytes, "instructions per byte")
        else:
            figure(f"counted: {name}", each / yardstick, "yardsticks", note=f"{each:,.0f} instructions")


if __name__ == "__main__":
    main()
