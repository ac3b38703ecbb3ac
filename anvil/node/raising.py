"""Raising the schemes of older objects: the task that does it, with the writer's tools it needs.

Owns: a writer session and an engine's context in the background process, while a walk is under way. Invariants: nothing is begun, and
nothing goes on, while a layout is being changed or a node of it is away: what is written anew would be short of shards; a walk that met
everything and left nothing is written down with its scheme, so that the next one is made when the scheme has changed. Not here: the walk
(`tasks/raise_scheme.py`), who asks for it (`node/leader.py`).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack

import msgspec

from anvil._ec.digest import DigestLanes
from anvil.base.clock import SYSTEM_CLOCK
from anvil.base.ids import random_id
from anvil.base.limits import DRAIN_S
from anvil.base.owned import OwnedTasks
from anvil.ec.buffers import Buffers
from anvil.ec.codecs import codec_for
from anvil.ec.executor import JobRunner
from anvil.engine.context import Context, Executor, LayoutsInUse
from anvil.engine.session import WriterSession
from anvil.meta.catalog import GlobalCatalog
from anvil.meta.regional import RegionalStore
from anvil.model.cluster import NodeId
from anvil.model.records import OwnedMark
from anvil.model.task import Payload
from anvil.node.observe import EngineEvents
from anvil.node.region import Region
from anvil.tasks.raise_scheme import Raised, SchemeRaiser

log = logging.getLogger("anvil.raise")

BACKGROUND = -1  # as a worker's number, in the name of its writer session
RAISED = "raised_scheme"  # in the region's settings: the scheme that all objects have, or a lower one for want of size


def calm(region: Region) -> bool:
    """One layout, and every node of it is up."""
    view = region.view
    up = {node.node_id for node in view.nodes if node.leased}
    return len(view.layouts) == 1 and all(drive.node_id in up for drive in view.layout.drives)


class Raising:
    """The handler of the task `raise`."""

    def __init__(
        self,
        node_id: NodeId,
        metadata: RegionalStore,
        catalog: GlobalCatalog,
        region: Region,
        native: Executor,
        buffers: Buffers,
    ) -> None:
        self._node_id = node_id
        self._metadata = metadata
        self._catalog = catalog
        self._region = region
        self._native = native
        self._buffers = buffers

    async def __call__(self, payload: Payload) -> None:
        """One walk over everything the region has. Raises DatabaseUnavailable."""
        region, scheme = self._region, self._region.scheme
        if not calm(region):
            return
        raised, mark = Raised(), OwnedMark()
        async with AsyncExitStack() as opened:
            raiser = await self._open(opened)
            following: OwnedMark | None = mark
            while following is not None:
                if region.scheme != scheme or not calm(region):
                    log.info("raising of schemes is put off", extra=msgspec.structs.asdict(raised))
                    return
                following = await raiser.page(following, raised)
        log.info("schemes were raised", extra={"scheme": str(scheme), **msgspec.structs.asdict(raised)})
        if not raised.waiting:
            await self._metadata.note(RAISED, str(scheme))

    async def _open(self, opened: AsyncExitStack) -> SchemeRaiser:
        loop, region, layouts = asyncio.get_running_loop(), self._region, LayoutsInUse()
        session = WriterSession(
            self._metadata,
            self._node_id,
            BACKGROUND,
            lambda: layouts.oldest(region.placement.layout.version),
            lambda: region.placement.layout.version,
        )
        await self._metadata.fence(self._node_id, BACKGROUND)  # of a process before this one
        await session.open()
        opened.push_async_callback(session.close)
        opened.callback(loop.create_task(session.keep()).cancel)
        lanes = JobRunner(loop, DigestLanes())
        opened.push_async_callback(lanes.close)
        owned = OwnedTasks("raising")
        opened.push_async_callback(owned.close, DRAIN_S)
        context = Context(
            metadata=self._metadata,
            placement=lambda: region.placement,
            scheme=lambda: region.scheme,
            native=self._native,
            lanes=lanes,
            buffers=self._buffers,
            codecs=codec_for,
            session=session,
            events=EngineEvents(),
            owned=owned,
            new_id=random_id,
            now_us=SYSTEM_CLOCK.now_us,
            layouts=layouts,
        )
        return SchemeRaiser(context, self._catalog.bucket_by_id)
