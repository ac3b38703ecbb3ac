"""Bodies that are not what was said about them: each refused with its own code, nothing visible, the old version intact."""

from __future__ import annotations

import base64
import hashlib
import zlib
from collections.abc import Callable

import pytest

from anvil.auth.sigv4 import derive_key
from anvil.wire.awschunked_reference import Signer, encode
from tests.integration.bad_input.conftest import World
from tests.support.node import wait_until
from tests.support.rawclient import Answer, Client, Wire, exchange, raw_head, sha256

OLD, NEW = b"old", b"a new version of it"
SIGNED = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
CRC32 = base64.b64encode(zlib.crc32(NEW).to_bytes(4, "big")).decode()
WRONG_CRC = base64.b64encode(zlib.crc32(OLD).to_bytes(4, "big")).decode()
LARGE = bytes(range(256)) * 1024  # in segments and in more than one read


def md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def put(world: World, headers: dict[str, str], payload_hash: str = "UNSIGNED-PAYLOAD", body: bytes = NEW) -> Answer:
    return world.own("PUT", "/attacked/kept", body, headers, payload_hash)


STATED = {
    "another MD5": ({"content-md5": md5(OLD)}, "UNSIGNED-PAYLOAD", "BadDigest"),
    "no MD5": ({"content-md5": "x"}, "UNSIGNED-PAYLOAD", "InvalidDigest"),
    "a hexadecimal MD5": ({"content-md5": hashlib.md5(NEW).hexdigest()}, "UNSIGNED-PAYLOAD", "InvalidDigest"),
    "another SHA-256": ({}, sha256(OLD), "XAmzContentSHA256Mismatch"),
    "no SHA-256": ({}, "z" * 64, "InvalidArgument"),
    "another CRC-32": ({"x-amz-checksum-crc32": WRONG_CRC}, "UNSIGNED-PAYLOAD", "BadDigest"),
    "another CRC-32C": ({"x-amz-checksum-crc32c": WRONG_CRC}, "UNSIGNED-PAYLOAD", "BadDigest"),
    "another SHA-1": ({"x-amz-checksum-sha1": base64.b64encode(bytes(20)).decode()}, "UNSIGNED-PAYLOAD", "BadDigest"),
    "another CRC-64": ({"x-amz-checksum-crc64nvme": base64.b64encode(bytes(8)).decode()}, "UNSIGNED-PAYLOAD", "BadDigest"),
    "no checksum": ({"x-amz-checksum-crc32": "AAA"}, "UNSIGNED-PAYLOAD", "InvalidRequest"),
    "two checksums": ({"x-amz-checksum-crc32": CRC32, "x-amz-checksum-sha1": "AA"}, "UNSIGNED-PAYLOAD", "InvalidRequest"),
    "a length of chunks without chunks": ({"x-amz-decoded-content-length": "3"}, "UNSIGNED-PAYLOAD", "InvalidRequest"),
    "a trailer without chunks": ({"x-amz-trailer": "x-amz-checksum-crc32"}, "UNSIGNED-PAYLOAD", "InvalidRequest"),
}  # fmt: skip


@pytest.mark.parametrize("size", ["inline", "large"])
@pytest.mark.parametrize("name", STATED)
def test_a_digest_that_is_wrong(world: World, name: str, size: str) -> None:
    headers, payload_hash, code = STATED[name]
    answer = put(world, headers, payload_hash, NEW if size == "inline" else LARGE)
    assert answer.face == (400, code)
    assert world.own("GET", "/attacked/kept").body == OLD
    assert world.own("PUT", "/attacked/fresh", NEW, headers, payload_hash).status == 400
    assert world.own("GET", "/attacked/fresh").face == (404, "NoSuchKey")


def with_trailer(
    world: World, trailer: str, length: int | str = len(NEW), name: str = "x-amz-checksum-crc32", end: str = ""
) -> Answer:
    body = b"%x\r\n%b\r\n0\r\n" % (len(NEW), NEW) + trailer.encode() + b"\r\n" + end.encode()
    headers = {"x-amz-trailer": name, "x-amz-decoded-content-length": str(length), "content-encoding": "aws-chunked"}
    return put(world, headers, UNSIGNED_TRAILER, body)


