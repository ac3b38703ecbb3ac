"""What becomes of calls when the connection or the server goes away."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from anvil.base.errors import DatabaseUnavailable, OutcomeUnknown, Unavailable
from anvil.meta.embedded import SOCKET_NAME, EmbeddedPostgres
from anvil.meta.migrate import Database, migrate
from anvil.meta.regional import RegionalStore
from anvil.model.records import NO_CONDITION, Condition
from tests.contract.metadata_world import NODE, World, new_bucket_id
from tests.postgres_fixture import Postgres

READY_FOR_QUERY = b"Z\0\0\0\5I"


class Proxy:
    """Stands before PostgreSQL's socket. Once `armed`, the next execution of a prepared statement reaches the server and is
    committed there, but its answer never reaches the client: the connection is cut. `refuse` closes every new connection."""

    def __init__(self, server_folder: str) -> None:
        self.folder = tempfile.mkdtemp(prefix="anvil-proxy-", dir="/tmp")
        self._target = f"{server_folder}/{SOCKET_NAME}"
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._swallow: set[asyncio.StreamWriter] = set()
        self.armed = False
        self.refuse = False
        self.cuts = 0

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, f"{self.folder}/{SOCKET_NAME}")

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self.cut_all()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        shutil.rmtree(self.folder)

    def cut_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refuse:
            writer.transport.abort()
            return
        up_reader, up_writer = await asyncio.open_unix_connection(self._target)
        self._writers |= {writer, up_writer}
        for source, sink, from_client in ((reader, up_writer, True), (up_reader, writer, False)):
            task = asyncio.create_task(self._pump(source, sink, from_client, (writer, up_writer)))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        from_client: bool,
        both: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
    ) -> None:
        try:
            while data := await source.read(1 << 20):
                # A Bind message ('B') carries the arguments; with it come Execute and Sync, which commits.
                if from_client and self.armed and data.startswith(b"B"):
                    self.armed = False
                    self._swallow.add(both[0])
                if not from_client and sink in self._swallow:
                    if data.endswith(READY_FOR_QUERY):
                        self.cuts += 1
                        sink.transport.abort()
                    continue
                sink.write(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            sink.close()


@pytest.fixture
def url(postgres: Postgres) -> str:
    return postgres.fresh(Database.REGIONAL)


async def opened(url: str, wait_s: float = 10.0) -> World:
    store = RegionalStore(url, wait_s=wait_s)
    await store.start()
    bucket_id = new_bucket_id()
    await store.add_bucket(bucket_id)
    return World(store, bucket_id, await store.open_session(NODE, 0))


def through(proxy: Proxy, url: str) -> str:
    return url.split("?", maxsplit=1)[0] + f"?host={proxy.folder}"


def test_cut_in_commit_is_settled_by_reading_back(url: str) -> None:
    """The commit reaches the server, its answer does not: every call learns the truth."""

    async def scenario() -> None:
        proxy = Proxy(url.split("host=")[1])
        await proxy.start()
        w = await opened(through(proxy, url))
        await w.store.put_object(w.put("warm"))
        await w.delete("warm")
        commits = [w.put(f"k{n}", missing=1) for n in range(30)]
        proxy.armed = True
        results = await asyncio.gather(*(w.store.put_object(commit) for commit in commits), return_exceptions=True)
        assert proxy.cuts == 1
        for commit, result in zip(commits, results, strict=True):
            assert not isinstance(result, BaseException), result
            record = await w.store.get_object(w.bucket_id, commit.key)
            assert record is not None
            assert (result.version_id, result.seq, result.modified_us) == (record.version_id, record.seq, record.modified_us)
        upload_id = await w.upload("mp")
        part = w.part("mp", upload_id, 1)
        await w.store.put_part(part)
        proxy.armed = True
        await w.store.put_part(w.part("mp", upload_id, 2))
        await w.store.get_upload(w.bucket_id, "mp", upload_id)
        proxy.armed = True
        await w.store.delete_object(w.session, w.bucket_id, "k0", NO_CONDITION)
        assert proxy.cuts == 3
        assert await w.store.get_object(w.bucket_id, "k0") is None
        # Afterwards all is as usual.
        await w.store.put_object(w.put("after"))
        await w.store.close()
        await proxy.stop()

    asyncio.run(scenario())


def test_cut_while_the_commit_waits(url: str) -> None:
    """Cut off while the statement waits for a lock: success with the row's own numbers, or unknown; never a wrong answer."""

    async def scenario() -> None:
        proxy = Proxy(url.split("host=")[1])
        await proxy.start()
        w = await opened(through(proxy, url))
        for make in (
            lambda: w.put("plain"),
            lambda: w.put("conditional", condition=Condition(if_none_match=("*",))),
        ):
            commit = make()
            holder = await asyncpg.connect(url)
            transaction = holder.transaction()
            await transaction.start()
            await holder.execute("SELECT FROM buckets WHERE bucket_id = $1 FOR UPDATE", w.bucket_id)
            put = asyncio.create_task(w.store.put_object(commit))
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            while not await holder.fetchval(waiting):
                await asyncio.sleep(0.005)
            # The client is cut off while its statement waits; the server goes on, and commits once the lock is free, unless the
            # client's next connection ends it first. Either way the caller must be told what really happened.
            proxy.cut_all()
            await transaction.rollback()
            try:
                committed = await put
            except OutcomeUnknown:
                await holder.close()
                continue
            record = await w.store.get_object(w.bucket_id, commit.key)
            assert record is not None
            assert (record.version_id, record.seq) == (committed.version_id, committed.seq)
            await holder.close()
        await w.store.close()
        await proxy.stop()

    asyncio.run(scenario())


