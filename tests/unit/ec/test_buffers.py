"""Stripe buffers: accounting, reuse only when nobody looks any more, and fair waiting."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from anvil._ec.buffers import BufferPool, StripeBuffer
from anvil.base.errors import SlowDown
from anvil.ec.buffers import Buffers

MIB = 1 << 20


def address(buffer: StripeBuffer) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def acquired(pool: BufferPool, nbytes: int) -> StripeBuffer:
    buffer = pool.try_acquire(nbytes)
    assert buffer is not None
    return buffer


def test_capacity_wastes_little_and_has_few_classes() -> None:
    capacities = set()
    for nbytes in [*range(0, 70_000, 7), *(random.Random(1).randrange(256 * MIB) for _ in range(20_000)), 256 * MIB]:
        capacity = BufferPool.capacity(nbytes)
        assert capacity >= max(nbytes, 1)
        assert nbytes <= 4096 or capacity < 2 * nbytes
        assert nbytes <= 65536 or (capacity <= nbytes * 1.125 + 8192 and capacity % 4096 == 0)
        capacities.add(capacity)
    assert len(capacities) <= 101
    assert BufferPool.capacity(MIB) == MIB, "a stripe wastes nothing"
    for nbytes in (-1, 256 * MIB + 1):
        with pytest.raises(ValueError, match="cannot be had"):
            BufferPool.capacity(nbytes)
        with pytest.raises(ValueError, match="cannot be had"):
            BufferPool(1 << 40).try_acquire(nbytes)


@pytest.mark.parametrize("nbytes", [0, 1, 4096, 5000, 65536, 65537, 73728, 73729, MIB, 1_573_296, 5 * MIB])
def test_a_buffer_is_writable_aligned_and_of_the_length_asked_for(nbytes: int) -> None:
    buffer = acquired(BufferPool(64 * MIB), nbytes)
    assert len(buffer) == nbytes
    with memoryview(buffer) as view:
        assert (view.nbytes, view.readonly, view.format, view.contiguous) == (nbytes, False, "B", True)
        view[:] = bytes([7]) * nbytes
        assert bytes(view) == bytes([7]) * nbytes
    if nbytes:
        assert address(buffer) % (4096 if nbytes > 65536 else 64) == 0


def test_accounting_and_the_bound() -> None:
    pool = BufferPool(3 * MIB)
    assert (pool.bytes_max, pool.idle_bytes_max, pool.used, pool.idle) == (3 * MIB, 3 * MIB // 4, 0, 0)
    held = [acquired(pool, MIB) for _ in range(3)]
    assert pool.used == 3 * MIB == sum(buffer.capacity for buffer in held)
    assert pool.try_acquire(1) is None
    held.pop()
    assert pool.used == 2 * MIB
    assert pool.try_acquire(MIB + 1) is None
    assert pool.try_acquire(MIB) is not None


def test_memory_is_reused() -> None:
    pool = BufferPool(8 * MIB)
    buffer = acquired(pool, MIB)
    place = address(buffer)
    memoryview(buffer)[:4] = b"mark"
    del buffer
    assert (pool.used, pool.idle) == (0, MIB)
    again = acquired(pool, MIB - 100)
    assert address(again) == place
    assert (pool.used, pool.idle) == (MIB, 0)


def test_memory_is_never_reused_while_a_view_lives() -> None:
    pool = BufferPool(8 * MIB)
    buffer = acquired(pool, 100_000)
    place = address(buffer)
    view = memoryview(buffer)[1000:2000]
    view[:] = b"x" * 1000
    slice_of_slice = view[10:20]
    del buffer, view
    gc.collect()
    assert pool.used > 0
    other = acquired(pool, 100_000)
    assert address(other) != place
    memoryview(other)[:] = b"y" * 100_000
    assert slice_of_slice == b"x" * 10
    del slice_of_slice
    assert address(acquired(pool, 100_000)) == place


def test_idle_memory_is_bounded_and_makes_room() -> None:
    pool = BufferPool(4 * MIB, idle_bytes_max=2 * MIB)
    held = [acquired(pool, MIB) for _ in range(4)]
    held.clear()
    assert (pool.used, pool.idle) == (0, 2 * MIB), "two are kept, two went back to the system"
    large = acquired(pool, 3 * MIB)
    assert (pool.used, pool.idle) == (3 * MIB, MIB), "used and idle together stay within the bound"
    del large
    assert pool.idle == MIB, "three more would be too many to keep"
    pool.trim()
    assert pool.idle == 0


def test_random_use_never_overlaps_and_adds_up() -> None:
    rng = random.Random(7)
    pool = BufferPool(2 * MIB, idle_bytes_max=MIB)
    held: list[tuple[StripeBuffer, bytes]] = []
    for _ in range(3000):
        if held and rng.random() < 0.5:
            buffer, mark = held.pop(rng.randrange(len(held)))
            assert bytes(memoryview(buffer)[:8]) == mark == bytes(memoryview(buffer)[-8:])
            del buffer
        elif (new := pool.try_acquire(rng.choice([8, 100, 5000, 40_000, 70_000, 200_000, 300_001]))) is not None:
            mark = rng.randbytes(8)
            memoryview(new)[:8] = memoryview(new)[-8:] = mark
            held.append((new, mark))
            del new
        assert pool.used == sum(buffer.capacity for buffer, _ in held)
        assert pool.used + pool.idle <= pool.bytes_max
        assert pool.idle <= pool.idle_bytes_max


def test_on_free_is_called_after_the_memory_is_back() -> None:
    pool, seen = BufferPool(MIB), list[int]()
    pool.on_free = lambda: seen.append(pool.used)
    buffer = acquired(pool, MIB)
    view = memoryview(buffer)
    del buffer
    assert seen == []
    del view
    assert seen == [0]


def test_on_free_that_raises_or_runs_in_the_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is reported, not propagated into whatever was running, and the memory is back all the same."""
    pool = BufferPool(MIB)
    reported: list[str] = []
    monkeypatch.setattr("sys.unraisablehook", lambda raised: reported.append(str(raised.exc_value)))

    def wrong() -> None:
        raise RuntimeError("from on_free")

    pool.on_free = wrong
    cycle: list[Any] = [acquired(pool, 1000)]
    cycle.append(cycle)
    try:
        raise KeyError("in flight")
    except KeyError as error:
        del cycle
        gc.collect()
        assert error.args == ("in flight",)
    assert reported == ["from on_free"]
    assert pool.used == 0


