"""A repository has any number of packs; a process has few descriptors, and little memory."""

from __future__ import annotations

import resource
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anvil.backup import packs as packs_module
from anvil.backup.packs import Pack, walk
from tests.unit.backup.test_format import packed_of, write

PACKS = 300
FILES_MAX = 64


@contextmanager
def few_files() -> Iterator[None]:
    """No more than FILES_MAX descriptors beside those that are open now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(entry.name) for entry in Path("/proc/self/fd").iterdir()) + FILES_MAX, hard)
    )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> list[Pack]:
    folder = tmp_path_factory.mktemp("packs")
    return [write(folder, [packed_of(1) for _ in range(5)])[0] for _ in range(PACKS)]


def test_a_walk_opens_one_pack_at_a_time(many: list[Pack]) -> None:
    with few_files():
        found = [blob_id for blob_id, _ in walk(many)]
    assert len(found) == PACKS * 5 and found == sorted(found)


def test_a_walk_that_reads_less_at_a_time_finds_the_same(many: list[Pack], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(walk(many))
    monkeypatch.setattr(packs_module, "INDEX_READ_BYTES_MAX", 0)
    monkeypatch.setattr(packs_module, "INDEX_READ_ENTRIES_MIN", 2)
    assert list(walk(many)) == whole


def test_what_a_walk_takes_of_memory(tmp_path: Path) -> None:
    """As said in limits.py: the indexes packed, and 2 KiB for each pack."""
    [pack] = write(tmp_path, [packed_of(1) for _ in range(1000)])
    tracemalloc.start()
    try:
        walking = walk([pack] * 200)
        next(walking)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    walking.close()
    assert taken < 200 * (4096 + 2048)