TRAILERS: dict[str, tuple[Callable[[World], Answer], str]] = {
    "another value": (lambda w: with_trailer(w, f"x-amz-checksum-crc32:{WRONG_CRC}\r\n"), "BadDigest"),
    "no value": (lambda w: with_trailer(w, "x-amz-checksum-crc32:\r\n"), "InvalidRequest"),
    "it does not come": (lambda w: with_trailer(w, ""), "InvalidRequest"),
    "another comes": (lambda w: with_trailer(w, "x-amz-checksum-sha1:AAAA\r\n"), "InvalidRequest"),
    "it comes twice": (lambda w: with_trailer(w, f"x-amz-checksum-crc32:{CRC32}\r\n" * 2), "InvalidRequest"),
    "an unknown one is announced": (lambda w: with_trailer(w, "x-foo:1\r\n", name="x-foo"), "InvalidRequest"),
    "the length is too long": (lambda w: with_trailer(w, f"x-amz-checksum-crc32:{CRC32}\r\n", len(NEW) + 1), "IncompleteBody"),
    "the length is too short": (lambda w: with_trailer(w, f"x-amz-checksum-crc32:{CRC32}\r\n", len(NEW) - 1), "IncompleteBody"),
    "the length is beyond the body": (lambda w: with_trailer(w, "", 10**15), "InvalidRequest"),
    "the length is negative": (lambda w: with_trailer(w, "", -1), "InvalidArgument"),
    "the length is endless": (lambda w: with_trailer(w, "", "9" * 5000), "InvalidArgument"),
    "something follows": (lambda w: with_trailer(w, f"x-amz-checksum-crc32:{CRC32}\r\n", end="more"), "InvalidRequest"),
    "an endless trailer": (lambda w: with_trailer(w, "x-amz-checksum-crc32:" + "A" * 100_000 + "\r\n"), "InvalidRequest"),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAILERS)
def test_trailers_and_lengths(world: World, name: str) -> None:
    send, code = TRAILERS[name]
    assert send(world).face == (400, code)
    assert world.own("GET", "/attacked/kept").body == OLD


def signed_chunks(client: Client, target: str, spoil: Callable[[bytes], bytes]) -> Answer:
    """Five signed chunks of 64 KiB, spoiled."""
    chunks = [bytes([number]) * 65536 for number in range(5)]
    headers = {"x-amz-decoded-content-length": str(5 * 65536), "content-encoding": "aws-chunked"}
    signed = client.headers("PUT", target, headers, SIGNED)
    when, region = signed["x-amz-date"], client.node.region
    key = derive_key(client.secret, when[:8].encode(), region.encode(), b"s3")
    signer = Signer(key, signed["authorization"].rpartition("Signature=")[2], when, f"{when[:8]}/{region}/s3/aws4_request")
    body = spoil(encode(chunks, signer))
    head = raw_head("PUT", target, [*signed.items(), ("content-length", str(len(body)))])
    return exchange(client.node.port, head + body)


def flip(body: bytes, at: int) -> bytes:
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


def signature_of(body: bytes, number: int) -> int:
    """Where the signature of that chunk begins."""
    at = -1
    for _ in range(number + 1):
        at = body.index(b"chunk-signature=", at + 1)
    return at + len(b"chunk-signature=")


@pytest.mark.parametrize("chunk", [0, 2, 4, 5])
def test_a_flipped_chunk_signature(world: World, chunk: int) -> None:
    """The first, a middle one, the last with data, and the empty one that ends the body."""
    answer = signed_chunks(world.own, "/attacked/kept", lambda body: flip(body, signature_of(body, chunk)))
    assert answer.face == (403, "SignatureDoesNotMatch")
    assert world.own("GET", "/attacked/kept").body == OLD


SPOILED: dict[str, tuple[Callable[[bytes], bytes], tuple[int, str]]] = {
    "a byte of data": (lambda body: flip(body, body.index(b"\r\n") + 5), (403, "SignatureDoesNotMatch")),
    "cut before the last chunk": (lambda body: body[: body.rindex(b"0;chunk")], (400, "IncompleteBody")),
    "a chunk less": (lambda body: body[: body.rindex(b"10000;")] + body[body.rindex(b"0;chunk") :], (400, "InvalidRequest")),
    "no signature": (lambda body: body.replace(b";chunk-signature=", b";chunk-signaturf=", 1), (400, "InvalidRequest")),
    "a size that is none": (lambda body: b"x" + body[1:], (400, "InvalidRequest")),
    "a size beyond the length": (lambda body: b"f" + body[1:], (400, "IncompleteBody")),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILED)
def test_spoiled_chunks(world: World, name: str) -> None:
    spoil, expected = SPOILED[name]
    assert signed_chunks(world.own, "/attacked/kept", spoil).face == expected
    assert world.own("GET", "/attacked/kept").body == OLD


def test_signed_chunks_unspoiled_are_stored(world: World) -> None:
    """So that the tests above fail for the reason they name."""
    assert signed_chunks(world.own, "/attacked/chunks", lambda body: body).status == 200
    assert len(world.own("GET", "/attacked/chunks").body) == 5 * 65536


