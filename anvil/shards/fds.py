"""A bounded cache of open read-only descriptors.

Owns: the descriptors in it. Invariant: a descriptor is closed only when nobody has it leased, so its number cannot come to mean
another file under a read in flight. Not here: descriptors of writers.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class OpenFile:
    """One cached descriptor. `leases` > 0 while somebody reads from it; `cached` False once it must be closed after that."""

    __slots__ = ("cached", "fd", "leases")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.leases = 0
        self.cached = True


class FileCache:
    """At most `limit` files stay open beyond their leases. Used from one thread (the event loop's).

    Opening is inline: with a warm dentry cache it costs about 5 us, and a Python thread beside a busy loop costs far more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: OrderedDict[Path, OpenFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self._files)

    @contextmanager
    def lease(self, path: Path) -> Iterator[int]:
        """A descriptor of `path` for the time of the block. Raises OSError (FileNotFoundError where there is none)."""
        file = self._files.get(path)
        if file is None:
            file = OpenFile(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW))
            self._files[path] = file
            if len(self._files) > self._limit:
                self._close(self._files.popitem(last=False)[1])
        else:
            self._files.move_to_end(path)
        file.leases += 1
        try:
            yield file.fd
        finally:
            file.leases -= 1
            if not file.leases and not file.cached:
                os.close(file.fd)

    def discard(self, path: Path) -> None:
        """Forget a file that was unlinked or replaced."""
        file = self._files.pop(path, None)
        if file is not None:
            self._close(file)

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
            self._close(self._files.popitem()[1])

    def _close(self, file: OpenFile) -> None:
        file.cached = False
        if not file.leases:
            os.close(file.fd)
