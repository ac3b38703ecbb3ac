"""The head and the trailers of a gRPC call: time-outs, statuses, metadata.

Owns: how these look on the wire. Invariant: nothing that a servicer or a client says can add a field or end one. Not here: messages
(`grpc.pyx`), who serves them (`api.grpc`). Source: "gRPC over HTTP2" (grpc/grpc, doc/PROTOCOL-HTTP2.md).
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable, Sequence
from typing import Final

from anvil.base.errors import InvalidRequest
from anvil.base.limits import GRPC_DEADLINE_S_MAX

Field = tuple[bytes, bytes]
Metadata = Sequence[tuple[str, str | bytes]]

CONTENT_TYPE: Final = b"application/grpc"
ENCODINGS: Final = (b"grpc-accept-encoding", b"identity,gzip")
_HEAD: Final[list[Field]] = [(b":status", b"200"), (b"content-type", CONTENT_TYPE), ENCODINGS]
_OK: Final[list[Field]] = [(b"grpc-status", b"0")]
_UNIT_S: Final = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_KEY: Final = re.compile(r"[a-z0-9_.-]+")
_TEXT: Final = re.compile(r"[ -~]*")
_PLAIN: Final = re.compile(rb"[ -$&-~]*")  # what grpc-message says without percent-encoding
# The call's own fields, which are no metadata of the application.
_OWN: Final = frozenset((b"te", b"content-type", b"content-length", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding"))


def is_grpc(method: str | bytes, content_type: bytes) -> bool:
    """Whether a request is a gRPC call: a POST of `application/grpc`, with or without the name of an encoding. gRPC-Web is another
    protocol."""
    if content_type[:16].lower() != CONTENT_TYPE or method not in ("POST", b"POST"):
        return False
    return len(content_type) == 16 or content_type[16:17] in (b"+", b";")


def is_protobuf(content_type: bytes) -> bool:
    """Whether the messages of a call are protobuf, the only encoding there is here."""
    if content_type == CONTENT_TYPE:
        return True
    kind = content_type.partition(b";")[0].strip().lower()
    return kind in (CONTENT_TYPE, CONTENT_TYPE + b"+proto")


def parse_timeout(value: bytes) -> float:
    """Seconds of a `grpc-timeout`. Raises InvalidRequest."""
    number, unit = value[:-1], _UNIT_S.get(value[-1:])
    if unit is None or not number.isdigit() or len(number) > 8:
        raise InvalidRequest("The grpc-timeout of the call is not valid.")
    return min(int(number) * unit, GRPC_DEADLINE_S_MAX)


def head_fields(metadata: Metadata = ()) -> list[Field]:
    """The fields before the messages of an answer. Raises ValueError."""
    return _HEAD + _metadata_fields(metadata) if metadata else _HEAD


def status_fields(code: int, message: str = "", details: bytes = b"", metadata: Metadata = ()) -> list[Field]:
    """The fields that end a call. `details`: a serialized google.rpc.Status. Raises ValueError."""
    if code == 0 and not (message or details or metadata):
        return _OK
    fields = [(b"grpc-status", b"%d" % code)]
    if message:
        fields.append((b"grpc-message", percent_encoded(message)))
    if details:
        fields.append((b"grpc-status-details-bin", _base64(details)))
    return fields + _metadata_fields(metadata)


def percent_encoded(message: str) -> bytes:
    """As grpc-message carries text."""
    raw = message.encode("utf-8", "replace")
    if _PLAIN.fullmatch(raw):
        return raw
    return b"".join(bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in raw)


def read_metadata(headers: Iterable[Field]) -> tuple[tuple[str, str | bytes], ...]:
    """What the application said in the head of a call. Raises InvalidRequest for a `-bin` value that is no base64."""
    found: list[tuple[str, str | bytes]] = []
    for name, value in headers:
        if name in _OWN:
            continue
        key = name.decode("ascii")
        if key.endswith("-bin"):
            found += [(key, _unbase64(part)) for part in value.split(b",")]
        else:
            found.append((key, value.decode("latin-1")))
    return tuple(found)


def _metadata_fields(metadata: Metadata) -> list[Field]:
    fields: list[Field] = []
    for key, value in metadata:
        if not _KEY.fullmatch(key) or key.startswith("grpc-"):
            raise ValueError(f"{key!r} is no name for metadata")
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise ValueError(f"the value of {key} must be bytes")
            fields.append((key.encode("ascii"), _base64(value)))
            continue
        text = value.decode("ascii") if isinstance(value, bytes) else value
        if not _TEXT.fullmatch(text):
            raise ValueError(f"the value of {key} must be printable ASCII")
        fields.append((key.encode("ascii"), text.encode("ascii")))
    return fields


def _base64(value: bytes) -> bytes:
    return b64encode(value).rstrip(b"=")


def _unbase64(text: bytes) -> bytes:
    try:
        return b64decode(text.strip() + b"=" * (-len(text.strip()) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise InvalidRequest("A binary value of the call's metadata is not base64.") from None
