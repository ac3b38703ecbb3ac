"""A run from end to end: looks whether the bucket can be used, starts the client processes, lets them begin together, collects what they
counted, removes what they made.

Owns: the processes, which never outlive `run`; Ctrl-C (the first ends the run in order, the second one also the removal). Invariant:
only keys under the run's prefix are written or removed, and nothing was under it before. Not here: what a process does (`worker.py`),
what is made of the counts (`report.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Callable
from typing import Final

import msgspec
import uvloop

from anvil.base import errors
from anvil.base.config import child_environment
from anvil.base.errors import AnvilError, Conflict, Denied, Invalid, NotFound, Unavailable
from anvil.base.limits import BENCH_MESSAGE_BYTES_MAX, BENCH_START_MARGIN_S
from anvil.bench import cleaning
from anvil.bench.exchange import Answer, Request, now_ns
from anvil.bench.http import Client
from anvil.bench.operations import said
from anvil.bench.plan import Plan, Share, Target, shares
from anvil.bench.record import SECOND_NS, Result
from anvil.bench.sign import parameter
from anvil.bench.worker import Done, Failed, Job, Message, Ready, Tick, connect

_DENIED: Final = frozenset({"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"})
CLEANERS: Final = 8


class Progress(msgspec.Struct, frozen=True):
    """What somebody who looks on is shown. `phase`: what is done now; the numbers are totals since the window began."""

    phase: str
    requests: int = 0
    bytes: int = 0
    failures: int = 0


class Outcome(msgspec.Struct):
    """`interrupted`: by Ctrl-C; `left`: what is still under the prefix, and why, or ""."""

    results: list[Result]
    interrupted: bool = False
    left: str = ""


Show = Callable[[Progress], None]


def run(target: Target, plan: Plan, show: Show) -> Outcome:
    """Raises AnvilError when nothing could be measured."""
    return uvloop.run(_run(target, plan, show))


async def _run(target: Target, plan: Plan, show: Show) -> Outcome:
    show(Progress("looking at the bucket"))
    await _look(target, plan)
    whole = Crew(target, plan, show)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, whole.interrupt)
    try:
        try:
            outcome = await whole.run()
        except BaseException:
            await _clean(target, plan, show, whole)
            raise
        outcome.left = await _clean(target, plan, show, whole)
        return outcome
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _look(target: Target, plan: Plan) -> None:
    """Whether the bucket is there (it is made where that was asked for), we may list it, and nothing is under our prefix."""
    client = connect(target, plan)
    path = f"/{target.bucket}".encode()
    look = Request(b"GET", path, b"list-type=2&max-keys=1&prefix=" + parameter(plan.prefix))
    try:
        await client.open(1)
        answer = await client.ask(look)
        if answer.code == "NoSuchBucket" and plan.create_bucket:
            await _create(client, target, path)
            answer = await client.ask(look)
        if answer.code == "NoSuchBucket":
            raise NotFound(f"there is no bucket {target.bucket}: --create-bucket makes it")
        require(answer)
        if b"<Key>" in answer.body:
            raise Conflict(f"there are objects under s3://{target.bucket}/{plan.prefix} already: choose another --prefix")
    finally:
        await client.close()


async def _create(client: Client, target: Target, path: bytes) -> None:
    document = b""
    if target.region != "us-east-1":
        region = f"<LocationConstraint>{target.region}</LocationConstraint>"
        document = f"<CreateBucketConfiguration>{region}</CreateBucketConfiguration>".encode()
    require(await client.ask(Request(b"PUT", path, body=document)))


def require(answer: Answer) -> None:
    """Raises the error that an answer is, if it is one, by what can be done about it."""
    if not answer.code:
        return
    if answer.code in _DENIED:
        raise Denied(said(answer))
    raise (Unavailable if answer.status == 0 or answer.status >= 500 else Invalid)(said(answer))


async def _clean(target: Target, plan: Plan, show: Show, crew: Crew) -> str:
    """Returns what is left and why, or ""."""
    where = f"s3://{target.bucket}/{plan.prefix}"
    if plan.keep:
        return f"objects under {where} were kept"
    removed = asyncio.create_task(_remove(target, plan, show))
    crew.waits_for(removed)
    try:
        failed = await removed
    except asyncio.CancelledError:
        return f"objects are left under {where}: interrupted"
    except AnvilError as error:
        return f"objects are left under {where}: {error.message}"
    return f"{failed}, left under {where}" if failed else ""


async def _remove(target: Target, plan: Plan, show: Show) -> str:
    client = connect(target, plan)
    try:
        await client.open(CLEANERS)
        return await cleaning.remove(
            client, target.bucket, plan.prefix, lambda count: show(Progress("removing objects", requests=count))
        )
    finally:
        await client.close()


class Crew:
    """The client processes of a run."""

    def __init__(self, target: Target, plan: Plan, show: Show) -> None:
        self._target, self._plan, self._show = target, plan, show
        self._members: list[Member] = []
        self._interrupted = False
        self._news = asyncio.Event()  # a member has said something, or ended
        self._last: asyncio.Task[str] | None = None

    def waits_for(self, last: asyncio.Task[str]) -> None:
        """What a second Ctrl-C ends."""
        self._last = last

    def interrupt(self) -> None:
        """The user has had enough."""
        if self._last is not None:
            self._last.cancel()
        self._interrupted = True
        self.stop()

    def stop(self) -> None:
        for member in self._members:
            member.order("stop")

    async def run(self) -> Outcome:
        """Raises AnvilError when a process could not begin, or ended by itself."""
        try:
            for share in shares(self._plan):
                self._members.append(await Member.start(Job(self._target, self._plan, share), self._heard))
            self._show(Progress("preparing"))
            await self._all([member.ready for member in self._members])
            start_ns = now_ns() + int(BENCH_START_MARGIN_S * SECOND_NS)
            for member in self._members:
                member.order(f"go {start_ns}")
            if self._interrupted:
                self.stop()
            await self._all([member.done for member in self._members])
            return Outcome([member.result for member in self._members], self._interrupted)
        finally:
            await asyncio.gather(*(member.close() for member in self._members))

    async def _all(self, events: list[asyncio.Event]) -> None:
        """Until all have happened. Raises the first failure of a member."""
        while not all(event.is_set() for event in events):
            for member in self._members:
                member.check()
            await self._news.wait()
            self._news.clear()

    def _heard(self, message: Message | None) -> None:
        self._news.set()
        if not isinstance(message, Tick):
            return
        ticks = [member.tick for member in self._members]
        total = [sum(getattr(tick, name) for tick in ticks) for name in ("requests", "bytes", "failures")]
        self._show(Progress("stopping" if self._interrupted else "measuring", *total))


class Member:
    """One client process."""

    def __init__(self, process: asyncio.subprocess.Process, share: Share, heard: Callable[[Message | None], None]) -> None:
        self._process, self._share, self._heard = process, share, heard
        self.ready, self.done = asyncio.Event(), asyncio.Event()
        self.result = Result({}, [], [])
        self.tick = Tick(0, 0, 0)
        self._failed: AnvilError | None = None
        self._ended = False
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def start(cls, job: Job, heard: Callable[[Message | None], None]) -> Member:
        """In a session of its own, so that Ctrl-C of the terminal reaches this process alone."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "anvil.bench.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=child_environment(),
            start_new_session=True,
            limit=BENCH_MESSAGE_BYTES_MAX,
        )
        member = cls(process, job.share, heard)
        member.order(msgspec.json.encode(job).decode())
        return member

    def order(self, line: str) -> None:
        """A process that is gone hears nothing; `check` says so."""
        if self._process.stdin is not None and not self._process.stdin.is_closing():
            self._process.stdin.write(f"{line}\n".encode())

    def check(self) -> None:
        """Raises what ended it before it was done."""
        if self._failed is not None:
            raise self._failed
        if self._ended and not self.done.is_set():
            raise Unavailable(f"process {self._share.number} of the client ended by itself, with code {self._process.returncode}")

    async def close(self) -> None:
        """Ends it, whatever it does."""
        with contextlib.suppress(ProcessLookupError):
            if not self.done.is_set() and self._process.returncode is None:
                self._process.kill()
        await self._reader
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()

    async def _read(self) -> None:
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message = msgspec.json.decode(line, type=Message)
            if isinstance(message, Ready):
                self.ready.set()
            elif isinstance(message, Tick):
                self.tick = message
            elif isinstance(message, Done):
                self.result = message.result
                self.ready.set()
                self.done.set()
            elif isinstance(message, Failed):
                kind = getattr(errors, message.kind, Unavailable)
                self._failed = kind(message.message)
            self._heard(message)
        await self._process.wait()
        self._ended = True
        self._heard(None)
