"""Clusters that several tests of a module share, and what a test prints so that it can be seen again."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import AnvilCluster


class Shared:
    """One cluster for the tests of a module, mended before each. After a failure the next test gets a new one."""

    def __init__(self, folder: Path, **how: Any) -> None:
        self._folder = folder
        self._how = how
        self._made = 0
        self._failures = 0
        self._cluster: AnvilCluster | None = None

    def whole(self, session: pytest.Session) -> AnvilCluster:
        if self._cluster is not None and session.testsfailed != self._failures:
            self.close()
        self._failures = session.testsfailed
        if self._cluster is None:
            self._made += 1
            cluster = AnvilCluster(self._folder / str(self._made), **self._how)
            cluster.__enter__()
            self._cluster = cluster
            print(f"{len(cluster.nodes)} nodes were ready after {cluster.started_s:.1f} s")
        else:
            self._cluster.mend()
        return self._cluster

    def close(self) -> None:
        if self._cluster is not None:
            self._cluster.__exit__(None, None, None)
            self._cluster = None


def shared(factory: pytest.TempPathFactory, **how: Any) -> Iterator[Shared]:
    """For a fixture of a module."""
    held = Shared(factory.mktemp("c"), **how)
    try:
        yield held
    finally:
        held.close()


@pytest.fixture
def seed() -> int:
    """ANVIL_TEST_SEED, or another one each time."""
    return int(os.environ.get("ANVIL_TEST_SEED") or random.SystemRandom().randrange(1 << 32))


@pytest.fixture(autouse=True)
def see_it_again(request: pytest.FixtureRequest, seed: int) -> None:
    """Shown when the test fails."""
    module, _, name = request.node.nodeid.partition("::")
    print(f"again: ANVIL_TEST_SEED={seed} make test ARGS=\"{module} -k {name.partition('[')[0]} -m 'slow or not slow'\"")


@pytest.fixture
def rng(seed: int) -> random.Random:
    return random.Random(seed)
