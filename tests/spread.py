"""How a run is spread over processes by pytest-xdist: three for two processors, a file or a folder at a time, and some tests alone.

Owns: the number of workers, the units of work and their order, the turns of tests marked `alone`. Invariants: the tests of a unit run in
one process and in their order, so what a module or a folder shares is started once; while a test marked `alone` runs, no other test of the
run does; of several in a row in one file only the first has to wait for its turn. Not here: fixtures. Those of the session exist once in
each worker.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

import pytest
from xdist.scheduler import LoadScopeScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

TESTS = Path(__file__).parent
WORKERS_MAX = 8
# By path below tests/. What takes long begins first, what is in small pieces fills the gaps at the end; what is not named is in between.
FIRST = (
    "cluster",
    "integration/test_survival.py",
    "integration/backup",
    "integration/test_bench_gate.py",
    "integration/test_hung_drives.py",
    "integration/test_hold.py",
    "compat",
    "integration",
)
LAST = ("unit",)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three workers for two processors, since a third of a test is waiting; none, so that all runs in this very process, where a file or a
    few names were asked for, or a debugger, or the output as it comes. `-n` says otherwise. Clusters come one after the other, as one unit:
    two at once take more than twice as long, since what heals in the background yields to everything else."""
    option = config.option
    if option.collectonly or option.keyword or option.trace or option.capture == "no":
        return 0
    if not any(Path(argument).is_dir() for argument in config.args):
        return 0
    workers = min(len(os.sched_getaffinity(0)) * 3 // 2, WORKERS_MAX)
    return workers if workers > 1 else 0


# -- units


@cache
def unit_of(path: PurePosixPath) -> str:
    """What goes to one worker together with this file: the innermost folder that has a conftest.py, since that is likely to start something
    for all of it; otherwise the file."""
    for folder in path.parents:
        if folder.name == TESTS.name or not folder.name:
            break
        if (TESTS.parent / folder / "conftest.py").exists():
            return str(folder)
    return str(path)


def rank(unit: str) -> int:
    """Lower ones begin first."""
    path = PurePosixPath(*PurePosixPath(unit).parts[1:])
    for number, folder in enumerate(FIRST):
        if path.is_relative_to(folder):
            return number
    return len(FIRST) + 1 if any(path.is_relative_to(folder) for folder in LAST) else len(FIRST)


class Units(LoadScopeScheduling):
    """A worker gets the next unit when it begins the last test of its present one, and not before: that one may take long."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(PurePosixPath(nodeid.partition("::")[0]))

    def _reschedule(self, node: WorkerController) -> None:
        if not self.workqueue or self._pending_of(self.assigned_work[node]) <= 1:
            super()._reschedule(node)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Units are handed out in the order of their tests."""
    items.sort(key=lambda item: rank(unit_of(PurePosixPath(item.nodeid.partition("::")[0]))))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    config.option.loadscopereorder = False  # by their number of tests
    return Units(config, log)


# -- turns


class Turns:
    """Tests share the machine, or have it to themselves. Whoever waits for that holds the gate, so nobody else begins meanwhile."""

    def __init__(self, folder: Path) -> None:
        self._gate: IO[bytes] = (folder / "gate").open("ab")
        self._turn: IO[bytes] = (folder / "turn").open("ab")
        self._kept = False

    @contextmanager
    def taken(self, *, alone: bool, keep: bool = False) -> Iterator[None]:
        """`keep`: the next one is to be alone, too."""
        if not self._kept:
            fcntl.flock(self._gate, fcntl.LOCK_EX)
            fcntl.flock(self._turn, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            self._kept = keep
            if not keep:
                fcntl.flock(self._turn, fcntl.LOCK_UN)


TURNS = pytest.StashKey[Turns]()


def pytest_sessionstart(session: pytest.Session) -> None:
    """A worker's temporary folder is below the run's."""
    if hasattr(session.config, "workerinput"):
        session.config.stash[TURNS] = Turns(Path(session.config.option.basetemp).parent)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    turns = item.config.stash.get(TURNS, None)
    if turns is None:
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    keep = alone and nextitem is not None and nextitem.path == item.path and nextitem.get_closest_marker("alone") is not None
    with turns.taken(alone=alone, keep=keep):
        return (yield)