def test_a_pool_outlives_its_name() -> None:
    buffer = acquired(BufferPool(MIB), 500_000)
    gc.collect()
    memoryview(buffer)[:] = bytes(500_000)


def test_buffers_only_come_from_a_pool() -> None:
    with pytest.raises(TypeError, match="try_acquire"):
        StripeBuffer()


# -- waiting ----------------------------------------------------------------------------------------------------------


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 20))


async def settled() -> None:
    """Until every callback that is due has run (each wake-up takes a bounded number of turns)."""
    for _ in range(10):
        await asyncio.sleep(0)


def test_waiters_are_served_in_order_and_nobody_overtakes() -> None:
    async def scenario() -> None:
        buffers = Buffers(asyncio.get_running_loop(), bytes_max=2 * MIB)
        held = [await buffers.acquire(MIB), await buffers.acquire(MIB)]
        order: list[str] = []

        async def wait(name: str, *sizes: int) -> list[StripeBuffer]:
            got = await buffers.acquire_all(*sizes)
            order.append(name)
            return got

        tasks = [asyncio.create_task(wait("large", MIB, MIB)), asyncio.create_task(wait("small", 4096))]
        await settled()
        assert buffers.waiting == 2
        held.pop()
        await settled()
        assert order == [], "there is room for the small one, but the large one came first"
        held.pop()
        await settled()
        assert order == ["large"]
        assert buffers.used == 2 * MIB
        tasks.pop(0)
        await settled()
        assert order == ["large", "small"]
        assert buffers.waiting == 0

    run(scenario)


def test_a_cancelled_waiter_leaves_nothing_behind() -> None:
    async def scenario() -> None:
        buffers = Buffers(asyncio.get_running_loop(), bytes_max=2 * MIB)
        held = [await buffers.acquire(MIB)]
        first = asyncio.create_task(buffers.acquire(2 * MIB))
        second = asyncio.create_task(buffers.acquire(MIB))
        await settled()
        first.cancel()
        await settled()
        assert second.done(), "who stood behind it is served at once"
        del second
        held.clear()
        await settled()
        assert (buffers.used, buffers.waiting) == (0, 0)

    run(scenario)


