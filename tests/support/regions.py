"""Two regions of two nodes each: one PostgreSQL with a global database and a regional one for each.

    with TwoRegions(tmp_path) as two:
        two.s3("us-1").create_bucket(Bucket="b")

Owns: the PostgreSQL and the nodes. Invariant: whatever happens, nothing of it outlives the `with`. Not here: faults of nodes
(`cluster.py`).
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
from botocore.config import Config

from anvil.meta.embedded import DATABASE_GLOBAL, EmbeddedPostgres
from tests.support.node import RUNNING, AnvilNode, wait_until
from tests.support.ports import free_port

REGIONS = ("us-1", "eu-1")
START_S = 90.0
ONCE = Config(retries={"total_max_attempts": 1, "mode": "standard"}, connect_timeout=5, read_timeout=30)


class TwoRegions:
    """`nodes`: of each region, the first one first. A region tells the first one's address as its endpoint, and `s3.REGION.test` is a name
    of it, for buckets as host names."""

    def __init__(self, folder: Path) -> None:
        self.postgres = EmbeddedPostgres(folder / "postgres")
        self._common = common = {
            "ANVIL_WORKERS": "1",
            "ANVIL_GC_GRACE_S": "0",
            "ANVIL_SECRET_ENCRYPTION_KEY": secrets.token_hex(32),
            "ANVIL_JWT_SECRET": secrets.token_hex(32),
        }
        self.nodes: dict[str, tuple[AnvilNode, AnvilNode]] = {}
        for region in REGIONS:
            shared = common | {"ANVIL_REGION": region, "ANVIL_CLUSTER_SECRET": secrets.token_hex(32)}
            first, second = AnvilNode(folder / f"{region}-0", env=shared), AnvilNode(folder / f"{region}-1", env=shared)
            for node in (first, second):
                node.configure(
                    ANVIL_CLUSTER_LISTEN_ADDR=f"127.0.0.1:{free_port()}",
                    ANVIL_PUBLIC_API_ADDR=f"{first.endpoint},s3.{region}.test",
                )
            first.configure(ANVIL_INIT_CLUSTER="true")
            self.nodes[region] = (first, second)

    def add_stray(self, folder: Path, region: str, database: str) -> AnvilNode:
        """A node of that region on that regional database, not started. It is the caller's."""
        urls = {"GLOBAL": self.postgres.url(DATABASE_GLOBAL), "REGIONAL": self.postgres.url(database)}
        env = {f"ANVIL_{kind}_DATABASE_URL": url for kind, url in urls.items()}
        return AnvilNode(folder, env=self._common | env | {"ANVIL_REGION": region})

    @staticmethod
    def database(region: str) -> str:
        return f"anvil_{region.replace('-', '_')}"

    @property
    def all(self) -> list[AnvilNode]:
        return [node for nodes in self.nodes.values() for node in nodes]

    def __enter__(self) -> Self:
        try:
            self.postgres.start()
            for region in REGIONS:
                self.sql(f"CREATE DATABASE {self.database(region)} ENCODING 'UTF8' TEMPLATE template0 LOCALE 'C'")
                for node in self.nodes[region]:
                    node.configure(
                        ANVIL_GLOBAL_DATABASE_URL=self.postgres.url(DATABASE_GLOBAL),
                        ANVIL_REGIONAL_DATABASE_URL=self.postgres.url(self.database(region)),
                    )
            for node in self.all:
                RUNNING.append(node)
                node.launch()
            for node in self.all:
                node.wait_ready(START_S)
            for region in REGIONS:
                self.wait_settled(region)
        except BaseException:
            self._close(failed=True)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close(failed=kind is not None)

    def _close(self, *, failed: bool) -> None:
        for node in self.all:
            if failed and node.launched:
                sys.stderr.write(f"\n--- log of the node in {node.data_dir}\n{node.log_tail()[-4000:]}\n")
            node.reap()
            if node in RUNNING:
                RUNNING.remove(node)
        self.postgres.stop()

    def wait_settled(self, region: str) -> None:
        """Until both nodes are active in one layout."""
        states = "SELECT state FROM nodes"
        layouts = "SELECT state FROM layouts WHERE state <> 'retired'"

        def settled() -> bool:
            found = [row[0] for row in self.sql(states, database=self.database(region))]
            return found == ["active"] * 2 and [row[0] for row in self.sql(layouts, database=self.database(region))] == [
                "current"
            ]

        wait_until(f"the nodes of {region} are active in one layout", settled, START_S)

    def s3(self, region: str, number: int = 0, config: Config | None = None, **keys: str) -> Any:
        """A client of that node, configured for its region, that tries once. All nodes know the same key pair."""
        return self.nodes[region][number].s3(ONCE if config is None else ONCE.merge(config), **keys)

    def sql(self, statement: str, *arguments: object, database: str = "postgres") -> list[tuple[Any, ...]]:
        async def ask() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.postgres.url(database), timeout=10)
            try:
                return [tuple(row) for row in await connection.fetch(statement, *arguments)]
            finally:
                await connection.close()

        return asyncio.run(ask())

    def global_sql(self, statement: str, *arguments: object) -> list[tuple[Any, ...]]:
        return self.sql(statement, *arguments, database=DATABASE_GLOBAL)
