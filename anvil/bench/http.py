"""A lean HTTP/1.1 client over keep-alive connections, each of which is driven by a script: a generator that yields requests and is sent
the answers, in the very call in which the last byte came. No task, future or turn of the loop lies between an answer and the next
request.

    def script() -> Script:
        answer = yield Request(b"GET", b"/bucket/key")

Owns: sockets, and everything rare of a connection: making it, anew when it broke, cutting it. Invariants: one request is in flight per
connection; bodies are written only while the socket takes more; all connections read into one buffer of the process, and nobody keeps
what is in it. Needs uvloop's transports. Not here: requests and answers (`exchange.pyx`), what is asked (`operations.py`), what is
counted (`record.py`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Generator, Sequence
from typing import Final, TypeAlias, cast

import msgspec

from anvil.base.errors import Unavailable
from anvil.base.limits import (
    BENCH_BACKOFF_S,
    BENCH_BACKOFF_S_MAX,
    BENCH_CONNECT_S,
    BENCH_PIECE_BYTES,
    BENCH_READ_BYTES,
    BENCH_SWEEP_S,
)
from anvil.bench.alarm import Alarm
from anvil.bench.exchange import Answer, Exchange, Request, now_ns

OPENED_AT_ONCE: Final = 128

REFUSED, RESET, CLOSED = "connection refused", "connection reset", "closed before the answer"
LATE, MALFORMED, UNTRUSTED = "no answer in time", "malformed answer", "TLS failed"
UNREACHED, UNFINISHED = "cannot connect", "unfinished at the end"
TRANSPORT: Final = frozenset({REFUSED, RESET, CLOSED, LATE, MALFORMED, UNTRUSTED, UNREACHED, UNFINISHED})


class Wait(msgspec.Struct, gc=False):
    """Yielded by a script: go on at that time, as of `now_ns`."""

    due_ns: int


class Park:
    """Yielded by a script: go on when somebody calls `wake`."""

    def __init__(self) -> None:
        self._parked: list[Connection] = []

    def add(self, connection: Connection) -> None:
        self._parked.append(connection)

    def wake(self) -> None:
        """Everybody, in the next turn of the loop."""
        parked, self._parked = self._parked, []
        for one in parked:
            one.resume_soon()


Script: TypeAlias = Generator[Request | Wait | Park, Answer | None, None]


class Client:
    """Connections to one endpoint. `tls`: None for plaintext; `timeout_s`: for how long no byte of a request or its answer may move."""

    def __init__(
        self, host: str, port: int, tls: ssl.SSLContext | None, signer: Callable[[Request], bytes], timeout_s: float = 60.0
    ) -> None:
        self.host, self.port, self.tls = host, port, tls
        self.signer = signer
        self.buffer = bytearray(BENCH_READ_BYTES)
        self.alarm = Alarm()
        self.connections: list[Connection] = []
        self._timeout_ns = int(timeout_s * 1e9)
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._running: asyncio.Future[None] | None = None
        self._left = 0
        self._sweeper = self._loop.call_later(BENCH_SWEEP_S, self._sweep)

    async def open(self, count: int) -> None:
        """Have `count` connections. Raises Unavailable with one line that says why there is none."""
        while len(self.connections) < count:
            more = [Connection(self) for _ in range(min(OPENED_AT_ONCE, count - len(self.connections)))]
            failed = [why for why in await asyncio.gather(*(one.connect() for one in more)) if why]
            if failed:
                raise Unavailable(f"{self.host}:{self.port}: {failed[0]}")
            self.connections += more

    async def run(self, scripts: Sequence[Script]) -> None:
        """Run each script over a connection of its own, all at once, until all have ended. Raises what a script raises."""
        if not scripts:
            return
        self._running = self._loop.create_future()
        self._left = len(scripts)
        for connection, script in zip(self.connections[: len(scripts)], scripts, strict=True):
            connection.start(script)
            connection.resume_soon()
        await self._running

    async def ask(self, request: Request) -> Answer:
        """One request, while nothing runs."""
        answers: list[Answer] = []

        def script() -> Script:
            answer = yield request
            answers.append(cast(Answer, answer))

        await self.run([script()])
        return answers[0]

    def cut(self) -> None:
        """End what is in flight; its scripts are told UNFINISHED."""
        self.alarm.wake_all()
        for one in self.connections:
            one.cut(UNFINISHED)

    async def close(self) -> None:
        self._sweeper.cancel()
        self.alarm.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in self.connections:
            one.forget()
            one.drop()

    def ended(self, error: Exception | None) -> None:
        """A script has ended."""
        self._left -= 1
        if self._running is not None and not self._running.done():
            if error is not None:
                self._running.set_exception(error)
            elif self._left <= 0:
                self._running.set_result(None)

    def own(self, work: asyncio.Task[None]) -> None:
        """Keep it until it is done; `close` cancels it."""
        self._tasks.add(work)
        work.add_done_callback(self._tasks.discard)

    def _sweep(self) -> None:
        oldest_ns = now_ns() - self._timeout_ns
        for one in self.connections:
            one.cut_if_still(oldest_ns)
        self._sweeper = self._loop.call_later(BENCH_SWEEP_S, self._sweep)


class Connection(Exchange, asyncio.BufferedProtocol):
    """One connection and its script."""

    def __init__(self, client: Client) -> None:
        Exchange.__init__(self, client.signer, client.buffer)
        self._client = client
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._given_up = 0  # transports that were dropped and have not said yet that they are lost
        self._connecting: asyncio.Task[None] | None = None
        self._backoff_s = BENCH_BACKOFF_S

    # -- of the exchange --------------------------------------------------------------------------------------------------------

    def resume_soon(self) -> None:
        """Go on with the script in the next turn of the loop."""
        self._loop.call_soon(self.step, None)

    def wait_for(self, wanted: Wait | Park) -> None:
        if isinstance(wanted, Wait):
            self._client.alarm.at(wanted.due_ns, self._resume)
        else:
            wanted.add(self)

    def _resume(self) -> None:
        self.step(None)

    def script_ended(self, error: Exception | None) -> None:
        self._client.ended(error)

    def malformed(self) -> None:
        self.cut(MALFORMED)

    def pump(self) -> None:
        """Send while the socket takes more."""
        transport = self._transport
        while transport is not None and self.pieces is not None and not self._paused:
            piece = next(self.pieces, None)
            if piece is None:
                self.pieces = None
            else:
                transport.write(piece)

    def drop(self) -> None:
        """This transport is done with, whatever it still says."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = self.write = None
            self._given_up += 1

    def reconnect(self) -> None:
        """Then send what is in flight."""
        self._connecting = self._loop.create_task(self._connect_and_send())
        self._client.own(self._connecting)

    # -- making it --------------------------------------------------------------------------------------------------------------

    async def connect(self) -> str:
        """Returns why it could not, or ""."""
        client = self._client
        try:
            async with asyncio.timeout(BENCH_CONNECT_S):
                await self._loop.create_connection(
                    lambda: self,
                    client.host,
                    client.port,
                    ssl=client.tls,
                    server_hostname=client.host if client.tls is not None else None,
                )
        except ssl.SSLCertVerificationError as error:
            return f"{UNTRUSTED} ({error.verify_message}; --ca names the certificates to trust)"
        except ssl.SSLError as error:
            return f"{UNTRUSTED} ({error.reason or error})"
        except ConnectionRefusedError:
            return REFUSED
        except ConnectionResetError:
            return RESET
        except TimeoutError:
            return f"{UNREACHED} (no answer within {BENCH_CONNECT_S:g} s)"
        except OSError as error:
            return f"{UNREACHED} ({error.strerror or error})"
        self._backoff_s = BENCH_BACKOFF_S
        return ""

    async def _connect_and_send(self) -> None:
        self.begun_ns = now_ns()
        why = await self.connect()
        if why:  # a dead endpoint must not keep a processor busy
            await asyncio.sleep(self._backoff_s)
            self._backoff_s = min(2 * self._backoff_s, BENCH_BACKOFF_S_MAX)
        self._connecting = None
        if why:
            self.fail(why.split(" (")[0])
        else:
            self.send_again()

    # -- what the loop says -------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop registers its transports with no abstract class, so isinstance would be wrong
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=4 * BENCH_PIECE_BYTES)
        self._paused = False
        self.write = self._transport.write

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self.moved_ns = now_ns()
        self.pump()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._given_up:
            self._given_up -= 1
            return
        self._transport = self.write = None
        if self.request is None:
            return
        if self.parser.closed():
            self.moved_ns = now_ns()
            self.complete()
        else:
            self.fail(UNTRUSTED if isinstance(exc, ssl.SSLError) else RESET if exc is not None else CLOSED)

    # -- ending it ----------------------------------------------------------------------------------------------------------------

    def cut(self, kind: str) -> None:
        """End the request in flight, if there is one, and with it the connection; its script is told `kind`."""
        if self.request is None:
            return
        if self._connecting is not None:
            self._connecting.cancel()
            self._connecting = None
        self.drop()
        self.fail(kind)

    def cut_if_still(self, oldest_ns: int) -> None:
        """If no byte has moved since then."""
        if self.moved_ns < oldest_ns and self._transport is not None:
            self.cut(LATE)
