"""Readable reference for `awschunked.pyx`: the same decoder, a byte at a time.

Owns: nothing; never used by a server. Invariant: written from the format as the S3 documentation gives it, so that equality with
the fast decoder proves something. `encode` makes bodies for tests and tools, as a signing client does. Not here: speed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Generator, Iterable
from typing import NoReturn

from anvil.base.errors import AnvilError, IncompleteBody, InvalidRequest, SignatureMismatch
from anvil.base.limits import CHUNK_HEADER_BYTES_MAX, TRAILER_BYTES_MAX
from anvil.base.types import Buffer

SIGNED_HEADER = re.compile(rb"([0-9A-Fa-f]+);chunk-signature=(.{64})\r\n", re.DOTALL)
UNSIGNED_HEADER = re.compile(rb"([0-9A-Fa-f]+)\r\n")
TRAILER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([ -~\t]*)")  # RFC 9110: token ":" field value
SIGNATURE_TRAILER = "x-amz-trailer-signature"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Signer:
    """The chain of signatures: each chunk's is computed from the one before it."""

    def __init__(self, key: bytes, seed: str, amz_date: str, scope: str) -> None:
        self.key, self.previous, self.amz_date, self.scope = key, seed, amz_date, scope

    def chunk(self, data: bytes) -> str:
        return self._sign("AWS4-HMAC-SHA256-PAYLOAD", _sha256(b""), _sha256(data))

    def trailers(self, canonical: str) -> str:
        return self._sign("AWS4-HMAC-SHA256-TRAILER", _sha256(canonical.encode()))

    def _sign(self, algorithm: str, *hashes: str) -> str:
        to_sign = "\n".join([algorithm, self.amz_date, self.scope, self.previous, *hashes])
        self.previous = hmac.digest(self.key, to_sign.encode(), "sha256").hex()
        return self.previous


def encode(
    chunks: Iterable[bytes],
    signer: Signer | None = None,
    trailers: dict[str, str] | None = None,
    *,
    line_end: str = "\r\n",
    empty_line: bool = False,
) -> bytes:
    """An aws-chunked body. `line_end` ends each trailer; `empty_line`: put one before the trailer signature, as minio-go does."""
    body = bytearray()
    for chunk in [*chunks, b""]:
        extension = f";chunk-signature={signer.chunk(chunk)}" if signer else ""
        body += f"{len(chunk):x}{extension}\r\n".encode() + chunk + (b"\r\n" if chunk else b"")
    if trailers is not None:
        body += "".join(f"{name}:{value}{line_end}" for name, value in trailers.items()).encode()
        if signer:
            signature = signer.trailers("".join(f"{name}:{value}\n" for name, value in trailers.items()))
            body += ("\r\n" if empty_line else "").encode() + f"{SIGNATURE_TRAILER}:{signature}\r\n".encode()
    return bytes(body + b"\r\n")


class ReferenceDecoder:
    """As `anvil.wire.awschunked.ChunkedDecoder`, whose contract holds here too."""

    def __init__(
        self,
        decoded_length: int,
        *,
        signing_key: bytes | None = None,
        seed_signature: str = "",
        amz_date: str = "",
        scope: str = "",
        trailer_names: tuple[str, ...] | None = None,
    ) -> None:
        self.decoded_length = decoded_length
        self.signer = Signer(signing_key, seed_signature, amz_date, scope) if signing_key is not None else None
        self.trailer_names = trailer_names
        self.trailers: dict[str, str] = {}
        self.produced = 0
        self.finished = False
        self._payload_next = False
        self._error: AnvilError | None = None
        self._machine = self._body()
        next(self._machine)

    def decode(self, source: Buffer, target: Buffer) -> tuple[int, int]:
        if self._error:
            raise self._error
        out = memoryview(target)
        consumed = produced = 0
        for byte in bytes(source):
            if self._payload_next:
                if produced == len(out):
                    break
                out[produced] = byte
                produced += 1
                self.produced += 1
            try:
                self._machine.send(byte)
            except AnvilError as error:
                self._error = error
                self.finished = False
                raise
            consumed += 1
        return consumed, produced

    def end(self) -> None:
        if self._error:
            raise self._error
        if not self.finished:
            self._error = IncompleteBody("The body ends early.")
            raise self._error

    # The grammar. Every `yield` is handed the next byte of the body.

    def _body(self) -> Generator[None, int, NoReturn]:
        while True:
            size, claimed = yield from self._header()
            self._payload_next = size > 0
            chunk = bytearray()
            while len(chunk) < size:
                chunk.append((yield))
                self._payload_next = len(chunk) < size
                if len(chunk) == size:
                    self._verify(bytes(chunk), claimed)
            if size == 0:
                self._verify(b"", claimed)
                break
            yield from self._expect(b"\r\n")
        if self.trailer_names is None:
            yield from self._expect(b"\r\n")
            self.finished = True
        else:
            yield from self._trailer_section(self.trailer_names)
            self.finished = True
            yield from self._expect(b"\r\n")  # minio-go
        yield
        raise InvalidRequest("Data follows the end.")

    def _header(self) -> Generator[None, int, tuple[int, str]]:
        line = yield from self._line(CHUNK_HEADER_BYTES_MAX)
        match = (SIGNED_HEADER if self.signer else UNSIGNED_HEADER).fullmatch(line)
        if not match:
            raise InvalidRequest("Malformed chunk header.")
        size = int(match[1], 16)
        left = self.decoded_length - self.produced
        if size > left or (size == 0 and left > 0):
            raise IncompleteBody("The lengths disagree.")
        return size, match[2].decode("latin-1") if self.signer else ""

    def _trailer_section(self, announced: tuple[str, ...]) -> Generator[None, int, None]:
        canonical, length = "", 0
        unsigned_yet, empty_seen = self.signer is not None, False
        while True:
            line = yield from self._line(TRAILER_BYTES_MAX - length)
            length += len(line)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if not line and not unsigned_yet:
                return
            if not line and empty_seen:
                raise InvalidRequest("No trailer signature.")
            if not line:
                empty_seen = True  # minio-go
                continue
            match = TRAILER.fullmatch(line)
            if not match or (self.signer and not unsigned_yet):
                raise InvalidRequest("Malformed trailer.")
            name, value = match[1].decode().lower(), match[2].decode().strip(" \t")
            if "\t" in value:
                raise InvalidRequest("Malformed trailer.")
            if self.signer and name == SIGNATURE_TRAILER:
                if value != self.signer.trailers(canonical):
                    raise SignatureMismatch
                unsigned_yet = False
                continue
            if name not in announced or name in self.trailers:
                raise InvalidRequest("A trailer that was not announced, or twice.")
            self.trailers[name] = value
            canonical += f"{name}:{value}\n"

    def _line(self, limit: int) -> Generator[None, int, bytes]:
        line = bytearray()
        while not line.endswith(b"\n"):
            line.append((yield))
            if len(line) > limit:
                raise InvalidRequest("A line is too long.")
        return bytes(line)

    def _expect(self, wanted: bytes) -> Generator[None, int, None]:
        for char in wanted:
            if (yield) != char:
                raise InvalidRequest("Something else was expected here.")

    def _verify(self, chunk: bytes, claimed: str) -> None:
        if self.signer and self.signer.chunk(chunk) != claimed:
            raise SignatureMismatch
