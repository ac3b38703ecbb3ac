"""Writer sessions: the rows that fence a worker's commits. Leases run on the database's clock.

Invariant: a session that was deleted never comes back, and no commit of it can happen after its row is gone. A session whose
lease ran out but whose row is still there is alive: only deleting the row (`EXPIRE_SQL`, by the background process) ends it.
"""

from __future__ import annotations

from typing import Final

from anvil.base.limits import SESSION_LEASE_S

_LEASE: Final = f"clock_timestamp() + interval '{SESSION_LEASE_S} seconds'"

OPEN_SQL: Final = f"""
    INSERT INTO writer_sessions (session_id, node_id, worker, lease_until) VALUES ($1, $2, $3, {_LEASE})
    ON CONFLICT (session_id) DO NOTHING"""
RENEW_SQL: Final = f"UPDATE writer_sessions SET lease_until = {_LEASE} WHERE session_id = $1 RETURNING true AS renewed"
CLOSE_SQL: Final = "DELETE FROM writer_sessions WHERE session_id = $1"
LIVE_SQL: Final = "SELECT session_id FROM writer_sessions"
# Waits for commits in flight (they hold the row FOR KEY SHARE).
EXPIRE_SQL: Final = "DELETE FROM writer_sessions WHERE lease_until < clock_timestamp() RETURNING session_id"
# A worker (or, with NULL, every worker of the node) that is known to have ended: nobody has to wait for its lease.
FENCE_SQL: Final = """
    DELETE FROM writer_sessions WHERE node_id = $1 AND ($2::int IS NULL OR worker = $2::int) RETURNING session_id"""
