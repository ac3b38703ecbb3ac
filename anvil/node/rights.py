"""Changes of rights between the processes of a node: asked by a worker, made by the background process.

Owns: the messages, and the bound on recorded refusals. Invariant: a change is answered only once every worker of this node has forgotten
the rows it touched. Not here: SQL (`meta/rights.py`), the cache (`node/catalog.py`).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

import msgspec

from anvil.base.clock import SYSTEM_CLOCK, Clock
from anvil.base.errors import AccessDenied
from anvil.base.limits import REFUSALS_AUDITED_MAX, REFUSED_APPS_MAX
from anvil.meta.rights import Changed
from anvil.model.identity import Actor, BucketRights, Policy
from anvil.node.catalog import RemoteCatalog
from anvil.node.channel import Channel, Handler

log = logging.getLogger(__name__)
_REFUSED: Final = AccessDenied.__name__
_MINUTE_S: Final = 60


class RightsSource(Protocol):
    """What the background process needs of `meta/rights.py`: the Rights port, but for what changes says."""

    async def resolve(self, tenant_id: int, apps: Sequence[str]) -> Sequence[str]: ...
    async def grant(self, by: Actor, app: str, right: Policy) -> Changed: ...
    async def revoke(self, by: Actor, app: str, right: Policy) -> Changed: ...
    async def set_public(self, by: Actor, bucket: str, allow: bool) -> Changed: ...
    async def bucket_rights(self, tenant_id: int, bucket: str) -> BucketRights: ...
    async def put_bucket_rights(self, by: Actor, bucket: str, wanted: BucketRights) -> Changed: ...
    async def refused(self, by: Actor, action: str, resource: str, result: str) -> None: ...


class Named(msgspec.Struct, array_like=True, frozen=True):
    """Which apps, or which bucket, of a tenant."""

    tenant_id: int
    names: tuple[str, ...]


class Change(msgspec.Struct, array_like=True, frozen=True):
    """A right of an app."""

    by: Actor
    app: str
    right: Policy


class SetPublic(msgspec.Struct, array_like=True, frozen=True):
    by: Actor
    bucket: str
    allow: bool


class PutRights(msgspec.Struct, array_like=True, frozen=True):
    by: Actor
    bucket: str
    wanted: BucketRights


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    by: Actor
    action: str
    resource: str


class RightsServer:
    """The background process's side. `forget`: makes all workers forget rows, and returns when they have."""

    def __init__(self, source: RightsSource, forget: Callable[..., Awaitable[None]], clock: Clock = SYSTEM_CLOCK) -> None:
        self._source = source
        self._forget = forget
        self._clock = clock
        self._refusals: OrderedDict[str, tuple[int, int]] = OrderedDict()  # by access key: minute, and how many in it

    @property
    def handlers(self) -> dict[str, Handler]:
        return {
            "rights.resolve": self._resolve,
            "rights.grant": self._grant,
            "rights.revoke": self._revoke,
            "rights.set_public": self._set_public,
            "rights.bucket": self._bucket_rights,
            "rights.put_bucket": self._put_bucket_rights,
            "rights.refused": self._refused,
        }

    async def _resolve(self, channel: Channel, body: msgspec.Raw) -> Sequence[str]:
        named = msgspec.msgpack.decode(body, type=Named)
        return await self._source.resolve(named.tenant_id, named.names)

    async def _grant(self, channel: Channel, body: msgspec.Raw) -> bool:
        wanted = msgspec.msgpack.decode(body, type=Change)
        return (await self._settled(self._source.grant(wanted.by, wanted.app, wanted.right))).changed

    async def _revoke(self, channel: Channel, body: msgspec.Raw) -> bool:
        wanted = msgspec.msgpack.decode(body, type=Change)
        return (await self._settled(self._source.revoke(wanted.by, wanted.app, wanted.right))).changed

    async def _set_public(self, channel: Channel, body: msgspec.Raw) -> bool:
        wanted = msgspec.msgpack.decode(body, type=SetPublic)
        return (await self._settled(self._source.set_public(wanted.by, wanted.bucket, wanted.allow))).changed

    async def _bucket_rights(self, channel: Channel, body: msgspec.Raw) -> BucketRights:
        named = msgspec.msgpack.decode(body, type=Named)
        return await self._source.bucket_rights(named.tenant_id, named.names[0])

    async def _put_bucket_rights(self, channel: Channel, body: msgspec.Raw) -> str:
        wanted = msgspec.msgpack.decode(body, type=PutRights)
        return (await self._settled(self._source.put_bucket_rights(wanted.by, wanted.bucket, wanted.wanted))).etag

    async def _settled(self, change: Awaitable[Changed]) -> Changed:
        """A change that fails after it was committed (its answer was lost) reaches the workers by the change log. One that found all as
        wanted may have been made just before, elsewhere or by its own first attempt: its rows are forgotten too."""
        changed = await change
        await self._forget(*changed.rows)
        return changed

    async def _refused(self, channel: Channel, body: msgspec.Raw) -> None:
        refusal = msgspec.msgpack.decode(body, type=Refusal)
        by = refusal.by
        count = self._count(by.access_key)
        if count > REFUSALS_AUDITED_MAX:
            return
        last = count == REFUSALS_AUDITED_MAX
        if last:
            log.warning("an app is refused changes of rights again and again", extra={"access_key": by.access_key})
        result = f"{_REFUSED}, and more in this minute that are not recorded" if last else _REFUSED
        await self._source.refused(by, refusal.action, refusal.resource, result)

    def _count(self, access_key: str) -> int:
        """How many refusals of the app there were in this minute, with this one."""
        minute = int(self._clock.monotonic() // _MINUTE_S)
        before = self._refusals.pop(access_key, (minute, 0))
        count = before[1] + 1 if before[0] == minute else 1
        self._refusals[access_key] = (minute, count)
        if len(self._refusals) > REFUSED_APPS_MAX:
            self._refusals.popitem(last=False)
        return count


class RemoteRights:
    """The worker's side: the Rights port over the catalog's channel."""

    def __init__(self, catalog: RemoteCatalog) -> None:
        self._catalog = catalog

    async def resolve(self, tenant_id: int, apps: Sequence[str]) -> Sequence[str]:
        return await self._catalog.ask("rights.resolve", Named(tenant_id, tuple(apps)), tuple[str, ...])

    async def grant(self, by: Actor, app: str, right: Policy) -> bool:
        return await self._catalog.call("rights.grant", Change(by, app, right), bool)

    async def revoke(self, by: Actor, app: str, right: Policy) -> bool:
        return await self._catalog.call("rights.revoke", Change(by, app, right), bool)

    async def set_public(self, by: Actor, bucket: str, allow: bool) -> bool:
        return await self._catalog.call("rights.set_public", SetPublic(by, bucket, allow), bool)

    async def bucket_rights(self, tenant_id: int, bucket: str) -> BucketRights:
        return await self._catalog.ask("rights.bucket", Named(tenant_id, (bucket,)), BucketRights)

    async def put_bucket_rights(self, by: Actor, bucket: str, wanted: BucketRights) -> str:
        return await self._catalog.call("rights.put_bucket", PutRights(by, bucket, wanted), str)

    async def refused(self, by: Actor, action: str, resource: str) -> None:
        await self._catalog.call("rights.refused", Refusal(by, action, resource), type(None))
