"""Heads that no client should send, and clients that send them slowly: a clear refusal, then the connection ends."""

from __future__ import annotations

import contextlib
import socket

import psutil
import pytest

from tests.integration.bad_input.conftest import World
from tests.support.impatient_worker import BODY_S, HEADER_S
from tests.support.node import wait_until
from tests.support.rawclient import Wire, exchange, raw_head

PUT = b"PUT /attacked/smuggled HTTP/1.1\r\nHost: h\r\n"
GET = b"GET /attacked/kept HTTP/1.1\r\nHost: h\r\n"
BAD = (400, "BadRequest")
UNKNOWN = (501, "NotImplemented")
VERSION = (505, "HttpVersionNotSupported")
TOO_LARGE = (400, "RequestHeaderSectionTooLarge")

# Whatever two parsers could frame differently, or read differently, is refused (RFC 9112, 6.1-6.3, 11.2).
REFUSED = {
    "both lengths": (PUT + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    "two lengths": (PUT + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", BAD),
    "the same length twice": (PUT + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", BAD),
    "a list of lengths": (PUT + b"Content-Length: 5, 5\r\n\r\nhello", BAD),
    "a length with a sign": (PUT + b"Content-Length: +5\r\n\r\nhello", BAD),
    "a negative length": (PUT + b"Content-Length: -5\r\n\r\nhello", BAD),
    "a hexadecimal length": (PUT + b"Content-Length: 0x5\r\n\r\nhello", BAD),
    "an endless length": (PUT + b"Content-Length: 99999999999999999999999\r\n\r\nhello", BAD),
    "two codings": (PUT + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n", BAD),
    "chunked twice": (PUT + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    "an unknown coding": (PUT + b"Transfer-Encoding: xchunked\r\n\r\n", UNKNOWN),
    "a list of codings": (PUT + b"Transfer-Encoding: identity, chunked\r\n\r\n", UNKNOWN),
    "a space before the colon": (PUT + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n", BAD),
    "a vertical tab in the coding": (PUT + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n", BAD),
    "a folded coding": (PUT + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", BAD),
    "a coding in HTTP/1.0": (PUT.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", BAD),
    "a folded line": (GET + b"X: a\r\n b\r\n\r\n", BAD),
    "a bare line feed": (GET.replace(b"\r\n", b"\n") + b"\n", BAD),
    "one bare line feed": (GET + b"X: a\nY: b\r\n\r\n", BAD),
    "a bare carriage return": (GET + b"X: a\rY: b\r\n\r\n", BAD),
    "NUL in a value": (GET + b"X: a\0b\r\n\r\n", BAD),
    "a control character in a value": (GET + b"X: a\x01b\r\n\r\n", BAD),
    "a header without a name": (GET + b": b\r\n\r\n", BAD),
    "a space in a name": (GET + b"a b: b\r\n\r\n", BAD),
    "white space before the first header": (b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", BAD),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", BAD),
    "two hosts": (GET + b"Host: i\r\n\r\n", BAD),
    "a path in the host": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", BAD),
    "a user in the host": (b"GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", BAD),
    "two host names": (b"GET http://x/ HTTP/1.1\r\nHost: h\r\n\r\n", BAD),
    "a fragment": (b"GET /#f HTTP/1.1\r\nHost: h\r\n\r\n", BAD),
    "a space in the target": (b"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", BAD),
    "a raw byte in the target": (b"GET /attacked/\xff HTTP/1.1\r\nHost: h\r\n\r\n", BAD),
    "an asterisk": (b"GET * HTTP/1.1\r\nHost: h\r\n\r\n", BAD),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", BAD),
    "NULs": (b"\0\0\0\0", BAD),
    "PRI as a method": (b"PRI * HTTP/1.1\r\nHost: h\r\n\r\n", BAD),
    "HTTP/0.9": (b"GET /\r\n\r\n", VERSION),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", VERSION),
    "HTTP/2.0 as text": (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", VERSION),
    "a proxy request": (b"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", UNKNOWN),
    "an unknown method": (b"BREW / HTTP/1.1\r\nHost: h\r\n\r\n", UNKNOWN),
    "another expectation": (PUT + b"Expect: 200-ok\r\nContent-Length: 1\r\n\r\na", (417, "ExpectationFailed")),
    "10,000 headers": (GET + b"".join(b"a%d: b\r\n" % i for i in range(10_000)) + b"\r\n", TOO_LARGE),
    "101 headers": (GET + b"".join(b"a%d: b\r\n" % i for i in range(100)) + b"\r\n", TOO_LARGE),
    "an endless header": (GET + b"a: " + b"b" * 2_000_000, TOO_LARGE),
    "an endless target": (b"GET /" + b"k" * 17_000 + b" HTTP/1.1\r\nHost: h\r\n\r\n", TOO_LARGE),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused_heads(world: World, name: str) -> None:
    data, expected = REFUSED[name]
    smuggled = b"GET /attacked/kept HTTP/1.1\r\nHost: h\r\n\r\n"
    with Wire(world.node.port) as wire:
        wire.send(data + smuggled)
        answer = wire.answer()
        assert answer.face == expected
        assert answer.headers["content-type"] == "application/xml"
        assert answer.headers["connection"] == "close"
        assert len(answer.headers["x-amz-request-id"]) == 16
        assert b"Traceback" not in answer.body and b".py" not in answer.body
        assert wire.closed(), "what follows a refused head is no request"


def test_pipelined_garbage_ends_the_connection_after_the_good_answers(world: World) -> None:
    with Wire(world.node.port) as wire:
        wire.send(world.own.head("GET", "/attacked/kept") * 2 + b"garbage\r\n\r\n" + world.own.head("GET", "/second/kept"))
        assert [wire.answer().body, wire.answer().body] == [b"old", b"old"]
        assert wire.answer().face == BAD
        assert wire.closed()


@pytest.mark.parametrize("method", ["TRACE", "PATCH", "PROPFIND"])
def test_methods_that_s3_has_not(world: World, method: str) -> None:
    answer = world.own(method, "/attacked/kept")
    assert answer.face == (405, "MethodNotAllowed")
    assert answer.headers["allow"] == "DELETE, GET, HEAD, OPTIONS, PUT"


def test_upgrades_are_never_honoured(world: World) -> None:
    upgrade = [("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", "AAMAAABkAAQAAP__")]
    with Wire(world.node.port) as wire:
        wire.send(raw_head("GET", "/", [("Host", "h"), *upgrade]) + world.own.head("GET", "/attacked/kept"))
        assert (wire.answer().status, wire.answer().body) == (200, b"old"), "the connection goes on in HTTP/1.1"


def test_http_1_0_without_host(world: World) -> None:
    with Wire(world.node.port) as wire:
        wire.send(b"GET / HTTP/1.0\r\n\r\n")
        assert wire.answer().body == b"OK\n"
        assert wire.closed()


def test_a_head_that_drips_is_answered_408(world: World) -> None:
    with Wire(world.node.port) as wire:
        wire.send(GET + b"X-Slow: ")
        assert wire.answer().face == (408, "RequestTimeout")
        assert wire.closed()


def test_silence_is_closed_without_a_word(world: World) -> None:
    with Wire(world.node.port) as wire:
        assert wire.closed()


def test_a_stalled_body_is_answered_and_nothing_becomes_visible(world: World) -> None:
    with Wire(world.node.port) as wire:
        wire.send(world.own.head("PUT", "/attacked/kept", unsigned=[("content-length", "100000")]) + b"new")
        assert wire.answer().face == (400, "RequestTimeout")
        assert wire.closed()
    assert world.own("GET", "/attacked/kept").body == b"old"


def test_a_body_that_drips_is_answered(world: World) -> None:
    """One byte now and then keeps no connection: the rate counts, not the silence."""
    with Wire(world.node.port) as wire, contextlib.suppress(OSError):
        wire.send(world.own.head("PUT", "/attacked/kept", unsigned=[("content-length", "100000")]))
        wire.socket.settimeout(0.2)
        for _ in range(int(4 * (BODY_S + HEADER_S) / 0.2)):
            wire.socket.send(b"x")
            try:
                data = wire.socket.recv(1 << 16)
            except TimeoutError:
                continue
            assert b"400 Bad Request" in data and b"RequestTimeout" in data
            break
        else:
            raise AssertionError("still listened to")
    assert world.own("GET", "/attacked/kept").body == b"old"


def test_cve_2022_31028_idle_connections_leave_room_for_others(world: World) -> None:
    """Silent ones, half heads, finished requests: hundreds of them, and everybody else is served; then they are closed."""
    worker = psutil.Process(world.node.worker_pids[0])
    before = worker.num_fds()
    with contextlib.ExitStack() as stack:
        for index in range(600):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", world.node.port), 20))
            one.sendall((b"", b"GET / HTTP/1.1\r\nX: ", b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")[index % 3])
        assert world.own("GET", "/attacked/kept").body == b"old"
        wait_until("the idle are closed", lambda: worker.num_fds() < before + 20)


def test_grpc_over_http_1_1_is_told_what_to_configure(world: World) -> None:
    head = raw_head(
        "POST", "/anvil.v1.Objects/Get", [("Host", "h"), ("Content-Type", "application/grpc"), ("Content-Length", "0")]
    )
    answer = exchange(world.node.port, head)
    assert (answer.status, answer.headers["grpc-status"], answer.body) == (200, "12", b"")
