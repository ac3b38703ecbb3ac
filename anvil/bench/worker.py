"""One client process of `anvil bench`: `python -m anvil.bench.worker`, started by `run.py` alone.

    standard input      a line with the job, `go NS` (when the first request is due, as of `now_ns`), `stop`
    standard output     one JSON message per line: Ready, a Tick each second, and Done or Failed at the end

Owns: this dialogue, the event loop, the connections. Invariant: the process ends when its standard input does, so it never outlives the
command. Secrets come over standard input, never by command line or environment. Not here: what is asked and counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import ssl
import sys
import time
from typing import Final

import msgspec
import uvloop

from anvil.base.errors import AnvilError, InvalidSetting, Unavailable
from anvil.base.limits import BENCH_LOST_S
from anvil.bench import operations, uploads
from anvil.bench.exchange import now_ns
from anvil.bench.http import Client
from anvil.bench.operations import Work
from anvil.bench.plan import Plan, Share, Target
from anvil.bench.record import SECOND_NS, Result
from anvil.bench.sign import Signer

DRAIN_S: Final = 5.0  # how long what is in flight may take once the run is to stop; after a run of its own length, its time-out


class Job(msgspec.Struct, frozen=True):
    target: Target
    plan: Plan
    share: Share


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Connections are open, objects are there."""


class Tick(msgspec.Struct, frozen=True, tag="tick"):
    """Since the begin of the window."""

    requests: int
    bytes: int
    failures: int


class Done(msgspec.Struct, frozen=True, tag="done"):
    result: Result


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """`kind`: the class of the error in `base/errors.py`."""

    kind: str
    message: str


Message = Ready | Tick | Done | Failed


def tls_context(target: Target) -> ssl.SSLContext | None:
    """Raises InvalidSetting for a bad file of certificates."""
    if not target.tls:
        return None
    try:
        return ssl.create_default_context(cafile=target.ca or None)
    except (OSError, ssl.SSLError) as error:
        raise InvalidSetting(f"the CA certificates {target.ca!r} cannot be read: {error.strerror or error}") from None


def connect(target: Target, plan: Plan) -> Client:
    """A client without connections yet."""
    signer = Signer(
        target.access_key,
        target.secret,
        target.region,
        target.host_header,
        token=target.token,
        payloads=plan.signed,
    )
    return Client(target.host, target.port, tls_context(target), signer, plan.timeout_s)


def say(message: Message) -> None:
    """To the command. Blocks while it does not read, which it always does."""
    data = msgspec.json.encode(message) + b"\n"
    while data:
        data = data[os.write(sys.stdout.fileno(), data) :]


class Process:
    """One run."""

    def __init__(self, job: Job, orders: asyncio.StreamReader) -> None:
        self._job = job
        self._orders = orders
        self._work = Work(job.target, job.plan, job.share)
        self._client = connect(job.target, job.plan)
        self._go: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._stopped = asyncio.Event()
        self._note = ""

    async def run(self) -> Result:
        """Raises AnvilError when there is nothing to be measured."""
        client, work = self._client, self._work
        listener = asyncio.create_task(self._listen())
        try:
            await client.open(self._job.share.connections)
            await client.run(operations.prepare(work))
            say(Ready())
            start_ns = await self._go
            if not self._stopped.is_set():
                return await self._measure(start_ns)
            return work.recorder.result()
        finally:
            listener.cancel()
            await asyncio.gather(listener, return_exceptions=True)
            await client.close()

    async def _measure(self, start_ns: int) -> Result:
        work, plan = self._work, self._job.plan
        work.begin(start_ns)
        made = uploads.scripts(work) if plan.operation == "multipart" else operations.scripts(work)
        gc.collect()
        gc.freeze()  # none of this will be garbage: it need not be looked at again
        await asyncio.sleep(max(0.0, (start_ns - now_ns()) / SECOND_NS))
        running = asyncio.create_task(self._client.run(made))
        watching = asyncio.create_task(self._watch())
        begin, cpu = time.monotonic(), cpu_s()
        try:
            await running
        finally:
            wall = time.monotonic() - begin
            watching.cancel()
            await asyncio.gather(watching, running, return_exceptions=True)
        work.finish()
        result = work.recorder.result()
        result.cpu_s, result.wall_s = cpu_s() - cpu, wall
        result.not_begun = work.not_begun
        result.note = self._note or ("there were no more objects" if work.ran_out else "")
        return result

    async def _watch(self) -> None:
        """Ticks, and the end of a run that was stopped or has lost its endpoint."""
        recorder = self._work.recorder
        until: float | None = None
        while True:
            if until is None:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopped.wait(), 1.0)
            else:
                await asyncio.sleep(0.1)
            say(Tick(recorder.requests, recorder.bytes, recorder.failures))
            if recorder.broken and now_ns() - recorder.answered_ns > BENCH_LOST_S * SECOND_NS and not self._stopped.is_set():
                self._note = f"the endpoint did not answer for {BENCH_LOST_S:g} s"
                self._stop()
            if self._stopped.is_set():
                until = until or time.monotonic() + DRAIN_S
                if self._note or time.monotonic() > until:
                    self._client.cut()

    async def _listen(self) -> None:
        while True:
            line = await self._orders.readline()
            word, _, value = line.decode().strip().partition(" ")
            if word == "go" and not self._go.done():
                self._go.set_result(int(value))
            else:  # `stop`, or the command is gone
                self._stop()
                if not line:
                    self._client.cut()
                    return

    def _stop(self) -> None:
        self._work.stop()
        self._stopped.set()
        self._client.alarm.wake_all()
        if not self._go.done():
            self._go.set_result(0)


def cpu_s() -> float:
    """User and system time of this process, seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


async def work() -> Message:
    """Carry out what standard input says."""
    loop = asyncio.get_running_loop()
    orders = asyncio.StreamReader(limit=1 << 20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    job = msgspec.json.decode(await orders.readline(), type=Job)
    try:
        return Done(await Process(job, orders).run())
    except AnvilError as error:
        return Failed(type(error).__name__, error.message)
    except OSError as error:
        return Failed(Unavailable.__name__, error.strerror or str(error))


if __name__ == "__main__":
    say(uvloop.run(work()))
