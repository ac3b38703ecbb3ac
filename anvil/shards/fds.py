"""A bounded cache of open read-only descriptors.

Owns: the descriptors in it. Invariant: a descriptor is closed only when nobody has it leased, so its number cannot come to mean
another file under a read in flight. Not here: descriptors of writers.

`fstat` of an open file is answered from memory and runs on the loop. Opening may have to wait for the disk, and so may closing, which
frees the blocks of a file that was unlinked: both go through `Io`.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path

from anvil.shards.io import Io


class OpenFile:
    """One cached descriptor; `with` leases it. `cached` False once it must be closed after that."""

    __slots__ = ("_io", "_leases", "cached", "fd")

    def __init__(self, fd: int, io: Io) -> None:
        self.fd = fd
        self.cached = True
        self._io = io
        self._leases = 0

    def hold(self) -> None:
        self._leases += 1

    def release(self) -> None:
        self._leases -= 1
        if not self.cached:
            self.close_if_free()

    def close_if_free(self) -> None:
        if not self._leases:
            self._io.background(self._io.close_file(self.fd))

    def __enter__(self) -> OpenFile:
        self._leases += 1
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class FileCache:
    """At most `limit` files stay open beyond their leases. Used from one thread (the event loop's)."""

    def __init__(self, limit: int, io: Io) -> None:
        self._limit = limit
        self._io = io
        self._files: OrderedDict[Path, OpenFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    async def open(self, path: Path, patience_s: float | None = None) -> OpenFile:
        """The file, to be leased at once: `with await cache.open(path) as file`. Raises OSError (FileNotFoundError where there is
        none), DriveStalled, also after `patience_s`."""
        if (file := self.opened(path)) is not None:
            return file
        fd = await self._io.open_to_read(str(path), patience_s)
        if (file := self.opened(path)) is not None:  # somebody was faster
            self._io.background(self._io.close_file(fd))
            return file
        file = self._files[path] = OpenFile(fd, self._io)
        if len(self._files) > self._limit:
            self._drop(self._files.popitem(last=False)[1])
        return file

    def opened(self, path: Path) -> OpenFile | None:
        """The file, to be leased at once, if it is open."""
        file = self._files.get(path)
        if file is not None:
            self._files.move_to_end(path)
        return file

    def discard(self, path: Path) -> None:
        """Forget a file that was unlinked or replaced."""
        file = self._files.pop(path, None)
        if file is not None:
            self._drop(file)

    def discard_if_unlinked(self, path: Path) -> None:
        """Forget the file of that name if another process unlinked it: perhaps there is a new one (a shard was repaired)."""
        file = self._files.get(path)
        if file is not None and os.fstat(file.fd).st_nlink == 0:
            self.discard(path)

    def discard_unlinked(self) -> None:
        """Forget files that another process unlinked: an open descriptor keeps their space from coming back."""
        for path, file in list(self._files.items()):
            try:
                gone = os.fstat(file.fd).st_nlink == 0
            except OSError:
                gone = True
            if gone:
                self.discard(path)

    def close(self) -> None:
        """Close everything, leased files as soon as their leases end."""
        while self._files:
            self._drop(self._files.popitem()[1])

    @staticmethod
    def _drop(file: OpenFile) -> None:
        file.cached = False
        file.close_if_free()
