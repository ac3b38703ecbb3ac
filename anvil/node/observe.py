"""From what the parts report to the node's metrics.

Owns: which event counts in which metric. Invariant: never raises and does nothing slow, since it runs inside requests. Not
here: the metrics.
"""

from __future__ import annotations

import logging

from anvil.api.s3.call import Finished
from anvil.base import instruments
from anvil.model.records import BlobId

log = logging.getLogger(__name__)
CLIENT_GONE = 499  # as `api/s3` reports a client that left before an answer: not an error of ours


class EngineEvents:
    """What the engine tells (`engine/context.py: Events`)."""

    def damage(self, kind: str, drive: str, blob_id: BlobId, index: int) -> None:
        instruments.SHARD_DAMAGE.labels(drive, kind).inc()
        log.warning("a damaged shard was found", extra={"kind": kind, "drive": drive, "blob": blob_id.hex(), "index": index})

    def write_short(self, blob_id: BlobId, missing: int) -> None:
        log.info("a blob was acknowledged with shards to be repaired", extra={"blob": blob_id.hex(), "missing": f"{missing:b}"})


def request_finished(done: Finished) -> None:
    """One S3 request, answered."""
    operation = done.operation
    instruments.API_REQUESTS.labels("s3", operation, str(done.status)).inc()
    instruments.API_DURATION.labels("s3", operation).observe(done.seconds)
    if done.ttfb_s is not None:
        instruments.API_TTFB.labels("s3", operation).observe(done.ttfb_s)
    if done.error_code:
        instruments.API_ERRORS.labels("s3", operation, done.error_code).inc()
    instruments.API_RECEIVED.labels("s3").inc(done.received_bytes)
    instruments.API_SENT.labels("s3").inc(done.sent_bytes)
    if done.status >= 500 or log.isEnabledFor(logging.DEBUG):
        level = logging.WARNING if done.status >= 500 else logging.DEBUG
        log.log(
            level,
            "%s answered %d",
            operation,
            done.status,
            extra={"error": done.error_code, "request_id": done.request_id, "peer": done.peer, "seconds": round(done.seconds, 4)},
        )