def test_no_zombie_commits_after_the_caller_was_told_unknown(url: str) -> None:
    """A statement stuck on a lock when its connection dies must not commit after its caller got an answer."""

    async def scenario() -> None:
        proxy = Proxy(url.split("host=")[1])
        await proxy.start()
        w = await opened(through(proxy, url))
        holder = await asyncpg.connect(url)
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("SELECT FROM buckets WHERE bucket_id = $1 FOR UPDATE", w.bucket_id)
        put = asyncio.create_task(w.store.put_object(w.put("zombie")))
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        while not await holder.fetchval(waiting):
            await asyncio.sleep(0.005)
        proxy.cut_all()
        # The lock is still held, so nothing can have been committed, and the old server process has to be ended to be sure.
        with pytest.raises(OutcomeUnknown):
            await put
        assert not await holder.fetchval(waiting)
        await transaction.rollback()
        assert await w.store.get_object(w.bucket_id, "zombie") is None
        await holder.close()
        await w.store.close()
        await proxy.stop()

    asyncio.run(scenario())


def test_reads_are_repeated_and_waiting_is_bounded(url: str) -> None:
    async def scenario() -> None:
        proxy = Proxy(url.split("host=")[1])
        await proxy.start()
        w = await opened(through(proxy, url), wait_s=0.6)
        await w.store.put_object(w.put("k"))
        assert await w.store.get_object(w.bucket_id, "k") is not None
        proxy.armed = True
        assert await w.store.get_object(w.bucket_id, "k") is not None
        assert proxy.cuts == 1
        proxy.refuse = True
        proxy.cut_all()
        began = asyncio.get_running_loop().time()
        while w.store.up:
            await asyncio.sleep(0)
        with pytest.raises(DatabaseUnavailable):
            await w.store.get_object(w.bucket_id, "k")
        with pytest.raises(DatabaseUnavailable):
            await w.store.put_object(w.put("k"))
        assert asyncio.get_running_loop().time() - began < 5
        waiting = asyncio.create_task(w.store.get_object(w.bucket_id, "k"))
        await asyncio.sleep(0)
        proxy.refuse = False
        assert await waiting is not None
        await w.store.close()
        await proxy.stop()

    asyncio.run(scenario())


@pytest.fixture
def own_cluster() -> Iterator[tuple[EmbeddedPostgres, str]]:
    folder = Path(tempfile.mkdtemp(prefix="anvil-outage-", dir="/tmp"))
    cluster = EmbeddedPostgres(folder, fsync=False)
    _, url = cluster.start()
    asyncio.run(migrate(url, Database.REGIONAL))
    yield cluster, url
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


def test_server_restarts_under_load(own_cluster: tuple[EmbeddedPostgres, str]) -> None:
    """Crash twice while 32 writers go on: who was told success finds its object; nobody is told anything but success or 503."""
    cluster, url = own_cluster

    async def scenario() -> None:
        w = await opened(url)
        acknowledged: dict[str, bytes] = {}
        unavailable = 0
        stop = asyncio.Event()

        async def write(n: int) -> None:
            nonlocal unavailable
            count = 0
            while not stop.is_set():
                commit = w.put(f"w{n}/{count}")
                try:
                    await w.store.put_object(commit)
                    acknowledged[commit.key] = commit.version_id
                except Unavailable:
                    unavailable += 1
                count += 1

        writers = [asyncio.create_task(write(n)) for n in range(32)]
        for crash in (1, 2):
            before = len(acknowledged)
            async with asyncio.timeout(30):
                while len(acknowledged) < before + 200:
                    await asyncio.sleep(0.005)
            pid = cluster.pid
            assert pid is not None
            os.kill(pid, signal.SIGQUIT if crash == 1 else signal.SIGKILL)
            async with asyncio.timeout(30):
                while cluster.restarts < crash or cluster.pid in (None, pid):
                    await asyncio.sleep(0.005)
        after = len(acknowledged)
        async with asyncio.timeout(30):
            while len(acknowledged) < after + 200:
                await asyncio.sleep(0.005)
        stop.set()
        await asyncio.gather(*writers)
        keys = list(acknowledged)
        records = await asyncio.gather(*(w.store.get_object(w.bucket_id, key) for key in keys))
        lost = [
            key for key, record in zip(keys, records, strict=True) if record is None or record.version_id != acknowledged[key]
        ]
        assert lost == []
        await w.store.close()

    asyncio.run(scenario())
