"""Toy parts: a node whose workers answer every request with their pid, so that supervisor, channel, health and metrics can
be tested alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from anvil.base import instruments
from anvil.base.config import Config
from anvil.base.errors import (
    BucketAlreadyExists,
    DatabaseUnavailable,
    DriveFailed,
    NoSuchBucket,
    PreconditionFailed,
    Unavailable,
    UnknownName,
)
from anvil.base.types import Buffer
from anvil.meta.admin import BucketUsage
from anvil.meta.rights import Changed
from anvil.model.identity import Actor, App, Bucket, BucketRights, BucketState, Grant, Policy, Tenant
from anvil.model.records import Usage
from anvil.net.stream import Handler, Headers, RequestHead
from anvil.node.background import BackgroundParts, run_background
from anvil.node.child import Child
from anvil.node.gauges import publish_usage
from anvil.node.health import Check, DriveProbe, lone
from anvil.node.parts import KeyPair, Parts
from anvil.node.worker import WorkerLink, run_worker

TENANT = Tenant(1, "default")


def bucket(name: str) -> Bucket:
    return Bucket(len(name) + 1, TENANT, name, "us-east-1", 1, BucketState.ACTIVE, False, bytes(32))


class ToyCatalog:
    """Buckets in memory. `away`: as if the database did not answer."""

    def __init__(self) -> None:
        self.names: dict[str, Bucket] = {"first": bucket("first")}
        self.changed: list[str] = []
        self.endpoints = {"us-east-1": "http://us.example.com"}
        self.away = False
        self.reads = 0
        self.gate: asyncio.Event | None = None

    def _check(self) -> None:
        if self.away:
            raise DatabaseUnavailable

    async def changes(self) -> Sequence[str]:
        self._check()
        changed, self.changed = self.changed, []
        return changed

    async def hastened(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)

    async def regions(self) -> dict[str, str]:
        self._check()
        self.reads += 1
        return dict(self.endpoints)

    async def app(self, access_key: str) -> App | None:
        self._check()
        self.reads += 1
        return App(1, TENANT, "a", access_key, "topsecret", 1, (Policy("*", "*"),)) if access_key.startswith("AK") else None

    async def bucket(self, name: str) -> Bucket | None:
        self._check()
        self.reads += 1
        found = self.names.get(name)
        if self.gate is not None:
            await self.gate.wait()
        return found

    async def buckets(self, tenant_id: int) -> Sequence[Bucket]:
        self._check()
        return [self.names[name] for name in sorted(self.names)]

    async def create_bucket(self, tenant_id: int, name: str, region: str) -> Bucket:
        if name in self.names:
            raise BucketAlreadyExists(BucketName=name)
        self.names[name] = bucket(name)
        return self.names[name]

    async def delete_bucket(self, bucket: Bucket) -> None:
        if self.names.pop(bucket.name, None) is None:
            raise NoSuchBucket


class ToyRights:
    """Rights in memory, of access keys; the catalog's buckets are public or not. `recorded`: refusals."""

    def __init__(self, catalog: ToyCatalog) -> None:
        self.catalog = catalog
        self.held: set[tuple[str, Policy]] = set()
        self.recorded: list[tuple[str, str, str, str]] = []

    async def resolve(self, tenant_id: int, apps: Sequence[str]) -> Sequence[str]:
        for named in apps:
            if not named.startswith("AK"):
                raise UnknownName(f"There is no app {named!r} in this tenant.")
        return tuple(apps)

    async def grant(self, by: Actor, app: str, right: Policy) -> Changed:
        changed = (app, right) not in self.held
        self.held.add((app, right))
        return Changed(changed, (f"app:{app}",))

    async def revoke(self, by: Actor, app: str, right: Policy) -> Changed:
        changed = (app, right) in self.held
        self.held.discard((app, right))
        return Changed(changed, (f"app:{app}",))

    async def set_public(self, by: Actor, bucket: str, allow: bool) -> Changed:
        found = self.catalog.names.get(bucket)
        if found is None:
            raise NoSuchBucket(BucketName=bucket)
        self.catalog.names[bucket] = msgspec.structs.replace(found, public_read=allow)
        return Changed(found.public_read != allow, (f"bucket:{bucket}",))

    async def bucket_rights(self, tenant_id: int, bucket: str) -> BucketRights:
        found = self.catalog.names.get(bucket)
        if found is None:
            raise NoSuchBucket(BucketName=bucket)
        grants = tuple(Grant(app, right) for app, right in sorted(self.held, key=repr))
        return BucketRights(found.public_read, grants, f"{found.public_read} {hash(grants)}")

    async def put_bucket_rights(self, by: Actor, bucket: str, wanted: BucketRights) -> Changed:
        if (await self.bucket_rights(by.tenant_id, bucket)).etag != wanted.etag:
            raise PreconditionFailed
        touched = {app for app, _ in self.held} | {grant.app for grant in wanted.grants}
        self.held = {(grant.app, grant.right) for grant in wanted.grants}
        await self.set_public(by, bucket, wanted.public_read)
        etag = (await self.bucket_rights(by.tenant_id, bucket)).etag
        return Changed(True, (f"bucket:{bucket}", *(f"app:{key}" for key in touched)), etag)

    async def refused(self, by: Actor, action: str, resource: str, result: str) -> None:
        self.recorded.append((by.access_key, action, resource, result))


