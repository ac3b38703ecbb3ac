"""How a request's payload is read: raw, or out of its aws-chunked framing, as its authentication says.

Not here: the framing (`wire/awschunked.pyx`), bodies (`net/bodies.py`), which of them a request uses (`auth/`).
"""

from __future__ import annotations

from anvil.auth.types import Authenticated, Payload
from anvil.engine.ports import Body
from anvil.net.bodies import AwsChunkedBody, RawBody
from anvil.net.stream import Stream
from anvil.wire.awschunked import ChunkedDecoder

_TRAILER = (Payload.SIGNED_CHUNKS_TRAILER, Payload.UNSIGNED_CHUNKS_TRAILER)


def open_body(stream: Stream, auth: Authenticated, length: int, trailer_names: tuple[str, ...]) -> Body:
    """`length`: payload bytes. Signed chunks need `auth.seed`, which authentication gives with them."""
    if auth.payload in (Payload.UNSIGNED, Payload.SHA256):
        return RawBody(stream, length)
    names = trailer_names if auth.payload in _TRAILER else None
    if auth.payload is Payload.UNSIGNED_CHUNKS_TRAILER:
        return AwsChunkedBody(stream, ChunkedDecoder(length, trailer_names=names), length)
    seed = auth.seed
    if seed is None:
        raise ValueError("signed chunks without the signature they follow from")
    decoder = ChunkedDecoder(
        length,
        signing_key=seed.signing_key,
        seed_signature=seed.signature,
        amz_date=seed.amz_date,
        scope=seed.scope,
        trailer_names=names,
    )
    return AwsChunkedBody(stream, decoder, length)
