"""`/ready` on a real node under each fault: it says no, and why, within seconds; yes again when the fault is over; and a blip is none.

Not here: drives that are lost, full or hung (test_survival.py, test_hung_drives.py), peers (tests/cluster).
"""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg
import psutil
import pytest

from tests.support.load import children
from tests.support.node import AnvilNode, wait_until

TOLD_S = 15.0  # two rounds of checks, each with its time-out, on a busy machine


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilNode]:
    with AnvilNode(tmp_path_factory.mktemp("ready") / "node", env={"ANVIL_WORKERS": "2"}) as made:
        yield made


def url(node: AnvilNode, database: str) -> str:
    return str(json.loads((node.data_dir / "run" / "node.json").read_text())[f"{database}_url"])


def status(node: AnvilNode) -> int:
    return int(node.get("/ready")[0])


def says_no(node: AnvilNode, *reasons: str) -> None:
    """Within TOLD_S, with these among its reasons; liveness is another matter."""
    wait_until(
        f"/ready names {reasons} (it says {node.readiness()})",
        lambda: (
            (told := node.readiness())["status"] == "not_ready"
            and all(any(one.startswith(reason) for one in told["reasons"]) for reason in reasons)
        ),
        TOLD_S,
    )
    assert status(node) == 503
    assert node.get("/")[0] == 200


def says_yes(node: AnvilNode) -> None:
    wait_until("the node is ready again", lambda: status(node) == 200, TOLD_S)
    assert node.readiness()["reasons"] == []


def postgres(node: AnvilNode) -> list[psutil.Process]:
    found = children(node, "postgres")
    assert found
    return found


@contextmanager
def stopped(processes: list[psutil.Process]) -> Iterator[None]:
    for process in processes:
        process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGCONT)


@contextmanager
def transaction(where: str, sql: str, *args: object) -> Iterator[None]:
    """Hold what that statement locks; nothing of it stays."""
    began, over = threading.Event(), threading.Event()

    async def hold() -> None:
        connection = await asyncpg.connect(where)
        try:
            move = connection.transaction()
            await move.start()
            await connection.execute(sql, *args)
            began.set()
            await asyncio.to_thread(over.wait)
            await move.rollback()
        finally:
            await connection.close()

    thread = threading.Thread(target=lambda: asyncio.run(hold()))
    thread.start()
    assert began.wait(60)
    try:
        yield
    finally:
        over.set()
        thread.join()


def execute(where: str, sql: str) -> None:
    async def main() -> None:
        connection = await asyncpg.connect(where)
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    asyncio.run(main())


def test_a_database_that_does_not_answer(node: AnvilNode) -> None:
    with stopped(postgres(node)):
        says_no(node, "global_database", "regional_database")
    says_yes(node)


def test_a_blip_of_the_database_is_not_told(node: AnvilNode) -> None:
    seen: set[int] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.add(status(node))
            time.sleep(0.02)  # the rate at which it is looked at

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        for _ in range(3):
            with stopped(postgres(node)):
                time.sleep(0.8)  # the length of the blip, below the interval of the checks
            time.sleep(4.5)  # two rounds of checks between blips: what was forgiven is forgotten after a success
    finally:
        over.set()
        thread.join()
    assert seen == {200}


@pytest.mark.parametrize("database", ["global", "regional"])
def test_a_schema_that_is_behind(node: AnvilNode, database: str) -> None:
    """What a restore of an old dump under a running node looks like."""
    where = url(node, database)
    last = "(SELECT max(number) FROM schema_migrations WHERE number > 0)"
    execute(where, f"UPDATE schema_migrations SET number = -number WHERE number = {last}")
    try:
        says_no(node, f"{database}_database: migration ")
    finally:
        execute(where, "UPDATE schema_migrations SET number = -number WHERE number < 0")
    says_yes(node)


def test_a_lease_that_cannot_be_renewed(node: AnvilNode) -> None:
    with transaction(url(node, "regional"), "SELECT FROM nodes FOR UPDATE"):
        says_no(node, "node_lease")
    says_yes(node)


def test_a_worker_that_stands_still(node: AnvilNode) -> None:
    """The other one tells it for the node. Who meets the one that stands still gets no answer."""

    def told() -> str:
        connection = http.client.HTTPConnection(node.host, node.port, timeout=0.5)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().read().decode()
        except OSError:
            return ""
        finally:
            connection.close()

    with stopped(children(node, "anvil: worker")[:1]):
        wait_until("somebody says that a loop stands still", lambda: "loop: a worker" in told(), 2 * TOLD_S)
    says_yes(node)


def test_a_background_process_that_stands_still(node: AnvilNode) -> None:
    """Nobody checks any more: what was found last is too old."""
    with stopped(children(node, "anvil: background")):
        says_no(node, "the last check is ")
    says_yes(node)
