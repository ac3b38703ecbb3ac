"""What the databases know of debts, tasks, usage and backups, read in the background for the metrics.

Owns: the metrics that every node of a region tells alike (dashboards take the `max()` over nodes). Invariants: read every GAUGES_EVERY_S
by the background process, never for a scrape; a scrape meets either the old numbers or the new ones, none that were half replaced; what
is gone from the databases is gone from the metrics. Not here: the statements (`meta`), who calls (`node/upkeep.py`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import msgspec

from anvil.base import instruments
from anvil.meta.admin import BucketUsage, tenant_totals
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.recovery import RegionNotes
from anvil.meta.regional import RegionalStore
from anvil.model.task import TaskCount

log = logging.getLogger("anvil.upkeep")
LAST_BACKUP = "last_backup"  # a name in the region's settings


class LastBackup(msgspec.Struct, frozen=True):
    """What a backup that is complete leaves in the region's settings. `finished_us`: Unix time."""

    finished_us: int


class Gauges:
    """Fills them."""

    def __init__(self, catalog: GlobalCatalog, metadata: RegionalStore) -> None:
        self._catalog = catalog
        self._metadata = metadata

    async def refresh(self) -> bool:
        """Read everything once; False, for `Periodic`: there is never more to be done at once. Raises DatabaseUnavailable."""
        missing, corrupt = await self._metadata.unhealthy()
        instruments.SHARDS_UNHEALTHY.labels("missing").set(missing)
        instruments.SHARDS_UNHEALTHY.labels("corrupt").set(corrupt)
        publish_tasks(await self._catalog.tasks.counts())
        publish_usage(await self._catalog.admin.usage())
        publish_backup(await self._metadata.noted(LAST_BACKUP))
        instruments.BACKUP_HOLD_AGE.set(await RegionNotes(self._metadata.query).held_s())
        return False


def publish_tasks(rows: Sequence[TaskCount]) -> None:
    """The queue, anew."""
    instruments.TASKS.clear()
    instruments.TASK_OLDEST.clear()
    for row in rows:
        instruments.TASKS.labels(row.type, str(row.status)).set(row.count)
        if row.oldest_s is not None:
            instruments.TASK_OLDEST.labels(row.type).set(row.oldest_s)


def publish_usage(rows: Sequence[BucketUsage]) -> None:
    """Usage, anew. Where there are more buckets than series, the largest ones have one each."""
    for metric in (
        instruments.BUCKET_USAGE,
        instruments.BUCKET_OBJECTS,
        instruments.TENANT_USAGE,
        instruments.TENANT_OBJECTS,
    ):
        metric.clear()
    for row in sorted(rows, key=lambda row: (-row.usage.bytes, row.tenant, row.bucket)):
        # Added, not set: the buckets beyond the bound share one series.
        instruments.BUCKET_USAGE.labels(row.tenant, row.bucket).inc(row.usage.bytes)
        instruments.BUCKET_OBJECTS.labels(row.tenant, row.bucket).inc(row.usage.objects)
    for tenant, (objects, stored) in tenant_totals(rows).items():
        instruments.TENANT_USAGE.labels(tenant).inc(stored)
        instruments.TENANT_OBJECTS.labels(tenant).inc(objects)
    instruments.USAGE_UPDATED.set(time.time())


def publish_backup(noted: str | None) -> None:
    """`noted`: a LastBackup in JSON, None where no backup was ever complete: then the metric is absent."""
    instruments.BACKUP_LAST_SUCCESS.clear()
    if noted is None:
        return
    try:
        last = msgspec.json.decode(noted, type=LastBackup)
    except msgspec.MsgspecError as error:
        log.error("when the last backup was complete cannot be read: %s", error)
        return
    instruments.BACKUP_LAST_SUCCESS.set(last.finished_us / 1e6)
