"""What an engine does while some of its disks hang. A process of its own, because disks are made to hang by LD_PRELOAD (faults.c):

    FAULT_FLAGS=... LD_PRELOAD=... python -m tests.support.hung_engine SCENARIO POSTGRESQL_URL FOLDER

Ends with 0 if all that is asserted holds, and with a traceback otherwise. In every scenario the event loop is watched: it must never be
held up, since that would hold up everybody.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import uvloop

from anvil.base.errors import PreconditionFailed, ReadQuorumLost, WriteQuorumLost
from anvil.ec.executor import NativeExecutor
from anvil.engine import blobs_write
from anvil.model.records import Condition
from anvil.shards.drive import LocalDrive
from anvil.shards.nativeio import NativeJobs
from anvil.shards.settings import DriveSettings
from anvil.tasks.repair import Result
from tests.support.engine import Bench, Bytes, engine_bench, plain_spec
from tests.support.faults import set_faults

T = TypeVar("T")
MIB = 1 << 20
FLAGS = Path(os.environ["FAULT_FLAGS"])
LOOP_STALL_S = 0.1
BOUND_S = 6.0
"""For any request while drives hang: stragglers and stalls are waited for once each, and the machine may be busy."""
PROMPT_S = 1.0
"""For a request once the drives are known to be stalled: nobody waits for them again."""


def settings(stalled_s: float) -> DriveSettings:
    return DriveSettings(floor_bytes=0, segment_bytes=8 * MIB, segment_first_bytes=MIB, probe_s=0.2, stalled_s=stalled_s)


class HangsHalfWay(Bytes):
    """A body in whose middle a drive begins to hang."""

    def __init__(self, data: bytes, begin: Callable[[], None]) -> None:
        super().__init__(data)
        self._begin = begin
        self._at = len(data) // 2

    async def readinto(self, view: memoryview) -> int:
        self._at -= len(view)
        if self._at <= 0 < self._at + len(view):
            self._begin()
        return await super().readinto(view)


def hang(bench: Bench, *numbers: int) -> None:
    set_faults(FLAGS, [bench.drives[number].path for number in numbers], bytes((0, 0, 1)))


def heal() -> None:
    set_faults(FLAGS, [], bytes(3))


def starved_s() -> float:
    """How long this thread was ready to run and got no processor."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except OSError:
        return 0.0


@asynccontextmanager
async def watched() -> AsyncIterator[None]:
    """Fails if the event loop was held up, not counting what other processes of this machine took."""
    worst = 0.0

    async def tick() -> None:
        nonlocal worst
        while True:
            began, starved = time.monotonic(), starved_s()
            await asyncio.sleep(0.01)
            worst = max(worst, time.monotonic() - began - 0.01 - (starved_s() - starved))

    ticking = asyncio.create_task(tick())
    yield
    ticking.cancel()
    assert worst < LOOP_STALL_S, f"the event loop was held up for {worst:.3f} s"


async def within(bound_s: float, what: str, work: Awaitable[T]) -> T:
    began = time.monotonic()
    try:
        return await work
    finally:
        took_s = time.monotonic() - began
        print(f"{took_s:6.2f} s  {what}", flush=True)
        assert took_s < bound_s, f"{what} took {took_s:.1f} s"


async def until(what: str, condition: Callable[[], bool], bound_s: float = 10.0) -> None:
    end = time.monotonic() + bound_s
    while not condition():
        assert time.monotonic() < end, f"not within {bound_s:g} s: {what}"
        await asyncio.sleep(0.01)


async def refused(error: type[Exception], what: str, work: Awaitable[object]) -> None:
    try:
        await within(BOUND_S, what, work)
    except error:
        return
    raise AssertionError(f"{what} was not refused")


async def put_some(bench: Bench, prefix: str) -> dict[str, bytes]:
    rng = random.Random(prefix)
    sizes = [4096] * 6 + [40_000, 300_000, 1_000_000, 3_000_000, 3_000_000]
    objects = {f"{prefix}{number}": rng.randbytes(size) for number, size in enumerate(sizes)}
    for key, data in objects.items():
        await bench.put(key, data)
    return objects


