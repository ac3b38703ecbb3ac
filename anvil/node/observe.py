"""From what the parts report to the node's metrics.

Owns: which event counts in which metric. Invariant: never raises and does nothing slow, since it runs inside requests. Not
here: the metrics.
"""

from __future__ import annotations

import logging

from anvil.api.finished import Finished
from anvil.base import instruments
from anvil.model.records import BlobId

log = logging.getLogger(__name__)


class EngineEvents:
    """What the engine tells (`engine/context.py: Events`)."""

    def damage(self, kind: str, drive: str, blob_id: BlobId, index: int) -> None:
        instruments.SHARD_DAMAGE.labels(drive, kind).inc()
        log.warning("a damaged shard was found", extra={"kind": kind, "drive": drive, "blob": blob_id.hex(), "index": index})

    def write_short(self, blob_id: BlobId, missing: int) -> None:
        log.info("a blob was acknowledged with shards to be repaired", extra={"blob": blob_id.hex(), "missing": f"{missing:b}"})


def request_finished(done: Finished) -> None:
    """One request, answered."""
    api, operation = done.api, done.operation
    instruments.API_REQUESTS.labels(api, operation, str(done.status)).inc()
    instruments.API_DURATION.labels(api, operation).observe(done.seconds)
    if done.ttfb_s is not None:
        instruments.API_TTFB.labels(api, operation).observe(done.ttfb_s)
    if done.error_code:
        instruments.API_ERRORS.labels(api, operation, done.error_code).inc()
    instruments.API_RECEIVED.labels(api).inc(done.received_bytes)
    instruments.API_SENT.labels(api).inc(done.sent_bytes)
    if done.server_fault or log.isEnabledFor(logging.DEBUG):
        level = logging.WARNING if done.server_fault else logging.DEBUG
        log.log(
            level,
            "%s answered %d",
            operation,
            done.status,
            extra={"error": done.error_code, "request_id": done.request_id, "peer": done.peer, "seconds": round(done.seconds, 4)},
        )


def internode(rpc: str, seconds: float, reason: str) -> None:
    """One call to another node, ended."""
    instruments.INTERNODE_DURATION.labels(rpc).observe(seconds)
    if reason:
        instruments.INTERNODE_ERRORS.labels(rpc, reason).inc()


def task_ended(kind: str, result: str, seconds: float) -> None:
    """One task, ended: ok, retry, dead."""
    instruments.TASK_RUNS.labels(kind, result).inc()
    instruments.TASK_DURATION.labels(kind).observe(seconds)
