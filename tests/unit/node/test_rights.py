"""Changes of rights over a real channel: no worker of the node goes by what was before, once the caller has its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from anvil.base.errors import DatabaseUnavailable, NoSuchBucket, PreconditionFailed, UnknownName
from anvil.base.limits import REFUSALS_AUDITED_MAX
from anvil.model.identity import Action, Actor, App, BucketRights, Grant, Policy
from anvil.node import rights as rights_module
from anvil.node.catalog import CatalogServer, RemoteCatalog
from anvil.node.channel import Channel, connect, listen_socket
from anvil.node.rights import RemoteRights, RightsServer
from tests.support.toy_parts import TENANT, ToyCatalog, ToyRights

BY = Actor(1, "AKBOSS", "192.0.2.7:5000", "req-1")
READ = Policy(Action.OBJECT_READ, "first/*")


class RightsCatalog(ToyCatalog):
    """Apps with the rights that ToyRights holds."""

    rights: ToyRights

    async def app(self, access_key: str) -> App | None:
        found = await super().app(access_key)
        held = tuple(right for key, right in self.rights.held if key == access_key)
        return found and msgspec.structs.replace(found, policies=held)


class Clock:
    seconds = 1_000_000.0

    def monotonic(self) -> float:
        return self.seconds

    def now_us(self) -> int:
        return 0


class Node:
    def __init__(self) -> None:
        self.catalog = RightsCatalog()
        self.toy = self.catalog.rights = ToyRights(self.catalog)
        self.clock = Clock()
        self.server_channels: list[Channel] = []
        self.server = CatalogServer(self.catalog, lambda: self.server_channels)
        self.rights_server = RightsServer(self.toy, self.server.forget, self.clock)
        self.channels: list[Channel] = []
        self.workers: list[RemoteCatalog] = []

    def rights(self, worker: int) -> RemoteRights:
        return RemoteRights(self.workers[worker])

    async def held(self, worker: int, access_key: str) -> tuple[Policy, ...]:
        app = await self.workers[worker].app(access_key)
        assert app is not None
        return app.policies


@asynccontextmanager
async def node(path: Path) -> AsyncIterator[Node]:
    made = Node()
    handlers = {**made.server.handlers, **made.rights_server.handlers}
    listener = listen_socket(path / "s")
    server = await asyncio.get_running_loop().create_unix_server(
        lambda: Channel(handlers, {}, opened=made.server_channels.append), sock=listener
    )
    for number in range(2):
        made.workers.append(RemoteCatalog(lambda number=number: made.channels[number]))  # type: ignore[misc]
        worker = made.workers[number]
        made.channels.append(await connect(path / "s", worker.handlers, worker.listeners, lambda channel: None))
    async with asyncio.timeout(5):
        while len(made.server_channels) < 2:
            await asyncio.sleep(0)
    for worker in made.workers:
        worker.connected(made.server.greeting())
    reading = asyncio.ensure_future(made.server.run())
    try:
        yield made
    finally:
        reading.cancel()
        for channel in made.channels:
            channel.close()
        server.close()


def run(path: Path, scenario: Callable[[Node], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with node(path) as made:
            await scenario(made)

    asyncio.run(inside())


def test_a_change_is_in_effect_on_all_workers_when_it_is_answered(tmp_path: Path) -> None:
    async def scenario(made: Node) -> None:
        assert await made.held(0, "AKWEB") == await made.held(1, "AKWEB") == ()
        assert await made.rights(0).grant(BY, "AKWEB", READ) is True
        assert await made.held(1, "AKWEB") == (READ,)
        assert await made.rights(1).grant(BY, "AKWEB", READ) is False
        assert await made.rights(1).revoke(BY, "AKWEB", READ) is True
        assert await made.held(0, "AKWEB") == ()
        assert await made.rights(0).revoke(BY, "AKWEB", READ) is False
        for worker, allow in ((0, True), (1, False)):
            for other in made.workers:
                await other.bucket("first")
            assert await made.rights(worker).set_public(BY, "first", allow) is True
            found = await made.workers[1 - worker].bucket("first")
            assert found is not None
            assert found.public_read is allow

    run(tmp_path, scenario)


def test_what_was_so_already_is_forgotten_too(tmp_path: Path) -> None:
    """Another node granted it a moment ago, and this node's change log has not told yet."""

    async def scenario(made: Node) -> None:
        assert await made.held(1, "AKWEB") == ()
        made.toy.held.add(("AKWEB", READ))
        assert await made.rights(0).grant(BY, "AKWEB", READ) is False
        assert await made.held(1, "AKWEB") == (READ,)

    run(tmp_path, scenario)


def test_a_buckets_rights_are_replaced_and_all_apps_forgotten(tmp_path: Path) -> None:
    async def scenario(made: Node) -> None:
        rights = made.rights(0)
        await rights.grant(BY, "AKOLD", READ)
        assert await made.held(1, "AKOLD") == (READ,)
        assert await made.held(1, "AKNEW") == ()
        present = await rights.bucket_rights(TENANT.tenant_id, "first")
        assert present.grants == (Grant("AKOLD", READ),)
        etag = await rights.put_bucket_rights(BY, "first", BucketRights(True, (Grant("AKNEW", READ),), present.etag))
        assert await made.held(1, "AKOLD") == ()
        assert await made.held(1, "AKNEW") == (READ,)
        assert (await rights.bucket_rights(TENANT.tenant_id, "first")).etag == etag != present.etag
        with pytest.raises(PreconditionFailed):
            await rights.put_bucket_rights(BY, "first", present)

    run(tmp_path, scenario)


def test_errors_cross(tmp_path: Path) -> None:
    async def scenario(made: Node) -> None:
        assert await made.rights(0).resolve(1, ["AKWEB", "AKOLD"]) == ("AKWEB", "AKOLD")
        with pytest.raises(UnknownName):
            await made.rights(0).resolve(1, ["web"])
        with pytest.raises(NoSuchBucket):
            await made.rights(0).bucket_rights(1, "none")
        made.channels[0].close()
        with pytest.raises(DatabaseUnavailable):
            await made.rights(0).grant(BY, "AKWEB", READ)

    run(tmp_path, scenario)


def test_refusals_are_recorded_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(made: Node) -> None:
        other = msgspec.structs.replace(BY, access_key="AKOTHER")
        for _ in range(REFUSALS_AUDITED_MAX + 20):
            await made.rights(0).refused(BY, "GrantAccess", "AKWEB * *")
        await made.rights(1).refused(other, "SetPublicAccess", "first")
        recorded = made.toy.recorded
        assert recorded[0] == ("AKBOSS", "GrantAccess", "AKWEB * *", "AccessDenied")
        assert [row[0] for row in recorded] == ["AKBOSS"] * REFUSALS_AUDITED_MAX + ["AKOTHER"]
        assert "not recorded" in recorded[REFUSALS_AUDITED_MAX - 1][3]
        made.clock.seconds += 60
        await made.rights(0).refused(BY, "GrantAccess", "x")
        assert len(recorded) == REFUSALS_AUDITED_MAX + 2
        monkeypatch.setattr(rights_module, "REFUSED_APPS_MAX", 3)
        for number in range(10):
            await made.rights(0).refused(msgspec.structs.replace(BY, access_key=f"AK{number}"), "GrantAccess", "x")
        assert len(made.rights_server._refusals) == 3

    run(tmp_path, scenario)
