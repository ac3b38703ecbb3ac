"""The check of everything: each kind of trouble is found, named and counted once, and what is none is not called so."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from anvil.engine.types import CompletePart
from anvil.model.records import NO_CONDITION, Attributes, PutCommit
from anvil.model.scheme import Scheme
from anvil.tasks.fsck import Report
from anvil.tasks.repair import Result
from tests.contract.metadata_world import content
from tests.support.engine import Bytes, plain_spec
from tests.support.memory_region import Region, region

Scenario = Callable[[Region], Awaitable[None]]
SIZES = {"inline": 100, "copied": 10_000, "small": 300_000, "large": 3_000_000}


def on_region(scenario: Scenario, nodes: int = 6, drives: int = 1, scheme: Scheme | None = None) -> None:
    async def main() -> None:
        async with region(nodes, drives, scheme) as made:
            for key, size in SIZES.items():
                await made.engine.put_object(made.bucket, key, Bytes(data_of(size)), plain_spec())
            await scenario(made)

    asyncio.run(main())


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def checked(made: Region, *, deep: bool = False, repair: bool = False) -> Report:
    report = Report()
    await made.fsck.run(report, deep=deep, repair=repair)
    return report


def troubles(report: Report) -> dict[str, object]:
    """What is not zero, but for what is counted in any case."""
    names = [name for name in report.__struct_fields__ if name not in ("partitions", "shards", "blobs", "rows", "examples")]
    return {name: getattr(report, name) for name in names if getattr(report, name)}


@pytest.mark.parametrize("deep", [False, True])
def test_what_is_whole_is_clean(deep: bool) -> None:
    async def scenario(made: Region) -> None:
        upload = await made.engine.create_upload(made.bucket, "parts", Attributes(), "AK", None, None)
        etags = [
            (await made.engine.put_part(made.bucket, "parts", upload.upload_id, number, Bytes(data_of(size)), plain_spec())).etag
            for number, size in ((1, 6_000_000), (2, 200_000))
        ]
        parts = [CompletePart(number, etag) for number, etag in enumerate(etags, 1)]
        await made.engine.complete_upload(
            made.bucket, "parts", upload.upload_id, parts, condition=NO_CONDITION, expected_size=None, expected=None
        )
        report = await checked(made, deep=deep)
        assert report.clean and troubles(report) == {}
        assert (report.blobs, report.rows, report.shards) == (5, 5, 3 + 4 * 6)
        assert report.partitions == 4096

    on_region(scenario)


def test_each_trouble_is_found_and_repaired() -> None:
    async def scenario(made: Region) -> None:
        small, large = await made.blob("small"), await made.blob("large")
        made.nominal(small, 1).lose(small.blob_id, 1)
        made.nominal(small, 2).damage_header(small.blob_id, 2)
        made.nominal(large, 3).flip(large.blob_id, 3, 100)
        misplaced = made.nominal(large, 0).shards.pop((large.blob_id, 0))
        made.nominal(large, 5).shards[large.blob_id, 0] = misplaced
        made.nominal(large, 0).shards[large.blob_id, 5] = made.nominal(large, 5).shards[large.blob_id, 5]
        report = await checked(made)
        assert troubles(report) == {"missing": 1, "corrupt": 1, "misplaced": 1, "superfluous": 1}
        assert {(one.kind, one.key, one.detail) for one in report.examples} == {
            ("missing", "small", "shard 1"),
            ("corrupt", "small", f"shard 2 on {made.nominal(small, 2).label}"),
        }
        assert await made.metadata.unhealthy() == (0, 0), "it only looks"
        deep = await checked(made, deep=True)
        assert troubles(deep) == {"missing": 1, "corrupt": 2, "misplaced": 1, "superfluous": 1}
        await checked(made, deep=True, repair=True)
        assert (await checked(made)).debts == 3
        while results := await made.repairer.run():
            assert set(results) == {Result.REPAIRED}
        report = await checked(made, deep=True, repair=True)
        assert report.clean
        assert troubles(await checked(made, deep=True)) == {}
        assert made.at_home(small) and made.at_home(large)

    on_region(scenario)


def test_orphans_are_told_from_what_may_yet_be_committed_and_from_garbage() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.put("deleted", data_of(300_000))
        kept = [(drive, dict(drive.shards)) for drive in made.all]
        await made.engine.delete_object(made.bucket, "deleted", NO_CONDITION)
        assert troubles(await checked(made)) == {"garbage": 6, "outbox": 1}
        while await made.collector().run():
            pass
        assert troubles(await checked(made)) == {}
        for drive, shards in kept:  # as if drives that were away brought it back
            drive.shards.update({name: shard for name, shard in shards.items() if name[0] == blob.blob_id})
        report = await checked(made)
        assert (troubles(report), report.clean) == ({"unsettled": 6}, True)
        await made.session.close()
        report = await checked(made, repair=True)
        assert (troubles(report), report.clean) == ({"orphans": 6}, False)
        assert [one.key for one in report.examples] == ["deleted"]
        assert troubles(await checked(made)) == {}

    on_region(scenario)


def test_rows_without_anything_on_any_drive_dangle_and_blobs_with_too_little_are_lost() -> None:
    async def scenario(made: Region) -> None:
        commit = PutCommit(
            session=made.session.current,
            bucket_id=made.bucket.bucket_id,
            key="nowhere",
            version_id=bytes(16),
            size=5000,
            etag="0" * 32,
            attributes=Attributes(),
            content=content(5000),
        )
        await made.metadata.put_object(commit)
        large = await made.blob("large")
        for index in range(3):
            made.nominal(large, index).lose(large.blob_id, index)
        report = await checked(made)
        assert troubles(report) == {"dangling": 1, "lost": 1}
        assert {(one.kind, one.key) for one in report.examples} == {("dangling", "nowhere"), ("lost", "large")}
        made.down(0)
        report = await checked(made)
        assert not report.clean
        assert report.dangling == report.lost == 0, "that drive may have what is needed"
        assert report.away == ["node0-0"]

    on_region(scenario)


def test_with_a_drive_away_nothing_is_clean_and_nothing_is_missing() -> None:
    async def scenario(made: Region) -> None:
        made.down(3)
        report = await checked(made)
        assert not report.clean
        assert set(troubles(report)) == {"unseen", "away"}
        made.down(3, away=False)
        assert (await checked(made)).clean

    on_region(scenario)


def test_what_only_a_drive_outside_of_the_layout_holds_is_not_clean() -> None:
    async def scenario(made: Region) -> None:
        made.add_node(1)
        blob = await made.blob("large")
        home, outside = made.nominal(blob, 2), made.drives[6][0]
        outside.shards[blob.blob_id, 2] = home.shards.pop((blob.blob_id, 2))
        made.retire()
        report = await checked(made)
        assert not report.clean
        assert troubles(report) == {"outside": 1, "misplaced": 1}
        assert [(one.kind, one.key, one.detail) for one in report.examples] == [("outside", "large", "shard 2 only on node6-0")]
        await checked(made, repair=True)
        assert (await checked(made)).clean

    on_region(scenario)


def test_what_changes_during_the_check_is_no_trouble() -> None:
    async def scenario(made: Region) -> None:
        ownership = made.metadata.ownership

        async def meanwhile(asked: object) -> object:
            answers = await ownership(asked)  # type: ignore[arg-type]
            made.metadata.ownership = ownership  # type: ignore[method-assign]
            for key in ("copied", "small", "large"):
                await made.put(key, data_of(SIZES[key]))
            while await made.collector().run():
                pass
            return answers

        large = await made.blob("large")
        made.nominal(large, 1).lose(large.blob_id, 1)
        made.metadata.ownership = meanwhile  # type: ignore[assignment,method-assign]
        report = await checked(made)
        assert report.clean, troubles(report)

    on_region(scenario)


def test_examples_are_bounded() -> None:
    report = Report()
    for number in range(100):
        report.met("orphans", number.to_bytes(16, "big"), None, "", 2)
    assert (report.orphans, len(report.examples)) == (200, 20)
