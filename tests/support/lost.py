"""The loss of a regional database, for tests: it is dropped, and the node starts on an empty one."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import asyncpg

from anvil.meta.embedded import DATABASE_REGIONAL, EmbeddedPostgres
from tests.support.node import AnvilNode, wait_until


async def _drop(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"DROP DATABASE {DATABASE_REGIONAL} WITH (FORCE)")
    finally:
        await connection.close()


def lose_database(data_dir: Path) -> None:
    """Of a node that is stopped. It makes a new one when it starts."""
    postgres = EmbeddedPostgres(data_dir / "postgres")
    postgres.start()
    try:
        asyncio.run(_drop(postgres.url("postgres")))
    finally:
        postgres.stop()


def lose_shared_database(postgres: EmbeddedPostgres) -> None:
    """Of a cluster whose nodes are all stopped."""

    async def anew() -> None:
        await _drop(postgres.url("postgres"))
        connection = await asyncpg.connect(postgres.url("postgres"))
        try:
            await connection.execute(f"CREATE DATABASE {DATABASE_REGIONAL} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
        finally:
            await connection.close()

    asyncio.run(anew())


def start_closed(*nodes: AnvilNode) -> None:
    """Start them on the empty database: they serve, but no object, and say so."""
    for node in nodes:
        node.launch()
    for node in nodes:
        wait_until(f"the node in {node.data_dir} says that it is in recovery", lambda: _closed(node), 60)  # noqa: B023 - waited for here


def _closed(node: AnvilNode) -> bool:
    try:
        status, _, body = node.get("/ready")
    except OSError:
        return False
    return status == 503 and b"recovery" in body


def command(node: AnvilNode, *words: str, code: int = 0) -> Any:
    """What `anvil admin ... --json` says."""
    done = node.anvil("admin", *words, "--json", timeout_s=300)
    assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}\n{node.log_tail()[-3000:]}"
    return json.loads(done.stdout)
