"""Type aliases that every package may use."""

from __future__ import annotations

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes that can be read without copying (collections.abc.Buffer needs Python 3.12)."""
