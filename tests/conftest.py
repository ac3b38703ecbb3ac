"""Fixtures that every test may use, and what a failing test shows beside its traceback."""

from __future__ import annotations

from collections.abc import Generator

import pytest

from tests.support.node import RUNNING

pytest_plugins = ["tests.postgres_fixture"]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failing test shows the end of the log of every node it left running: a fixture's node does not see the failure itself."""
    report = yield
    if report.failed and report.when == "call":
        report.sections += [(f"log of the node in {node.data_dir}", node.log_tail()) for node in RUNNING]
    return report
