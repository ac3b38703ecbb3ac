"""No hot statement may ever read a whole table, whatever the planner believes about its size when it plans for good."""

from __future__ import annotations

import itertools
import re
import subprocess

import pytest

from anvil.meta import collect, link, objects, tasks, uploads
from anvil.meta.coalesce import Operation, Query
from anvil.meta.migrate import Database
from tests.postgres_fixture import Postgres

OPERATIONS = [
    *(objects.GET, objects.PUT, objects.PUT_IF, objects.REPLACE, objects.DELETE),
    *(uploads.CREATE, uploads.ABORT, uploads.GET, uploads.PUT_PART, uploads.LIST_PARTS),
]


def queries(operation: Operation) -> list[Query]:  # type: ignore[type-arg]
    return [query for query in (operation.query, operation.settle, operation.refused) if query is not None]


STATEMENTS = {f"{op.name} {n}": query.sql for op in OPERATIONS for n, query in enumerate(queries(op))} | {
    "owe": collect.OWE_SQL,
    "ownership": collect.OWNERSHIP_SQL,
    "garbage": collect.GARBAGE_SQL,
    "debts": collect.DEBTS_SQL,
    "garbage by slice": collect.GARBAGE_SLICES_SQL,
    "debts by slice": collect.DEBTS_SLICES_SQL,
}
PLANNER = "".join(f"SET {k} = '{v}';" for k, v in link._SETTINGS.items() if k.startswith("enable_"))
ONE_ROW = """
    INSERT INTO buckets VALUES (1);
    INSERT INTO writer_sessions VALUES (uuid_send(gen_random_uuid()), uuid_send(gen_random_uuid()), 0, 0, 0, now());
    INSERT INTO objects (bucket_id, key, version_id, size, etag) VALUES (1, 'k', uuid_send(gen_random_uuid()), 0, 'e');
    INSERT INTO uploads (bucket_id, upload_id, key, initiated_us, owner) VALUES (1, uuid_send(gen_random_uuid()), 'k', 1, 'x');
    INSERT INTO parts (bucket_id, upload_id, number, size, etag) SELECT 1, upload_id, 1, 0, 'e' FROM uploads;
    INSERT INTO outbox (bucket_id, key, version_id, part_number, blob_id, scheme) SELECT 1, '', upload_id, 1, upload_id, 0 FROM uploads;
    INSERT INTO salvage
        VALUES (uuid_send(gen_random_uuid()), 1, 'k', uuid_send(gen_random_uuid()), 0, 1, 1, 1, 0, 'e', 1, '{}', NULL, 0, true);
    VACUUM ANALYZE;"""


@pytest.fixture(scope="module", params=["empty", "one row"])
def url(request: pytest.FixtureRequest, postgres: Postgres) -> str:
    made = postgres.fresh(Database.REGIONAL)
    if request.param == "one row":
        psql(postgres, made, ONE_ROW)
    return made


def psql(postgres: Postgres, url: str, sql: str) -> str:
    command = [str(postgres.cluster.bin_dir / "psql"), "-XqAt", "-v", "ON_ERROR_STOP=1", url]
    done = subprocess.run(command, input=sql, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_every_row_is_reached_by_its_key(postgres: Postgres, url: str, name: str) -> None:
    check(psql(postgres, url, f"{PLANNER} EXPLAIN (GENERIC_PLAN, COSTS OFF) {STATEMENTS[name]};"))


def test_an_owner_is_reached_by_its_key(postgres: Postgres, url: str) -> None:
    """EXPLAIN does not look into functions, so the body is explained by itself."""
    body = psql(postgres, url, "SELECT prosrc FROM pg_proc WHERE proname = 'blob_owned'")
    assert {"$1", "$2", "$3", "$4", "$5"} == set(re.findall(r"\$\d", body))
    plan = psql(postgres, url, f"{PLANNER} EXPLAIN (GENERIC_PLAN, COSTS OFF) {body};")
    assert {"objects", "versions", "parts"} == set(re.findall(r"Scan using \w+ on (\w+)", plan)), plan
    check(plan)


def test_the_outbox_is_searched_by_blob(postgres: Postgres, url: str) -> None:
    plan = psql(postgres, url, f"{PLANNER} EXPLAIN (GENERIC_PLAN, COSTS OFF) {collect.OWNERSHIP_SQL};")
    assert "Scan using outbox_blob on outbox" in plan


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (collect.GARBAGE_SQL, "outbox_pkey"),
        (collect.DEBTS_SQL, "degraded_due"),
        (collect.GARBAGE_SLICES_SQL, "outbox_slice"),
        (collect.DEBTS_SLICES_SQL, "degraded_slice"),
    ],
)
def test_work_is_found_in_its_order(postgres: Postgres, url: str, sql: str, index: str) -> None:
    """Oldest first, without sorting more than a page of each slice."""
    plan = psql(postgres, url, f"{PLANNER} EXPLAIN (GENERIC_PLAN, COSTS OFF) {sql};")
    assert f"Scan using {index} on" in plan, plan
    if index.endswith("_slice"):
        assert re.search(rf"{index} .*\n *Index Cond: .*get_byte", plan), plan


QUEUE = {
    "claim": (tasks._CLAIM_SQL, "tasks_due"),
    "reap": (tasks._REAP_SQL, "tasks_leased"),
    "enqueue": (tasks._ENQUEUE_SQL, "tasks_due"),
    "complete": (tasks._COMPLETE_SQL, "tasks_pkey"),
    "fail": (tasks._FAIL_SQL, "tasks_pkey"),
    "heartbeat": (tasks._HEARTBEAT_SQL, "tasks_leased"),  # what runs is little
}


@pytest.mark.parametrize("name", sorted(QUEUE))
def test_the_queue_reads_no_finished_task(postgres: Postgres, name: str) -> None:
    sql, index = QUEUE[name]
    plan = psql(postgres, postgres.fresh(Database.GLOBAL), f"{PLANNER} EXPLAIN (GENERIC_PLAN, COSTS OFF) {sql};")
    assert f"Scan using {index} on tasks" in plan, plan
    assert not re.search(r"Seq Scan on tasks|Hash Join|Merge Join", plan), plan


def check(plan: str) -> None:
    lines = [*plan.splitlines(), ""]
    for line, below in itertools.pairwise(lines):
        if re.search(r"Scan .*on (objects|versions|uploads|parts|writer_sessions|buckets)\b", line):
            assert "Index Cond:" in below, plan
    assert "Hash Join" not in plan
    assert "Merge Join" not in plan
