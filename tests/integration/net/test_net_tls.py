"""The same port behind TLS: large bodies both ways, early answers, half-read connections."""

from __future__ import annotations

import asyncio
import datetime
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from net_harness import Client, get, on_loop, put

from anvil.base.limits import MIB
from anvil.net.server import Listener, serve
from anvil.net.stream import Stream


@pytest.fixture
def contexts(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    certificate = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "both.pem"
    path.write_bytes(private + certificate)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(path)
    client = ssl.create_default_context(cadata=certificate.decode())
    return server, client


async def handler(stream: Stream) -> None:
    if stream.head.path == b"/deny":
        await stream.respond(403, [], b"denied")
        return
    view = memoryview(bytearray(MIB))
    total = 0
    while count := await stream.readinto(view):
        total += count
    stream.start(200, [(b"x-received", b"%d" % total)], 4 * MIB)
    for value in range(4):
        view[:] = bytes([value]) * MIB
        await stream.write(view)
        await stream.flushed()
    await stream.finish()


@on_loop
async def test_tls(contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    server = await serve(handler, [Listener("127.0.0.1", 0, lambda: contexts[0])])
    port = server.addresses[0][1]

    async def connect() -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", port, ssl=contexts[1], server_hostname="localhost"))

    client = await connect()
    for size in (0, 3, 3 * MIB + 1):
        await client.send(put(bytes(size)))
        answer = await client.answer()
        assert answer.headers["x-received"] == str(size)
        assert answer.body == b"".join(bytes([value]) * MIB for value in range(4))
    await client.send(put(bytes(100_000), path=b"/deny") + get())
    assert (await client.answer()).status == 403
    assert (await client.answer()).status == 200
    await client.send(b"BAD\r\n\r\n")
    assert (await client.answer()).status == 400
    assert await client.closed() == b""

    expecting = await connect()
    await expecting.send(get(b"/deny", b"Content-Length: 9", b"Expect: 100-continue", method=b"PUT"))
    assert (await expecting.answer()).headers["connection"] == "close"
    assert await expecting.closed() == b""
    assert await server.drain(5) == 0
