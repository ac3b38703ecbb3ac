#!/bin/sh
# Makes sure that the compiler and the libraries Anvil is built with are there: installs what is missing through apt (with sudo when
# not root), or names it. Quick when nothing is missing. $1: the Python to check for headers and venv.
set -eu
python=${1:-python3}

if ! command -v "$python" >/dev/null 2>&1; then missing="python3 python3-dev python3-venv"; else
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Anvil needs Python 3.11 or later, and $python is $("$python" -V 2>&1 | cut -d' ' -f2): run make PYTHON=/path/to/python3.11" >&2
        exit 1
    }
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    missing=""
    "$python" -c 'import ensurepip, venv' 2>/dev/null || missing="$missing $version-venv"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_paths()["include"] + "/Python.h"))' ||
        missing="$missing $version-dev"
fi
command -v cc >/dev/null 2>&1 || missing="$missing gcc libc6-dev"
[ -e /usr/include/stdio.h ] || missing="$missing libc6-dev"
if command -v pkg-config >/dev/null 2>&1; then
    pkg-config --exists libisal || missing="$missing libisal-dev"
    pkg-config --exists libcrypto || missing="$missing libssl-dev"
    pkg-config --exists libxxhash || missing="$missing libxxhash-dev"
    pkg-config --exists libnghttp2 || missing="$missing libnghttp2-dev"
else
    missing="$missing pkg-config libisal-dev libssl-dev libxxhash-dev libnghttp2-dev"
fi
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "Install what these Debian packages hold, then run make again:$missing" >&2
    exit 1
fi
by_hand() {
    echo "Run this as root, then run make again: apt-get install$missing" >&2
    exit 1
}
as_root() { "$@"; }
if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null 2>&1 || by_hand
    as_root() { sudo "$@"; }
fi
echo "Installing with apt:$missing"
as_root apt-get update -qq || by_hand
# shellcheck disable=SC2086 # the list is meant to be split
as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null || by_hand
