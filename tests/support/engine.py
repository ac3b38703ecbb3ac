"""An engine of real parts in this process: PostgreSQL, folders as drives, C threads. For tests that look inside."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from anvil._ec.digest import DigestLanes
from anvil.base.limits import LOOK_PARTITIONS_MAX, SESSION_RENEW_S
from anvil.base.owned import OwnedTasks
from anvil.ec.buffers import Buffers
from anvil.ec.codecs import codec_for
from anvil.ec.executor import JobRunner, NativeExecutor
from anvil.engine.context import Context, Placement
from anvil.engine.engine import Engine
from anvil.engine.session import WriterSession
from anvil.engine.types import PutSpec
from anvil.meta.regional import RegionalStore
from anvil.model.identity import Bucket, BucketState, Tenant
from anvil.model.layout import PARTITIONS, Layout, LayoutDrive, compute
from anvil.model.records import Attributes
from anvil.model.scheme import Scheme, default_scheme
from anvil.node.local import use_session
from anvil.shards.drive import LocalDrive
from anvil.shards.nativeio import NativeJobs
from anvil.shards.settings import DriveSettings
from anvil.tasks.collect import Collector
from anvil.tasks.fsck import Fsck
from anvil.tasks.rebalance import Rebalancer
from anvil.tasks.repair import Repairer
from anvil.tasks.survey import Findings, Survey

SMALL_DRIVE = DriveSettings(floor_bytes=0, segment_bytes=8 << 20, segment_first_bytes=1 << 20, probe_s=0.2)


class Bytes:
    """A request body from memory, in pieces of at most `step` bytes."""

    def __init__(self, data: bytes, length: int | None = None) -> None:
        self.length = len(data) if length is None else length
        self._left = memoryview(data)
        self.trailers: dict[str, str] = {}

    async def readinto(self, view: memoryview) -> int:
        await asyncio.sleep(0)
        count = min(len(view), len(self._left))
        view[:count] = self._left[:count]
        self._left = self._left[count:]
        return count


class Events:
    def __init__(self) -> None:
        self.damages: list[tuple[str, str, int]] = []
        self.short = 0

    def damage(self, kind: str, drive: str, blob_id: bytes, index: int) -> None:
        self.damages.append((kind, drive, index))

    def write_short(self, blob_id: bytes, missing: int) -> None:
        self.short += 1


def plain_spec(**fields: object) -> PutSpec:
    return PutSpec(attributes=Attributes(), verify=lambda digests: None, **fields)  # type: ignore[arg-type]


async def nothing() -> None:
    return


class Bench:
    """The parts, by name."""

    context: Context
    engine: Engine
    metadata: RegionalStore
    session: WriterSession
    drives: list[LocalDrive]
    events: Events
    bucket: Bucket
    repairer: Repairer
    survey: Survey
    rebalancer: Rebalancer
    fsck: Fsck
    layout: Layout
    hold = False  # as while a backup is taken

    def collector(self, grace_s: float = 0.0) -> Collector:
        return Collector(self.metadata, self.context.placement(), grace_s, lambda: self.hold)

    async def survey_all(self, *, deep: bool = False) -> Findings:
        """Of all partitions."""
        findings = Findings()
        for first in range(0, PARTITIONS, LOOK_PARTITIONS_MAX):
            findings.add((await self.survey.partitions(range(first, first + LOOK_PARTITIONS_MAX), deep=deep)).findings)
        return findings

    async def put(self, key: str, data: bytes) -> str:
        return (await self.engine.put_object(self.bucket, key, Bytes(data), plain_spec())).etag

    async def get(self, key: str, start: int = 0, length: int | None = None) -> bytes:
        info = await self.engine.open(self.bucket, key)
        length = info.size - start if length is None else length
        at_hand = self.engine.at_hand(self.bucket, info, start, length)
        data = b"".join([bytes(view) async for view in self.engine.read(self.bucket, info, start, length)])
        assert at_hand is None or at_hand == data, "both ways give the same"
        return data


def new_bucket(bucket_id: int = 7) -> Bucket:
    key = hashlib.sha256(b"bucket key %d" % bucket_id).digest()
    return Bucket(
        bucket_id=bucket_id,
        tenant=Tenant(1, "t"),
        name=f"bucket-{bucket_id}",
        region="us-east-1",
        created_us=1,
        state=BucketState.ACTIVE,
        public_read=False,
        key=key,
    )


async def _renew(session: WriterSession) -> None:
    """Until a test takes the session away: none gets a second one by itself."""
    while await session.renew():
        await asyncio.sleep(SESSION_RENEW_S)


@asynccontextmanager
async def engine_bench(
    url: str, folder: Path, *, drives: int = 6, scheme: Scheme | None = None, settings: DriveSettings = SMALL_DRIVE
) -> AsyncIterator[Bench]:
    loop = asyncio.get_running_loop()
    bench = Bench()
    native = NativeExecutor(loop, 2)
    lanes = JobRunner(loop, DigestLanes(1))
    bench.metadata = RegionalStore(url, wait_s=5.0)
    await bench.metadata.start()
    bench.session = WriterSession(bench.metadata, os.urandom(16), 0)
    session_id = await bench.session.open()
    bench.drives = [
        await LocalDrive.attach(
            folder / f"drive{number}",
            expected=None,
            create=True,
            executor=NativeExecutor(loop, 2),
            jobs=NativeJobs(),
            session=session_id,
            settings=settings,
            hold=lambda: bench.hold,
        )
        for number in range(drives)
    ]
    wanted = scheme or default_scheme(drives)
    layout_drives = [LayoutDrive(drive.drive_id, b"node", 1 << 40) for drive in bench.drives]
    bench.layout = compute(layout_drives, wanted.width, 2)
    placement = Placement([bench.layout], {drive.drive_id: drive for drive in bench.drives})
    bench.events = Events()
    owned = OwnedTasks("test")
    buffers = Buffers(loop)
    bench.context = Context(
        metadata=bench.metadata,
        placement=lambda: placement,
        scheme=lambda: wanted,
        native=native,
        lanes=lanes,
        buffers=buffers,
        codecs=codec_for,
        session=bench.session,
        events=bench.events,
        owned=owned,
        new_id=lambda: os.urandom(16),
        now_us=lambda: time.time_ns() // 1000,
    )
    bench.session.opened = partial(use_session, tuple(bench.drives), owned)
    bench.engine = Engine(bench.context)
    bench.repairer = Repairer(bench.metadata, placement, native, buffers, codec_for, retry_s=0.0)
    bench.survey = Survey(bench.metadata, placement, buffers, bench.events, lambda: bench.hold)
    bench.rebalancer = Rebalancer(bench.metadata, placement, buffers, bench.repairer, bench.events, lambda: bench.hold)
    bench.fsck = Fsck(bench.metadata, placement, buffers, bench.survey, nothing, bench.rebalancer.partition)
    bench.bucket = new_bucket()
    await bench.metadata.add_bucket(bench.bucket.bucket_id)
    renewing = loop.create_task(_renew(bench.session))
    try:
        yield bench
    finally:
        renewing.cancel()
        await owned.close(10)
        for drive in bench.drives:
            await drive.close()
            if not drive.stalled:
                await drive.executor.close()  # type: ignore[attr-defined]
        await bench.session.close()
        await bench.metadata.close()
        await lanes.close()
        await native.close()
