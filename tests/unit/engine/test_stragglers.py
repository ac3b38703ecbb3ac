"""Uploads of several stripes while some drives fail and others are late."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import pytest

from anvil._ec.buffers import BufferPool
from anvil.base.errors import DriveFailed
from anvil.base.limits import MIB
from anvil.base.types import Buffer, Told
from anvil.model.scheme import Scheme
from anvil.model.shard import ShardFooter, ShardHeader
from tests.contract.memory_drive import MemoryLargeShard
from tests.support.engine import Bytes, plain_spec
from tests.support.memory_region import Region, region

DATA = random.Random(1).randbytes(3 * MIB)


class Failing:
    """A large shard whose second frame is written until `fail` is set, and then fails. `by_task`: as another node's."""

    def __init__(self, shard: MemoryLargeShard, label: str, *, by_task: bool, abort_s: float = 0.0) -> None:
        self.fail = asyncio.Event()
        self.aborted = 0
        self._shard = shard
        self._label = label
        self._by_task = by_task
        self._abort_s = abort_s
        self._frames = 0

    def begin(self, frames: Any, told: Told) -> bool:
        if self._by_task:
            return False
        assert not self.aborted
        self._frames += 1
        if self._frames != 2:
            return self._shard.begin(frames, told)
        asyncio.get_running_loop().create_task(self._later(told))
        return True

    async def _later(self, told: Told) -> None:
        await self.fail.wait()
        told(DriveFailed(drive=self._label, reason="test"))

    async def write(self, frames: Buffer) -> None:
        self._frames += 1
        if self._frames == 2:
            await self.fail.wait()
            raise DriveFailed(drive=self._label, reason="test")
        await self._shard.write(frames)

    async def publish(self, footer: ShardFooter) -> None:
        await self._shard.publish(footer)

    async def abort(self) -> None:
        self.aborted += 1
        await asyncio.sleep(self._abort_s)
        await self._shard.abort()


def shards_that_fail(
    made: Region, failing: dict[int, Failing], make: dict[int, Callable[[MemoryLargeShard, str], Failing]]
) -> None:
    for drive in made.all:
        create = drive.create

        async def wrapped(header: ShardHeader, create: Any = create, label: str = drive.label) -> Any:
            shard = await create(header)
            if header.index not in make or header.index in failing:
                return shard
            failing[header.index] = make[header.index](shard, label)
            return failing[header.index]

        drive.create = wrapped  # type: ignore[method-assign]


@pytest.mark.parametrize("by_task", [False, True], ids=["begun", "tasks"])
def test_a_straggler_that_fails_while_another_is_taken_back(monkeypatch: pytest.MonkeyPatch, by_task: bool) -> None:
    """It is done without, as it would have been a moment later: the quorum of the others is there."""
    monkeypatch.setattr("anvil.engine.quorum.STRAGGLER_S", 0.05)

    async def main() -> None:
        async with region(11, 1, Scheme(8, 3)) as made:
            failing: dict[int, Failing] = {}
            shards_that_fail(
                made,
                failing,
                {
                    0: lambda shard, label: Failing(shard, label, by_task=by_task, abort_s=0.3),
                    1: lambda shard, label: Failing(shard, label, by_task=by_task),
                },
            )
            putting = asyncio.create_task(made.put("k", DATA))
            while len(failing) < 2:
                await asyncio.sleep(0)
            failing[0].fail.set()
            while not failing[0].aborted:
                await asyncio.sleep(0.01)
            failing[1].fail.set()
            blob = await putting
            assert made.events.short == 1
            assert failing[1].aborted
            assert [made.holders(blob, index) for index in (0, 1)] == [[], []]
            assert await made.get("k") == DATA

    asyncio.run(asyncio.wait_for(main(), 30))


@pytest.mark.parametrize("by_task", [False, True], ids=["begun", "tasks"])
def test_a_shard_that_failed_keeps_no_memory_while_the_client_pauses(by_task: bool) -> None:
    async def main() -> None:
        class Pausing(Bytes):
            """Pauses before the third stripe."""

            def __init__(self) -> None:
                super().__init__(DATA)
                self.asked = 0
                self.go_on = asyncio.Event()

            async def readinto(self, view: memoryview) -> int:
                self.asked += 1
                if self.asked == 3:
                    await self.go_on.wait()
                return await super().readinto(view)

        async with region(6, 1, Scheme(4, 2)) as made:
            failing: dict[int, Failing] = {}
            shards_that_fail(made, failing, {1: lambda shard, label: Failing(shard, label, by_task=by_task)})
            body = Pausing()
            putting = asyncio.create_task(made.engine.put_object(made.bucket, "k", body, plain_spec()))
            while not failing:
                await asyncio.sleep(0)
            failing[1].fail.set()
            while not failing[1].aborted or body.asked < 3:
                await asyncio.sleep(0.01)
            one_stripe = BufferPool.capacity(MIB + 6 * (MIB // 4 + 100))
            async with asyncio.timeout(5):  # the one that is being received is kept, and not the one that failed
                while made.context.buffers.used != one_stripe:
                    await asyncio.sleep(0.01)
            body.go_on.set()
            await putting
            assert await made.get("k") == DATA

    asyncio.run(asyncio.wait_for(main(), 30))
