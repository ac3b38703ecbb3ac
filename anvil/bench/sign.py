"""Heads of signed requests, made as cheaply as SigV4 allows: the key once a day, everything with the time in it once a second, and for
each request one call of the native kernel (`outgoing.pyx`).

Owns: which headers are sent and signed. Invariant: what is sent is what was signed: path and query come canonically encoded. Not here:
the hashing itself, sockets. Source: Amazon S3 API Reference, "Signature Calculations for the Authorization Header".
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from urllib.parse import quote

from anvil._ec.digest import Digests
from anvil.auth.credentials import amz_date
from anvil.auth.presign import EMPTY_SHA256, UNSIGNED_PAYLOAD
from anvil.auth.sigv4 import derive_key
from anvil.bench.exchange import Request
from anvil.bench.outgoing import Content, HeadSigner

UNSIGNED = UNSIGNED_PAYLOAD.encode()
EMPTY = EMPTY_SHA256.encode()
Headers = tuple[tuple[bytes, bytes], ...]


def encoded(text: str) -> bytes:
    """A key, as SigV4 and the wire have it (a slash stays)."""
    return quote(text, safe="/-_.~").encode()


def parameter(text: str) -> bytes:
    """A query's name or value; here the slash is encoded, too."""
    return quote(text, safe="-_.~").encode()


class Signer:
    """For one endpoint and key pair. `host`: the Host header; `token`: of a session, or ""; `payloads`: whether bodies are digested and
    their SHA-256 signed, or UNSIGNED-PAYLOAD; `clock`: Unix seconds."""

    def __init__(
        self,
        access_key: str,
        secret: str,
        region: str,
        host: str,
        *,
        token: str = "",
        payloads: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._access_key = access_key.encode()
        self._secret = secret
        self._region = region.encode()
        self._host = host.encode()
        self._token: Headers = ((b"x-amz-security-token", token.encode()),) if token else ()
        self._payloads = payloads
        self._clock = clock
        self._second = -1
        self._day = b""

    def _renew(self, second: int) -> None:
        self._second = second
        self._date = amz_date(second)
        if self._date[:8] != self._day:
            self._day = self._date[:8]
            self._key = derive_key(self._secret, self._day, self._region, b"s3")
            self._scope = b"%s/%s/s3/aws4_request" % (self._day, self._region)
        self._signer = HeadSigner(self._key, b"AWS4-HMAC-SHA256\n%s\n%s\n" % (self._date, self._scope))
        self._usual = {payload: self._fixed(payload, ()) for payload in (UNSIGNED, EMPTY)}

    def _fixed(self, payload: bytes, extra: Headers) -> tuple[bytes, bytes]:
        """What all requests of this second with this payload have: the end of the canonical request, and the lines up to the
        signature."""
        headers = sorted(
            ((b"host", self._host), (b"x-amz-content-sha256", payload), (b"x-amz-date", self._date), *self._token, *extra)
        )
        names = b";".join(name for name, _ in headers)
        tail = b"".join(b"%s:%s\n" % header for header in headers) + b"\n%s\n%s" % (names, payload)
        lines = b"".join(b"%s: %s\r\n" % header for header in headers)
        credential = b"%s/%s" % (self._access_key, self._scope)
        start = b"authorization: AWS4-HMAC-SHA256 Credential=%s, SignedHeaders=%s, Signature=" % (credential, names)
        return tail, lines + start

    def __call__(self, request: Request) -> bytes:
        """The head of a request, with its blank line."""
        second = int(self._clock())
        if second != self._second:
            self._renew(second)
        content, body, length, payload = request.content, request.body, -1, EMPTY
        if content is not None:
            length = request.end - request.begin
            payload = _digest(content, request.begin, request.end) if self._payloads else UNSIGNED
        elif body is not None:
            length = len(body)
            payload = hashlib.sha256(body).hexdigest().encode() if self._payloads else UNSIGNED
        usual = self._usual.get(payload) if not request.extra else None
        tail, lines = usual if usual is not None else self._fixed(payload, request.extra)
        return self._signer.head(request.method, request.path, request.query, tail, lines, length)


def _digest(content: Content, begin: int, end: int) -> bytes:
    """Hex SHA-256 of a stretch of a content."""
    digests = Digests(("sha256",))
    for piece in content.pieces(begin, end):
        digests.update(piece)
    return digests.results()["sha256"].hex().encode()
