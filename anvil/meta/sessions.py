"""Writer sessions: the rows that fence a worker's commits. Leases run on the database's clock.

Invariant: a session that was deleted never comes back, and no commit of it can happen after its row is gone. A session whose
lease ran out but whose row is still there is alive: only deleting the row (`EXPIRE_SQL`, by the background process) ends it. A node that
was removed has none: what it would store on its drives nobody else would find.

Layouts. `layout_version` of a row says: no commit under this session, from that report on, is of a blob that was placed by an older
layout. Why movers may start on layout v once no row says less than v (`ClusterTables.sessions_behind`), v being current before they asked:
- A session that is there reported v or more. It reports the version of its oldest write in flight or, without one, of the layout that its
  process goes by; which only advances, so every later write uses v or more. Earlier commits are in the database, and movers will see them.
- A session that was not there had ended: its row is gone, so nothing commits under it any more, whatever its worker still holds.
- A session that comes later is opened by a process that goes by v or more, or it is not opened: `open_session` refuses a process with an
  older layout, and holds the row of the current one meanwhile, so none is opened unseen while a layout changes. A process that has read no
  layout yet says 0; it will read one that is current then, and the current one's version is recorded for it.
So a writer with a stale layout either reports it, which holds the movers up, or is fenced. A write is in flight until it is known to have
happened or never to happen: of a commit with an unknown outcome that is when the server gives up on it, after STATEMENT_TIMEOUT_S at most.

Epochs. A restore raises the cluster's epoch (`recovery.py`). A process goes by nodes, drives and layouts that it read after its epoch; one
of before the restore neither opens a session nor keeps one, whatever versions the new layouts have, until it is started again.
"""

from __future__ import annotations

from typing import Final

from anvil.base.limits import SESSION_LEASE_S

_LEASE: Final = f"clock_timestamp() + interval '{SESSION_LEASE_S} seconds'"

_EPOCH: Final = "coalesce((SELECT value::text::bigint FROM settings WHERE name = 'cluster_epoch'), 0)"

# One opened while its node is being removed ends with those whose lease ran out.
OPEN_SQL: Final = f"""
    SELECT CASE WHEN {_EPOCH} <> $5::bigint OR (SELECT state FROM nodes WHERE node_id = $2) = 'removed' THEN false
        ELSE open_session($1, $2, $3, $4, interval '{SESSION_LEASE_S} seconds') END"""
RENEW_SQL: Final = f"""
    UPDATE writer_sessions SET lease_until = {_LEASE}, layout_version = greatest(layout_version, $2)
    WHERE session_id = $1 AND {_EPOCH} = $3::bigint RETURNING true AS renewed"""
EPOCH_SQL: Final = f"SELECT {_EPOCH}"
CLOSE_SQL: Final = "DELETE FROM writer_sessions WHERE session_id = $1"
LIVE_SQL: Final = "SELECT session_id FROM writer_sessions"
# Waits for commits in flight (they hold the row FOR KEY SHARE).
EXPIRE_SQL: Final = """
    DELETE FROM writer_sessions WHERE lease_until < clock_timestamp()
        OR node_id = ANY (ARRAY(SELECT node_id FROM nodes WHERE state = 'removed')) RETURNING session_id"""
# A worker (or, with NULL, every worker of the node) that is known to have ended: nobody has to wait for its lease.
FENCE_SQL: Final = """
    DELETE FROM writer_sessions WHERE node_id = $1 AND ($2::int IS NULL OR worker = $2::int) RETURNING session_id"""
