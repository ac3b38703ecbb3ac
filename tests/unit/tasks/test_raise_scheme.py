"""Older blobs written anew by a higher scheme: same bytes, same row but for where they are, and whoever overwrites wins."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from anvil.base.errors import OutcomeUnknown, PreconditionFailed
from anvil.engine.types import CompletePart
from anvil.model.identity import Bucket
from anvil.model.records import NO_CONDITION, Attributes, BucketId, Condition, OwnedMark
from anvil.model.scheme import Scheme
from anvil.tasks.fsck import Report
from anvil.tasks.raise_scheme import Raised, SchemeRaiser, is_lower
from tests.support.engine import Bytes, plain_spec
from tests.support.memory_region import Region, region

Scenario = Callable[[Region], Awaitable[None]]
SIZES = {"inline": 100, "copied": 10_000, "small": 300_000, "large": 3_000_000}


def on_region(scenario: Scenario, nodes: int = 6, scheme: Scheme | None = None) -> None:
    """Written with 1+1, on drives for 4+2."""

    async def main() -> None:
        async with region(nodes, 1, scheme) as made:
            made.scheme, present = Scheme(1, 1), made.scheme
            for key, size in SIZES.items():
                await made.put_any(key, data_of(size))
            made.scheme = present
            await scenario(made)

    asyncio.run(main())


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def raiser(made: Region) -> SchemeRaiser:
    async def bucket(bucket_id: BucketId) -> Bucket | None:
        return made.bucket if bucket_id == made.bucket.bucket_id else None

    return SchemeRaiser(made.context, bucket)


async def raised_all(made: Region) -> Raised:
    raised, work = Raised(), raiser(made)
    after: OwnedMark | None = OwnedMark()
    while after is not None:
        after = await work.page(after, raised)
    return raised


async def assert_whole(made: Region) -> None:
    for key, size in SIZES.items():
        assert await made.get(key) == data_of(size), key
    while await made.collector().run():
        pass
    report = Report()
    await made.fsck.run(report, deep=True)
    assert report.clean, report
    assert report.shards == sum([(await made.blob(key)).scheme.width for key in ("copied", "small", "large")])


def test_which_schemes_are_lower() -> None:
    assert is_lower(Scheme(1, 0), Scheme(4, 2))
    assert is_lower(Scheme(2, 2), Scheme(4, 2)), "as safe for less space"
    assert not is_lower(Scheme(4, 2), Scheme(2, 2))
    assert not is_lower(Scheme(2, 2), Scheme(4, 1)), "never less safe"
    assert not is_lower(Scheme(4, 2), Scheme(4, 2))


def test_everything_gets_the_present_scheme_and_nothing_else_changes() -> None:
    async def scenario(made: Region) -> None:
        before = {key: await made.metadata.get_object(made.bucket.bucket_id, key) for key in SIZES}
        info = await made.engine.open(made.bucket, "large")
        raised = await raised_all(made)
        assert (raised.raised, raised.waiting, raised.changed) == (3, 0, 0)
        assert raised.bytes == sum(SIZES[key] for key in ("copied", "small", "large"))
        assert [(await made.blob(key)).scheme for key in ("copied", "small", "large")] == [
            Scheme(1, 2),
            Scheme(4, 2),
            Scheme(4, 2),
        ]
        for key, row in before.items():
            now = await made.metadata.get_object(made.bucket.bucket_id, key)
            assert row is not None and now is not None
            for name in row.__struct_fields__:
                assert name == "content" or getattr(now, name) == getattr(row, name), name
        old = b"".join([bytes(view) async for view in made.engine.read(made.bucket, info, 0, info.size)])
        assert old == data_of(SIZES["large"]), "who reads the old one has the garbage's grace"
        await assert_whole(made)
        assert await raised_all(made) == Raised(), "done again it finds nothing"
        made.down(1)
        made.down(2)
        for key, size in SIZES.items():
            assert await made.get(key) == data_of(size)

    on_region(scenario)


@pytest.mark.parametrize("away", [False, True])
def test_a_part_of_which_no_record_is_left_is_unreadable_unless_a_drive_is_away(away: bool) -> None:
    async def scenario(made: Region) -> None:
        present, made.scheme = made.scheme, Scheme(1, 1)
        upload = await made.engine.create_upload(made.bucket, "parts", Attributes(), "AK", None, None)
        await made.engine.put_part(made.bucket, "parts", upload.upload_id, 1, Bytes(data_of(200_000)), plain_spec())
        made.scheme = present
        [part] = await made.metadata.list_parts(made.bucket.bucket_id, upload.upload_id, 0, 1)
        assert part.content is not None
        blob = part.content.blob
        for index in range(2):
            made.nominal(blob, index).lose(blob.blob_id, index)
        others = {drive for drive in made.all if not drive.shards}
        for drive in list(others)[:1] if away else ():
            drive.away = True
        raised = await raised_all(made)
        assert (raised.waiting >= 1, raised.unreadable) == ((True, 0) if away else (False, 1))

    on_region(scenario, nodes=12)


def test_parts_of_completed_uploads_are_raised_too() -> None:
    async def scenario(made: Region) -> None:
        present, made.scheme = made.scheme, Scheme(1, 1)
        upload = await made.engine.create_upload(made.bucket, "parts", Attributes(), "AK", None, None)
        sizes = (6_000_000, 200_000)
        etags = [
            (await made.engine.put_part(made.bucket, "parts", upload.upload_id, number, Bytes(data_of(size)), plain_spec())).etag
            for number, size in enumerate(sizes, 1)
        ]
        made.scheme = present
        listed = [CompletePart(number, etag) for number, etag in enumerate(etags, 1)]
        await made.engine.complete_upload(
            made.bucket, "parts", upload.upload_id, listed, condition=NO_CONDITION, expected_size=None, expected=None
        )
        assert (await raised_all(made)).raised == 5
        info = await made.engine.open(made.bucket, "parts")
        assert [one.content.blob.scheme for one in info.extents if one.content] == [Scheme(4, 2)] * 2
        assert await made.get("parts") == b"".join(data_of(size) for size in sizes)
        keys = {place.header.key for drive in made.all for place in drive.shards.values()}
        assert "" not in keys, "a record names the key, also of a part"

    on_region(scenario)


@pytest.mark.parametrize("how", ["overwritten", "deleted"])
def test_whoever_overwrites_meanwhile_wins(how: str) -> None:
    async def scenario(made: Region) -> None:
        replace = made.metadata.replace_content

        async def late(commit: object) -> None:
            made.metadata.replace_content = replace  # type: ignore[method-assign]
            if how == "overwritten":
                await made.put("copied", data_of(20_000))
            else:
                await made.engine.delete_object(made.bucket, "copied", NO_CONDITION)
            await replace(commit)  # type: ignore[arg-type]

        for key in ("small", "large"):
            await made.engine.delete_object(made.bucket, key, NO_CONDITION)
        made.metadata.replace_content = late  # type: ignore[method-assign]
        raised = await raised_all(made)
        assert (raised.raised, raised.changed) == (0, 1)
        while await made.collector().run():
            pass
        assert sum(len(drive.shards) for drive in made.all) == (3 if how == "overwritten" else 0)
        if how == "overwritten":
            assert await made.get("copied") == data_of(20_000)

    on_region(scenario)


def test_only_what_is_durable_on_all_drives_takes_the_place() -> None:
    async def scenario(made: Region) -> None:
        made.down(3)
        raised = await raised_all(made)
        assert raised.waiting >= 2 and raised.changed == 0
        made.down(3, away=False)
        await raised_all(made)
        await assert_whole(made)

    on_region(scenario)


def test_an_unknown_outcome_keeps_both() -> None:
    async def scenario(made: Region) -> None:
        made.metadata.fail_next = OutcomeUnknown()
        made.metadata.commit_before_failing = True
        raised = await raised_all(made)
        assert (raised.raised, raised.waiting) == (2, 1)
        await assert_whole(made)

    on_region(scenario)


def test_damaged_bytes_are_not_written_anew() -> None:
    async def scenario(made: Region) -> None:
        blob = await made.blob("large")
        for index in range(2):
            made.nominal(blob, index).flip(blob.blob_id, index, 100)
        raised = await raised_all(made)
        assert (raised.raised, raised.waiting, raised.unreadable) == (2, 0, 1), "nothing waits for it"
        assert (await made.blob("large")).blob_id == blob.blob_id

    on_region(scenario)


def test_conditions_of_clients_hold_across_the_exchange() -> None:
    async def scenario(made: Region) -> None:
        etag = (await made.engine.stat(made.bucket, "small")).etag
        await raised_all(made)
        spec = plain_spec(condition=Condition(if_match=(etag,)))
        await made.engine.put_object(made.bucket, "small", Bytes(b"x" * 5000), spec)
        with pytest.raises(PreconditionFailed):
            await made.engine.put_object(made.bucket, "small", Bytes(b"x"), spec)

    on_region(scenario)
