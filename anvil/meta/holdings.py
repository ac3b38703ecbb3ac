"""What is stored, by partition of the blob ids: so that somebody can say what would be lost with a node, before it is given up.

Owns: one connection for a decision of an operator, and the lock under which such decisions are taken one at a time. Invariant: two commands
never judge by the same state of the nodes and both act. Not here: the judgement (`node/losses.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import asyncpg

from anvil.base.errors import Conflict, DatabaseUnavailable
from anvil.base.limits import CONNECT_TIMEOUT_S, HOLDINGS_READ_S, STATEMENT_TIMEOUT_S
from anvil.meta.link import CONNECTION_ERRORS
from anvil.model.cluster import Holding
from anvil.model.scheme import Scheme

_OPERATOR_LOCK: Final = 0x616E76696C03  # "anvil", 3
_PARTITION: Final = "(get_byte(blob_id, 0) << 4) | (get_byte(blob_id, 1) >> 4)"  # model/layout.py: partition
_STORED_SQL: Final = f"""
    SELECT scheme, {_PARTITION} AS partition, 0 AS missing, count(*) AS blobs FROM (
        SELECT blob_id, scheme FROM objects WHERE blob_id IS NOT NULL AND inline IS NULL
        UNION ALL SELECT blob_id, scheme FROM versions WHERE blob_id IS NOT NULL AND inline IS NULL
        UNION ALL SELECT blob_id, scheme FROM parts WHERE blob_id IS NOT NULL AND inline IS NULL
    ) AS stored GROUP BY 1, 2"""
_OWED_SQL: Final = f"SELECT scheme, {_PARTITION} AS partition, missing, count(*) AS blobs FROM degraded GROUP BY 1, 2, 3"


class Holdings:
    """Use as an async context manager: inside of it, this is the only decision. Raises DatabaseUnavailable, Conflict when another one
    takes long."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def __aenter__(self) -> Holdings:
        try:
            self._connection: asyncpg.Connection = await asyncpg.connect(
                self._url, timeout=CONNECT_TIMEOUT_S, command_timeout=HOLDINGS_READ_S
            )
            await self._connection.execute("SELECT pg_advisory_lock($1)", _OPERATOR_LOCK, timeout=STATEMENT_TIMEOUT_S)
        except TimeoutError as error:
            raise Conflict("another command is deciding about the nodes of this region: wait for its end") from error
        except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            raise DatabaseUnavailable(f"the regional database does not answer: {error}") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._connection.close(timeout=CONNECT_TIMEOUT_S)

    async def stored(self) -> Sequence[Holding]:
        """All blobs that have shards, and those that lack some once more. Reads every row: minutes where there are a billion."""
        try:
            rows = [*await self._connection.fetch(_STORED_SQL), *await self._connection.fetch(_OWED_SQL)]
        except TimeoutError as error:
            raise Conflict(f"what is stored could not be counted in {HOLDINGS_READ_S:.0f} s: drain the node instead") from error
        except (*CONNECTION_ERRORS, asyncpg.PostgresError) as error:
            raise DatabaseUnavailable(f"the regional database does not answer: {error}") from error
        return [Holding(Scheme.unpack(row["scheme"]), row["partition"], row["missing"], row["blobs"]) for row in rows]
