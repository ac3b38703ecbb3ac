"""Compiles the small pieces of C that benchmarks compare with or count by.

Owns: the compiler's command. Not here: what the pieces do.
"""

from __future__ import annotations

import ctypes
import subprocess
import tempfile
from pathlib import Path


def compiled(source: Path, *packages: str) -> ctypes.CDLL:
    """The library made of one file, with what pkg-config says of these packages. Raises CalledProcessError."""
    flags: list[str] = []
    if packages:
        asked = ["pkg-config", "--cflags", "--libs", *packages]
        flags = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / f"{source.stem}.so"
        subprocess.run(["cc", "-O3", "-shared", "-fPIC", str(source), "-o", str(library), *flags], check=True)
        return ctypes.CDLL(str(library))
