"""A small HTTP/1.1 load generator for the benchmarks: prepared requests over N keep-alive connections, on loopback, bounded in count.

With more than one address (`also`) the connections are dealt out to them in turn, as a balancer of connections does; which request goes
over which connection is a matter of who is ready first.

Owns: nothing but sockets. Requests are complete byte strings made before the clock starts (signing costs more than sending), so the
client takes as little as possible of the two cores it shares with the server. Not here: S3, signatures, servers.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import cycle, islice
from typing import Final, cast

import msgspec
import uvloop

RUN_S_MAX: Final = 300.0
SLICE: Final = 8 << 20  # bytes of a body per send
Address = tuple[str, int]


class Outcome(msgspec.Struct):
    """`seconds` of wall time for `count` answers; latencies in seconds, sorted; `statuses` counts answers by status code."""

    seconds: float
    count: int
    latencies: list[float]
    statuses: dict[int, int]

    @property
    def per_second(self) -> float:
        return self.count / self.seconds

    def percentile(self, share: float) -> float:
        return self.latencies[min(int(len(self.latencies) * share), len(self.latencies) - 1)] if self.latencies else 0.0


class _Connection(asyncio.Protocol):
    def __init__(self, requests: Iterator[bytes], outcome: Outcome, done: asyncio.Event) -> None:
        self._requests = requests
        self._outcome = outcome
        self._done = done
        self._head = b""
        self._left = -1  # body bytes still to come; -1: in the head
        self._sent_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop registers its transports with no abstract class, so isinstance would be wrong
        self._transport = cast(asyncio.Transport, transport)
        self._next()

    def _next(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._transport.close()
            return
        self._sent_at = time.perf_counter()
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        while data or self._left == 0:
            if self._left < 0:
                self._head += data
                end = self._head.find(b"\r\n\r\n")
                if end < 0:
                    return
                head, data = self._head[:end].lower(), self._head[end + 4 :]
                self._head = b""
                status = int(head[9:12])
                self._outcome.statuses[status] = self._outcome.statuses.get(status, 0) + 1
                at = head.find(b"content-length:")
                self._left = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            took = min(self._left, len(data))
            self._left -= took
            data = data[took:]
            if self._left == 0:
                self._left = -1
                self._outcome.count += 1
                self._outcome.latencies.append(time.perf_counter() - self._sent_at)
                self._next()
                return

    def connection_lost(self, exc: Exception | None) -> None:
        self._done.set()


def run(host: str, port: int, requests: Sequence[bytes], connections: int, also: Sequence[Address] = ()) -> Outcome:
    """Send every request once, over `connections` connections with one request in flight each."""
    addresses = cycle([(host, port), *also])

    async def main() -> Outcome:
        outcome = Outcome(0.0, 0, [], {})
        queue = iter(requests)
        events = [asyncio.Event() for _ in range(connections)]
        loop = asyncio.get_running_loop()
        begin = time.perf_counter()
        async with asyncio.timeout(RUN_S_MAX):
            for done in events:
                await loop.create_connection(partial(_Connection, queue, outcome, done), *next(addresses))
            for done in events:
                await done.wait()
        outcome.seconds = time.perf_counter() - begin
        outcome.latencies.sort()
        return outcome

    return uvloop.run(main())


def upload(
    host: str,
    port: int,
    heads: Sequence[bytes],
    body: memoryview,
    streams: int,
    announce: Callable[[int], None] | None = None,
    also: Sequence[Address] = (),
) -> Outcome:
    """PUT `body` once for each head (head without the blank line's body), over `streams` threads with blocking sockets. `announce` is told
    how many bytes go out next."""
    outcome = Outcome(0.0, 0, [], {})
    lock = threading.Lock()
    queue = iter(heads)

    def work(address: Address) -> None:
        with socket.create_connection(address) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
            while True:
                with lock:
                    head = next(queue, None)
                if head is None:
                    return
                begin = time.perf_counter()
                sock.sendall(head)
                for at in range(0, len(body), SLICE):
                    piece = body[at : at + SLICE]
                    if announce is not None:
                        announce(len(piece))
                    sock.sendall(piece)
                answer = _head(sock)
                with lock:
                    status = int(answer[9:12])
                    outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
                    outcome.count += 1
                    outcome.latencies.append(time.perf_counter() - begin)

    return _by_threads(outcome, work, [(host, port), *also], streams)


def download(
    host: str, port: int, requests: Sequence[bytes], connections: int, size: int, also: Sequence[Address] = ()
) -> Outcome:
    """Send every GET once over `connections` threads into one reused buffer each; `size` = body bytes expected. Raises ConnectionError when
    fewer come, or another status than 200."""
    outcome = Outcome(0.0, 0, [], {})
    lock = threading.Lock()
    queue = iter(requests)

    def work(address: Address) -> None:
        buffer = bytearray(1 << 20)
        view = memoryview(buffer)
        with socket.create_connection(address) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
            while True:
                with lock:
                    request = next(queue, None)
                if request is None:
                    return
                begin = time.perf_counter()
                sock.sendall(request)
                head = _head(sock)
                got = len(head) - head.index(b"\r\n\r\n") - 4
                if int(head[9:12]) != 200:
                    raise ConnectionError(f"a GET was refused: {head.decode(errors='replace')}")
                while got < size:
                    piece = sock.recv_into(view)
                    if not piece:
                        raise ConnectionError(f"closed after {got} of {size} bytes")
                    got += piece
                with lock:
                    status = int(head[9:12])
                    outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
                    outcome.count += 1
                    outcome.latencies.append(time.perf_counter() - begin)

    return _by_threads(outcome, work, [(host, port), *also], connections)


def _head(sock: socket.socket) -> bytes:
    """What comes until the end of an answer's head, and perhaps the beginning of its body."""
    head = b""
    while b"\r\n\r\n" not in head:
        piece = sock.recv(65536)
        if not piece:
            raise ConnectionError("closed before an answer")
        head += piece
    return head


def _by_threads(outcome: Outcome, work: Callable[[Address], None], addresses: Sequence[Address], count: int) -> Outcome:
    """`outcome`, once `count` threads have done the work. Raises the first error of one of them."""
    begin = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, islice(cycle(addresses), count)))
    outcome.seconds = time.perf_counter() - begin
    outcome.latencies.sort()
    return outcome
