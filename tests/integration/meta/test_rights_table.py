"""Rights on a real PostgreSQL: one tenant never reaches another's, changes are whole or not at all, and the audit tells of each."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from anvil.base.errors import LimitExceeded, NoSuchBucket, PreconditionFailed, UnknownName
from anvil.meta import rights as rights_module
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.migrate import Database
from anvil.meta.rights import Changed, RightsTable
from anvil.model.identity import Action, Actor, BucketRights, Grant, Policy
from tests.integration.meta.test_catalog import REGION, Deployment
from tests.postgres_fixture import Postgres

READ = Policy(Action.OBJECT_READ, "photos/*")


@pytest.fixture
def deployment(postgres: Postgres) -> Deployment:
    return Deployment(postgres.fresh(Database.GLOBAL), postgres.fresh(Database.REGIONAL))


class World:
    """Tenants acme (apps boss, web; bucket photos) and rival (apps boss, spy; bucket theirs)."""

    def __init__(self, deployment: Deployment, catalog: GlobalCatalog) -> None:
        self.deployment = deployment
        self.catalog = catalog
        self.rights: RightsTable = catalog.rights
        self.keys: dict[str, str] = {}
        self.tenants: dict[str, int] = {}
        self.by = Actor(0, "", "", "")

    async def fill(self) -> None:
        admin = self.catalog.admin
        await admin.create_region(REGION)
        for tenant, apps in (("acme", ("boss", "web")), ("rival", ("boss", "spy"))):
            self.tenants[tenant] = (await admin.create_tenant(tenant)).tenant_id
            for app in apps:
                self.keys[f"{tenant}/{app}"] = (await admin.create_app(tenant, app)).access_key
        await self.catalog.create_bucket(self.tenants["acme"], "photos", REGION)
        await self.catalog.create_bucket(self.tenants["rival"], "theirs", REGION)
        self.by = self.actor("acme", "req-1")

    def actor(self, tenant: str, request_id: str) -> Actor:
        return Actor(self.tenants[tenant], self.keys[f"{tenant}/boss"], "192.0.2.1:1", request_id)

    async def held(self, app: str) -> set[Policy]:
        found = await self.catalog.app(self.keys[app])
        assert found is not None
        return set(found.policies)

    async def audit(self) -> list[tuple[str, str, str]]:
        rows = await self.deployment.sql(
            "SELECT action, resource, result FROM audit WHERE who NOT IN ('operator', 'node') ORDER BY audit_id"
        )
        return [tuple(row) for row in rows]

    async def put(self, grants: dict[str, list[Policy]], expected: str, public: bool = False, bucket: str = "photos") -> Changed:
        given = tuple(Grant(self.keys[app], right) for app, rights in grants.items() for right in rights)
        return await self.rights.put_bucket_rights(self.by, bucket, BucketRights(public, given, expected))


def run(deployment: Deployment, scenario: Callable[[World], Awaitable[None]]) -> None:
    async def inside() -> None:
        async with deployment.node() as catalog:
            world = World(deployment, catalog)
            await world.fill()
            await scenario(world)

    asyncio.run(inside())


def test_grant_and_revoke(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        key = world.keys["acme/web"]
        assert await world.rights.grant(world.by, "web", READ) == Changed(True, (f"app:{key}",))
        assert await world.rights.grant(world.by, key, READ) == Changed(False, (f"app:{key}",))
        assert await world.held("acme/web") == {READ}
        assert await world.rights.revoke(world.by, key, Policy(Action.OBJECT_READ, "photos/")) == Changed(False, (f"app:{key}",))
        assert await world.rights.revoke(world.by, "web", READ) == Changed(True, (f"app:{key}",))
        assert await world.rights.revoke(world.by, "web", READ) == Changed(False, (f"app:{key}",))
        assert await world.held("acme/web") == set()
        text = f"{key} object:read photos/*"
        assert await world.audit() == [("GrantAccess", text, "granted"), ("RevokeAccess", text, "revoked")]
        (row, _) = await world.deployment.sql("SELECT who, source, request_id FROM audit WHERE who NOT IN ('operator', 'node')")
        assert tuple(row) == (world.keys["acme/boss"], "192.0.2.1:1", "req-1")

    run(deployment, scenario)


def test_apps_of_other_tenants_are_unknown(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        await world.catalog.admin.grant("rival", "spy", READ)
        for named in ("spy", world.keys["rival/spy"], world.keys["rival/boss"], "nobody", "", "x" * 5000):
            for change in (world.rights.grant, world.rights.revoke):
                with pytest.raises(UnknownName):
                    await change(world.by, named, READ)
            with pytest.raises(UnknownName):
                await world.rights.resolve(world.by.tenant_id, ["web", named])
        assert await world.held("rival/spy") == {READ}
        assert await world.audit() == []
        # A name that both tenants have is the caller's.
        await world.rights.grant(world.by, "boss", READ)
        assert (await world.held("acme/boss"), await world.held("rival/boss")) == ({READ}, set())
        resolved = await world.rights.resolve(world.by.tenant_id, ["boss", world.keys["acme/web"], "web"])
        assert resolved == (world.keys["acme/boss"], world.keys["acme/web"], world.keys["acme/web"])
        assert await world.rights.resolve(world.by.tenant_id, []) == ()

    run(deployment, scenario)


def test_an_access_key_counts_before_a_name(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        await world.catalog.admin.create_app("acme", world.keys["acme/web"], access_key="AKTRICK")
        assert await world.rights.resolve(world.by.tenant_id, [world.keys["acme/web"]]) == (world.keys["acme/web"],)
        await world.catalog.admin.create_app("acme", world.keys["rival/spy"], access_key="AKTRICK2")
        assert await world.rights.resolve(world.by.tenant_id, [world.keys["rival/spy"]]) == ("AKTRICK2",)

    run(deployment, scenario)


def test_an_app_has_so_many_rights(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        monkeypatch.setattr(rights_module, "RIGHTS_PER_APP_MAX", 5)
        wanted = [Policy(Action.OBJECT_READ, f"photos/{n}") for n in range(8)]
        results = await asyncio.gather(*(world.rights.grant(world.by, "web", right) for right in wanted), return_exceptions=True)
        assert sum(isinstance(result, LimitExceeded) for result in results) == 3
        held = await world.held("acme/web")
        assert len(held) == 5
        assert (await world.rights.grant(world.by, "web", next(iter(held)))).changed is False
        present = await world.rights.bucket_rights(world.by.tenant_id, "photos")
        with pytest.raises(LimitExceeded):
            await world.put({"acme/web": wanted[:6]}, present.etag)
        assert await world.held("acme/web") == held
        # Those that go make room for those that come.
        assert (await world.put({"acme/web": wanted[3:8]}, present.etag)).changed
        assert await world.held("acme/web") == set(wanted[3:8])

    run(deployment, scenario)


def test_set_public(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        for allow in (True, False):
            assert await world.rights.set_public(world.by, "photos", allow) == Changed(True, ("bucket:photos",))
            assert await world.rights.set_public(world.by, "photos", allow) == Changed(False, ("bucket:photos",))
            found = await world.catalog.bucket("photos")
            assert found is not None
            assert found.public_read is allow
        for bucket in ("theirs", "none", ""):
            with pytest.raises(NoSuchBucket):
                await world.rights.set_public(world.by, bucket, True)
        theirs = await world.catalog.bucket("theirs")
        assert theirs is not None
        assert theirs.public_read is False
        assert await world.audit() == [("SetPublicAccess", "photos", "public"), ("SetPublicAccess", "photos", "private")]

    run(deployment, scenario)


def test_the_rights_of_a_bucket_are_those_on_it_and_in_it(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        inside = [
            Policy(Action.BUCKET_LIST, "photos"),
            READ,
            Policy(Action.ANY, "photos/a b%_/*"),
            Policy(Action.OBJECT_READ, "photos/é"),
        ]
        outside = [
            Policy(Action.ANY, "*"),
            Policy(Action.ANY, "photos*"),
            Policy(Action.ANY, "photos2/*"),
            Policy(Action.ANY, "phot*"),
        ]
        for right in (*inside, *outside):
            await world.rights.grant(world.by, "web", right)
        await world.catalog.admin.grant("rival", "spy", READ)
        present = await world.rights.bucket_rights(world.by.tenant_id, "photos")
        assert {(grant.app, grant.right) for grant in present.grants} == {(world.keys["acme/web"], right) for right in inside}
        for bucket in ("theirs", "none"):
            with pytest.raises(NoSuchBucket):
                await world.rights.bucket_rights(world.by.tenant_id, bucket)
            with pytest.raises(NoSuchBucket):
                await world.put({}, present.etag, bucket=bucket)
        # Replaced are exactly those that are shown.
        await world.put({}, present.etag)
        assert await world.held("acme/web") == set(outside)
        assert await world.held("rival/spy") == {READ}

    run(deployment, scenario)


def test_put_replaces_at_once_and_records_each_right(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        web, boss = world.keys["acme/web"], world.keys["acme/boss"]
        keep, go, come = READ, Policy(Action.OBJECT_WRITE, "photos/*"), Policy(Action.OBJECT_LIST, "photos")
        await world.rights.grant(world.by, "web", keep)
        await world.rights.grant(world.by, "boss", go)
        before = len(await world.audit())
        present = await world.rights.bucket_rights(world.by.tenant_id, "photos")
        wanted = {"acme/web": [come, keep, come]}
        done = await world.put(wanted, present.etag, public=True)
        assert done.changed
        assert set(done.rows) == {"bucket:photos", f"app:{web}", f"app:{boss}"}
        assert (await world.held("acme/web"), await world.held("acme/boss")) == ({keep, come}, set())
        after = await world.rights.bucket_rights(world.by.tenant_id, "photos")
        assert (after.etag, after.public_read, len(after.grants)) == (done.etag, True, 2)
        assert sorted((await world.audit())[before:]) == sorted(
            [
                ("PutBucketPolicy", f"{boss} object:write photos/*", "revoked"),
                ("PutBucketPolicy", f"{web} object:list photos", "granted"),
                ("PutBucketPolicy", "photos", "public"),
            ]
        )
        # The same again, as when the answer was lost: nothing changes, though the etag it was based on is gone.
        again = await world.put(wanted, present.etag, public=True)
        assert (again.changed, again.etag) == (False, done.etag)
        assert len(await world.audit()) == before + 3
        with pytest.raises(PreconditionFailed):
            await world.put({"acme/web": [keep]}, present.etag, public=True)
        with pytest.raises(PreconditionFailed):
            await world.put({"acme/web": [keep]}, "", public=True)
        assert await world.held("acme/web") == {keep, come}

    run(deployment, scenario)


def test_put_for_an_unknown_app_changes_nothing(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        await world.rights.grant(world.by, "web", READ)
        present = await world.rights.bucket_rights(world.by.tenant_id, "photos")
        with pytest.raises(UnknownName):
            await world.put({"acme/boss": [READ], "rival/spy": [READ]}, present.etag, public=True)
        assert await world.rights.bucket_rights(world.by.tenant_id, "photos") == present
        assert await world.held("rival/spy") == set()

    run(deployment, scenario)


def test_an_etag_names_one_state(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        async def etag() -> str:
            return (await world.rights.bucket_rights(world.by.tenant_id, "photos")).etag

        empty = await etag()
        states = {empty}
        await world.rights.set_public(world.by, "photos", True)
        states.add(await etag())
        await world.rights.grant(world.by, "web", READ)
        states.add(await etag())
        await world.rights.grant(world.by, "boss", READ)
        states.add(await etag())
        await world.rights.revoke(world.by, "web", READ)
        states.add(await etag())
        assert len(states) == 5
        assert all(len(state) == 32 for state in states)
        await world.rights.set_public(world.by, "photos", False)
        await world.rights.revoke(world.by, "boss", READ)
        assert await etag() == empty
        found = await world.catalog.bucket("photos")
        assert found is not None
        await world.catalog.delete_bucket(found)
        await world.catalog.create_bucket(world.by.tenant_id, "photos", REGION)
        assert await etag() != empty, "another bucket of that name"

    run(deployment, scenario)


def test_of_two_puts_at_once_one_is_told(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        async with world.deployment.node() as elsewhere:
            for round_ in range(20):
                present = await world.rights.bucket_rights(world.by.tenant_id, "photos")
                mine = Grant(world.keys["acme/web"], Policy(Action.OBJECT_READ, f"photos/{round_}/web"))
                yours = Grant(world.keys["acme/boss"], Policy(Action.OBJECT_READ, f"photos/{round_}/boss"))
                results: list[Any] = await asyncio.gather(
                    world.rights.put_bucket_rights(world.by, "photos", BucketRights(False, (mine,), present.etag)),
                    elsewhere.rights.put_bucket_rights(world.by, "photos", BucketRights(False, (yours,), present.etag)),
                    return_exceptions=True,
                )
                assert sorted(type(result).__name__ for result in results) == ["Changed", "PreconditionFailed"]
                winner = mine if isinstance(results[0], Changed) else yours
                assert (await world.rights.bucket_rights(world.by.tenant_id, "photos")).grants == (winner,)

    run(deployment, scenario)


def test_puts_grants_and_deletions_at_once_neither_fail_nor_lose_anything(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        admin = world.catalog.admin

        async def puts(catalog: GlobalCatalog) -> None:
            for number in range(30):
                present = await catalog.rights.bucket_rights(world.by.tenant_id, "photos")
                grant = Grant(world.keys["acme/web"], Policy(Action.OBJECT_READ, f"photos/{number}"))
                try:
                    await catalog.rights.put_bucket_rights(world.by, "photos", BucketRights(False, (grant,), present.etag))
                except PreconditionFailed:
                    pass

        async def grants(catalog: GlobalCatalog) -> None:
            for number in range(30):
                right = Policy(Action.OBJECT_WRITE, f"elsewhere/{number}")
                assert (await catalog.rights.grant(world.by, "web", right)).changed

        async def deletions(catalog: GlobalCatalog) -> None:
            for number in range(30):
                await catalog.admin.create_app("acme", f"t{number}")
                for right in (READ, Policy(Action.ANY, "photos/x*"), Policy(Action.ANY, "photos")):
                    await catalog.rights.grant(world.by, f"t{number}", right)
                await catalog.admin.delete_app("acme", f"t{number}")

        async with world.deployment.node() as one, world.deployment.node() as two, world.deployment.node() as three:
            async with asyncio.timeout(60):
                await asyncio.gather(puts(one), puts(two), grants(three), deletions(world.catalog))
        elsewhere = {right for right in await world.held("acme/web") if right.resource.startswith("elsewhere/")}
        assert len(elsewhere) == 30
        assert [app.name for app in await admin.apps("acme")] == ["boss", "web"]

    run(deployment, scenario)


def test_too_much_to_be_shown_is_said(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: World) -> None:
        await world.rights.grant(world.by, "web", READ)
        monkeypatch.setattr(rights_module, "BUCKET_RIGHTS_BYTES_MAX", 20)
        with pytest.raises(LimitExceeded):
            await world.rights.bucket_rights(world.by.tenant_id, "photos")

    run(deployment, scenario)


def test_refusals(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        await world.rights.refused(world.by, "GrantAccess", "AK * *", "AccessDenied")
        assert await world.audit() == [("GrantAccess", "AK * *", "AccessDenied")]

    run(deployment, scenario)


def test_a_tenants_commands_reach_all_nodes(deployment: Deployment) -> None:
    async def scenario(world: World) -> None:
        async with world.deployment.node() as elsewhere:
            assert await elsewhere.app(world.keys["acme/web"]) is not None
            await world.rights.grant(world.by, "web", READ)
            async with asyncio.timeout(5):
                while True:
                    found = await elsewhere.app(world.keys["acme/web"])
                    if found is not None and found.policies == (READ,):
                        break
                    await asyncio.sleep(0.005)

    run(deployment, scenario)
