"""What is uncertain, and what is not: the judgement on drives in memory, after a database was lost."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import msgspec
import pytest

from anvil.base.errors import Conflict, Corrupt, ReadQuorumLost, Unavailable
from anvil.base.limits import SALVAGE_SLACK_S
from anvil.model.dump import FORMAT, SYSTEM_BUCKET, Candidate, DumpName, Manifest, Rebuilt, TableDump
from anvil.model.records import NO_CONDITION, BlobRef, BucketId, Owner, SessionId
from anvil.model.scheme import Scheme
from anvil.tasks.dump import FoundDump
from anvil.tasks.salvage import SLACK_US, Salvager, uncertain
from tests.support.memory_region import Region, region

DUMP_US = 10**12
REGION = "us-east-1"


class Loaded(msgspec.Struct, frozen=True):
    dump: str = ""
    taken_us: int = 0
    rows: int = 0
    ended: tuple[str, ...] = ()


class Table:
    """Who was rebuilt from what, in memory."""

    def __init__(self, buckets: frozenset[BucketId]) -> None:
        self.note: Loaded | None = None
        self.is_empty = True
        self.ours: frozenset[SessionId] = frozenset()
        self.buckets = buckets
        self.found: dict[bytes, Candidate] = {}

    async def loaded(self) -> Loaded | None:
        return self.note

    async def note_nothing(self) -> None:
        self.note = self.note or Loaded()

    async def empty(self) -> bool:
        return self.is_empty

    async def fences(self) -> frozenset[BucketId]:
        return self.buckets

    async def sessions(self) -> frozenset[SessionId]:
        return self.ours

    async def add(self, found: Sequence[Candidate]) -> None:
        self.found |= {one.blob.blob_id: one for one in found}

    @property
    def keys(self) -> list[str]:
        return sorted(one.owner.key for one in self.found.values())


class Dumps:
    """Dumps by time; what is wrong with one is raised when its manifest is read."""

    def __init__(self, **wrong: Exception | None) -> None:
        self._wrong = {int(name.removeprefix("at_")): error for name, error in wrong.items()}
        self.region, self.schema, self.ended = REGION, 20, tuple[SessionId, ...]()
        self.torn: set[int] = set()

    async def find(self) -> list[FoundDump]:
        blob = BlobRef(os.urandom(16), 5000, Scheme(4, 2))
        return [
            FoundDump(DumpName(us, "0" * 16), Owner(SYSTEM_BUCKET, "", b""), blob) for us in sorted(self._wrong, reverse=True)
        ]

    async def manifest(self, dump: FoundDump) -> Manifest:
        if error := self._wrong[dump.name.begun_us]:
            raise error
        return Manifest(FORMAT, self.region, dump.name.begun_us, self.schema, (TableDump("objects", ("a",), 3, ()),), self.ended)

    async def rows(self, name: DumpName, table: TableDump) -> AsyncIterator[bytes]:
        yield b"rows"
        if name.begun_us in self.torn:
            raise Corrupt("a piece is gone")


class Made:
    def __init__(self, region: Region, dumps: Dumps) -> None:
        self.region, self.dumps = region, dumps
        self.table = Table(frozenset({region.bucket.bucket_id}))
        self.known = self.table.buckets
        self.loads: list[int] = []

    @asynccontextmanager
    async def loading(self, name: DumpName, manifest: Manifest) -> AsyncIterator[Made]:
        yield self
        self.loads.append(manifest.taken_us)
        self.table.note = Loaded(name.prefix, manifest.taken_us, manifest.rows, tuple(one.hex() for one in manifest.ended))

    async def run(self, *, older: bool = False) -> Rebuilt:
        async def known() -> frozenset[BucketId]:
            return self.known

        async def add(bucket_id: BucketId) -> bool:
            self.table.buckets |= {bucket_id}
            return True

        class Loading:
            with_global = False

            async def table(self, dumped: TableDump, source: AsyncIterator[bytes]) -> None:
                assert [data async for data in source] == [b"rows"]

        @asynccontextmanager
        async def load(name: DumpName, manifest: Manifest) -> AsyncIterator[Loading]:
            async with self.loading(name, manifest):
                yield Loading()

        salvager = Salvager(REGION, 20, self.region.metadata, self.region.placement, self.table, self.dumps, load, known, add)
        report = Rebuilt()
        await salvager.run(report, older=older)
        return report


def on_region(scenario: Callable[[Made], Awaitable[None]], dumps: Dumps | None = None) -> None:
    async def main() -> None:
        async with region(6, 1, Scheme(4, 2)) as made:
            await scenario(Made(made, dumps or Dumps(**{f"at_{DUMP_US}": None})))

    asyncio.run(main())


def written_at(made: Region, us: int) -> None:
    """The time that footers of what is written from now on have."""
    object.__setattr__(made.context, "now_us", lambda: us)


async def forget(made: Region, *keys: str) -> None:
    """As if the rows had never been, or were lost with the database."""
    before = [(drive, dict(drive.shards)) for drive in made.all]
    for key in keys:
        await made.engine.delete_object(made.bucket, key, NO_CONDITION)
    garbage = await made.metadata.garbage(100, 0.0)
    await made.metadata.garbage_done([one.outbox_id for one in garbage])
    for drive, shards in before:
        drive.shards = shards


@pytest.mark.parametrize(
    ("modified_us", "ended", "expected"),
    [
        (DUMP_US + 1, False, True),
        (DUMP_US, False, True),
        (DUMP_US - SLACK_US, False, True),
        (DUMP_US - SLACK_US - 1, False, False),
        (DUMP_US + 1, True, False),
        (DUMP_US - SLACK_US, True, False),
    ],
)
def test_session_and_time_decide(modified_us: int, ended: bool, expected: bool) -> None:
    assert SLACK_US == SALVAGE_SLACK_S * 1_000_000
    assert uncertain(b"s" * 16, modified_us, DUMP_US, frozenset({b"s" * 16} if ended else ())) is expected


def test_without_a_dump_everything_is_uncertain() -> None:
    assert uncertain(b"s" * 16, 1, 0, frozenset())

    async def scenario(made: Made) -> None:
        for key, size in (("small", 5000), ("large", 3_000_000)):
            await made.region.put(key, bytes(size))
        await forget(made.region, "small", "large")
        report = await made.run()
        assert (report.dump, report.uncertain, report.owned, report.stage) == ("", 2, 0, "")
        assert made.table.keys == ["large", "small"]

    on_region(scenario, Dumps())


def test_what_is_owned_garbage_older_or_under_way_is_no_candidate() -> None:
    async def scenario(made: Made) -> None:
        written_at(made.region, DUMP_US - SLACK_US - 1)
        await made.region.put("old", bytes(70_000))
        written_at(made.region, DUMP_US + 1)
        for key in ("kept", "deleted", "new"):
            await made.region.put(key, bytes(70_000))
        await forget(made.region, "old", "new")
        await made.region.engine.delete_object(made.region.bucket, "deleted", NO_CONDITION)
        report = await made.run()
        assert (report.owned, report.garbage, report.older, report.uncertain) == (1, 1, 1, 1)
        [found] = made.table.found.values()
        assert (found.owner.key, found.modified_us, found.missing, found.readable) == ("new", DUMP_US + 1, 0, True)
        assert len(found.etag) == 32 and found.blob.size == 70_000

        made.table.found.clear()
        made.table.ours = frozenset({made.region.session.current})
        assert (await made.run()).uncertain == 0, "this database may yet hear of it"

    on_region(scenario)


def test_what_a_dead_writer_left_before_the_dump_never_shows() -> None:
    async def scenario(made: Made) -> None:
        written_at(made.region, DUMP_US + 5)  # whatever the clocks say
        await made.region.put("uncommitted", bytes(70_000))
        made.dumps.ended = (made.region.session.current,)
        await forget(made.region, "uncommitted")
        report = await made.run()
        assert (report.older, report.uncertain, made.table.found) == (1, 0, {})

    on_region(scenario)


def test_what_is_left_of_a_blob_is_told() -> None:
    async def scenario(made: Made) -> None:
        written_at(made.region, DUMP_US + 1)
        some, few = await made.region.put("some", bytes(300_000)), await made.region.put("few", bytes(300_000))
        await forget(made.region, "some", "few")
        for blob, lost in ((some, (1, 4)), (few, (0, 2, 5))):
            for index in lost:
                made.region.nominal(blob, index).lose(blob.blob_id, index)
        report = await made.run()
        assert (report.uncertain, report.unreadable) == (2, 1)
        assert {one.owner.key: (one.missing, one.readable) for one in made.table.found.values()} == {
            "some": (0b010010, True),
            "few": (0b100101, False),
        }

    on_region(scenario)


def test_a_footer_is_read_from_whichever_shard_has_it() -> None:
    async def scenario(made: Made) -> None:
        written_at(made.region, DUMP_US + 1)
        blob = await made.region.put("k", bytes(300_000))
        await forget(made.region, "k")
        for index in range(5):
            made.region.nominal(blob, index).shards[blob.blob_id, index].footer = None
        report = await made.run()
        assert (report.uncertain, report.nameless) == (1, 0)
        made.table.found.clear()
        made.region.nominal(blob, 5).shards[blob.blob_id, 5].footer = None
        report = await made.run()
        assert (report.uncertain, report.nameless) == (0, 1)

    on_region(scenario)


def test_buckets_are_those_of_the_global_database() -> None:
    async def scenario(made: Made) -> None:
        written_at(made.region, DUMP_US + 1)
        await made.region.put("k", bytes(70_000))
        await forget(made.region, "k")
        bucket_id = made.region.bucket.bucket_id
        made.table.buckets = frozenset({99})
        report = await made.run()
        assert (report.buckets_added, report.buckets_unknown, report.uncertain) == (1, 1, 1)
        assert made.table.buckets == {99, bucket_id}, "nothing goes on the word of one database"
        made.table.buckets, made.known = frozenset({99}), frozenset()
        made.table.found.clear()
        report = await made.run()
        assert (report.bucketless, report.uncertain) == (1, 0)

    on_region(scenario)


def test_a_torn_dump_is_passed_over_for_the_one_before() -> None:
    dumps = Dumps(at_100=None, at_200=None, at_300=Corrupt("its manifest is gone"), at_400=None)
    dumps.torn = {200, 400}

    async def scenario(made: Made) -> None:
        report = await made.run()
        assert (made.loads, report.taken_us, report.rows) == ([100], 100, 3)
        assert [reason.split(":")[0][6:22] for reason in report.passed_over] == [f"{us:016d}" for us in (400, 300, 200)]
        assert (await made.run()).passed_over == [] and made.loads == [100], "not twice"

    on_region(scenario, dumps)


def test_a_dump_that_is_only_away_is_waited_for() -> None:
    async def scenario(made: Made) -> None:
        with pytest.raises(Unavailable, match="--older"):
            await made.run()
        assert made.loads == [] and made.table.note is None
        assert (await made.run(older=True)).taken_us == 100
        assert made.loads == [100]

    on_region(scenario, Dumps(at_100=None, at_200=ReadQuorumLost()))


@pytest.mark.parametrize(("region_name", "schema"), [("eu-west-1", 20), (REGION, 21)])
def test_a_dump_of_another_region_or_a_newer_release_is_not_loaded(region_name: str, schema: int) -> None:
    dumps = Dumps(at_100=None)
    dumps.region, dumps.schema = region_name, schema

    async def scenario(made: Made) -> None:
        report = await made.run()
        assert made.loads == [] and len(report.passed_over) == 1

    on_region(scenario, dumps)


def test_only_an_empty_database_is_rebuilt() -> None:
    async def scenario(made: Made) -> None:
        made.table.is_empty = False
        with pytest.raises(Conflict):
            await made.run()
        assert made.loads == [] and made.table.note is None

    on_region(scenario)


def test_drives_that_are_away_are_named_and_looked_at_the_next_time() -> None:
    async def scenario(made: Made) -> None:
        written_at(made.region, DUMP_US + 1)
        await made.region.put("k", bytes(300_000))
        await forget(made.region, "k")
        for number in range(3):
            made.region.down(number)
        report = await made.run()
        assert len(report.away) == 3 and report.unreadable == 1
        for number in range(3):
            made.region.down(number, away=False)
        report = await made.run()
        assert (report.away, report.unreadable) == ([], 0)
        [found] = made.table.found.values()
        assert (found.missing, found.readable) == (0, True)

    on_region(scenario)
