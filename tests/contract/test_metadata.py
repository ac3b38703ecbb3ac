"""What every implementation of the `Metadata` port must do. Run against PostgreSQL and against the in-memory one."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable

import msgspec
import pytest

from anvil.base.errors import (
    ConditionalRequestConflict,
    InvalidPart,
    InvalidRequest,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    PreconditionFailed,
    WriterFenced,
)
from anvil.base.limits import LAYOUT_SLICES
from anvil.meta.migrate import Database
from anvil.model.records import (
    NO_CONDITION,
    Algorithm,
    Attributes,
    Checksum,
    ChecksumType,
    Condition,
    ContentCommit,
    ListQuery,
    OwnedMark,
    Owner,
    Ownership,
    PartCommit,
    PutCommit,
    UploadsQuery,
    Usage,
)
from tests.contract.metadata_world import World, content, etag_of, new_bucket_id, world
from tests.postgres_fixture import Postgres

Run = Callable[[Callable[[World], Awaitable[None]]], None]


@pytest.fixture(scope="module")
def regional_url(postgres: Postgres) -> str:
    return postgres.fresh(Database.REGIONAL)


@pytest.fixture(params=["memory", "postgres"])
def run(request: pytest.FixtureRequest) -> Run:
    url = request.getfixturevalue("regional_url") if request.param == "postgres" else None

    def runner(scenario: Callable[[World], Awaitable[None]]) -> None:
        async def main() -> None:
            async with world(url) as made:
                await scenario(made)

        asyncio.run(main())

    return runner


async def usage_of(w: World) -> Usage:
    (usage,) = await w.store.usage([w.bucket_id])
    assert isinstance(usage, Usage)
    return usage


async def garbage_of(w: World) -> set[bytes]:
    return {g.blob_id for g in await w.store.garbage(100_000, 0.0) if g.owner.bucket_id == w.bucket_id}


def test_what_is_put_is_got(run: Run) -> None:
    async def scenario(w: World) -> None:
        assert await w.store.get_object(w.bucket_id, "a") is None
        commit = PutCommit(
            session=w.session,
            bucket_id=w.bucket_id,
            key="schlüssel/😀",
            version_id=os.urandom(16),
            size=10,
            etag="0" * 32,
            attributes=Attributes(content_type="text/plain", cache_control="no-store", user={"farbe": "grün"}),
            checksum=Checksum(Algorithm.CRC32C, b"\1\2\3\4", ChecksumType.COMPOSITE, 3),
            content=content(10, inline=True),
        )
        committed = await w.store.put_object(commit)
        record = await w.store.get_object(w.bucket_id, "schlüssel/😀")
        assert record is not None
        assert (record.version_id, record.seq, record.modified_us) == (commit.version_id, committed.seq, committed.modified_us)
        assert (record.size, record.etag, record.is_null, record.upload_id, record.part_count) == (10, "0" * 32, True, None, 0)
        assert record.attributes == commit.attributes
        assert record.checksum == commit.checksum
        assert record.content == commit.content

    run(scenario)


def test_overwrite_replaces_everything_and_orders_versions(run: Run) -> None:
    async def scenario(w: World) -> None:
        first = w.put("k", 100, attributes=Attributes(content_type="a/b"))
        second = w.put("k", 7)
        third = w.put("k", 0)
        seqs = [(await w.store.put_object(commit)).seq for commit in (first, second, third)]
        assert seqs == sorted(seqs)
        assert len(set(seqs)) == 3
        record = await w.store.get_object(w.bucket_id, "k")
        assert record.size == 0
        assert record.content is None
        assert record.attributes == Attributes()
        assert first.content is not None and second.content is not None
        assert await garbage_of(w) == {first.content.blob.blob_id, second.content.blob.blob_id}
        assert await usage_of(w) == Usage(w.bucket_id, objects=1, bytes=0)

    run(scenario)


def test_inline_content_is_no_garbage(run: Run) -> None:
    async def scenario(w: World) -> None:
        await w.store.put_object(w.put("k", 100, inline=True))
        await w.store.put_object(w.put("k", 200, inline=True))
        assert await w.delete("k") is True
        assert await garbage_of(w) == set()
        assert await usage_of(w) == Usage(w.bucket_id, objects=0, bytes=0)

    run(scenario)


def test_delete(run: Run) -> None:
    async def scenario(w: World) -> None:
        commit = w.put("k")
        await w.store.put_object(commit)
        assert await w.delete("missing") is False
        assert await w.delete("k") is True
        assert await w.delete("k") is False
        assert await w.store.get_object(w.bucket_id, "k") is None
        assert commit.content is not None
        assert await garbage_of(w) == {commit.content.blob.blob_id}
        (garbage,) = [g for g in await w.store.garbage(100_000, 0.0) if g.owner.bucket_id == w.bucket_id]
        assert garbage.scheme == commit.content.blob.scheme
        assert await w.store.garbage(100_000, 3600.0) == []
        await w.store.garbage_done([garbage.outbox_id])
        assert await garbage_of(w) == set()

    run(scenario)


E1, E2 = etag_of("1"), etag_of("2")
CONDITIONS = [
    # condition, etag of the object there (None: no object), what happens
    (Condition(if_none_match=("*",)), None, None),
    (Condition(if_none_match=("*",)), E1, PreconditionFailed),
    (Condition(if_none_match=(E1,)), None, None),
    (Condition(if_none_match=(E1,)), E1, PreconditionFailed),
    (Condition(if_none_match=(E1,)), E2, None),
    (Condition(if_match=("*",)), None, PreconditionFailed),
    (Condition(if_match=("*",)), E1, None),
    (Condition(if_match=(E1,)), None, NoSuchKey),
    (Condition(if_match=(E1,)), E1, None),
    (Condition(if_match=(E1,)), E2, PreconditionFailed),
    (Condition(if_match=(E1, E2)), E2, None),
    (Condition(if_match=(E1,), if_none_match=(E2,)), E1, None),
    (Condition(if_match=("*",), if_none_match=(E1,)), E1, PreconditionFailed),
]


@pytest.mark.parametrize(("condition", "there", "error"), CONDITIONS)
def test_conditional_put(run: Run, condition: Condition, there: str | None, error: type[Exception] | None) -> None:
    async def scenario(w: World) -> None:
        if there is not None:
            await w.store.put_object(w.put("k", etag=there))
        commit = w.put("k", etag="f" * 32, condition=condition)
        if error is None:
            await w.store.put_object(commit)
            assert (await w.store.get_object(w.bucket_id, "k")).version_id == commit.version_id
        else:
            with pytest.raises(error):
                await w.store.put_object(commit)
            record = await w.store.get_object(w.bucket_id, "k")
            assert (record.etag if record else None) == there

    run(scenario)


@pytest.mark.parametrize(("condition", "there", "error"), CONDITIONS)
def test_conditional_complete(run: Run, condition: Condition, there: str | None, error: type[Exception] | None) -> None:
    async def scenario(w: World) -> None:
        if there is not None:
            await w.store.put_object(w.put("k", etag=there))
        upload_id = await w.upload("k")
        parts = [w.part("k", upload_id, 1), w.part("k", upload_id, 2)]
        for part in parts:
            await w.store.put_part(part)
        commit = w.complete("k", upload_id, parts[:1], condition)
        if error is None:
            await w.store.complete_upload(commit)
            assert (await w.store.get_object(w.bucket_id, "k")).upload_id == upload_id
        else:
            with pytest.raises(error):
                await w.store.complete_upload(commit)
            upload = await w.store.get_upload(w.bucket_id, "k", upload_id)
            assert upload is not None
            assert not upload.completed
            assert len(await w.store.list_parts(w.bucket_id, upload_id, 0, 10)) == 2, "a refused completion must not drop parts"

    run(scenario)


@pytest.mark.parametrize(
    ("condition", "there", "error"),
    [
        (Condition(if_match=(E1,)), E1, None),
        (Condition(if_match=("*",)), E1, None),
        (Condition(if_match=(E1,)), E2, PreconditionFailed),
        (Condition(if_match=(E1,)), None, NoSuchKey),
        (Condition(if_match=("*",)), None, PreconditionFailed),
    ],
)
def test_conditional_delete(run: Run, condition: Condition, there: str | None, error: type[Exception] | None) -> None:
    async def scenario(w: World) -> None:
        if there is not None:
            await w.store.put_object(w.put("k", etag=there))
        if error is None:
            assert await w.delete("k", condition) is True
        else:
            with pytest.raises(error):
                await w.delete("k", condition)
            assert (await w.store.get_object(w.bucket_id, "k") is None) == (there is None)

    run(scenario)


def test_replace_attributes(run: Run) -> None:
    async def scenario(w: World) -> None:
        put = w.put("k", 50, missing=2)
        committed = await w.store.put_object(put)
        change = w.put("k", 50, attributes=Attributes(content_type="new/type"))
        replaced = await w.store.replace_attributes(change, put.version_id)
        assert replaced.seq > committed.seq
        record = await w.store.get_object(w.bucket_id, "k")
        assert record.attributes.content_type == "new/type"
        assert (record.content, record.etag, record.size) == (put.content, put.etag, 50)
        assert await garbage_of(w) == set()
        assert await usage_of(w) == Usage(w.bucket_id, objects=1, bytes=50)
        with pytest.raises(ConditionalRequestConflict):
            await w.store.replace_attributes(w.put("k", 50), put.version_id)
        with pytest.raises(ConditionalRequestConflict):
            await w.store.replace_attributes(w.put("gone", 50), put.version_id)

    run(scenario)


def test_fences(run: Run) -> None:
    async def scenario(w: World) -> None:
        upload_id = await w.upload("k")
        part = w.part("k", upload_id, 1)
        await w.store.put_part(part)
        session, bucket_id = w.session, w.bucket_id
        assert await w.store.renew_session(session) is True
        assert session in await w.store.live_sessions()

        async def refused(error: type[Exception]) -> None:
            for attempt in (
                w.store.put_object(w.put("k")),
                w.store.put_object(w.put("k", condition=Condition(if_none_match=("*",)))),
                w.store.put_object(w.put("k", condition=Condition(if_match=("*",)))),
                w.store.replace_attributes(w.put("k"), bytes(16)),
                w.delete("k"),
                w.store.put_part(w.part("k", upload_id, 2)),
                w.store.complete_upload(w.complete("k", upload_id, [part])),
                w.store.abort_upload(w.session, w.bucket_id, "k", upload_id),
                w.upload("k"),
            ):
                with pytest.raises(error):
                    await attempt

        w.session = os.urandom(16)
        await refused(WriterFenced)
        w.session, w.bucket_id = session, new_bucket_id()
        await refused(NoSuchBucket)
        w.bucket_id = bucket_id
        assert await w.store.get_object(w.bucket_id, "k") is None
        await w.store.close_session(session)
        assert await w.store.renew_session(session) is False
        assert session not in await w.store.live_sessions()
        await refused(WriterFenced)

    run(scenario)


def test_hostile_keys_fail_alone(run: Run) -> None:
    async def scenario(w: World) -> None:
        keys = ["good/1", "nul\0nul", "good/2", "\ud800", "x" * 1025, "good/3", "", "ok"]
        results = await asyncio.gather(*(w.store.put_object(w.put(key)) for key in keys), return_exceptions=True)
        assert [type(result) is InvalidRequest for result in results] == [False, True, False, True, True, False, True, False]
        page = await w.store.list_objects(ListQuery(w.bucket_id))
        assert [entry.key for entry in page.entries] == ["good/1", "good/2", "good/3", "ok"]

    run(scenario)


def test_a_beside_a_slash_b_and_byte_order(run: Run) -> None:
    async def scenario(w: World) -> None:
        keys = ["a", "a/b", "a/", "B", "\uffff", "\U00010000", "\ue000", "a b", "~"]
        for key in keys:
            await w.store.put_object(w.put(key))
        page = await w.store.list_objects(ListQuery(w.bucket_id))
        assert [entry.key for entry in page.entries] == sorted(keys, key=str.encode)

    run(scenario)


def test_upload_lifecycle(run: Run) -> None:
    async def scenario(w: World) -> None:
        attributes = Attributes(content_type="video/mp4", user={"a": "b"})
        upload_id = await w.upload("k", attributes=attributes)
        old = w.part("k", upload_id, 1, 60)
        parts = [w.part("k", upload_id, 1, 100), w.part("k", upload_id, 2, 200), w.part("k", upload_id, 7, 300)]
        await w.store.put_part(old)
        for part in parts:
            await w.store.put_part(part)
        assert await usage_of(w) == Usage(w.bucket_id, 0, 0, upload_parts=3, upload_bytes=600)
        listed = await w.store.list_parts(w.bucket_id, upload_id, 1, 1)
        assert [(part.number, part.size, part.etag, part.content) for part in listed] == [
            (2, 200, parts[1].etag, parts[1].content)
        ]

        with pytest.raises(InvalidPart):
            await w.store.complete_upload(w.complete("k", upload_id, [parts[0], w.part("k", upload_id, 3)]))
        with pytest.raises(InvalidPart):
            await w.store.complete_upload(w.complete("k", upload_id, [w.part("k", upload_id, 1, 100, etag="b" * 32)]))
        with pytest.raises(NoSuchUpload):
            await w.store.complete_upload(w.complete("other", upload_id, parts))
        with pytest.raises(NoSuchUpload):
            await w.store.complete_upload(w.complete("k", os.urandom(16), parts))

        commit = w.complete("k", upload_id, [parts[0], parts[2]])
        committed = await w.store.complete_upload(commit)
        assert await w.store.complete_upload(w.complete("k", upload_id, [parts[0], parts[2]])) == committed
        record = await w.store.get_object(w.bucket_id, "k")
        assert (record.size, record.part_count, record.upload_id, record.content) == (400, 2, upload_id, None)
        assert record.version_id == commit.version_id
        assert record.attributes == attributes
        assert await usage_of(w) == Usage(w.bucket_id, 1, 400)
        manifest = await w.store.list_parts(w.bucket_id, upload_id, 0, 1000)
        assert [part.number for part in manifest] == [1, 7]
        for refused in (w.store.put_part(parts[1]), w.store.abort_upload(w.session, w.bucket_id, "k", upload_id)):
            with pytest.raises(NoSuchUpload):
                await refused
        upload = await w.store.get_upload(w.bucket_id, "k", upload_id)
        assert upload is not None and upload.completed
        assert (await w.store.list_uploads(UploadsQuery(w.bucket_id))).uploads == ()

        blob = {number: part.content.blob.blob_id for number, part in ((p.number, p) for p in parts) if part.content}
        assert old.content is not None
        assert await garbage_of(w) == {old.content.blob.blob_id, blob[2]}
        await w.store.put_object(w.put("k", 5))
        assert await garbage_of(w) == {old.content.blob.blob_id, *blob.values()}
        assert await w.store.get_upload(w.bucket_id, "k", upload_id) is None
        assert await w.store.list_parts(w.bucket_id, upload_id, 0, 1000) == ()
        assert await usage_of(w) == Usage(w.bucket_id, 1, 5)
        with pytest.raises(NoSuchUpload):
            await w.store.complete_upload(commit)

    run(scenario)


def test_abort_discards_parts(run: Run) -> None:
    async def scenario(w: World) -> None:
        upload_id = await w.upload("k")
        part = w.part("k", upload_id, 1, missing=1)
        await w.store.put_part(part)
        with pytest.raises(NoSuchUpload):
            await w.store.abort_upload(w.session, w.bucket_id, "other", upload_id)
        await w.store.abort_upload(w.session, w.bucket_id, "k", upload_id)
        with pytest.raises(NoSuchUpload):
            await w.store.abort_upload(w.session, w.bucket_id, "k", upload_id)
        with pytest.raises(NoSuchUpload):
            await w.store.put_part(w.part("k", upload_id, 2))
        assert part.content is not None
        assert await garbage_of(w) == {part.content.blob.blob_id}
        assert await usage_of(w) == Usage(w.bucket_id, 0, 0)
        assert [debt for debt in await w.store.debts(1000) if debt.owner.bucket_id == w.bucket_id] == []

    run(scenario)


def test_uploads_of_one_key_are_listed_by_age(run: Run) -> None:
    async def scenario(w: World) -> None:
        young, old = await w.upload("k", 200), await w.upload("k", 100)
        other = await w.upload("j/x", 1)
        seen = []
        query = UploadsQuery(w.bucket_id, limit=1)
        while True:
            page = await w.store.list_uploads(query)
            assert len(page.uploads) == 1
            seen.append(page.uploads[0].upload_id)
            if page.next_key_marker is None:
                break
            query = UploadsQuery(w.bucket_id, limit=1, key_marker=page.next_key_marker, upload_marker=page.next_upload_marker)
        assert seen == [other, old, young]
        page = await w.store.list_uploads(UploadsQuery(w.bucket_id, delimiter="/"))
        assert page.prefixes == ("j/",)
        assert [upload.upload_id for upload in page.uploads] == [old, young]
        page = await w.store.list_uploads(UploadsQuery(w.bucket_id, key_marker="k"))
        assert page.uploads == ()

    run(scenario)


def test_repair_debts(run: Run) -> None:
    async def scenario(w: World) -> None:
        whole, hurt = w.put("whole", 5000), w.put("hurt", 6000, missing=0b100)
        for commit in (whole, hurt):
            await w.store.put_object(commit)
        assert hurt.content is not None and whole.content is not None

        async def debts() -> dict[bytes, int]:
            found = [debt for debt in await w.store.debts(100_000) if debt.owner.bucket_id == w.bucket_id]
            assert all(debt.blob in (hurt.content.blob, whole.content.blob) for debt in found if hurt.content and whole.content)
            return {debt.blob.blob_id: debt.missing for debt in found}

        hurt_id, whole_id = hurt.content.blob.blob_id, whole.content.blob.blob_id
        assert await debts() == {hurt_id: 0b100}
        (hurt_owner, _), (whole_owner, _) = named(hurt), named(whole)
        changed = msgspec.structs.replace(
            hurt_owner, version_id=os.urandom(16)
        )  # as a reader knows it that opened it before a change
        await w.store.add_debt(
            [
                (hurt_owner, hurt_id, 0b010),
                (whole_owner, whole_id, 0b001),
                (whole_owner, os.urandom(16), 1),
                (changed, hurt_id, 0b001),
            ]
        )
        await w.store.add_debt([(whole_owner, hurt_id, 0b111), (hurt_owner, whole_id, 0b111)])  # their rows name other blobs
        assert await debts() == {hurt_id: 0b111, whole_id: 0b001}
        await w.store.debt_paid(hurt_id, 0b101)
        await w.store.debt_paid(whole_id, 0b001)
        assert await debts() == {hurt_id: 0b010}
        await w.store.debts_deferred([hurt_id], 3600.0)
        await w.store.add_debt([(whole_owner, whole_id, 0b001)])
        assert await debts() == {whole_id: 0b001}, "what cannot be paid now stands in nobody's way"
        await w.store.add_debt([(hurt_owner, hurt_id, 0b001)], corrupt=True)
        assert await debts() == {hurt_id: 0b011, whole_id: 0b001}, "more damage was found: it is looked at again"
        await w.store.debt_paid(whole_id, 0b001)
        await w.delete("hurt")
        assert await debts() == {}

    run(scenario)


def named(commit: PutCommit | PartCommit) -> tuple[Owner, bytes]:
    """Owner and blob of a commit, as its shards record them."""
    assert commit.content is not None
    if isinstance(commit, PartCommit):
        owner = Owner(commit.bucket_id, commit.key, commit.upload_id, commit.number)
    else:
        owner = Owner(commit.bucket_id, commit.key, commit.version_id)
    return owner, commit.content.blob.blob_id


def test_debts_of_parts(run: Run) -> None:
    async def scenario(w: World) -> None:
        upload_id = await w.upload("k")
        whole, hurt = w.part("k", upload_id, 1), w.part("k", upload_id, 2, missing=0b100)
        for part in (whole, hurt):
            await w.store.put_part(part)
        (whole_owner, whole_blob), (hurt_owner, hurt_blob) = named(whole), named(hurt)
        await w.store.add_debt(
            [(whole_owner, whole_blob, 0b001), (hurt_owner, hurt_blob, 0b010), (hurt_owner, whole_blob, 0b111)]
        )
        debts = [debt for debt in await w.store.debts(100_000) if debt.owner.bucket_id == w.bucket_id]
        assert {debt.blob.blob_id: debt.missing for debt in debts} == {whole_blob: 0b001, hurt_blob: 0b110}
        answers = await w.store.ownership([(debt.owner, debt.blob.blob_id) for debt in debts])
        assert answers == [Ownership.OWNED, Ownership.OWNED], "a debt's owner leads to its row"
        await w.store.complete_upload(w.complete("k", upload_id, [whole]))
        debts = [debt for debt in await w.store.debts(100_000) if debt.owner.bucket_id == w.bucket_id]
        assert [(debt.blob.blob_id, debt.missing) for debt in debts] == [(whole_blob, 0b001)]

    run(scenario)


def test_ownership(run: Run) -> None:
    async def scenario(w: World) -> None:
        kept, replaced, deleted = w.put("kept"), w.put("replaced"), w.put("deleted")
        for commit in (kept, replaced, deleted):
            await w.store.put_object(commit)
        await w.store.replace_attributes(w.put("kept", attributes=Attributes(content_type="new/type")), kept.version_id)
        newer = w.put("replaced", 5000)
        await w.store.put_object(newer)
        await w.delete("deleted")
        upload_id = await w.upload("m")
        parts = [w.part("m", upload_id, number) for number in (1, 1, 2, 3)]
        for part in parts:
            await w.store.put_part(part)
        never = w.put("never")
        asked = [named(commit) for commit in (kept, replaced, newer, deleted, *parts, never)]
        nobody, garbage, owned = Ownership.NOBODY, Ownership.GARBAGE, Ownership.OWNED
        assert await w.store.ownership(asked) == [owned, garbage, owned, garbage, garbage, owned, owned, owned, nobody]
        assert await w.store.ownership([]) == []

        elsewhere = [msgspec.structs.replace(owner, bucket_id=new_bucket_id()) for owner, _ in asked[2:8:3]]
        elsewhere.append(msgspec.structs.replace(asked[7][0], part_number=2))
        blobs = [asked[2][1], asked[5][1], asked[7][1]]
        assert await w.store.ownership(list(zip(elsewhere, blobs, strict=True))) == [nobody] * 3

        await w.store.complete_upload(w.complete("m", upload_id, [parts[1], parts[3]]))
        assert await w.store.ownership(asked[5:8]) == [owned, garbage, owned]
        await w.delete("m")
        assert await w.store.ownership(asked[5:8]) == [garbage] * 3
        ids = [g.outbox_id for g in await w.store.garbage(100_000, 0.0) if g.owner.bucket_id == w.bucket_id]
        await w.store.garbage_done(ids)
        assert await w.store.ownership(asked) == [owned, nobody, owned, *([nobody] * 6)]

    run(scenario)


def test_page_of_nothing_and_limit_zero(run: Run) -> None:
    async def scenario(w: World) -> None:
        page = await w.store.list_objects(ListQuery(w.bucket_id, delimiter="/"))
        assert (page.entries, page.prefixes, page.next_after) == ((), (), None)
        await w.store.put_object(w.put("k"))
        page = await w.store.list_objects(ListQuery(w.bucket_id, limit=0))
        assert (page.entries, page.prefixes, page.next_after) == ((), (), None)

    run(scenario)


def test_condition_nothing_asked(run: Run) -> None:
    async def scenario(w: World) -> None:
        assert not NO_CONDITION
        await w.store.put_object(w.put("k", condition=NO_CONDITION))
        assert (await w.store.get_object(w.bucket_id, "k")) is not None

    run(scenario)


def test_a_walk_meets_every_row_that_owns_a_blob_in_shards(run: Run) -> None:
    async def scenario(w: World) -> None:
        wanted: dict[Owner, bytes] = {}
        for number in range(7):
            put = w.put(f"k{number}/\u20ac")
            await w.store.put_object(put)
            assert put.content is not None
            wanted[Owner(w.bucket_id, put.key, put.version_id)] = put.content.blob.blob_id
        await w.store.put_object(w.put("empty", 0))
        await w.store.put_object(w.put("inline", 100, inline=True))
        upload_id = await w.upload("parts")
        parts = [w.part("parts", upload_id, number) for number in (1, 2, 3)]
        for part in parts:
            await w.store.put_part(part)
            assert part.content is not None
            wanted[Owner(w.bucket_id, "", upload_id, part.number)] = part.content.blob.blob_id
        await w.store.complete_upload(w.complete("parts", upload_id, parts))
        for limit in (1, 3, 1000):
            met: list[tuple[Owner, bytes]] = []
            after: OwnedMark | None = OwnedMark()
            while after is not None:
                page = await w.store.owned_blobs(after, limit)
                assert len(page.blobs) <= limit
                met += [(owner, blob.blob_id) for owner, blob in page.blobs if owner.bucket_id == w.bucket_id]
                assert page.next_after != after
                after = page.next_after
            assert len(met) == len(wanted)
            assert dict(met) == wanted

    run(scenario)


def test_what_waits_for_the_collector_is_counted(run: Run) -> None:
    async def scenario(w: World) -> None:
        before = await w.store.garbage_waiting()
        await w.store.put_object(w.put("k"))
        await w.store.put_object(w.put("k"))
        await w.delete("k")
        assert await w.store.garbage_waiting() == before + 2

    run(scenario)


def test_a_blob_is_exchanged_only_while_the_row_names_it(run: Run) -> None:
    async def scenario(w: World) -> None:
        put = w.put("k")
        await w.store.put_object(put)
        upload_id = await w.upload("parts")
        part = w.part("parts", upload_id, 1)
        await w.store.put_part(part)
        before, usage = await w.store.get_object(w.bucket_id, "k"), await usage_of(w)
        assert before is not None and put.content is not None and part.content is not None
        owners = {Owner(w.bucket_id, "k", put.version_id): put.content, Owner(w.bucket_id, "", upload_id, 1): part.content}
        for owner, old in owners.items():
            new = content(old.blob.size)
            commit = ContentCommit(w.session, owner, old.blob.blob_id, new)
            await w.store.replace_content(commit)
            assert old.blob.blob_id in await garbage_of(w)
            answers = await w.store.ownership([(owner, old.blob.blob_id), (owner, new.blob.blob_id)])
            assert answers == [Ownership.GARBAGE, Ownership.OWNED]
            with pytest.raises(ConditionalRequestConflict):
                await w.store.replace_content(ContentCommit(w.session, owner, old.blob.blob_id, content(old.blob.size)))
            with pytest.raises(WriterFenced):
                await w.store.replace_content(ContentCommit(os.urandom(16), owner, new.blob.blob_id, content(old.blob.size)))
            owners[owner] = new
        after = await w.store.get_object(w.bucket_id, "k")
        assert after == msgspec.structs.replace(before, content=owners[Owner(w.bucket_id, "k", put.version_id)])
        assert await usage_of(w) == usage
        gone = Owner(w.bucket_id, "k", put.version_id)
        await w.delete("k")
        with pytest.raises(ConditionalRequestConflict):
            await w.store.replace_content(ContentCommit(w.session, gone, owners[gone].blob.blob_id, content(4096)))

    run(scenario)


def test_exchanges_at_once(run: Run) -> None:
    async def scenario(w: World) -> None:
        puts = [w.put(f"k{number}") for number in range(20)]
        await asyncio.gather(*(w.store.put_object(put) for put in puts))
        commits = [
            ContentCommit(w.session, Owner(w.bucket_id, put.key, put.version_id), put.content.blob.blob_id, content(4096))
            for put in puts
            for _ in range(3)
            if put.content is not None
        ]
        ends = await asyncio.gather(*(w.store.replace_content(commit) for commit in commits), return_exceptions=True)
        lost = [end for end in ends if end is not None]
        assert len(lost) == 40 and all(isinstance(end, ConditionalRequestConflict) for end in lost)
        for commit, end in zip(commits, ends, strict=True):
            [ownership] = await w.store.ownership([(commit.owner, commit.content.blob.blob_id)])
            assert ownership is (Ownership.OWNED if end is None else Ownership.NOBODY)


def test_garbage_and_debts_by_slice(run: Run) -> None:
    """Slices of any fineness are disjoint, together everything, and each in the order of the whole."""

    async def scenario(w: World) -> None:
        for number in range(60):
            await w.store.put_object(w.put(f"gone/{number:02}"))
            await w.store.put_object(w.put(f"short/{number:02}", missing=1))
        for number in range(60):
            await w.delete(f"gone/{number:02}")
        garbage = [g.blob_id for g in await w.store.garbage(100_000, 0.0) if g.owner.bucket_id == w.bucket_id]
        debts = [d.blob.blob_id for d in await w.store.debts(100_000) if d.owner.bucket_id == w.bucket_id]
        assert (len(garbage), len(debts)) == (60, 60)
        for slices in (1, 4, LAYOUT_SLICES):
            for slice in range(slices):
                mine = {blob for blob in garbage + debts if blob[0] * slices // 256 == slice}
                found = [g for g in await w.store.garbage(100_000, 0.0, slice, slices) if g.owner.bucket_id == w.bucket_id]
                assert [g.blob_id for g in found] == [blob for blob in garbage if blob in mine]
                owed = [d for d in await w.store.debts(100_000, slice, slices) if d.owner.bucket_id == w.bucket_id]
                assert [d.blob.blob_id for d in owed] == [blob for blob in debts if blob in mine]
                assert len(await w.store.garbage(1, 0.0, slice, slices)) <= 1
        for wrong in ((4, 4), (-1, 4), (0, 3), (0, 128)):
            with pytest.raises(ValueError, match="no slice"):
                await w.store.garbage(1, 0.0, *wrong)

    run(scenario)
