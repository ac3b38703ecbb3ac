"""TLS clients in the test's hands: one whose bytes can be cut and delayed, and records of TLS 1.3 that no library would send."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from net_harness import Rig

from tests.support.certificates import Pair

ALERT, HANDSHAKE, APPLICATION_DATA = 21, 22, 23  # kinds of records (RFC 8446, 5.1)


class ByHand:
    """A client whose TLS is in the test's hands: what it sends can be cut, delayed, or ended in one direction."""

    def __init__(self, context: ssl.SSLContext, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.incoming, self.outgoing, server_hostname="localhost")
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, running: Rig, context: ssl.SSLContext, *, receive_bytes: int | None = None) -> ByHand:
        plain = await running.client(receive_bytes=receive_bytes)
        client = cls(context, plain.reader, plain.writer)
        while True:
            try:
                client.tls.do_handshake()
                client.writer.write(client.outgoing.read())
                return client
            except ssl.SSLWantReadError:
                client.writer.write(client.outgoing.read())
                client.incoming.write(await client.reader.read(65536))

    def sealed(self, data: bytes) -> bytes:
        self.tls.write(data)
        return self.outgoing.read()

    def closing_alert(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.tls.unwrap()
        return self.outgoing.read()

    async def rest(self, *, stop: bytes | None = None, pace_s: float = 0.0) -> bytes:
        """Everything until the server's closing alert, or until it ends with `stop`. Raises SSLError or ConnectionError where that does
        not come. `pace_s`: to wait before each read."""
        found = bytearray()
        async with asyncio.timeout(60):
            while stop is None or not found.endswith(stop):
                try:
                    data = self.tls.read(65536)
                except ssl.SSLWantReadError:
                    await asyncio.sleep(pace_s)
                    raw = await self.reader.read(65536)
                    if not raw:
                        raise ConnectionError("the end of the stream without TLS's own") from None
                    self.incoming.write(raw)
                    continue
                except ssl.SSLZeroReturnError:
                    return bytes(found)
                if not data:
                    return bytes(found)
                found += data
        return bytes(found)


class Records:
    """The sending side of a TLS 1.3 client after its handshake, record by record (RFC 8446, 5 and 7)."""

    def __init__(self, secret: bytes, cipher: str) -> None:
        self._hash = hashes.SHA384() if cipher.endswith("SHA384") else hashes.SHA256()
        self._key_bytes = 32 if "256_GCM" in cipher else 16
        self._use(secret)

    @classmethod
    async def connect(cls, running: Rig, pair: Pair, folder: Path) -> tuple[ByHand, Records]:
        context = pair.client("http/1.1")
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.keylog_filename = str(folder / "keys")
        client = await ByHand.connect(running, context)
        lines = (folder / "keys").read_text().splitlines()  # of all connections so far
        secret = next(line.split()[2] for line in reversed(lines) if line.startswith("CLIENT_TRAFFIC_SECRET_0"))
        found = client.tls.cipher()
        assert found is not None
        return client, cls(bytes.fromhex(secret), found[0])

    def record(self, kind: int, data: bytes) -> bytes:
        inner = data + bytes([kind])
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        nonce = (int.from_bytes(self._iv, "big") ^ self._count).to_bytes(12, "big")
        self._count += 1
        return head + self._key.encrypt(nonce, inner, head)

    def key_update(self, *, requested: bool = False) -> bytes:
        """`requested`: the other side is to renew its key, too, and say so."""
        data = self.record(HANDSHAKE, bytes([24, 0, 0, 1, requested]))
        self._use(self._derived(self._secret, b"traffic upd", self._hash.digest_size))
        return data

    def _use(self, secret: bytes) -> None:
        self._secret, self._count = secret, 0
        self._key = AESGCM(self._derived(secret, b"key", self._key_bytes))
        self._iv = self._derived(secret, b"iv", 12)

    def _derived(self, secret: bytes, label: bytes, size: int) -> bytes:
        name = b"tls13 " + label
        return HKDFExpand(self._hash, size, size.to_bytes(2, "big") + bytes([len(name)]) + name + b"\0").derive(secret)
