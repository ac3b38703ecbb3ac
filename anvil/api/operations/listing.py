"""Pages of keys, and the tokens that continue them.

Owns: what a page can be asked for, and the tokens. Invariants: a page is exactly what the engine's page says, truncation and
the next marker come from it and are never guessed; a token is opaque to clients and is checked before it is believed, so a
mangled one is an error and not a listing that starts somewhere else.
"""

from __future__ import annotations

import binascii
import zlib
from base64 import urlsafe_b64decode, urlsafe_b64encode

from anvil.api.operations.caller import Caller
from anvil.api.operations.names import check_key
from anvil.base.errors import InvalidArgument, KeyTooLong
from anvil.model.identity import Bucket
from anvil.model.records import ListPage, ListQuery

_EMPTY = ListPage((), ())
_VERSION = b"\x01"


async def page(caller: Caller, bucket: Bucket, *, prefix: str, delimiter: str, after: str, limit: int) -> ListPage:
    """Up to `limit` keys and prefixes behind `after`; `bucket`: listable. Raises InvalidArgument."""
    for name, text in (("prefix", prefix), ("delimiter", delimiter)):
        try:
            check_key(text)
        except KeyTooLong:
            raise InvalidArgument(f"The {name} is longer than a key can be.", ArgumentName=name) from None
    if limit == 0:
        return _EMPTY
    return await caller.services.engine.list_objects(
        ListQuery(bucket_id=bucket.bucket_id, prefix=prefix, delimiter=delimiter, after=after, limit=limit)
    )


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
