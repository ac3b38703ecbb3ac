"""Values of settings that are more than text: an address to listen on, the master key.

Invariant: what is refused is refused with what to write instead. Not here: which setting takes what (`settings.py`).
"""

from __future__ import annotations

import base64
import binascii
import re

import msgspec

from anvil.base.errors import InvalidSetting


class Address(msgspec.Struct, frozen=True):
    """Where to listen. Port 0 lets the system choose one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, name: str = "ANVIL_API_LISTEN_ADDR") -> Address:
    """`host:port`, `:port` (all interfaces) or `[v6]:port`. Raises InvalidSetting."""
    matched = re.fullmatch(r"(?:\[(?P<v6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:\[\]/\s]*)):(?P<port>\d{1,5})", text)
    if matched is None or int(matched["port"]) > 65535:
        raise InvalidSetting(f"{name}={text!r} is not host:port: write for instance 127.0.0.1:50051 or [::1]:50051")
    return Address(matched["v6"] or matched["host"] or "0.0.0.0", int(matched["port"]))  # noqa: S104 - the operator asked for it


def parse_master_key(text: str) -> bytes:
    """32 bytes from 64 hex digits or base64. Raises InvalidSetting."""
    try:
        key = (
            bytes.fromhex(text) if len(text) == 64 else base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
        )
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != 32:
        raise InvalidSetting(
            "ANVIL_SECRET_ENCRYPTION_KEY must be 32 bytes as 64 hex digits or base64: make one with `openssl rand -hex 32`"
        )
    return key
