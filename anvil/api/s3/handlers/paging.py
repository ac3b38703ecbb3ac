"""Parameters that all listings share: limits, `encoding-type`, continuation tokens.

Owns: their validation. Invariant: a token is opaque to clients and is checked before it is believed, so a mangled one is an
error and not a listing that starts somewhere else.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from urllib.parse import quote

from anvil.base.errors import InvalidArgument
from anvil.base.limits import LIST_KEYS_MAX

_VERSION = b"\x01"


def limit_of(query: Mapping[str, str], name: str, most: int = LIST_KEYS_MAX) -> int:
    """`max-keys` and its like: 0 and more, silently capped, as in S3. Raises InvalidArgument."""
    text = query.get(name)
    if text is None or text == "":
        return most
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= 2**31 - 1:
        return min(int(text), most)
    raise InvalidArgument(f"Argument {name} must be an integer between 0 and {2**31 - 1}", ArgumentName=name, ArgumentValue=text)


def encoder_of(query: Mapping[str, str]) -> Callable[[str], str]:
    """How keys are written: percent-encoded where `encoding-type=url` (slashes kept, as S3 does). Raises InvalidArgument."""
    kind = query.get("encoding-type")
    if not kind:
        return str
    if kind.lower() != "url":
        raise InvalidArgument("Invalid Encoding Method specified in Request", ArgumentName="encoding-type", ArgumentValue=kind)
    return lambda text: quote(text, safe="/")


def flag_of(query: Mapping[str, str], name: str) -> bool:
    text = query.get(name, "").lower()
    if text not in ("", "true", "false"):
        raise InvalidArgument(ArgumentName=name, ArgumentValue=text)
    return text == "true"


def encode_token(after: str) -> str:
    """The token that continues strictly after that key or prefix."""
    raw = after.encode("utf-8")
    return urlsafe_b64encode(_VERSION + zlib.crc32(raw).to_bytes(4, "big") + raw).decode("ascii").rstrip("=")


def decode_token(token: str) -> str:
    """Raises InvalidArgument unless `encode_token` made it."""
    try:
        packed = urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
        after = packed[5:].decode("utf-8")
        # No key holds U+0000, so no token does: the checksum finds accidents, not forgers.
        if encode_token(after) == token and "\0" not in after:
            return after
    except (binascii.Error, UnicodeError, ValueError):
        pass
    raise InvalidArgument("The continuation token provided is incorrect", ArgumentName="continuation-token")
