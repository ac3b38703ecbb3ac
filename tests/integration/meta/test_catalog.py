"""The global catalog: lookups, administration, buckets across two databases, caching by the change log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from anvil.base.errors import (
    BucketAlreadyExists,
    BucketAlreadyOwnedByYou,
    BucketNotEmpty,
    DatabaseUnavailable,
    IllegalLocationConstraint,
    InvalidArgument,
    NameTaken,
    NoSuchBucket,
    OperationAborted,
    PermanentRedirect,
    TooManyBuckets,
    UnknownName,
)
from anvil.meta import catalog as catalog_module
from anvil.meta import health
from anvil.meta import migrate as migrate_module
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.keyring import Keyring
from anvil.meta.migrate import Database, migrate, migrations
from anvil.meta.regional import RegionalStore
from anvil.model.identity import Action, BucketState, Policy
from tests.contract.metadata_world import NODE, World
from tests.postgres_fixture import Postgres

KEYRING = Keyring(b"k" * 32)
REGION = "us-east-1"


class Deployment:
    def __init__(self, global_url: str, regional_url: str) -> None:
        self.global_url = global_url
        self.regional_url = regional_url

    @asynccontextmanager
    async def node(
        self, keyring: Keyring = KEYRING, region: str = REGION, regional_url: str = ""
    ) -> AsyncIterator[GlobalCatalog]:
        store = RegionalStore(regional_url or self.regional_url)
        await store.start()
        catalog = GlobalCatalog(self.global_url, keyring, store, region)
        await catalog.start()
        try:
            yield catalog
        finally:
            await catalog.close()
            await store.close()

    async def sql(self, sql: str, *args: object) -> Any:
        connection = await asyncpg.connect(self.global_url)
        try:
            return await connection.fetch(sql, *args)
        finally:
            await connection.close()


@pytest.fixture
def deployment(postgres: Postgres) -> Deployment:
    return Deployment(postgres.fresh(Database.GLOBAL), postgres.fresh(Database.REGIONAL))


async def until(condition: Callable[[], Awaitable[bool]], deadline_s: float = 10.0) -> None:
    async with asyncio.timeout(deadline_s):
        while not await condition():
            await asyncio.sleep(0.005)


def test_bootstrap_is_found_again(deployment: Deployment) -> None:
    async def scenario() -> None:
        async with deployment.node() as catalog:
            made = await catalog.admin.bootstrap(REGION)
            assert await catalog.admin.bootstrap(REGION) == made
            app = await catalog.app(made.access_key)
            assert app is not None
            assert (app.secret, app.tenant.name, app.name, app.policies) == (
                made.secret,
                "default",
                "default",
                (Policy(Action.ANY, "*"),),
            )
            assert await catalog.app("AKNOBODY") is None
            assert made.secret not in repr(made) + repr(app)
            (row,) = await deployment.sql("SELECT sealed_secret FROM apps")
            assert made.secret.encode() not in row["sealed_secret"]
        async with deployment.node() as catalog:
            assert await catalog.admin.bootstrap(REGION) == made

    asyncio.run(scenario())


def test_apps_and_rights(deployment: Deployment) -> None:
    async def scenario() -> None:
        async with deployment.node() as catalog, deployment.node() as elsewhere:
            admin = catalog.admin
            await admin.create_tenant("acme")
            with pytest.raises(NameTaken):
                await admin.create_tenant("acme")
            with pytest.raises(UnknownName):
                await admin.create_app("nobody", "web")
            made = await admin.create_app("acme", "web")
            with pytest.raises(NameTaken):
                await admin.create_app("acme", "web")
            with pytest.raises(NameTaken):
                await admin.create_app("acme", "copy", access_key=made.access_key)
            app = await elsewhere.app(made.access_key)
            assert app is not None
            assert (app.policies, app.secret_generation) == ((), 1)

            async def rights() -> tuple[Policy, ...]:
                found = await elsewhere.app(made.access_key)
                return found.policies if found else ()

            read = Policy(Action.OBJECT_READ, "photos/*")
            await admin.grant("acme", "web", read)
            await admin.grant("acme", "web", read)
            await until(lambda: _is(rights(), (read,)))
            with pytest.raises(InvalidArgument):
                await admin.grant("acme", "web", Policy("object:steal", "*"))
            await admin.revoke("acme", "web", read)
            await until(lambda: _is(rights(), ()))
            fresh = await admin.reset_secret("acme", "web")
            assert fresh.access_key == made.access_key
            assert fresh.secret != made.secret

            async def secret() -> tuple[str, int]:
                found = await elsewhere.app(made.access_key)
                assert found is not None
                return found.secret, found.secret_generation

            await until(lambda: _is(secret(), (fresh.secret, 2)))
            assert [(a.tenant, a.name) for a in await admin.apps("acme")] == [("acme", "web")]
            await admin.delete_app("acme", "web")
            await until(lambda: _is(elsewhere.app(made.access_key), None))

    asyncio.run(scenario())


async def _is(awaitable: Awaitable[object], value: object) -> bool:
    return await awaitable == value


def test_endpoints_of_regions(deployment: Deployment) -> None:
    """A stated endpoint is followed, a listen address only fills what nobody stated."""

    async def scenario() -> None:
        async with deployment.node() as catalog:
            admin = catalog.admin
            changed: set[str] = set()

            async def endpoint() -> str:
                changed.update(await catalog.changes())
                [one] = await admin.regions()
                assert await catalog.regions() == {one.name: one.endpoint}
                return one.endpoint

            await catalog.changes()
            assert await admin.create_region("eu-1", "http://10.0.0.1:50051", stated=False)
            assert await endpoint() == "http://10.0.0.1:50051"
            assert changed == {"region:eu-1"}
            assert not await admin.create_region("eu-1", "http://10.0.0.2:50051", stated=False), "it listens elsewhere now"
            assert await endpoint() == "http://10.0.0.2:50051"
            await admin.create_region("eu-1", "https://eu.example.com")
            assert await endpoint() == "https://eu.example.com"
            changed.clear()
            for url, stated in (("http://10.0.0.1:50051", False), ("", False), ("", True), ("https://eu.example.com", True)):
                await admin.create_region("eu-1", url, stated=stated)
                assert await endpoint() == "https://eu.example.com"
            assert changed == set(), "nothing was changed by that, so nobody is told"
            await admin.create_region("eu-1", "https://s3.example.eu")
            assert await endpoint() == "https://s3.example.eu"

    asyncio.run(scenario())


def test_buckets_of_two_regions(deployment: Deployment, postgres: Postgres) -> None:
    other_url = postgres.fresh(Database.REGIONAL)

    async def scenario() -> None:
        async with deployment.node() as here, deployment.node(region="eu-1", regional_url=other_url) as there:
            await here.admin.bootstrap(REGION)
            await there.admin.bootstrap("eu-1")
            tenant = (await here.admin.tenant("default")).tenant_id
            other = (await here.admin.create_tenant("other")).tenant_id
            near = await here.create_bucket(tenant, "near", REGION)
            far = await there.create_bucket(tenant, "far", "eu-1")
            assert await here.bucket("far") == far and await there.bucket("near") == near
            assert [bucket.name for bucket in await here.buckets(tenant)] == ["far", "near"]
            for catalog, name, region in ((here, "far", REGION), (there, "near", "eu-1")):
                with pytest.raises(BucketAlreadyOwnedByYou):
                    await catalog.create_bucket(tenant, name, region)
                with pytest.raises(BucketAlreadyExists):
                    await catalog.create_bucket(other, name, region)
            # To the database of one region a bucket of the other is not there: nothing may be concluded from that.
            w = World(there._regional, far.bucket_id, await there._regional.open_session(NODE, 0))
            await w.store.put_object(w.put("k", 10))
            with pytest.raises(PermanentRedirect):
                await here.delete_bucket(far)
            assert await there.bucket("far") == far
            assert [(one.bucket, one.usage.bytes) for one in await here.admin.usage()] == [("near", 0)]
            assert [(one.bucket, one.usage.bytes) for one in await there.admin.usage()] == [("far", 10)]
            # A bucket that is being made in one region is not finished by another.
            await deployment.sql("UPDATE buckets SET state = 'creating', state_us = 0 WHERE name = 'far'")
            with pytest.raises(OperationAborted):
                await here.create_bucket(tenant, "far", REGION)
            assert await here.resume_bucket_changes(0.0) == 0
            assert await there.resume_bucket_changes(0.0) == 1
            assert (await here.bucket("far")) == far

    asyncio.run(scenario())


def test_buckets(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        async with deployment.node() as catalog, deployment.node() as elsewhere:
            await catalog.admin.bootstrap(REGION)
            default = await catalog.admin.tenant("default")
            other = await catalog.admin.create_tenant("other")
            assert await catalog.bucket("photos") is None
            assert await elsewhere.bucket("photos") is None
            made = await catalog.create_bucket(default.tenant_id, "photos", REGION)
            assert made.state is BucketState.ACTIVE
            assert len(made.key) == 32
            assert await elsewhere.bucket("photos") == made, "absence is never cached"
            assert await catalog.bucket("photos") == made
            for node in (catalog, elsewhere):
                with pytest.raises(BucketAlreadyOwnedByYou):
                    await node.create_bucket(default.tenant_id, "photos", REGION)
                with pytest.raises(BucketAlreadyExists):
                    await node.create_bucket(other.tenant_id, "photos", REGION)
            with pytest.raises(IllegalLocationConstraint):
                await catalog.create_bucket(default.tenant_id, "mars", "mars-1")
            with pytest.raises(UnknownName):
                await catalog.create_bucket(10**9, "x", REGION)
            monkeypatch.setattr(catalog_module, "BUCKETS_PER_TENANT_MAX", 2)
            second = await catalog.create_bucket(default.tenant_id, "archive", REGION)
            assert second.key != made.key
            with pytest.raises(TooManyBuckets):
                await catalog.create_bucket(default.tenant_id, "third", REGION)
            assert [bucket.name for bucket in await elsewhere.buckets(default.tenant_id)] == ["archive", "photos"]
            assert list(await elsewhere.buckets(other.tenant_id)) == []

            store = catalog._regional
            w = World(store, made.bucket_id, await store.open_session(NODE, 0))
            await store.put_object(w.put("k", 10))
            with pytest.raises(BucketNotEmpty):
                await catalog.delete_bucket(made)
            assert await catalog.bucket("photos") == made
            (archive, photos) = await catalog.admin.usage()
            assert (photos.bucket, photos.tenant, photos.usage.objects, photos.usage.bytes) == ("photos", "default", 1, 10)
            assert (archive.usage.objects, archive.usage.bytes) == (0, 0)
            await w.delete("k")
            await catalog.delete_bucket(made)
            assert await catalog.bucket("photos") is None
            await until(lambda: _is(elsewhere.bucket("photos"), None))
            with pytest.raises(NoSuchBucket):
                await catalog.delete_bucket(made)
            with pytest.raises(NoSuchBucket):
                await store.put_object(w.put("k"))
            again = await catalog.create_bucket(other.tenant_id, "photos", REGION)
            assert again.bucket_id != made.bucket_id

            await catalog.admin.set_public("photos", True)

            async def is_public() -> bool:
                found = await elsewhere.bucket("photos")
                return found is not None and found.public_read

            await until(is_public)
            with pytest.raises(NoSuchBucket):
                await catalog.admin.set_public("nowhere", True)

    asyncio.run(scenario())


def test_racing_creators_have_one_winner(deployment: Deployment) -> None:
    async def scenario() -> None:
        async with deployment.node() as first, deployment.node() as second:
            await first.admin.bootstrap(REGION)
            mine = await first.admin.tenant("default")
            theirs = await first.admin.create_tenant("other")
            for round_ in range(10):
                results = await asyncio.gather(
                    first.create_bucket(mine.tenant_id, f"b{round_}", REGION),
                    second.create_bucket(theirs.tenant_id, f"b{round_}", REGION),
                    return_exceptions=True,
                )
                assert sum(isinstance(result, BucketAlreadyExists) for result in results) == 1
                results = await asyncio.gather(
                    first.create_bucket(mine.tenant_id, f"c{round_}", REGION),
                    second.create_bucket(mine.tenant_id, f"c{round_}", REGION),
                    return_exceptions=True,
                )
                made = [result for result in results if not isinstance(result, BaseException)]
                assert len({bucket.bucket_id for bucket in made}) == 1
                bucket = await first.bucket(f"c{round_}")
                assert bucket is not None
                assert bucket.bucket_id == made[0].bucket_id

    asyncio.run(scenario())


def test_bucket_changes_are_resumed(deployment: Deployment) -> None:
    """A worker that died between the databases, at each step."""

    async def scenario() -> None:
        async with deployment.node() as catalog:
            await catalog.admin.bootstrap(REGION)
            tenant = (await catalog.admin.tenant("default")).tenant_id
            store = catalog._regional
            made = {name: await catalog.create_bucket(tenant, name, REGION) for name in ("new", "old", "full", "half")}
            # Died after the claim: no fence yet.
            await store.query("DELETE FROM buckets WHERE bucket_id = $1", made["new"].bucket_id)
            await deployment.sql("UPDATE buckets SET state = 'creating' WHERE name = 'new'")
            # Died after marking, and after the fence was removed.
            await deployment.sql("UPDATE buckets SET state = 'deleting' WHERE name IN ('old', 'full', 'half')")
            await store.drop_bucket(made["half"].bucket_id)
            w = World(store, made["full"].bucket_id, await store.open_session(NODE, 0))
            await store.put_object(w.put("k"))
            catalog._cache.hasten()
            for name in made:
                assert await catalog.bucket(name) is None
            assert await catalog.resume_bucket_changes(stale_s=3600.0) == 0, "others may be at it right now"
            assert await catalog.resume_bucket_changes(stale_s=0.0) == 4
            assert await catalog.resume_bucket_changes(stale_s=0.0) == 0
            catalog._cache.hasten()
            states = {name: await catalog.bucket(name) is not None for name in made}
            assert states == {"new": True, "old": False, "full": True, "half": False}
            w.bucket_id = made["new"].bucket_id
            await store.put_object(w.put("k"))

    asyncio.run(scenario())


def test_two_deletions_of_which_one_found_the_bucket_full(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that comes late makes the bucket active again, between the other's removal of the fence and of the row: what stayed
    would be a bucket that refuses every write."""

    async def scenario() -> None:
        async with deployment.node() as catalog:
            await catalog.admin.bootstrap(REGION)
            tenant = (await catalog.admin.tenant("default")).tenant_id
            bucket = await catalog.create_bucket(tenant, "contended", REGION)
            drop = catalog._regional.drop_bucket

            async def drop_and_be_late(bucket_id: int) -> None:
                await drop(bucket_id)
                await deployment.sql("UPDATE buckets SET state = 'active' WHERE bucket_id = $1 AND state = 'deleting'", bucket_id)

            monkeypatch.setattr(catalog._regional, "drop_bucket", drop_and_be_late)
            await catalog.delete_bucket(bucket)
            assert list(await catalog.buckets(tenant)) == []
            assert await catalog.bucket("contended") is None

    asyncio.run(scenario())


