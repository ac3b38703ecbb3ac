"""A download of a blob of one shard: the next stripes are on their way without tasks, and whatever goes wrong is found the long way."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import uvloop

from anvil._ec.buffers import StripeBuffer
from anvil._ec.fileio import OpenJob
from anvil.base.errors import DataLost, DriveStalled, ReadQuorumLost
from anvil.base.limits import MIB, STRIPES_IN_FLIGHT
from anvil.ec.buffers import Buffers
from anvil.ec.executor import NativeExecutor
from anvil.shards.fds import OpenFile
from anvil.shards.io import Io
from anvil.shards.nativeio import NativeJobs
from tests.integration.test_engine import data_of, on_bench
from tests.postgres_fixture import Postgres
from tests.support.engine import Bench

SIZE = 8 * MIB + 12_345
BROKEN = 5 * MIB + 7777  # in the sixth stripe


async def pieces(bench: Bench, received: bytearray) -> None:
    info = await bench.engine.open(bench.bucket, "k")
    async for view in bench.engine.read(bench.bucket, info, 0, info.size):
        received += view


async def file_of(bench: Bench) -> Path:
    [extent] = (await bench.engine.open(bench.bucket, "k")).extents
    assert extent.content is not None
    place = await bench.drives[0].open(extent.content.blob.blob_id, 0)
    assert place is not None
    ref: Any = place.ref
    return Path(ref.path)


def tasks_of(bench: Bench) -> list[str]:
    """Note the tasks that are started from now on."""
    names: list[str] = []
    start = bench.context.owned.start

    def noting(work: Any) -> Any:
        names.append(work.__name__)
        return start(work)

    bench.context.owned.start = noting  # type: ignore[method-assign]
    return names


def test_no_stripe_needs_a_task(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        data, received = data_of(SIZE), bytearray()
        await bench.put("k", data)
        tasks = tasks_of(bench)
        await pieces(bench, received)
        assert received == data
        assert len(tasks) <= 1, "only the short last stripe"

    on_bench(postgres, tmp_path, scenario, drives=1)


@pytest.mark.parametrize("harm", ["flipped", "cut"])
def test_what_is_damaged_ends_the_answer_before_it(postgres: Postgres, tmp_path: Path, harm: str) -> None:
    async def scenario(bench: Bench) -> None:
        data, received = data_of(SIZE), bytearray()
        await bench.put("k", data)
        path = await file_of(bench)
        if harm == "cut":
            os.truncate(path, BROKEN)
        else:
            with path.open("r+b") as file:
                file.seek(BROKEN)
                byte = file.read(1)
                file.seek(BROKEN)
                file.write(bytes([byte[0] ^ 1]))
        with pytest.raises(DataLost):
            await pieces(bench, received)
        assert received == data[: 5 * MIB]
        assert [damage[::2] for damage in bench.events.damages] == [("corrupt", 0)]

    on_bench(postgres, tmp_path, scenario, drives=1)


def test_without_a_free_buffer_it_waits_like_everybody(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        data, received = data_of(SIZE), bytearray()
        await bench.put("k", data)
        held: list[StripeBuffer] = []
        while (buffer := bench.context.buffers.try_acquire(MIB)) is not None:
            held.append(buffer)
        reading = asyncio.create_task(pieces(bench, received))
        await asyncio.sleep(0.05)
        assert not received
        del buffer
        while held:
            held.pop()
            await asyncio.sleep(0)
        await reading
        assert received == data

    on_bench(postgres, tmp_path, scenario, drives=1)


def test_a_download_that_is_dropped_leaves_nothing_behind(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.put("k", data_of(SIZE))
        buffers: Any = bench.context.buffers
        before = buffers.used
        info = await bench.engine.open(bench.bucket, "k")
        views: Any = bench.engine.read(bench.bucket, info, 0, info.size)
        view = await anext(views)
        assert buffers.used - before <= (STRIPES_IN_FLIGHT + 1) * MIB
        del view
        await views.aclose()
        executor: Any = bench.drives[0]._io.executor
        while executor.in_flight:
            await asyncio.sleep(0.001)
        assert buffers.used == before
        [file] = [file for path, file in bench.drives[0]._store.files._files.items() if "blobs" in path.parts]  # type: ignore[union-attr]
        assert file._leases == 0

    on_bench(postgres, tmp_path, scenario, drives=1)


def test_reads_that_fail_give_their_buffers_back(postgres: Postgres, tmp_path: Path, no_collector: None) -> None:
    async def scenario(bench: Bench) -> None:
        await bench.put("k", data_of(SIZE))
        buffers: Any = bench.context.buffers
        before = buffers.used
        store: Any = bench.drives[0]._store
        path = await file_of(bench)
        for round_ in range(3):
            received = bytearray()
            info = await bench.engine.open(bench.bucket, "k")
            views: Any = bench.engine.read(bench.bucket, info, 0, info.size)
            received += await anext(views)
            store.files._files[path].fd, good = os.open(tmp_path, os.O_RDONLY), store.files._files[path].fd  # reads give EISDIR
            with pytest.raises((DataLost, ReadQuorumLost)):
                async for view in views:
                    received += view
                    del view
            os.close(store.files._files[path].fd)
            store.files._files[path].fd = good
            del views, info
            await asyncio.sleep(0.01)
            assert buffers.used == before, f"round {round_}"

    on_bench(postgres, tmp_path, scenario, drives=1)


def test_reads_given_up_on_give_their_buffers_back(tmp_path: Path, no_collector: None) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        executor, buffers = NativeExecutor(loop, 1), Buffers(loop, 64 * MIB)
        io = Io(executor, NativeJobs())
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "file").write_bytes(bytes(MIB))
        file = OpenFile(os.open(tmp_path / "file", os.O_RDONLY), io)
        hanging = asyncio.create_task(executor.run(OpenJob(str(tmp_path / "pipe"), os.O_RDONLY)))
        await asyncio.sleep(0)

        async def read() -> None:
            view = memoryview(await buffers.acquire(MIB))
            with pytest.raises(DriveStalled), file:
                await io.read(file, 0, view, 0.05)

        await asyncio.gather(*(read() for _ in range(5)))
        assert buffers.used >= 5 * MIB, "the jobs that hang keep theirs"
        os.close(os.open(tmp_path / "pipe", os.O_WRONLY))
        await hanging
        while executor.in_flight:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        assert buffers.used == 0
        await executor.close()

    uvloop.run(main())


def test_downloads_whose_drive_fails_do_not_wait_for_each_others_buffers(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(bench: Bench) -> None:
        downloads = 12
        await bench.put("k", data_of(SIZE))
        held: list[StripeBuffer] = []
        while bench.context.buffers.used < bench.context.buffers.bytes_max - 3 * downloads * MIB:  # type: ignore[attr-defined]
            buffer = bench.context.buffers.try_acquire(MIB)
            assert buffer is not None
            held.append(buffer)
        info = await bench.engine.open(bench.bucket, "k")
        readings: list[Any] = [bench.engine.read(bench.bucket, info, 0, info.size) for _ in range(downloads)]
        for reading in readings:
            await anext(reading)
        shutil.rmtree(tmp_path / "drive0")
        store: Any = bench.drives[0]._store
        for path in list(store.files._files):
            store.files.discard(path)
        await bench.drives[0].probe()

        async def drained(reading: Any) -> None:
            with pytest.raises(ReadQuorumLost):
                async for _ in reading:
                    pass

        async with asyncio.timeout(5):
            await asyncio.gather(*map(drained, readings))

    on_bench(postgres, tmp_path, scenario, drives=1)
