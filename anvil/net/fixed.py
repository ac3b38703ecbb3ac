"""What the port answers by itself, without a handler, and how it cuts a connection: nothing here depends on the request."""

from __future__ import annotations

import struct
from typing import Final

from anvil.net.stream import Headers
from anvil.wire.grpc_head import percent_encoded
from anvil.wire.http1 import Refusal, head_too_large

ALLOW: Final = ((b"allow", b"GET, HEAD, PUT, POST, DELETE, OPTIONS"),)
GRPC_ANSWER: Final = (
    (b"content-type", b"application/grpc"),
    (b"grpc-status", b"12"),
    (b"grpc-message", b"gRPC needs HTTP/2 all the way to this server: use grpc_pass in nginx, h2c:// upstreams in Caddy"),
)
GRPC_H2_ANSWER: Final = (
    (b"content-type", b"application/grpc"),
    (b"grpc-status", b"12"),
    (b"grpc-message", b"this server has no gRPC services"),
)
# By code: RESOURCE_EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE; others are INTERNAL.
_GRPC_STATUS: Final = {head_too_large().code: b"8", "NotImplemented": b"12", "SlowDown": b"14"}


def grpc_refusal(refusal: Refusal) -> Headers:
    """A refusal, to a gRPC client: status and message where it looks for them."""
    return (
        (b"content-type", b"application/grpc"),
        (b"grpc-status", _GRPC_STATUS.get(refusal.code, b"13")),
        (b"grpc-message", percent_encoded(refusal.message)),
    )


HTTP_TO_TLS: Final = (  # what came was plain HTTP, so that is what the client understands
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: 33\r\nconnection: close\r\n\r\n"
    b"This port speaks TLS: use https.\n"
)
SLOW_DOWN: Final = Refusal(503, "SlowDown", "Please reduce your request rate.")
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER that makes close() send a reset