async def read_all(bench: Bench, objects: dict[str, bytes], what: str, bound_s: float = BOUND_S) -> None:
    for key, data in objects.items():
        assert await within(bound_s, f"GET of {len(data)} bytes, {what}", same(bench, key, data))


async def same(bench: Bench, key: str, data: bytes) -> bool:
    """Compared piece by piece: 64 MiB at once would themselves hold up the loop."""
    info = await bench.engine.open(bench.bucket, key)
    at, wanted = 0, memoryview(data)
    async for view in bench.engine.read(bench.bucket, info, 0, info.size):
        if view != wanted[at : at + len(view)]:
            return False
        at += len(view)
    return at == len(data)


def stalled(bench: Bench) -> set[int]:
    return {number for number, drive in enumerate(bench.drives) if drive.stalled}


async def paid(bench: Bench) -> None:
    """Repair until there is no debt."""
    end = time.monotonic() + 20
    while await bench.metadata.unhealthy() != (0, 0):
        assert time.monotonic() < end, "the debts are not paid"
        assert Result.LOST not in await bench.repairer.run()
        await asyncio.sleep(0.05)


# -- scenarios -----------------------------------------------------------------------------------------------------------------


async def six(url: str, folder: Path) -> None:
    """4+2 over six drives: one, two, three hang; then they answer again."""
    big = random.Random(1).randbytes(64 * MIB)
    async with engine_bench(url, folder, drives=6, settings=settings(2.0)) as bench, watched():
        objects = await put_some(bench, "before")
        halves = HangsHalfWay(big, lambda: hang(bench, 1))
        work = bench.engine.put_object(bench.bucket, "halves", halves, plain_spec())
        await within(BOUND_S, "PUT of 64 MiB, one begins to hang half-way", work)
        during = {"big": big, **{f"small{number}": bytes([number]) * 4096 for number in range(4)}}
        puts = {
            key: within(BOUND_S, f"PUT of {len(data)} bytes, one hangs", bench.put(key, data)) for key, data in during.items()
        }
        reading = asyncio.create_task(read_all(bench, objects, "one hangs"))
        await asyncio.gather(*puts.values(), reading)
        await until("the drive is known to be stalled", lambda: stalled(bench) == {1})
        drive = bench.drives[1]
        assert (drive.readable, drive.writable, drive.reason) == (False, False, "does not answer")
        await within(PROMPT_S, "PUT, known to be stalled", bench.put("prompt", big[:4096]))
        during |= {"prompt": big[:4096], "halves": big}
        await read_all(bench, objects, "known to be stalled", PROMPT_S)
        for key in ("big", "halves"):
            assert await same(bench, key, big)

        hang(bench, 1, 4)
        await within(BOUND_S, "PUT of 4096 bytes, two hang", bench.put("two", big[:4096]))
        during["two"] = big[:4096]
        await read_all(bench, objects, "two hang")
        # Five durable shards of 4+2 acknowledge a write, and four drives are left.
        await refused(WriteQuorumLost, "PUT of 64 MiB, two hang", bench.put("never", big))

        hang(bench, 0, 1, 4)
        others = asyncio.create_task(within(BOUND_S, "PUT of 4096 bytes, three hang", bench.put("three", big[:4096])))
        await refused(WriteQuorumLost, "PUT of 64 MiB, three hang", bench.put("never", big))
        await others
        during["three"] = big[:4096]
        await refused(ReadQuorumLost, "GET of 64 MiB, three hang", bench.get("big"))
        await until("all three are known to be stalled", lambda: stalled(bench) == {0, 1, 4})
        await within(PROMPT_S, "PUT, three known to be stalled", bench.put("four", big[:4096]))
        during["four"] = big[:4096]
        assert bench.events.damages == [], "a slow disk is no damage"

        heal()
        await until("they answer again", lambda: not stalled(bench))
        assert all(drive.writable for drive in bench.drives)
        await paid(bench)
        await read_all(bench, objects | during, "all answer")
        assert bench.events.damages == []
        # Two others now: only what was really repaired can carry the load.
        hang(bench, 2, 3)
        await read_all(bench, during, "two others hang")
        await until("they are known to be stalled", lambda: stalled(bench) == {2, 3})
    # Left while they hang: nobody waits for them then either.
    heal()


