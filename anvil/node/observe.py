"""From what the parts report to the node's metrics.

Owns: which event counts in which metric, and which requests get a line in the log. Invariant: never raises and does nothing slow,
since it runs inside requests. Not here: the metrics.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import Final

from anvil.api.finished import Finished
from anvil.base import instruments
from anvil.base.config import LogConfig
from anvil.base.underway import CLIENT_STAGES, STAGES
from anvil.model.records import BlobId
from anvil.net.fixed import SLOW_DOWN
from anvil.net.port import NetStats

log = logging.getLogger(__name__)
# Error codes of requests whose operation was never begun, since it was not known who asks.
REJECTED: Final = {
    "SignatureDoesNotMatch": "signature",
    "RequestTimeTooSkewed": "clock_skew",
    "InvalidAccessKeyId": "access_key",
    "AuthorizationHeaderMalformed": "authorization",
    "AuthorizationQueryParametersError": "authorization",
    "InvalidToken": "token",
    "ExpiredToken": "token",
}


class EngineEvents:
    """What the engine tells (`engine/context.py: Events`)."""

    def damage(self, kind: str, drive: str, blob_id: BlobId, index: int) -> None:
        instruments.SHARD_DAMAGE.labels(drive, kind).inc()
        log.warning("a damaged shard was found", extra={"kind": kind, "drive": drive, "blob": blob_id.hex(), "index": index})

    def write_short(self, blob_id: BlobId, missing: int) -> None:
        log.info("a blob was acknowledged with shards to be repaired", extra={"blob": blob_id.hex(), "missing": f"{missing:b}"})


class Requests:
    """Given each request that was answered: counts it, and logs those worth a line."""

    def __init__(self, config: LogConfig) -> None:
        self._access = config.access
        self._slow_s = config.slow_s or float("inf")

    def __call__(self, done: Finished) -> None:
        request_counted(done)
        if done.seconds >= self._slow_s and _own_s(done) >= self._slow_s:
            log.warning("slow: %s answered %d", done.operation, done.status, extra=_facts(done))
        elif done.server_fault:
            log.warning("%s answered %d", done.operation, done.status, extra=_facts(done))
        elif self._access:
            log.info("%s answered %d", done.operation, done.status, extra=_facts(done))


def _own_s(done: Finished) -> float:
    """How long it took without its client."""
    return done.seconds - sum(done.waits.get(stage, 0.0) for stage in CLIENT_STAGES)


def _facts(done: Finished) -> dict[str, object]:
    """For the log. The path is a client's text: the formatter bounds and escapes it."""
    waits = {f"{stage}_ms": round(done.waits[stage] * 1000, 1) for stage in STAGES if stage in done.waits}
    return {
        "api": done.api,
        "method": done.method,
        "path": done.path,
        "error": done.error_code,
        "request_id": done.request_id,
        "access_key": done.access_key,
        "peer": done.peer,
        "seconds": round(done.seconds, 4),
        "ttfb_s": None if done.ttfb_s is None else round(done.ttfb_s, 4),
        "received_bytes": done.received_bytes,
        "sent_bytes": done.sent_bytes,
        **waits,
    }


def request_counted(done: Finished) -> None:
    """One request, answered."""
    api, operation = done.api, done.operation
    instruments.API_REQUESTS.labels(api, operation, str(done.status)).inc()
    instruments.API_DURATION.labels(api, operation).observe(done.seconds)
    if done.ttfb_s is not None:
        instruments.API_TTFB.labels(api, operation).observe(done.ttfb_s)
    if done.error_code:
        instruments.API_ERRORS.labels(api, operation, done.error_code).inc()
        reason = REJECTED.get(done.error_code)
        if reason is not None:
            instruments.API_REJECTED.labels(reason).inc()
    instruments.API_RECEIVED.labels(api).inc(done.received_bytes)
    instruments.API_SENT.labels(api).inc(done.sent_bytes)


def rejected_before(stats: NetStats) -> dict[str, int]:
    """By reason, what a port refused before any handler saw it: `total`, `address` and `flood` are connections beyond a bound, `handshake`
    failed TLS, `busy` requests beyond what is served at a time, `protocol` bytes that break HTTP/2 or TLS, `header` all other heads."""
    found = Counter(stats.rejected)
    for code, count in stats.refusals.items():
        found["busy" if code == SLOW_DOWN.code else "protocol" if code in ("Http2", "Tls") else "header"] += count
    return found


def connections(database: str, states: Mapping[str, int]) -> None:
    """This process's connections to a database."""
    for state, count in states.items():
        instruments.DB_POOL_CONNECTIONS.labels(database, state).set(count)


def internode(rpc: str, seconds: float, reason: str) -> None:
    """One call to another node, ended."""
    instruments.INTERNODE_DURATION.labels(rpc).observe(seconds)
    if reason:
        instruments.INTERNODE_ERRORS.labels(rpc, reason).inc()


def task_ended(kind: str, result: str, seconds: float) -> None:
    """One task, ended: ok, retry, dead; of what repeats by itself `failed` where it is not known what is wrong."""
    instruments.TASK_RUNS.labels(kind, result).inc()
    instruments.TASK_DURATION.labels(kind).observe(seconds)


def batch(statement: str, rows: int) -> None:
    """One coalesced statement was sent."""
    instruments.DB_BATCH_SIZE.labels(statement).observe(rows)
