"""The client against servers that misbehave: whatever happens to a request, its script is told once, and the next request is sent."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, cast

import pytest
import uvloop

from anvil.base.errors import Unavailable
from anvil.bench import http
from anvil.bench.content import contents
from anvil.bench.exchange import Answer, Request, now_ns
from anvil.bench.http import Client, Park, Script, Wait
from anvil.bench.sign import Signer
from anvil.bench.sizes import parse_sizes
from tests.support.ports import free_port

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
KIB = 1024


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """The head of the next request; its body is read, too."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        if line.startswith(b"content-length: "):
            await reader.readexactly(int(line[16:]))
    return head


def with_server(serve: Serve, work: Callable[[Client], Awaitable[Any]], timeout_s: float = 60.0) -> Any:
    """Run `work` with a client of a server, whose connections `serve` is given with their number."""

    async def main() -> Any:
        numbers = count()

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer, next(numbers))
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        client = Client("127.0.0.1", port, None, Signer("AKID", "secret", "r", "h"), timeout_s)
        try:
            async with asyncio.timeout(20):
                await client.open(1)
                return await work(client)
        finally:
            await client.close()
            server.close()

    return uvloop.run(main())


async def twice(client: Client) -> list[Answer]:
    return [await client.ask(Request(b"GET", b"/b/k")) for _ in range(2)]


