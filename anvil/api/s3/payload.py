"""The payload of a request: how long it is, how it is opened, and small ones read whole.

Owns: the length rules. Invariants: the payload's exact length is known before a byte is read, and is within the operation's
limit; a small document is used only after everything stated about it was verified. Not here: framing (`wire/awschunked`),
reading (`net/bodies`).
"""

from __future__ import annotations

from collections.abc import Mapping

from anvil.api.operations.objects import check_size
from anvil.api.s3.call import Call
from anvil.api.s3.checksums import Stated, digest_small, integrity
from anvil.auth.types import Authenticated, Payload
from anvil.base.errors import EntityTooLarge, IncompleteBody, InvalidArgument, InvalidRequest, MissingContentLength
from anvil.engine.ports import Body
from anvil.model.records import Algorithm
from anvil.net.stream import RequestHead

_CHUNKED = frozenset((Payload.SIGNED_CHUNKS, Payload.SIGNED_CHUNKS_TRAILER, Payload.UNSIGNED_CHUNKS_TRAILER))


def payload_length(head: RequestHead, headers: Mapping[bytes, bytes], auth: Authenticated) -> int:
    """Payload bytes of a request that must have a payload. Raises MissingContentLength, InvalidArgument, InvalidRequest."""
    announced = headers.get(b"x-amz-decoded-content-length")
    decoded = None if announced is None else _number(announced)
    if auth.payload in _CHUNKED:
        if decoded is None:
            raise MissingContentLength("You must provide the x-amz-decoded-content-length HTTP header.")
        # Framing only adds: a body shorter than its payload is a lie about one of the two.
        if head.content_length is not None and head.content_length < decoded:
            raise InvalidRequest("Content-Length is smaller than x-amz-decoded-content-length.")
        if head.content_length is None and not head.chunked:
            raise MissingContentLength()
        return decoded
    if head.content_length is not None:
        if decoded is not None and decoded != head.content_length:
            raise InvalidRequest("x-amz-decoded-content-length differs from Content-Length and the payload is not aws-chunked.")
        return head.content_length
    if head.chunked and decoded is not None:
        return decoded
    raise MissingContentLength()


def _number(value: bytes) -> int:
    if value.isdigit() and len(value) <= 19:
        return int(value)
    raise InvalidArgument(
        "x-amz-decoded-content-length must be a number of bytes.",
        ArgumentName="x-amz-decoded-content-length",
        ArgumentValue=value.decode("latin-1"),
    )


def open_upload(call: Call) -> tuple[Body, Stated]:
    """The payload of PutObject or UploadPart and what is stated about it. Raises EntityTooLarge before anything is read."""
    headers = call.request.headers
    length = check_size(payload_length(call.stream.head, headers, call.auth))
    stated = integrity(headers, call.auth)
    body = call.open_body(call.stream, call.auth, length, stated.trailer_names)
    stated.expect_trailer(body)
    return body, stated


async def read_document(call: Call, limit: int, *, of_object: bool = False) -> tuple[bytes, Stated]:
    """A small body, whole and verified, and what was stated about it; empty when the request has none. `of_object`: see
    `integrity`.

    Raises EntityTooLarge beyond `limit` bytes, and what verification raises."""
    head = call.stream.head
    stated = integrity(call.request.headers, call.auth, of_object=of_object)
    if head.content_length is None and not head.chunked:
        return b"", stated
    if head.chunked and call.auth.payload not in _CHUNKED and b"x-amz-decoded-content-length" not in call.request.headers:
        document = await call.stream.read_all(limit)
    else:
        length = payload_length(head, call.request.headers, call.auth)
        if length > limit:
            raise EntityTooLarge(ProposedSize=length, MaxSizeAllowed=limit)
        body = call.open_body(call.stream, call.auth, length, stated.trailer_names)
        stated.expect_trailer(body)
        document = await _read(body, length)
    wanted = stated.digests if stated.md5 is None else stated.digests | {Algorithm.MD5}
    stated.check({algorithm: digest_small(algorithm, document) for algorithm in wanted})
    return document, stated


async def _read(body: Body, length: int) -> bytes:
    buffer = bytearray(length)
    view = memoryview(buffer)
    received = await body.readinto(view)
    # One more call past the end lets a framed body verify what follows its last byte.
    if received != length or await body.readinto(memoryview(bytearray(1))):
        raise IncompleteBody()
    return bytes(buffer)
