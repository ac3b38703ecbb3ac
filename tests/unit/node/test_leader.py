"""What the leader sees to, over tables in memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

from anvil.base.config import Config
from anvil.model.cluster import ClusterDrive, ClusterView, NodeRow, NodeState
from anvil.model.layout import LayoutDrive
from anvil.model.scheme import Scheme
from anvil.node.leader import Leader
from anvil.node.raising import RAISED
from tests.support.layouts import computed

OWN = bytes(16)


class Metadata:
    """A region with nothing due."""

    def __init__(self) -> None:
        self.notes = {RAISED: "4+2"}

    async def due_slices(self, slices: int, grace_s: float) -> tuple[Sequence[int], Sequence[int]]:
        return (), ()

    async def in_recovery(self) -> bool:
        return True

    async def noted(self, name: str) -> str | None:
        return self.notes.get(name)

    async def note(self, name: str, value: str) -> None:
        self.notes[name] = value


class Queue:
    def __init__(self) -> None:
        self.asked: list[str] = []

    async def enqueue_all(self, kind: str, tasks: Sequence[object], priority: int = 0) -> None:
        self.asked += [kind] * bool(tasks)

    async def reap(self) -> None: ...
    async def prune(self, keep_s: float) -> None: ...


class Tables:
    async def mark_down(self) -> Sequence[bytes]:
        return ()


def test_objects_written_while_the_scheme_was_lower_are_raised_when_it_is_back() -> None:
    async def main() -> None:
        layout = computed([LayoutDrive(OWN, OWN, 1000)], 1, 0)
        up = NodeRow(OWN, "n", "", "", NodeState.ACTIVE, 5.0)
        down = NodeRow(OWN, "n", "", "", NodeState.ACTIVE, -5.0)
        drives = (ClusterDrive(OWN, OWN, "/d", 1000),)
        calm, shaken = (ClusterView((node,), drives, (layout,)) for node in (up, down))
        region = SimpleNamespace(scheme=Scheme(4, 2), view=calm)
        metadata, queue = Metadata(), Queue()
        leader = Leader(Config(), cast(Any, metadata), cast(Any, region), cast(Any, queue), lambda: 1000.0)

        async def look() -> int:
            queue.asked.clear()
            await leader.lead(cast(Any, Tables()), region.view)
            return queue.asked.count("raise")

        assert await look() == 0, "that is done"
        region.scheme, region.view = Scheme(2, 2), shaken
        assert await look() == 0, "not now"
        region.scheme = Scheme(4, 2)
        assert await look() == 0
        region.view, region.scheme = calm, Scheme(4, 2)
        leader = Leader(Config(), cast(Any, metadata), cast(Any, region), cast(Any, queue), lambda: 1000.0)
        assert await look() == 1, "what was written meanwhile is 2+2"

    asyncio.run(main())
