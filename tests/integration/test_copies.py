"""Two copies of one shard: what a drive brings back after its shards were rebuilt elsewhere goes again, and never the last whole one."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from anvil.model.records import BlobId
from anvil.tasks.repair import Result
from anvil.tasks.survey import Findings
from tests.integration.test_engine import data_of, on_bench
from tests.postgres_fixture import Postgres
from tests.support.engine import Bench

SIZES = {"copied": 10_000, "small": 300_000, "large": 3_000_000}


async def copies_of(bench: Bench) -> dict[tuple[BlobId, int], list[str]]:
    """By blob and index, the drives with a shard whose header can be read."""
    found: dict[tuple[BlobId, int], list[str]] = defaultdict(list)
    for drive in bench.drives:
        async for place in drive.scan():
            if not place.damaged:
                found[place.header.blob.blob_id, place.header.index].append(drive.label)
    return found


async def surveyed(bench: Bench, *, deep: bool = False) -> Findings:
    found = Findings()
    held = [await drive.partitions() for drive in bench.drives]
    for number in frozenset().union(*held):
        found.add(await bench.survey.partition(number, deep=deep))
    return found


async def assert_readable(bench: Bench) -> None:
    for key, size in SIZES.items():
        assert await bench.get(key) == data_of(size), key


def returned(
    postgres: Postgres, tmp_path: Path, then: Callable[[Bench, dict[tuple[BlobId, int], list[str]]], Awaitable[None]]
) -> None:
    """Of eight drives one goes away, what it held is rebuilt on others, and it comes back with all of it."""

    async def scenario(bench: Bench) -> None:
        for key, size in SIZES.items():
            await bench.put(key, data_of(size))
        before = await copies_of(bench)
        lost = max((drive.label for drive in bench.drives), key=lambda label: sum(label in held for held in before.values()))
        number = next(number for number, drive in enumerate(bench.drives) if drive.label == lost)
        (tmp_path / lost).rename(tmp_path / "away")
        await bench.drives[number].probe()
        for key in SIZES:
            [extent] = (await bench.engine.open(bench.bucket, key)).extents
            assert extent.content is not None
            blob_id = extent.content.blob.blob_id
            mask = sum(1 << index for (blob, index), held in before.items() if blob == blob_id and held == [lost])
            await bench.metadata.add_debt([(extent.owner, blob_id, mask)])
        assert set(await bench.repairer.run()) == {Result.REPAIRED}
        (tmp_path / "away").rename(tmp_path / lost)
        await bench.drives[number].probe()
        doubled = {place: held for place, held in (await copies_of(bench)).items() if len(held) > 1}
        assert doubled and all(lost in held for held in doubled.values())
        await then(bench, doubled)
        await assert_readable(bench)

    on_bench(postgres, tmp_path, scenario, drives=8)


def test_the_one_on_its_own_place_stays_and_the_other_goes(postgres: Postgres, tmp_path: Path) -> None:
    async def then(bench: Bench, doubled: dict[tuple[BlobId, int], list[str]]) -> None:
        found = await surveyed(bench)
        assert (found.superseded, found.missing, found.corrupt, found.orphans) == (len(doubled), 0, 0, 0)
        after = await copies_of(bench)
        assert all(len(held) == 1 for held in after.values())
        for blob_id, index in doubled:
            nominal = bench.context.placement().order(blob_id)[index]
            assert nominal is not None and after[blob_id, index] == [nominal.label]
        assert (await surveyed(bench, deep=True)).superseded == 0
        assert bench.events.damages == []

    returned(postgres, tmp_path, then)


def test_none_goes_while_removal_is_held(postgres: Postgres, tmp_path: Path) -> None:
    async def then(bench: Bench, doubled: dict[tuple[BlobId, int], list[str]]) -> None:
        bench.hold = True
        assert (await surveyed(bench)).superseded == 0
        assert all(len(held) == 2 for place, held in (await copies_of(bench)).items() if place in doubled)
        bench.hold = False
        assert (await surveyed(bench)).superseded == len(doubled)

    returned(postgres, tmp_path, then)


@pytest.mark.parametrize("deep", [False, True])
def test_a_damaged_one_never_displaces_a_good_one(postgres: Postgres, tmp_path: Path, deep: bool) -> None:
    async def then(bench: Bench, doubled: dict[tuple[BlobId, int], list[str]]) -> None:
        for blob_id, index in doubled:
            nominal = bench.context.placement().order(blob_id)[index]
            assert nominal is not None
            place = await nominal.open(blob_id, index)
            assert place is not None
            spoil_payload(tmp_path / nominal.label, place.ref, random.Random(index))
        found = await surveyed(bench, deep=deep)
        assert (found.superseded, found.corrupt) == (0, len(doubled))
        assert all(len(held) == 2 for place, held in (await copies_of(bench)).items() if place in doubled)
        await assert_readable(bench)
        while debts := await bench.metadata.debts(100):
            assert set(await bench.repairer.run()) <= {Result.REPAIRED, Result.HEALTHY}, debts
        assert (await surveyed(bench, deep=deep)).superseded == len(doubled)
        found = await surveyed(bench, deep=True)
        assert (found.superseded, found.corrupt, found.missing) == (0, 0, 0)

    returned(postgres, tmp_path, then)


def spoil_payload(drive: Path, ref: object, rng: random.Random) -> None:
    """Flip a byte behind the header."""
    if (path := getattr(ref, "path", None)) is not None:
        offset = ref.header_bytes  # type: ignore[attr-defined]
    else:
        place = ref.place  # type: ignore[attr-defined]
        path, offset = drive / "segments" / f"{place.segment:016x}.seg", place.offset + place.header_bytes
    with path.open("r+b") as file:
        file.seek(offset + rng.randrange(1, 1000))
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes((byte[0] ^ 0xFF,)))
