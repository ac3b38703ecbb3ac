"""Type aliases that every package may use."""

from __future__ import annotations

from collections.abc import Callable

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes that can be read without copying (collections.abc.Buffer needs Python 3.12)."""

Told = Callable[[BaseException | None], None]
"""What is called once something has ended: with what it would have raised, or None. Must not raise, and is never called before the call
that it was given to has returned."""
