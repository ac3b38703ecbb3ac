"""Listing against a brute-force model: any keys, prefixes, delimiters, markers and page sizes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anvil.meta.migrate import Database
from anvil.model.records import ListQuery, UploadsQuery
from tests.contract.metadata_world import World, new_bucket_id, world
from tests.postgres_fixture import Postgres

# Few letters, so that keys share prefixes; the odd ones are the ends of UTF-8 lengths, the surrogate gap, the last code point.
ALPHABET = ["a", "b", "/", "\x7f", "\x80", "\ud7ff", "\ue000", "\uffff", "\U00010000", "\U0010ffff"]
TEXT = st.lists(st.sampled_from(ALPHABET), max_size=5).map("".join)
KEYS = st.lists(st.lists(st.sampled_from(ALPHABET), min_size=1, max_size=5).map("".join), max_size=14, unique=True)
DELIMITERS = st.sampled_from(["", "/", "a", "ab", "//", "aa", "\U0010ffff", "\ud7ff"])


@pytest.fixture(scope="module")
def loop_and_world(postgres: Postgres) -> Iterator[tuple[asyncio.Runner, World]]:
    url = postgres.fresh(Database.REGIONAL)
    with asyncio.Runner() as runner:
        context = world(url)
        made = runner.run(context.__aenter__())
        yield runner, made
        runner.run(context.__aexit__(None, None, None))


def names(keys: list[str], prefix: str, delimiter: str, after: str) -> list[str]:
    """What S3 says a listing contains, said plainly."""
    found = set()
    for key in keys:
        if not key.startswith(prefix):
            continue
        rest = key[len(prefix) :]
        head, cut, _ = rest.partition(delimiter) if delimiter else (rest, "", "")
        found.add(prefix + head + cut)
    return sorted((name for name in found if name > after), key=str.encode)


async def fill(w: World, keys: list[str]) -> None:
    w.bucket_id = new_bucket_id()
    await w.store.add_bucket(w.bucket_id)
    await asyncio.gather(*(w.store.put_object(w.put(key, 3)) for key in keys))


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=KEYS, prefix=TEXT.filter(lambda text: len(text) < 3), delimiter=DELIMITERS, after=TEXT, limit=st.integers(1, 6))
def test_pages_are_what_the_model_says(
    loop_and_world: tuple[asyncio.Runner, World], keys: list[str], prefix: str, delimiter: str, after: str, limit: int
) -> None:
    runner, w = loop_and_world

    async def scenario() -> None:
        await fill(w, keys)
        for start in ("", after):
            expected = names(keys, prefix, delimiter, start)
            whole = await w.store.list_objects(ListQuery(w.bucket_id, prefix, delimiter, start))
            assert whole.next_after is None
            listed = sorted([*(entry.key for entry in whole.entries), *whole.prefixes], key=str.encode)
            assert listed == expected
            assert {entry.key for entry in whole.entries} <= set(keys)
            paged: list[str] = []
            query = ListQuery(w.bucket_id, prefix, delimiter, start, limit)
            while True:
                page = await w.store.list_objects(query)
                found = sorted([*(entry.key for entry in page.entries), *page.prefixes], key=str.encode)
                paged += found
                if page.next_after is None:
                    break
                assert len(found) == limit
                assert page.next_after == found[-1]
                query = ListQuery(w.bucket_id, prefix, delimiter, page.next_after, limit)
            assert paged == expected, "every name once, in order, whatever the page size"

    runner.run(scenario())


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    uploads=st.lists(st.tuples(st.sampled_from(["a", "a/b", "a/c", "b", "b/", "\U0010ffff/x"]), st.integers(1, 3)), max_size=9),
    prefix=st.sampled_from(["", "a", "a/", "\U0010ffff"]),
    delimiter=st.sampled_from(["", "/"]),
    limit=st.integers(1, 4),
)
def test_pages_of_uploads(
    loop_and_world: tuple[asyncio.Runner, World], uploads: list[tuple[str, int]], prefix: str, delimiter: str, limit: int
) -> None:
    runner, w = loop_and_world

    async def scenario() -> None:
        await fill(w, [])
        made = [(key, initiated_us, await w.upload(key, initiated_us)) for key, initiated_us in uploads]
        expected_names = names([key for key, _, _ in made], prefix, delimiter, "")
        expected = [entry for entry in sorted(made) if entry[0] in expected_names and entry[0].startswith(prefix)]
        expected = [entry for entry in expected if not delimiter or delimiter not in entry[0][len(prefix) :]]
        rolled = [name for name in expected_names if delimiter and delimiter in name[len(prefix) :]]
        seen: list[tuple[str, int, bytes]] = []
        prefixes: list[str] = []
        query = UploadsQuery(w.bucket_id, prefix, delimiter, limit=limit)
        while True:
            page = await w.store.list_uploads(query)
            seen += [(upload.key, upload.initiated_us, upload.upload_id) for upload in page.uploads]
            prefixes += page.prefixes
            if page.next_key_marker is None:
                break
            assert len(page.uploads) + len(page.prefixes) == limit
            query = UploadsQuery(w.bucket_id, prefix, delimiter, page.next_key_marker, page.next_upload_marker, limit)
        assert seen == expected
        assert prefixes == rolled

    runner.run(scenario())
