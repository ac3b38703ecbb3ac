"""The catalog over a real channel: errors cross, caches obey the rule of freshness, changes are never lost in a race."""

from __future__ import annotations

import asyncio
import stat
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from anvil.base import errors
from anvil.base.errors import AnvilError, BucketAlreadyExists, DatabaseUnavailable, NoSuchBucket, SlowDown, Unavailable
from anvil.base.limits import CATALOG_FRESH_S, CHANNEL_PENDING_MAX
from anvil.node import catalog as catalog_module
from anvil.node.catalog import CatalogServer, RemoteCatalog
from anvil.node.channel import Channel, connect, error_classes, listen_socket
from tests.support.toy_parts import ToyCatalog, bucket


class Pair:
    """A catalog server with two workers, in one process, over a real socket."""

    def __init__(self) -> None:
        self.source = ToyCatalog()
        self.server_channels: list[Channel] = []
        self.server = CatalogServer(self.source, lambda: self.server_channels)
        self.channels: list[Channel] = []
        self.workers: list[RemoteCatalog] = []

    async def publish(self) -> None:
        """One reading of the change log, as `run` does it, and the workers' taking note of it."""
        read_at = time.monotonic()
        rows = tuple(await self.source.changes())
        self.server._read_at = read_at
        self.server._announce(rows)
        for worker in self.workers:
            async with asyncio.timeout(5):
                while worker._read_at < read_at:
                    await asyncio.sleep(0)


@asynccontextmanager
async def pair(path: Path) -> AsyncIterator[Pair]:
    both = Pair()
    listener = listen_socket(path / "s")
    assert stat.S_IMODE((path / "s").stat().st_mode) == 0o600
    server = await asyncio.get_running_loop().create_unix_server(
        lambda: Channel(both.server.handlers, {}, opened=both.server_channels.append), sock=listener
    )
    for _ in range(2):
        number = len(both.workers)
        worker = RemoteCatalog(lambda number=number: both.channels[number])  # type: ignore[misc]
        both.workers.append(worker)
        both.channels.append(await connect(path / "s", worker.handlers, worker.listeners, lambda channel: None))
    async with asyncio.timeout(5):
        while len(both.server_channels) < 2:
            await asyncio.sleep(0)
    for worker in both.workers:
        worker.connected(both.server.greeting())
    await both.publish()
    yield both
    for channel in both.channels:
        channel.close()
    server.close()


