"""A disk that fails on demand, under a real node (see faults.c)."""

from __future__ import annotations

import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("faults.c")


class FailingDisk:
    """Give `env` to the node; then `reads` and `writes` decide what fails with EIO below `folder` (a prefix of paths)."""

    def __init__(self, work: Path) -> None:
        library, self._flags = work / "faults.so", work / "faults.flags"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SOURCE), "-ldl"], check=True)
        self._flags.write_bytes(bytes(4096))
        self.env = {"LD_PRELOAD": str(library), "FAULT_FLAGS": str(self._flags)}

    def fail(self, folder: Path, *, writes: bool = False, reads: bool = False) -> None:
        with self._flags.open("r+b") as flags:
            flags.seek(16)
            flags.write(str(folder).encode() + b"\0")
            flags.flush()
            flags.seek(0)
            flags.write(bytes((writes, reads)))

    def heal(self) -> None:
        with self._flags.open("r+b") as flags:
            flags.write(bytes(2))