CHUNKED = {
    "no payload length": ({}, b"3\r\nabc\r\n0\r\n\r\n", (411, "MissingContentLength")),
    "fewer bytes": ({"x-amz-decoded-content-length": "4"}, b"3\r\nabc\r\n0\r\n\r\n", (400, "IncompleteBody")),
    "more bytes": ({"x-amz-decoded-content-length": "2"}, b"3\r\nabc\r\n0\r\n\r\n", (400, "InvalidRequest")),
    "a space behind the size": ({"x-amz-decoded-content-length": "3"}, b"3 \r\nabc\r\n0\r\n\r\n", (400, "InvalidRequest")),
    "a sign": ({"x-amz-decoded-content-length": "3"}, b"+3\r\nabc\r\n0\r\n\r\n", (400, "InvalidRequest")),
    "0x": ({"x-amz-decoded-content-length": "3"}, b"0x3\r\nabc\r\n0\r\n\r\n", (400, "InvalidRequest")),
    "an overflowing size": ({"x-amz-decoded-content-length": "3"}, b"1" + b"0" * 16 + b"3\r\nabc\r\n0\r\n\r\n", (400, "InvalidRequest")),
    "line feeds alone": ({"x-amz-decoded-content-length": "3"}, b"3\nabc\n0\n\n", (400, "InvalidRequest")),
    "a chunk longer than its size": ({"x-amz-decoded-content-length": "3"}, b"2\r\nabc\r\n0\r\n\r\n", (400, "InvalidRequest")),
    "endless extensions": (
        {"x-amz-decoded-content-length": "3000"}, (b"1;" + b"x" * 1000 + b"\r\na\r\n") * 3000 + b"0\r\n\r\n", (400, "InvalidRequest")
    ),
    "endless trailers": (
        {"x-amz-decoded-content-length": "3"}, b"3\r\nabc\r\n0\r\n" + b"a: b\r\n" * 3000 + b"\r\n", (400, "InvalidRequest")
    ),
    "a folded trailer": ({"x-amz-decoded-content-length": "3"}, b"3\r\nabc\r\n0\r\na: b\r\n c\r\n\r\n", (400, "InvalidRequest")),
}  # fmt: skip


FRAMED = ("fewer bytes", "more bytes")  # the coding is sound, so the connection goes on


@pytest.mark.parametrize("name", CHUNKED)
def test_transfer_chunks(world: World, name: str) -> None:
    headers, body, expected = CHUNKED[name]
    head = world.own.head("PUT", "/attacked/kept", headers, unsigned=[("transfer-encoding", "chunked")])
    with Wire(world.node.port) as wire:
        wire.send(head + body + world.own.head("GET", "/second/kept"))
        assert wire.answer().face == expected
        if name in FRAMED:
            assert wire.answer().body == b"second"
        else:
            assert wire.closed(), "nobody knows where the next request begins"
    assert world.own("GET", "/attacked/kept").body == OLD


def test_extensions_and_trailers_of_chunks_are_no_payload_and_no_headers(world: World) -> None:
    headers = {"x-amz-decoded-content-length": "3"}
    head = world.own.head("PUT", "/attacked/fine", headers, unsigned=[("transfer-encoding", "chunked")])
    body = b'3;name="a"\r\nabc\r\n0\r\nx-amz-meta-smuggled: 1\r\n\r\n'
    assert exchange(world.node.port, head + body).status == 200
    answer = world.own("GET", "/attacked/fine")
    assert (answer.body, "x-amz-meta-smuggled" in answer.headers) == (b"abc", False)


def test_no_length_at_all(world: World) -> None:
    assert exchange(world.node.port, world.own.head("PUT", "/attacked/kept")).face == (411, "MissingContentLength")


def test_five_gibibytes_and_one_are_refused_before_a_byte_is_sent(world: World) -> None:
    for extra in ([], [("expect", "100-continue")]):
        head = world.own.head("PUT", "/attacked/kept", unsigned=[("content-length", str(5 * 2**30 + 1)), *extra])
        assert exchange(world.node.port, head).face == (400, "EntityTooLarge")


def test_continue_is_not_said_to_who_may_not(world: World) -> None:
    """Authenticated on headers, before 100 Continue: a refused upload is not even begun (RFC 9110, 10.1.1)."""
    for client, face in ((world.reader, (403, "AccessDenied")), (world.other, (404, "NoSuchBucket"))):
        with Wire(world.node.port) as wire:
            framing = [("content-length", "1000000"), ("expect", "100-continue")]
            wire.send(client.head("PUT", "/attacked/kept", unsigned=framing))
            raw = wire.socket.recv(12)
            assert raw != b"HTTP/1.1 100"
            wire._held = raw
            assert wire.answer().face == face


@pytest.mark.parametrize("phase", ["amid the head", "after the head", "amid the body", "before the last byte", "after the body"])
@pytest.mark.parametrize("size", [1000, 50_000, 3_000_000])
def test_a_client_that_leaves(world: World, phase: str, size: int) -> None:
    """In whatever phase of its PUT: the old version stays, or (all was sent) the new one is whole."""
    body = b"n" * size
    target = f"/attacked/left-{size}"
    assert world.own("PUT", target, OLD).status == 200
    head = world.own.head("PUT", target, unsigned=[("content-length", str(size))])
    sent = {
        "amid the head": head[:-30],
        "after the head": head,
        "amid the body": head + body[: size // 2],
        "before the last byte": head + body[:-1],
        "after the body": head + body,
    }[phase]
    with Wire(world.node.port) as wire:
        wire.send(sent)
    if phase == "after the body":
        wait_until("it is one or the other", lambda: world.own("GET", target).body in (OLD, body), 2)
    else:
        assert world.own("GET", target).body == OLD
