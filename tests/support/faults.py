"""A disk that fails or hangs on demand, under a real node (see faults.c)."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")


class FailingDisk:
    """Give `env` to the node; then `fail` decides what fails with EIO below a folder (a prefix of paths), `hang` below which folders
    nothing returns, until `heal`."""

    def __init__(self, work: Path) -> None:
        library, self._flags = work / "faults.so", work / "faults.flags"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
        self._flags.write_bytes(bytes(4096))
        self.env = {"LD_PRELOAD": str(library), "FAULT_FLAGS": str(self._flags)}

    def fail(self, folder: Path, *, writes: bool = False, reads: bool = False) -> None:
        set_faults(self._flags, [folder], bytes((writes, reads, 0)))

    def hang(self, *folders: Path) -> None:
        set_faults(self._flags, folders, bytes((0, 0, 1)))

    def heal(self) -> None:
        set_faults(self._flags, [], bytes(3))


def set_faults(flags: Path, folders: list[Path] | tuple[Path, ...], which: bytes) -> None:
    """Say what is to go wrong from now on, to every process that has `flags` mapped."""
    with flags.open("r+b", buffering=0) as file:
        file.write(bytes(len(which)))  # nothing while the names change
        file.seek(16)
        file.write(b"".join(str(folder).encode() + b"\0" for folder in folders) + b"\0")
        file.seek(0)
        file.write(which)