class ToyStream:
    """One request of a connection that is closed behind it."""

    def __init__(self, head: RequestHead, writer: asyncio.StreamWriter) -> None:
        self.head = head
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self._writer = writer

    async def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        self.status, self.headers, self.body = status, dict(headers), body
        lines = [f"HTTP/1.1 {status} x".encode(), *(name + b": " + value for name, value in headers)]
        lines += [] if b"content-length" in self.headers else [f"content-length: {len(body)}".encode()]
        self._writer.write(b"\r\n".join([*lines, b"connection: close", b"", body]))

    async def readinto(self, view: memoryview) -> int:
        return 0

    async def read_all(self, limit: int) -> bytes:
        return b""

    def start(self, status: int, headers: Headers, length: int | None) -> None:
        raise AssertionError("not used")

    async def write(self, data: Buffer) -> None:
        raise AssertionError("not used")

    async def flushed(self) -> None: ...
    async def finish(self) -> None: ...
    @property
    def started(self) -> bool:
        return self.status != 0

    @property
    def received_bytes(self) -> int:
        return 0

    @property
    def sent_bytes(self) -> int:
        return 0

    def abort(self) -> None: ...


class ToyServing:
    """Answers `/slow` after a second, `/bucket/NAME` from the catalog, everything else with the pid."""

    def __init__(self, process: Child, link: WorkerLink) -> None:
        self._plan = process.plan
        self._link = link
        self._requests: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._handler: Handler | None = None
        self.lease = True

    @property
    def handler(self) -> Handler:
        return self._serve

    async def _serve(self, stream: object) -> None:
        assert isinstance(stream, ToyStream)
        path = stream.head.path
        instruments.API_REQUESTS.labels("s3", "other", "200").inc()
        if path == b"/slow":
            await asyncio.sleep(1)
        if path.startswith(b"/bucket/"):
            try:
                found = await self._link.catalog.bucket(path[8:].decode())
                await stream.respond(200 if found else 404, [])
            except Unavailable as error:
                await stream.respond(503, [], error.message.encode())
        else:
            await stream.respond(200, [], str(os.getpid()).encode())

    unwritable: dict[str, str] = {}  # noqa: RUF012 - never changed

    async def listen(self, handler: Handler) -> None:
        self._handler = handler
        self._server = await asyncio.start_server(self._accept, self._plan.listen_host, self._plan.listen_port, reuse_port=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._requests.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
            method, target, _ = lines[0].split(b" ")
            pairs = [line.split(b": ", 1) for line in lines[1:] if line]
            headers = tuple((name.lower(), value) for name, value in pairs)
            path, _, query = target.partition(b"?")
            host = dict(headers).get(b"host", b"")
            head = RequestHead(
                method.decode(), path, query, headers, host, "1.1", writer.get_extra_info("peername")[0], None, False
            )
            assert self._handler is not None
            await self._handler(ToyStream(head, writer))
            await writer.drain()
        self._requests.discard(task)

    async def drain(self, deadline_s: float) -> None:
        if self._server is not None:
            self._server.close()
        if self._requests:
            await asyncio.wait(self._requests, timeout=deadline_s)

    async def close(self) -> None: ...


async def build_worker(process: Child, link: WorkerLink) -> ToyServing:
    if process.config.node.region == "broken-worker":
        raise DatabaseUnavailable("the toy database is away")
    slow = process.config.node.data_path / "slow-start"
    if slow.exists():
        await asyncio.sleep(float(slow.read_text()))
    return ToyServing(process, link)


async def build_background(process: Child) -> BackgroundParts:
    catalog = ToyCatalog()
    flag = process.config.node.data_path / "database-away"
    many = process.config.node.data_path / "many-buckets"

    async def database() -> None:
        catalog.away = flag.exists()
        if many.exists():
            publish_usage(many_buckets(int(many.read_text())))
        if catalog.away:
            raise DatabaseUnavailable("the toy database is away")

    drives = [
        DriveProbe(Path(path), label, marked(Path(path)))
        for path, label in zip(process.config.storage.drives, process.config.storage.labels, strict=True)
    ]
    return BackgroundParts(catalog, ToyRights(catalog), [Check("global_database", database, forgiving=True)], drives, lone(1, 1))


def many_buckets(count: int) -> list[BucketUsage]:
    """Usage of so many buckets of one tenant; bucket number N holds N objects of 1,000 bytes."""
    return [BucketUsage("tenant", f"bucket-{number:05}", False, Usage(number, number, number * 1000)) for number in range(count)]


def marked(path: Path) -> Callable[[], None]:
    """For a toy drive: whether its folder holds the file that drives have."""

    def look() -> None:
        if not (path / "drive.json").exists():
            raise DriveFailed("the drive is not there")

    return look


class ToyPostgres:
    """Counts starts and stops in the data directory."""

    def __init__(self, config: Config) -> None:
        self._log = config.node.data_path / "postgres.log"
        self.pid = None

    def start(self) -> tuple[str, str]:
        with self._log.open("a") as log:
            log.write("start\n")
        return "postgresql:///global", "postgresql:///regional"

    def stop(self) -> None:
        with self._log.open("a") as log:
            log.write("stop\n")


async def prepare(config: Config, global_url: str, regional_url: str, node_id: bytes) -> KeyPair | None:
    for drive in config.storage.drives:
        Path(drive).mkdir(parents=True, exist_ok=True)
        (Path(drive) / "drive.json").write_text("{}")
    made = config.node.data_path / "made"
    if made.exists():
        return None
    made.touch()
    return KeyPair("AKTOYTOYTOYTOYTOYTOY", "s" * 40)


async def _worker(process: Child) -> None:
    await run_worker(process, build_worker)


async def _background(process: Child) -> None:
    await run_background(process, build_background)


PARTS = Parts(ToyPostgres, prepare, _worker, _background)