def run(path: Path, scenario: Callable[[Pair], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with pair(path) as both:
            await scenario(both)

    asyncio.run(inside())


def test_regions_are_cached_until_one_changes(tmp_path: Path) -> None:
    async def scenario(both: Pair) -> None:
        worker = both.workers[0]
        assert await worker.regions() == {"us-east-1": "http://us.example.com"}
        reads = both.source.reads
        assert await worker.regions() == {"us-east-1": "http://us.example.com"}
        assert both.source.reads == reads
        both.source.endpoints["eu-1"] = ""
        both.source.changed.append("region:eu-1")
        await both.publish()
        assert await worker.regions() == {"us-east-1": "http://us.example.com", "eu-1": ""}

    run(tmp_path, scenario)


def test_the_log_is_read_at_once_when_a_change_is_notified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(both: Pair) -> None:
        told = asyncio.Event()
        monkeypatch.setattr(both.source, "hastened", lambda timeout_s: told.wait())
        running = asyncio.get_running_loop().create_task(both.server.run())
        worker = both.workers[0]
        try:
            async with asyncio.timeout(5):
                assert await worker.bucket("first") == bucket("first")
                both.source.changed.append("bucket:first")
                del both.source.names["first"]
                told.set()
                while await worker.bucket("first") is not None:
                    await asyncio.sleep(0)
        finally:
            running.cancel()

    run(tmp_path, scenario)


def test_rows_are_cached_and_forgotten_when_the_log_names_them(tmp_path: Path) -> None:
    async def scenario(both: Pair) -> None:
        one = both.workers[0]
        assert (await one.bucket("first")) == bucket("first")
        for _ in range(5):
            await one.bucket("first")
        assert both.source.reads == 1
        both.source.names["first"] = msgspec.structs.replace(bucket("first"), public_read=True)
        both.source.changed.append("bucket:first")
        await both.publish()
        found = await one.bucket("first")
        assert found is not None
        assert found.public_read
        both.source.changed.append("*")
        await both.publish()
        await one.bucket("first")
        assert both.source.reads == 3

    run(tmp_path, scenario)


def test_a_missing_row_is_never_cached(tmp_path: Path) -> None:
    async def scenario(both: Pair) -> None:
        assert await both.workers[1].bucket("new") is None
        await both.workers[0].create_bucket(1, "new", "us-east-1")
        assert await both.workers[1].bucket("new") == bucket("new")
        assert await both.workers[0].app("nobody") is None

    run(tmp_path, scenario)


def test_what_one_worker_deletes_no_other_finds_afterwards(tmp_path: Path) -> None:
    async def scenario(both: Pair) -> None:
        found = await both.workers[1].bucket("first")
        assert found is not None
        await both.workers[0].delete_bucket(found)
        assert await both.workers[1].bucket("first") is None

    run(tmp_path, scenario)


def test_a_row_read_before_a_change_is_not_cached_after_it(tmp_path: Path) -> None:
    async def scenario(both: Pair) -> None:
        both.source.gate = asyncio.Event()
        reading = asyncio.ensure_future(both.workers[0].bucket("first"))
        async with asyncio.timeout(5):
            while not both.source.reads:
                await asyncio.sleep(0)
        both.source.changed.append("bucket:first")
        await both.publish()
        both.source.gate.set()
        await reading
        await both.workers[0].bucket("first")
        assert both.source.reads == 2, "the first reading may have been of the old row"

    run(tmp_path, scenario)


def test_concurrent_readers_share_one_question(tmp_path: Path) -> None:
    async def scenario(both: Pair) -> None:
        cancelled = asyncio.ensure_future(both.workers[0].bucket("first"))
        others = [asyncio.ensure_future(both.workers[0].bucket("first")) for _ in range(50)]
        await asyncio.sleep(0)
        cancelled.cancel()
        assert set(map(type, await asyncio.gather(*others))) == {type(bucket("first"))}
        assert both.source.reads == 1

    run(tmp_path, scenario)


def test_nothing_stale_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "CATALOG_WAIT_S", 0.05)

    async def scenario(both: Pair) -> None:
        one = both.workers[0]
        await one.bucket("first")
        one._read_at -= CATALOG_FRESH_S
        with pytest.raises(DatabaseUnavailable):
            await one.bucket("first")
        monkeypatch.setattr(catalog_module, "CATALOG_WAIT_S", 5.0)
        waiting = asyncio.ensure_future(one.bucket("first"))
        await asyncio.sleep(0)
        await both.publish()
        assert await waiting is not None

    run(tmp_path, scenario)


def test_errors_cross_with_their_class_and_fields(tmp_path: Path) -> None:
    async def scenario(both: Pair) -> None:
        with pytest.raises(BucketAlreadyExists) as caught:
            await both.workers[0].create_bucket(1, "first", "us-east-1")
        assert caught.value.fields == {"BucketName": "first"}
        assert caught.value.message == BucketAlreadyExists.default
        with pytest.raises(NoSuchBucket):
            await both.workers[0].delete_bucket(bucket("none"))

    run(tmp_path, scenario)


def test_a_secret_crosses_whole(tmp_path: Path) -> None:
    async def scenario(both: Pair) -> None:
        app = await both.workers[0].app("AKX")
        assert app is not None
        assert (app.secret, app.policies[0].action) == ("topsecret", "*")
        assert [found.name for found in await both.workers[0].buckets(1)] == ["first"]

    run(tmp_path, scenario)


def test_every_domain_error_can_cross() -> None:
    classes = error_classes()
    defined = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, AnvilError)}
    assert set(classes.values()) == defined
    for value in defined:
        again = value("text", Field=1)
        assert (again.message, again.fields) == ("text", {"Field": 1})


def test_bounds_and_lost_connections_end_calls(tmp_path: Path) -> None:
    async def never(channel: Channel, body: msgspec.Raw) -> Any:
        await asyncio.Event().wait()

    async def fails(channel: Channel, body: msgspec.Raw) -> Any:
        raise RuntimeError("a bug")

    async def inside() -> None:
        loop = asyncio.get_running_loop()
        served: list[Channel] = []
        handlers = {"never": never, "fails": fails}
        server = await loop.create_unix_server(
            lambda: Channel(handlers, {}, opened=served.append), sock=listen_socket(tmp_path / "s")
        )
        channel = await connect(tmp_path / "s", {}, {}, lambda lost: None)
        with pytest.raises(Unavailable, match="in time"):
            await channel.call("never", None, int, timeout_s=0.05)
        with pytest.raises(Unavailable) as caught:
            await channel.call("fails", None, int)
        assert "bug" not in caught.value.message, "no internals cross"
        with pytest.raises(Unavailable, match="one version"):
            await channel.call("unknown", None, int)
        hanging = [asyncio.ensure_future(channel.call("never", None, int)) for _ in range(CHANNEL_PENDING_MAX)]
        await asyncio.sleep(0)
        with pytest.raises(SlowDown):
            await channel.call("never", None, int)
        served[0].close()
        assert all(isinstance(outcome, Unavailable) for outcome in await asyncio.gather(*hanging, return_exceptions=True))
        assert not channel.open
        with pytest.raises(Unavailable):
            await channel.call("never", None, int)
        server.close()

    asyncio.run(inside())


@pytest.mark.parametrize("step", [1, 2, 3, 5, 64])
def test_frames_may_come_in_any_pieces(step: int) -> None:
    async def inside() -> None:
        got: list[int] = []
        channel = Channel({}, {"n": lambda _, body: got.append(msgspec.msgpack.decode(body, type=int))})
        frames = b""
        for number in range(20):
            frame = msgspec.msgpack.encode(["p", "n", number])
            frames += len(frame).to_bytes(4, "big") + frame
        for start in range(0, len(frames), step):
            channel.data_received(frames[start : start + step])
        assert got == list(range(20))

    asyncio.run(inside())
