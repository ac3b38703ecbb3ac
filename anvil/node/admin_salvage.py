"""`anvil admin salvage` over the databases and the running node: that part of the AdminOps of `cli/admin_ops.py`.

Invariants: what an operator changes stands in the audit; nothing is accepted that was not named, alone or by `--all`. Not here: what is
uncertain (`tasks/salvage.py`), the table (`meta/salvage.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TypeVar

from anvil.base.config import Config
from anvil.base.errors import Conflict, UnknownName
from anvil.base.limits import SALVAGE_LOOK_S
from anvil.cli.admin_ops import Accepted, CandidateRow, RecoveryInfo
from anvil.meta.coalesce import Rows
from anvil.meta.salvage import SalvageTable
from anvil.model.dump import Dumped, Rebuilt
from anvil.model.records import BlobId, BucketId
from anvil.node.admin_tasks import Audit
from anvil.node.channel import Channel
from anvil.node.commanded import Run

Report = TypeVar("Report")


async def rebuild(channel: Channel, older: bool, watch: Callable[[Rebuilt], None]) -> Run[Rebuilt]:
    """Have the node rebuild its region's metadata from the drives, and wait until it has. `watch`: told how far it is."""
    return await _run(channel, "rebuild", older, Run[Rebuilt], watch)


async def dump(channel: Channel) -> Run[Dumped]:
    """Have the node dump its region's metadata, and wait until it has."""
    return await _run(channel, "dump", False, Run[Dumped], lambda report: None)


async def _run(
    channel: Channel, name: str, wanted: bool, kind: type[Run[Report]], watch: Callable[[Report], None]
) -> Run[Report]:
    number = await channel.call(f"{name}.ask", wanted, int)
    while True:
        state = await channel.call(f"{name}.state", None, kind)
        if state.number >= number and state.over:
            return state
        watch(state.report)
        await asyncio.sleep(SALVAGE_LOOK_S)


class SalvageAdmin:
    """`query_global`, `query`: run a statement on either database."""

    def __init__(
        self, config: Config, query_global: Callable[..., Awaitable[Rows]], query: Callable[..., Awaitable[Rows]], audit: Audit
    ) -> None:
        self._region = config.node.region
        self._global = query_global
        self._table = SalvageTable(query)
        self._audit = audit

    async def salvage_show(self) -> RecoveryInfo:
        recovery, loaded = await self._table.recovery(), await self._table.loaded()
        return RecoveryInfo(
            recovery is not None,
            recovery is not None and recovery.closed,
            recovery.since_us if recovery else 0,
            recovery.why if recovery else "",
            loaded.dump if loaded else None,
            loaded.taken_us if loaded else 0,
            loaded.rows if loaded else 0,
            await self._table.waiting(),
        )

    async def salvage_list(self, bucket: str | None, limit: int) -> Sequence[CandidateRow]:
        names = await self._names()
        return [
            CandidateRow(
                names.get(one.bucket_id, str(one.bucket_id)),
                one.key,
                one.part_number,
                one.upload,
                one.blob_id.hex(),
                one.size,
                one.etag,
                one.modified_us,
                one.obstacle,
                one.present_us,
            )
            for one in await self._table.list(_bucket_id(names, bucket), limit)
        ]

    async def salvage_open(self) -> RecoveryInfo:
        if not await self._table.open("what the drives hold beside the dump waits to be accepted or rejected"):
            raise Conflict("the region is not closed: there is nothing to open")
        await self._audit("salvage:open", self._region, "ok")
        return await self.salvage_show()

    async def salvage_accept(self, bucket: str | None, key: str | None) -> Accepted:
        total = Accepted()
        bucket_id = _bucket_id(await self._names(), bucket)
        after: BlobId = b""
        while page := await self._table.named(bucket_id, key, after):
            after = page[-1]
            for obstacle in (await self._table.accept(page)).values():
                if not obstacle:
                    total.accepted += 1
                elif obstacle == "older":
                    total.older += 1
                else:
                    total.refused[obstacle] = total.refused.get(obstacle, 0) + 1
        await self._audit("salvage:accept", _named(bucket, key), f"{total.accepted} accepted")
        return total

    async def salvage_reject(self, bucket: str | None, key: str | None) -> int:
        rejected = 0
        bucket_id = _bucket_id(await self._names(), bucket)
        while page := await self._table.named(bucket_id, key):
            rejected += await self._table.reject(page)
        await self._audit("salvage:reject", _named(bucket, key), f"{rejected} rejected")
        return rejected

    async def salvage_end(self) -> None:
        recovery = await self._table.recovery()
        if recovery is None:
            raise Conflict("the region is not in recovery")
        if recovery.snapshot is not None:
            raise Conflict("the region was restored from a backup: `anvil admin recovery end` ends that")
        if not await self._table.end():
            raise Conflict(
                "the region is closed, or something waits to be accepted or rejected: `anvil admin salvage show` says which"
            )
        await self._audit("salvage:end", self._region, "ok")

    async def _names(self) -> dict[BucketId, str]:
        return {
            row["bucket_id"]: row["name"]
            for row in await self._global("SELECT bucket_id, name FROM buckets WHERE region = $1", self._region)
        }


def _bucket_id(names: Mapping[BucketId, str], bucket: str | None) -> BucketId | None:
    if bucket is None:
        return None
    for bucket_id, name in names.items():
        if name == bucket:
            return bucket_id
    raise UnknownName(f"there is no bucket {bucket!r} in this region")


def _named(bucket: str | None, key: str | None) -> str:
    return "*" if bucket is None else bucket if key is None else f"{bucket}/{key}"
