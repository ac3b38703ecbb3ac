"""The fixture `postgres`: one embedded PostgreSQL per test session, and a fresh migrated database for whoever asks.

Databases are copied from migrated templates, which takes some 30 ms. Flushing is off: tests kill processes, never the machine.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from itertools import count

import asyncpg
import pytest

from anvil.meta.embedded import EmbeddedPostgres
from anvil.meta.migrate import Database, migrate


class Postgres:
    """A running server for tests. `cluster` is the EmbeddedPostgres itself."""

    def __init__(self, cluster: EmbeddedPostgres) -> None:
        self.cluster = cluster
        self._numbers = count(1)
        self._templates: dict[Database, str] = {}

    async def execute(self, sql: str, database: str = "postgres") -> None:
        connection = await asyncpg.connect(self.cluster.url(database))
        try:
            await connection.execute(sql)
        finally:
            await connection.close()

    def fresh(self, schema: Database) -> str:
        """The URL of a new database with that schema. Call it outside of a running loop, or use `fresh_async`."""
        return asyncio.run(self.fresh_async(schema))

    async def fresh_async(self, schema: Database) -> str:
        template = self._templates.get(schema)
        if template is None:
            template = f"template_{schema}"
            await self.execute(f"CREATE DATABASE {template} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
            await migrate(self.cluster.url(template), schema)
            self._templates[schema] = template
        name = f"{schema}_{next(self._numbers)}"
        await self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.cluster.url(name)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    folder = tmp_path_factory.mktemp("pg")
    cluster = EmbeddedPostgres(folder, fsync=False)
    cluster.start()
    try:
        yield Postgres(cluster)
    finally:
        if cluster.pid is not None:
            os.kill(cluster.pid, signal.SIGQUIT)  # at once: nobody wants a checkpoint of all these databases
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
