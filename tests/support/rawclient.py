"""A client without manners: bytes to a socket as they are, signed when asked, and answers taken apart.

Owns: what well-behaved clients cannot send. Invariant: nothing is repaired on its way: a target, a header or a length goes out as
the test wrote it. The signer is the node's own (`anvil.auth.presign`), proved against botocore in the unit tests of `auth`.
"""

from __future__ import annotations

import hashlib
import re
import socket
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import NamedTuple, Self

from anvil.auth.presign import presign, sign
from tests.support.node import AnvilNode

TIMEOUT_S = 20.0
_CODE = re.compile(rb"<Error><Code>([^<]*)</Code>")


class Answer(NamedTuple):
    """Header names in lower case; of repeated ones the last."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """S3's error code, "" where the body is no error document."""
        found = _CODE.search(self.body)
        return found[1].decode() if found else ""

    @property
    def face(self) -> tuple[int, str]:
        """Status and code, to be compared at once."""
        return self.status, self.code


class Wire:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._held = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """All of it, or as much as the server takes before it hangs up: an early answer is still to be read."""
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    def _more(self) -> bytes:
        try:
            return self.socket.recv(1 << 16)
        except ConnectionResetError:
            return b""

    def _until(self, mark: bytes) -> bytes:
        while mark not in self._held:
            more = self._more()
            if not more:
                raise ConnectionError(f"the server hung up; before that it said {self._held!r}")
            self._held += more
        head, _, self._held = self._held.partition(mark)
        return head

    def _exactly(self, count: int) -> bytes:
        while len(self._held) < count:
            more = self._more()
            if not more:
                raise ConnectionError("the server hung up amid its answer")
            self._held += more
        data, self._held = self._held[:count], self._held[count:]
        return data

    def answer(self, *, of_head: bool = False) -> Answer:
        """The next final answer, framed as it says. Raises ConnectionError when the server closes instead."""
        while True:
            lines = self._until(b"\r\n\r\n").split(b"\r\n")
            status = int(lines[0].split(b" ")[1])
            headers = {}
            for line in lines[1:]:
                name, _, value = line.partition(b":")
                headers[name.decode().lower()] = value.strip().decode("latin-1")
            if status >= 200:
                break
        if of_head or status in (204, 304):
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._until(b"\r\n"), 16):
                body += self._exactly(size)
                self._exactly(2)
            self._exactly(2)
            return Answer(status, headers, body)
        return Answer(status, headers, self._exactly(int(headers.get("content-length", "0"))))

    def closed(self) -> bool:
        """Whether the server hangs up without another byte. Waits for it."""
        return self._held == b"" and self._more() == b""


class Client:
    """Requests of one app. `access_key` "": anonymous."""

    def __init__(self, node: AnvilNode, access_key: str | None = None, secret: str | None = None) -> None:
        self.node = node
        self.access_key = node.access_key if access_key is None else access_key
        self.secret = node.secret_key if secret is None else secret

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.node.port}"

    def headers(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, payload_hash: str = "UNSIGNED-PAYLOAD"
    ) -> dict[str, str]:
        """Those given, host, and the signature over them."""
        if not self.access_key:
            return {**(headers or {}), "host": self.host}
        url = f"http://{self.host}{target}"
        region = self.node.region
        return sign(method, url, headers, payload_hash, self.access_key, self.secret, region, time.time())

    def presigned(self, method: str, target: str, headers: Mapping[str, str] | None = None, expires_s: int = 600) -> str:
        """The target of a presigned URL."""
        url = f"http://{self.host}{target}"
        made = presign(method, url, self.access_key, self.secret, self.node.region, expires_s, time.time(), headers)
        return made.removeprefix(f"http://{self.host}")

    def head(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str] | None = None,
        payload_hash: str = "UNSIGNED-PAYLOAD",
        unsigned: Iterable[tuple[str, str]] = (),
    ) -> bytes:
        """A signed head; `unsigned` headers are added to it as they are."""
        signed = self.headers(method, target, headers, payload_hash)
        return raw_head(method, target, [*signed.items(), *unsigned])

    def __call__(
        self,
        method: str,
        target: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        payload_hash: str = "UNSIGNED-PAYLOAD",
        unsigned: Iterable[tuple[str, str]] = (),
    ) -> Answer:
        """One signed exchange on a connection of its own."""
        framing = [("content-length", str(len(body)))] if body or method in ("PUT", "POST") else []
        with Wire(self.node.port) as wire:
            wire.send(self.head(method, target, headers, payload_hash, [*framing, *unsigned]) + body)
            return wire.answer(of_head=method == "HEAD")


def raw_head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def exchange(port: int, data: bytes, *, of_head: bool = False) -> Answer:
    """Send bytes, take one answer."""
    with Wire(port) as wire:
        wire.send(data)
        return wire.answer(of_head=of_head)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
