"""A machine whose memory is in use.

On a virtual machine that has just started the host backs a page when it is first touched, at 0.4 GB/s (measured), and takes back what is
free for some seconds: files are then written at that rate, whoever writes them. Here all memory but little is held, and a file fills what
is left, so that new pages of the page cache are old ones of it, as on a server that has been up for a while.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

LEFT_BYTES = 3 << 30  # for the node, PostgreSQL, and the page cache
FILE_BYTES = 5 << 29  # of that; what the processes need is taken from it
BLOCK_BYTES = 16 << 20


def available() -> int:
    """Bytes of memory that this process may take, of the machine or of its control group."""
    group = Path("/sys/fs/cgroup")
    limit = (group / "memory.max").read_text().strip() if (group / "memory.max").exists() else "max"
    free = psutil.virtual_memory().available
    return free if limit == "max" else min(free, int(limit) - int((group / "memory.current").read_text()))


@contextmanager
def held() -> Iterator[None]:
    """Available memory but LEFT_BYTES is kept meanwhile, and most of that is in the page cache."""
    blocks = (available() - LEFT_BYTES) // BLOCK_BYTES
    if blocks <= 0:
        yield
        return
    block = bytes(BLOCK_BYTES)
    with mmap.mmap(-1, blocks * BLOCK_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for at in range(0, len(memory), BLOCK_BYTES):
            memory[at : at + BLOCK_BYTES] = block
        with tempfile.TemporaryFile(prefix="anvil-bench-", buffering=0) as file:
            for _ in range(FILE_BYTES // BLOCK_BYTES):
                file.write(block)
            os.fdatasync(file.fileno())
            yield