def test_cancelled_in_the_moment_of_being_served() -> None:
    async def scenario() -> None:
        buffers = Buffers(asyncio.get_running_loop(), bytes_max=MIB)
        held = [await buffers.acquire(MIB)]
        first = asyncio.create_task(buffers.acquire(MIB))
        second = asyncio.create_task(buffers.acquire(MIB))
        await settled()
        held.clear()
        while buffers.waiting == 2:  # until the first has been granted its buffer, but has not run yet
            await asyncio.sleep(0)
        first.cancel()
        await settled()
        if not first.cancelled():
            first.result()
        del first
        assert len(await second) == MIB

    run(scenario)


def test_too_long_a_wait_is_slow_down() -> None:
    async def scenario() -> None:
        buffers = Buffers(asyncio.get_running_loop(), bytes_max=MIB, wait_s=0.02)
        held = await buffers.acquire(MIB)
        with pytest.raises(SlowDown):
            await buffers.acquire(1)
        assert buffers.waiting == 0
        del held
        assert len(await buffers.acquire(MIB)) == MIB

    run(scenario)


def test_buffers_that_only_the_collector_can_free_are_not_waited_for(no_collector: None) -> None:
    async def scenario() -> None:
        buffers = Buffers(asyncio.get_running_loop(), bytes_max=MIB, wait_s=0.02)

        async def forget() -> None:
            cycle: list[object] = [await buffers.acquire(MIB)]
            cycle.append(cycle)

        await forget()
        assert buffers.used == MIB
        kept = await buffers.acquire(MIB)
        del kept
        await forget()
        with pytest.raises(SlowDown):
            await buffers.acquire(MIB)  # so soon after the last time the collector is not asked again

    run(scenario)


def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.ec.buffers.BUFFER_WAITERS_MAX", 2)

    async def scenario() -> None:
        buffers = Buffers(asyncio.get_running_loop(), bytes_max=MIB)
        held = await buffers.acquire(MIB)
        tasks = [asyncio.create_task(buffers.acquire(1)) for _ in range(2)]
        await settled()
        with pytest.raises(SlowDown):
            await buffers.acquire(1)
        del held
        await asyncio.gather(*tasks)

    run(scenario)


def test_more_than_the_pool_is_a_mistake() -> None:
    async def scenario() -> None:
        buffers = Buffers(asyncio.get_running_loop(), bytes_max=MIB)
        with pytest.raises(ValueError, match="never fit"):
            await buffers.acquire_all(MIB // 2, MIB // 2 + 1)

    run(scenario)


def test_a_buffer_dropped_on_another_thread_wakes_the_loop() -> None:
    async def scenario() -> None:
        buffers = Buffers(asyncio.get_running_loop(), bytes_max=MIB)
        held = [await buffers.acquire(MIB)]
        waiting = asyncio.create_task(buffers.acquire(MIB))
        await settled()
        thread = threading.Thread(target=held.clear)
        thread.start()
        assert len(await waiting) == MIB
        thread.join()

    run(scenario)


def test_many_tasks_share_a_small_pool() -> None:
    async def scenario() -> None:
        buffers = Buffers(asyncio.get_running_loop(), bytes_max=4 * MIB)
        rng = random.Random(3)

        async def work(size: int) -> None:
            for _ in range(20):
                pair = await buffers.acquire_all(size, size // 2)
                memoryview(pair[0])[:1] = b"x"
                await asyncio.sleep(0)
                del pair

        await asyncio.gather(*(work(rng.randrange(1000, MIB)) for _ in range(40)))
        assert (buffers.used, buffers.waiting) == (0, 0)

    run(scenario)


@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer's allocator keeps what is freed anyway")
def test_what_is_freed_is_kept_when_asked_for() -> None:
    """In a process of its own, since it is for the whole process: the second round meets no new pages."""
    program = """
import resource
from anvil._ec.buffers import keep_freed
assert keep_freed(8 << 20, 16 << 20)
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def rounds(count):
    for _ in range(count):
        bytearray(2 << 20)[::4096] = bytes(512)
rounds(4)
before = faults()
rounds(50)
print(faults() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) < 512, "one round's worth, of fifty"
