"""Fixtures that every test may use, and what a failing test shows beside its traceback."""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from tests.support.node import RUNNING
from tests.support.reaper import reap

pytest_plugins = ["tests.postgres_fixture", "tests.spread"]


OWN_TEMP = pytest.StashKey[Path]()


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """A temporary folder of this run's own. The one pytest shares between runs is closed to other accounts whenever a run begins,
    and with it to the PostgreSQL of the runs that root has going: PostgreSQL refuses to be root."""
    if config.option.basetemp is None:
        config.stash[OWN_TEMP] = Path(tempfile.mkdtemp(prefix="anvil-tests-"))
        config.option.basetemp = str(config.stash[OWN_TEMP] / "run")


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Nothing is left behind, unless there is something to look at. No process is in any case: the workers of an interrupted run are
    given no time to end what they started."""
    own = session.config.stash.get(OWN_TEMP, None)
    if own is not None:
        reap(own)
    if own is not None and not session.testsfailed and exitstatus != pytest.ExitCode.INTERRUPTED:
        shutil.rmtree(own, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows the end of the log of every node it left running: a fixture's node does not see the failure itself."""
    report = yield
    if report.failed and report.when == "call":
        report.sections += [(f"log of the node in {node.data_dir}", node.log_tail()) for node in RUNNING]
    return report


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What only the garbage collector would free counts as not freed: a worker whose buffers are all gone collects nothing."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()
