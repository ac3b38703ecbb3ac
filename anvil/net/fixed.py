"""Answers that the port gives by itself, without a handler: they do not depend on the request."""

from __future__ import annotations

from typing import Final

from anvil.wire.http1 import Refusal

ALLOW: Final = ((b"allow", b"GET, HEAD, PUT, POST, DELETE, OPTIONS"),)
GRPC_ANSWER: Final = (
    (b"content-type", b"application/grpc"),
    (b"grpc-status", b"12"),
    (b"grpc-message", b"gRPC needs HTTP/2 all the way to this server: use grpc_pass in nginx, h2c:// upstreams in Caddy"),
)
SLOW_DOWN: Final = Refusal(503, "SlowDown", "Please reduce your request rate.")