@pytest.mark.parametrize("again", [False, True])
def test_a_creator_that_comes_late_brings_nothing_back(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """It stood still after its claim. Meanwhile the background made the bucket, and it was deleted; perhaps somebody has a new one by
    that name already."""

    async def scenario() -> None:
        async with deployment.node() as late, deployment.node() as other:
            await other.admin.bootstrap(REGION)
            tenant = (await other.admin.tenant("default")).tenant_id
            arrived, go = asyncio.Event(), asyncio.Event()
            add = late._regional.add_bucket

            async def stand_still(bucket_id: int) -> bool:
                arrived.set()
                await go.wait()
                return await add(bucket_id)

            monkeypatch.setattr(late._regional, "add_bucket", stand_still)
            creating = asyncio.create_task(late.create_bucket(tenant, "late", REGION))
            await arrived.wait()
            assert await other.resume_bucket_changes(stale_s=0.0) == 1
            made = await other.bucket("late")
            assert made is not None
            await other.delete_bucket(made)
            new = await other.create_bucket(tenant, "late", REGION) if again else None
            go.set()
            with pytest.raises(OperationAborted):
                await creating
            fences = [row[0] for row in await other._regional.query("SELECT bucket_id FROM buckets")]
            assert fences == ([new.bucket_id] if new else [])
            store = other._regional
            stale = World(store, made.bucket_id, await store.open_session(NODE, 0))
            with pytest.raises(NoSuchBucket):  # of a worker that remembers the bucket for another second
                await store.put_object(stale.put("k"))
            monkeypatch.setattr("anvil.meta.regional.DROPPED_BUCKETS_KEEP_S", 0.0)
            await other.resume_bucket_changes()
            assert not await store.query("SELECT FROM dropped_buckets"), "it is not remembered for ever"

    asyncio.run(scenario())


def test_adding_a_fence_against_dropping_it(deployment: Deployment) -> None:
    async def scenario() -> None:
        async with deployment.node() as first, deployment.node() as second:
            for bucket_id in range(1, 60):
                await first._regional.add_bucket(bucket_id)
                await asyncio.gather(first._regional.add_bucket(bucket_id), second._regional.drop_bucket(bucket_id))
                assert not await first._regional.query("SELECT FROM buckets")

    asyncio.run(scenario())


def test_a_retried_create_resumes_its_own(deployment: Deployment) -> None:
    async def scenario() -> None:
        async with deployment.node() as catalog:
            await catalog.admin.bootstrap(REGION)
            tenant = (await catalog.admin.tenant("default")).tenant_id
            made = await catalog.create_bucket(tenant, "new", REGION)
            await deployment.sql("UPDATE buckets SET state = 'creating'")
            assert (await catalog.create_bucket(tenant, "new", REGION)).bucket_id == made.bucket_id

    asyncio.run(scenario())


def test_lookups_are_cached_while_fresh(deployment: Deployment) -> None:
    async def scenario() -> None:
        async with deployment.node() as catalog:
            made = await catalog.admin.bootstrap(REGION)
            await catalog.app(made.access_key)
            reads = catalog._cache.reads
            for _ in range(100):
                await asyncio.gather(*(catalog.app(made.access_key) for _ in range(10)))
            assert catalog._cache.reads - reads <= 2
            assert catalog._apps.rows == 1
            # A change made behind everybody's back, without NOTIFY: seen within CATALOG_FRESH_S.
            await deployment.sql("ALTER TABLE apps DISABLE TRIGGER apps_changed")
            await deployment.sql("UPDATE apps SET name = 'renamed'")
            await deployment.sql("INSERT INTO change_log (kind, name) VALUES ('app', $1)", made.access_key)

            async def renamed() -> bool:
                app = await catalog.app(made.access_key)
                return app is not None and app.name == "renamed"

            await until(renamed, 3.0)

    asyncio.run(scenario())


def test_a_late_commit_is_not_passed_over(deployment: Deployment) -> None:
    """A change that began before others and commits after them."""

    async def scenario() -> None:
        async with deployment.node() as catalog:
            made = await catalog.admin.bootstrap(REGION)
            other = await catalog.admin.create_app("default", "other")
            late = await asyncpg.connect(deployment.global_url)
            transaction = late.transaction()
            await transaction.start()
            await late.execute("UPDATE apps SET name = 'late' WHERE access_key = $1", made.access_key)
            await catalog.admin.reset_secret("default", "other")
            for access_key in (made.access_key, other.access_key):
                assert await catalog.app(access_key) is not None
            catalog._cache.hasten()
            assert (await catalog.app(made.access_key)).name == "default"  # type: ignore[union-attr]
            await transaction.commit()
            await late.close()

            async def seen() -> bool:
                app = await catalog.app(made.access_key)
                return app is not None and app.name == "late"

            await until(seen, 3.0)

    asyncio.run(scenario())


def test_master_key_rotation(deployment: Deployment) -> None:
    async def scenario() -> None:
        async with deployment.node() as catalog:
            made = await catalog.admin.bootstrap(REGION)
            tenant = (await catalog.admin.tenant("default")).tenant_id
            bucket = await catalog.create_bucket(tenant, "b", REGION)
        rotated = Keyring(b"n" * 32, older=[b"k" * 32])
        async with deployment.node(rotated) as catalog:
            assert await catalog.admin.rewrap() == 2
            assert await catalog.admin.rewrap() == 0
        async with deployment.node(Keyring(b"n" * 32)) as catalog:
            app, found = await catalog.app(made.access_key), await catalog.bucket("b")
            assert app is not None and found is not None
            assert (app.secret, found.key) == (made.secret, bucket.key)

    asyncio.run(scenario())


def test_migrations_are_guarded(deployment: Deployment) -> None:
    async def scenario() -> None:
        assert await migrate(deployment.global_url, Database.GLOBAL) == 0
        report = await health.check(deployment.global_url, Database.GLOBAL, 5.0)
        # The test cluster runs without flushing, and is told so.
        assert report.problems == (
            "fsync is off: a crash would lose or damage data",
            "full_page_writes is off: a crash would lose or damage data",
        )
        assert report.system_identifier > 0
        assert report.timeline == 1
        await deployment.sql(
            "ALTER DATABASE " + deployment.global_url.split("/")[3].split("?")[0] + " SET synchronous_commit = off"
        )
        report = await health.check(deployment.global_url, Database.GLOBAL, 5.0)
        assert any("synchronous_commit is off" in problem for problem in report.problems)
        await deployment.sql("INSERT INTO schema_migrations (number, name, checksum) VALUES (9999, '9999_future.sql', '')")
        with pytest.raises(Exception, match="newer Anvil"):
            await migrate(deployment.global_url, Database.GLOBAL)
        report = await health.check(deployment.global_url, Database.GLOBAL, 5.0)
        assert not any("9999" in problem or "newer" in problem for problem in report.problems), (
            "who runs goes on beside the upgraded"
        )
        await deployment.sql(
            "DELETE FROM schema_migrations WHERE number = (SELECT max(number) FROM schema_migrations WHERE number < 9999)"
        )
        report = await health.check(deployment.global_url, Database.GLOBAL, 5.0)
        assert any("is not applied" in problem for problem in report.problems)
        gone = await health.check("postgresql://anvil@/nowhere?host=/nonexistent", Database.GLOBAL)
        assert not gone.ok
        with pytest.raises(DatabaseUnavailable):
            await migrate("postgresql://anvil@/nowhere?host=/nonexistent", Database.GLOBAL)

    asyncio.run(scenario())


def test_a_migration_waits_for_a_dump_and_holds_nobody_up(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it waits for a table that is being dumped, others read that table."""
    monkeypatch.setattr(migrate_module, "MIGRATION_LOCK_S", 0.2)
    url = postgres.fresh(Database.GLOBAL)

    async def scenario() -> None:
        dump, other, starting = [await asyncpg.connect(url) for _ in range(3)]
        change = migrate_module.Migration(9999, "9999_next.sql", "ALTER TABLE apps ADD COLUMN more int")
        transaction = dump.transaction()
        await transaction.start()
        await dump.execute("LOCK TABLE apps IN ACCESS SHARE MODE")
        monkeypatch.setattr(migrate_module, "MIGRATION_WAIT_S", 0.5)
        with pytest.raises(DatabaseUnavailable, match="9999_next"):
            await migrate_module._apply(starting, Database.GLOBAL, change)
        monkeypatch.setattr(migrate_module, "MIGRATION_WAIT_S", 60.0)
        applying = asyncio.create_task(migrate_module._apply(starting, Database.GLOBAL, change))
        async with asyncio.timeout(10):
            for _ in range(10):
                await other.fetch("SELECT * FROM apps")
                await asyncio.sleep(0.05)
        assert not applying.done()
        await transaction.rollback()
        await applying
        assert await other.fetchval("SELECT count(*) FROM schema_migrations WHERE number = 9999") == 1
        for connection in (dump, other, starting):
            await connection.close()

    asyncio.run(scenario())


def test_racing_migrations_apply_once(postgres: Postgres) -> None:
    async def scenario() -> None:
        await postgres.execute("CREATE DATABASE racing TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
        url = postgres.cluster.url("racing")
        done = await asyncio.gather(*(migrate(url, Database.REGIONAL) for _ in range(4)))
        assert sorted(done) == [0, 0, 0, len(migrations(Database.REGIONAL))]

    asyncio.run(scenario())


def test_audit_is_append_only(deployment: Deployment) -> None:
    async def scenario() -> None:
        async with deployment.node() as catalog:
            await catalog.admin.audit("admin", "app create", result="ok", resource="default/web")
            for sql in ("UPDATE audit SET who = 'x'", "DELETE FROM audit", "TRUNCATE audit"):
                with pytest.raises(asyncpg.RaiseError):
                    await deployment.sql(sql)
            (row,) = await deployment.sql("SELECT who, action, result FROM audit")
            assert tuple(row) == ("admin", "app create", "ok")

    asyncio.run(scenario())


def test_every_change_stands_in_the_audit_once(deployment: Deployment) -> None:
    async def main() -> None:
        async with deployment.node() as catalog:
            admin = catalog.admin
            made = await admin.bootstrap(REGION)
            await admin.bootstrap(REGION)
            rows = await admin.audit_trail(0, "", "", "", 100)
            assert [(row.who, row.source, row.action, row.resource) for row in reversed(rows)] == [
                ("node", "start", "region:set", REGION),
                ("node", "start", "app:create", f"{made.access_key} default/default"),
                ("node", "start", "policy:grant", f"{made.access_key} * *"),
            ], "a second start changes nothing"
            mark = rows[0].at_us + 1
            await admin.create_tenant("acme")
            app = await admin.create_app("acme", "web")
            read = Policy("object:read", "photos/*")
            for _ in range(2):
                await admin.grant("acme", "web", read)
            await admin.reset_secret("acme", "web")
            for _ in range(2):
                await admin.revoke("acme", "web", read)
            with pytest.raises(NoSuchBucket):
                await admin.set_public("photos", True)
            await admin.delete_app("acme", "web")
            await admin.create_region("elsewhere", "https://s3.example.com")
            trail = await admin.audit_trail(mark, "operator", "", "", 100)
            assert [(row.action, row.resource) for row in reversed(trail)] == [
                ("tenant:create", "acme"),
                ("app:create", f"{app.access_key} acme/web"),
                ("policy:grant", f"{app.access_key} object:read photos/*"),
                ("app:reset-secret", app.access_key),
                ("policy:revoke", f"{app.access_key} object:read photos/*"),
                ("app:delete", app.access_key),
                ("region:set", "elsewhere https://s3.example.com"),
            ]
            assert {(row.who, row.source, row.result) for row in trail} == {("operator", "anvil admin", "ok")}
            assert [row.action for row in await admin.audit_trail(0, "", "", app.access_key, 2)] == [
                "app:delete",
                "policy:revoke",
            ]
            assert [row.action for row in await admin.audit_trail(0, "", "tenant:create", "", 100)] == ["tenant:create"]
            whole = await deployment.sql("SELECT string_agg(a::text, ' ') AS text FROM audit a")
            assert app.secret not in whole[0]["text"]
            assert made.secret not in whole[0]["text"]

    asyncio.run(main())
