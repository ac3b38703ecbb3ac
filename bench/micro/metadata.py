"""Metadata through its Python API: durable puts, gets and listing, on an embedded PostgreSQL with flushing on. Prints JSON.

Run: python -m bench.micro.metadata [--clients 64] [--rows 1000000] [--folder DIR]
The listing ratio compares a page with delimiter over `--rows` keys under 10 prefixes with the same page over 1,000 keys.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import uvloop

from anvil.meta.embedded import EmbeddedPostgres
from anvil.meta.migrate import Database, migrate
from anvil.meta.regional import RegionalStore
from anvil.model.records import NO_CONDITION, Attributes, BlobRef, Content, ListQuery, PutCommit, SessionId
from anvil.model.scheme import Scheme
from bench.figures import figure

FILL_SQL = """
    INSERT INTO objects (bucket_id, key, version_id, size, etag, blob_id, scheme, stripe_bytes, key_mode)
    SELECT $1, 'prefix' || n % 10 || '/' || lpad(n::text, 9, '0'), uuid_send(gen_random_uuid()), 4096,
           md5(n::text), uuid_send(gen_random_uuid()), 65794, 1048576, 1
    FROM generate_series(1, $2) AS n"""

BIG_KEY = "prefix{}/{:09d}"  # of FILL_SQL
INDEX_SQL = "SELECT pg_indexes_size('objects') / reltuples FROM pg_class WHERE relname = 'objects'"


def commit(session: SessionId, bucket_id: int, key: str) -> PutCommit:
    blob = BlobRef(os.urandom(16), 4096, Scheme(1, 2))
    return PutCommit(session, bucket_id, key, os.urandom(16), 4096, "e" * 32, Attributes(), content=Content(blob))


async def rate(clients: int, each: int, call: Callable[[int, int], Awaitable[object]]) -> float:
    """Calls per second of `clients` loops of `each` calls."""

    async def client(number: int) -> None:
        for count in range(each):
            await call(number, count)

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    return clients * each / (time.perf_counter() - began)


async def page_ms(store: RegionalStore, query: ListQuery, rounds: int = 200) -> float:
    """Median time of one page."""
    times = []
    for _ in range(20):  # warm: statement, plan, pages
        await store.list_objects(query)
    for _ in range(rounds):
        began = time.perf_counter()
        await store.list_objects(query)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


async def spread(
    store: RegionalStore, url: str, session: SessionId, bucket_id: int, clients: int, rows: int
) -> dict[str, object]:
    """Writes to keys all over the large bucket, each kind right after a checkpoint: rate, and bytes of log per write (the first touch of
    each page logs all of it, as it does all the time in a table much larger than what is written between two checkpoints)."""
    picks = random.Random(1).sample(range(1, rows + 1), clients * 150)

    def key(number: int, count: int) -> str:
        pick = picks[count * clients + number]
        return BIG_KEY.format(pick % 10, pick)

    calls: dict[str, Callable[[int, int], Awaitable[object]]] = {
        "puts": lambda n, i: store.put_object(commit(session, bucket_id, key(n, i) + "/new")),
        "overwrites": lambda n, i: store.put_object(commit(session, bucket_id, key(n, i))),
        "deletes": lambda n, i: store.delete_object(session, bucket_id, key(n, i), NO_CONDITION),
    }
    report: dict[str, object] = {}
    connection = await asyncpg.connect(url)
    report["index_bytes_per_object"] = round(await connection.fetchval(INDEX_SQL))
    for name, call in calls.items():
        await connection.execute("CHECKPOINT")
        before = await connection.fetchval("SELECT pg_current_wal_lsn()")
        report[f"{name}_per_s"] = round(await rate(clients, 150, call))
        logged = await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), $1)", before)
        report[f"{name}_log_bytes"] = round(float(logged) / len(picks))
    await connection.close()
    return report


async def measure(url: str, clients: int, rows: int) -> dict[str, object]:
    await migrate(url, Database.REGIONAL)
    store = RegionalStore(url)
    await store.start()
    session = await store.open_session(bytes(16), 0)
    buckets = {"load": 1, "small": 2, "big": 3}
    for bucket_id in buckets.values():
        await store.add_bucket(bucket_id)
    connection = await asyncpg.connect(url)
    await connection.execute(FILL_SQL, buckets["small"], 1000)
    await connection.execute(FILL_SQL, buckets["big"], rows)
    await connection.execute("VACUUM ANALYZE objects")
    await connection.close()

    each = 600
    load = buckets["load"]
    report: dict[str, object] = {"clients": clients, "rows": rows}
    report["puts_per_s"] = round(await rate(clients, each, lambda n, i: store.put_object(commit(session, load, f"{n}/{i}"))))
    report["overwrites_per_s"] = round(await rate(clients, 200, lambda n, i: store.put_object(commit(session, load, f"{n}/{i}"))))
    report["gets_per_s"] = round(await rate(clients, each, lambda n, i: store.get_object(load, f"{n}/{i}")))
    report["one_client_puts_per_s"] = round(await rate(1, 500, lambda n, i: store.put_object(commit(session, load, f"one/{i}"))))
    report["one_client_gets_per_s"] = round(await rate(1, 2000, lambda n, i: store.get_object(load, "0/0")))
    report["deletes_per_s"] = round(
        await rate(clients, 200, lambda n, i: store.delete_object(session, load, f"{n}/{i}", NO_CONDITION))
    )
    for name in ("small", "big"):
        report[f"delimited_page_ms_{name}"] = round(await page_ms(store, ListQuery(buckets[name], delimiter="/")), 3)
        report[f"full_page_ms_{name}"] = round(await page_ms(store, ListQuery(buckets[name], prefix="prefix3/", limit=100)), 3)
    small, big = report["delimited_page_ms_small"], report["delimited_page_ms_big"]
    assert isinstance(small, float) and isinstance(big, float)
    report["delimited_page_ratio"] = round(big / small, 2)
    report["batches"] = {name: sizes for name, sizes in store.batch_sizes().items() if sizes[0]}
    report["spread"] = await spread(store, url, session, buckets["big"], clients, rows)
    await store.close()
    return report


def show(report: dict[str, object], clients: int, rows: int) -> None:
    """One figure per number; rates have a gate of their own only on the S3 path (`bench/macro/s3.py`)."""
    for name, unit in (("puts", "rows/s"), ("overwrites", "rows/s"), ("gets", "rows/s"), ("deletes", "rows/s")):
        figure(f"metadata: {name}, coalesced, {clients} clients", float(str(report[f"{name}_per_s"])), unit)
    for name in ("puts", "gets"):
        figure(f"metadata: {name}, one client", float(str(report[f"one_client_{name}_per_s"])), "rows/s")
    figure(f"metadata: page with delimiter at {rows:,} keys beside 1,000", float(str(report["delimited_page_ratio"])), "ratio")
    spread_figures = report["spread"]
    assert isinstance(spread_figures, dict)
    for name, value in spread_figures.items():
        figure(f"metadata: {name.replace('_', ' ')}, keys at random among {rows:,}, right after a checkpoint", value, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the cluster is made and removed again (default: the temp folder)")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="anvil-bench-", dir=options.folder))
    cluster = EmbeddedPostgres(folder)
    _, url = cluster.start()
    try:
        show(uvloop.run(measure(url, options.clients, options.rows)), options.clients, options.rows)
    finally:
        cluster.stop()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
