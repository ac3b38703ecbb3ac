"""Parameters that all listings share: limits, `encoding-type`, flags.

Owns: their validation. Not here: continuation tokens (`operations/listing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from urllib.parse import quote

from anvil.base.errors import InvalidArgument
from anvil.base.limits import LIST_KEYS_MAX


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
