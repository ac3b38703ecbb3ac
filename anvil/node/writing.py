"""A writer's tools in the background process, for tasks that store something themselves.

Owns: a writer session and an engine's context, while such a task is under way. Invariant: two tasks of one process have numbers of their
own, so that none ends the other's session. Not here: the tasks.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Final

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
from anvil.meta.regional import RegionalStore
from anvil.model.cluster import NodeId
from anvil.node.observe import EngineEvents
from anvil.node.region import Region

# As numbers of workers, in their writer sessions.
RAISING: Final = -1
DUMPING: Final = -2
SALVAGING: Final = -3


class Writing:
    """What a context is made of."""

    def __init__(self, node_id: NodeId, metadata: RegionalStore, region: Region, native: Executor, buffers: Buffers) -> None:
        self._node_id = node_id
        self._metadata = metadata
        self._region = region
        self._native = native
        self._buffers = buffers

    async def open(self, opened: AsyncExitStack, number: int) -> Context:
        """A context with a session of that number, until `opened` is closed. Raises DatabaseUnavailable, WriterFenced."""
        loop, region, layouts = asyncio.get_running_loop(), self._region, LayoutsInUse()
        session = WriterSession(
            self._metadata,
            self._node_id,
            number,
            lambda: layouts.oldest(region.placement.layout.version),
            lambda: region.placement.layout.version,
        )
        await self._metadata.fence(self._node_id, number)  # of a process before this one
        await session.open()
        opened.push_async_callback(session.close)
        opened.callback(loop.create_task(session.keep()).cancel)
        lanes = JobRunner(loop, DigestLanes())
        opened.push_async_callback(lanes.close)
        owned = OwnedTasks(f"background {number}")
        opened.push_async_callback(owned.close, DRAIN_S)
        return Context(
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