def then_good(first: Callable[[asyncio.StreamWriter], Awaitable[None]]) -> Serve:
    """The first connection does that to its request; the others serve."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            await request_of(reader)
            if number == 0:
                await first(writer)
                return
            writer.write(OK)

    return serve


async def closes(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")


async def resets(writer: asyncio.StreamWriter) -> None:
    sock = cast(socket.socket, writer.get_extra_info("socket"))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def babbles(writer: asyncio.StreamWriter) -> None:
    writer.write(b"220 mail.example.com ESMTP\r\n\r\n")
    await writer.drain()
    await asyncio.sleep(5)


async def says_too_much(writer: asyncio.StreamWriter) -> None:
    writer.write(OK + b"!")
    await writer.drain()
    await asyncio.sleep(5)


async def is_silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(5)


@pytest.mark.parametrize(
    ("fault", "kinds"),
    [
        (closes, {http.CLOSED}),
        (resets, {http.RESET, http.CLOSED}),  # the loop may see the end before the reset
        (babbles, {http.MALFORMED}),
        (says_too_much, {http.MALFORMED}),
        (is_silent, {http.LATE}),
    ],
)
def test_a_connection_that_breaks_is_made_anew(fault: Callable[[asyncio.StreamWriter], Awaitable[None]], kinds: set[str]) -> None:
    bad, good = with_server(then_good(fault), twice, timeout_s=0.5)
    assert (bad.status, bad.body) == (0, b"") and bad.code in kinds
    assert (good.status, good.code, good.body) == (200, "", b"ok")
    assert bad.begun_ns < bad.ended_ns <= good.begun_ns < good.ended_ns <= now_ns()


def test_an_answer_in_small_pieces() -> None:
    content = contents(1, parse_sizes("3KiB")).of(b"k")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            head = await request_of(reader)
            assert head.startswith(b"GET /b/k HTTP/1.1\r\n") and b"Signature=" in head
            data = b"HTTP/1.1 200 OK\r\nContent-Length: 3072\r\n\r\n" + content.whole()
            for at in range(0, len(data), 700):
                writer.write(data[at : at + 700])
                await asyncio.sleep(0.002)

    async def work(client: Client) -> list[Answer]:
        return [await client.ask(Request(b"GET", b"/b/k", expect=content)) for _ in range(3)]

    assert [(one.status, one.code, one.damage) for one in with_server(serve, work)] == [(200, "", "")] * 3


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda whole: whole[:100] + bytes([whole[100] ^ 1]) + whole[101:], "other bytes between 0 and 3072"),
        (lambda whole: whole[:-1], "3071 bytes instead of 3072"),
        (lambda whole: whole + b"x", "more than 3072 bytes"),
        (lambda whole: b"", "0 bytes instead of 3072"),
    ],
)
def test_what_is_read_is_compared(change: Callable[[bytes], bytes], says: str) -> None:
    content = contents(1, parse_sizes("3KiB")).of(b"k")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        body = change(content.whole())
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        await writer.drain()
        await reader.read()

    answer = with_server(serve, lambda client: client.ask(Request(b"GET", b"/b/k", expect=content)))
    assert (answer.status, answer.code, answer.damage) == (200, "", says)


def test_a_status_that_was_not_expected_is_damage() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n\r\nx")
        await reader.read()

    content = contents(1, parse_sizes("1")).of(b"k")
    answer = with_server(serve, lambda client: client.ask(Request(b"GET", b"/b/k", expect=content)))
    assert answer.damage == "status 206 instead of 200"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (b"HTTP/1.1 503 X\r\nContent-Length: 33\r\n\r\n<Error><Code>SlowDown</Code></Err", "SlowDown"),
        (b"HTTP/1.1 503 X\r\nContent-Length: 4\r\n\r\noops", "HTTP 503"),
        (b"HTTP/1.1 301 X\r\nContent-Length: 0\r\n\r\n", "HTTP 301"),
        (b"HTTP/1.1 403 X\r\nTransfer-Encoding: chunked\r\n\r\n19\r\n<Code>AccessDenied</Code>\r\n0\r\n\r\n", "AccessDenied"),
    ],
)
def test_errors_have_their_code(answer: bytes, code: str) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(answer)
        await reader.read()

    told = with_server(serve, lambda client: client.ask(Request(b"GET", b"/b/k")))
    assert told.code == code and told.status == int(answer[9:12])


def test_an_answer_before_the_end_of_the_body() -> None:
    """The rest is not sent: it would be taken for the next request."""
    content = contents(1, parse_sizes("64MiB")).of(b"k")
    heads: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 403 X\r\nContent-Length: 25\r\n\r\n<Code>AccessDenied</Code>" if number == 0 else OK)
        await writer.drain()
        if number:
            await reader.read()
        else:
            await asyncio.sleep(0.3)

    async def work(client: Client) -> list[Answer]:
        return [await client.ask(Request(b"PUT", b"/b/k", content=content)), await client.ask(Request(b"GET", b"/b/k"))]

    refused, good = with_server(serve, work)
    assert (refused.code, good.body) == ("AccessDenied", b"ok")
    assert [head.split(b" ")[0] for head in heads] == [b"PUT", b"GET"]


def test_large_bodies_arrive_as_they_are() -> None:
    content = contents(1, parse_sizes("9MiB")).of(b"k")
    got: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.split(b"content-length: ")[1].split(b"\r\n")[0])
        await asyncio.sleep(0.05)  # the socket's buffers are full meanwhile
        got.append(await reader.readexactly(length))
        writer.write(OK)
        await reader.read()

    async def work(client: Client) -> Answer:
        return await client.ask(Request(b"PUT", b"/b/k", content=content, begin=5, end=content.size - 7))

    assert with_server(serve, work).code == ""
    assert got == [content.whole()[5:-7]]


def test_a_connection_that_the_server_closes_after_each_answer() -> None:
    ends = b"HTTP/1.1 200 OK\r\n\r\nuntil the end"
    says = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 1\r\n\r\nx"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(ends if number % 2 else says)

    async def work(client: Client) -> list[bytes]:
        return [(await client.ask(Request(b"GET", b"/b/k"))).body for _ in range(6)]

    assert with_server(serve, work) == [b"x", b"until the end"] * 3


def test_nobody_listens() -> None:
    async def main() -> None:
        client = Client("127.0.0.1", free_port(), None, Signer("AKID", "secret", "r", "h"))
        try:
            with pytest.raises(Unavailable, match=http.REFUSED):
                await client.open(3)
        finally:
            await client.close()

    uvloop.run(main())


def test_scripts_wait_and_wake_each_other() -> None:
    park, told = Park(), list[str]()

    def waits() -> Script:
        told.append("parked")
        yield park
        told.append("woken")
        answer = yield Request(b"GET", b"/b/k", due_ns=5)
        assert answer is not None and answer.begun_ns == 5  # from when it was due

    def wakes() -> Script:
        due = now_ns() + 20_000_000
        yield Wait(due)
        assert now_ns() - due >= 0
        told.append("waited")
        park.wake()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        while True:
            await request_of(reader)
            writer.write(OK)

    async def work(client: Client) -> None:
        await client.open(2)
        await client.run([waits(), wakes()])

    with_server(serve, work)
    assert told == ["parked", "waited", "woken"]


def test_what_is_cut_is_told() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        await reader.read()

    async def work(client: Client) -> Answer:
        asking = asyncio.create_task(client.ask(Request(b"GET", b"/b/k")))
        await asyncio.sleep(0.1)
        client.cut()
        return await asking

    answer = with_server(serve, work)
    assert (answer.status, answer.code) == (0, http.UNFINISHED)


def test_what_a_script_raises_ends_the_run() -> None:
    def fails() -> Script:
        yield Request(b"GET", b"/b/k")
        raise Unavailable("enough")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        await request_of(reader)
        writer.write(OK)
        await reader.read()

    with pytest.raises(Unavailable, match="enough"):
        with_server(serve, lambda client: client.run([fails()]))