async def one(url: str, folder: Path) -> None:
    """A single drive: refused in bounded time, and at once from then on; and all is well when it answers."""
    big = random.Random(1).randbytes(8 * MIB)
    async with engine_bench(url, folder, drives=1, settings=settings(1.0)) as bench, watched():
        objects = await put_some(bench, "before")
        hang(bench, 0)
        await asyncio.gather(
            refused(WriteQuorumLost, "PUT of 4096 bytes", bench.put("small", big[:4096])),
            refused(WriteQuorumLost, "PUT of 8 MiB", bench.put("big", big)),
            *(refused(ReadQuorumLost, f"GET of {key}", bench.get(key)) for key in objects),
        )
        assert stalled(bench) == {0}
        began = time.monotonic()
        await refused(WriteQuorumLost, "PUT, known to be stalled", bench.put("small", big[:4096]))
        await refused(ReadQuorumLost, "GET, known to be stalled", bench.get("before0"))
        assert time.monotonic() - began < PROMPT_S
        heal()
        await until("it answers again", lambda: not stalled(bench))
        assert bench.drives[0].writable
        assert bench.events.damages == []
        await read_all(bench, objects, "it answers")
        await bench.put("big", big)
        assert await bench.get("big") == big
        await until("what was given up is gone", lambda: not any((folder / "drive0" / "tmp").iterdir()))
        assert len([place async for place in bench.drives[0].scan()]) == len(objects) + 1, "what was refused is not there"


async def late(url: str, folder: Path) -> None:
    """A straggler lands after its commit was refused: it is removed then. A drive that hangs for a moment is not stalled."""
    async with engine_bench(url, folder, drives=3, settings=settings(30.0)) as bench, watched():
        await bench.put("there", b"t" * 4096)
        await bench.put("large", b"l" * 3 * MIB)
        held = [len([place async for place in drive.scan()]) for drive in bench.drives]
        for size in (4096, 3 * MIB):
            hang(bench, 1)
            spec = plain_spec(condition=Condition(if_none_match=("*",)))
            await refused(
                PreconditionFailed,
                f"refused PUT of {size} bytes",
                bench.engine.put_object(bench.bucket, "there", Bytes(bytes(size)), spec),
            )
            heal()
            await until("all that was begun has ended", lambda: not len(bench.context.owned))
            for drive in bench.drives:
                await drive._io.idle()
        assert not stalled(bench)
        assert [len([place async for place in drive.scan()]) for drive in bench.drives] == held
        assert not any((folder / "drive1" / "tmp").iterdir())


async def start(url: str, folder: Path) -> None:
    """A drive that hangs when a process attaches it is one that is not there, until it answers."""
    executor = NativeExecutor(asyncio.get_running_loop(), 2)
    options = {"executor": executor, "jobs": NativeJobs(), "session": bytes(16), "settings": settings(0.5)}
    drive = await LocalDrive.attach(folder / "drive", expected=None, create=True, **options)  # type: ignore[arg-type]
    await drive.close()
    set_faults(FLAGS, [folder / "drive"], bytes((0, 0, 1)))
    async with watched():
        attaching = LocalDrive.attach(folder / "drive", expected=drive.drive_id, create=False, **options)  # type: ignore[arg-type]
        again = await within(BOUND_S, "attaching", attaching)
        assert (again.readable, again.writable, again.drive_id) == (False, False, drive.drive_id)
        heal()
        await until("it is found by itself", lambda: again.writable)
    await again.close()
    await executor.close()


def main() -> None:
    blobs_write.STRAGGLER_S = 0.5
    scenario, url, folder = sys.argv[1:]
    try:
        uvloop.run(globals()[scenario](url, Path(folder)))
    finally:
        heal()


if __name__ == "__main__":
    main()
