"""Raising the schemes of older objects: the task that does it.

Owns: when a walk may go on. Invariants: nothing is begun, and nothing goes on, while a layout is being changed or a node of it is away:
what is written anew would be short of shards; a walk that met everything and left nothing that could be raised is written down with its
scheme. The leader takes that back as soon as the scheme is another one, so that the next walk is made even if it is the same again by then.
Not here: the walk (`tasks/raise_scheme.py`), who asks for it (`node/leader.py`).
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack

import msgspec

from anvil.meta.catalog import GlobalCatalog
from anvil.meta.regional import RegionalStore
from anvil.model.records import OwnedMark
from anvil.model.task import Payload
from anvil.node.region import Region
from anvil.node.writing import RAISING, Writing
from anvil.tasks.raise_scheme import Raised, SchemeRaiser

log = logging.getLogger("anvil.raise")

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
        metadata: RegionalStore,
        catalog: GlobalCatalog,
        region: Region,
        writing: Writing,
    ) -> None:
        self._metadata = metadata
        self._catalog = catalog
        self._region = region
        self._writing = writing

    async def __call__(self, payload: Payload) -> None:
        """One walk over everything the region has. Raises DatabaseUnavailable."""
        region, scheme = self._region, self._region.scheme
        if not calm(region) or await self._metadata.in_recovery():
            return
        raised, mark = Raised(), OwnedMark()
        async with AsyncExitStack() as opened:
            context = await self._writing.open(opened, RAISING)
            raiser = SchemeRaiser(context, self._catalog.bucket_by_id)
            following: OwnedMark | None = mark
            while following is not None:
                if region.scheme != scheme or not calm(region):
                    log.info("raising of schemes is put off", extra=msgspec.structs.asdict(raised))
                    return
                following = await raiser.page(following, raised)
        log.info("schemes were raised", extra={"scheme": str(scheme), **msgspec.structs.asdict(raised)})
        if not raised.waiting and region.scheme == scheme:
            await self._metadata.note(RAISED, str(scheme))
