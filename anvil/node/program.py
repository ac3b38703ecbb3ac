"""The parts that a real node is run with.

Importing this imports everything that its processes need. Not here: how they are put together (`assemble.py`, `assemble_background.py`).
"""

from __future__ import annotations

from anvil.node.assemble import build_worker, embedded, prepare
from anvil.node.assemble_background import build_background
from anvil.node.background import run_background
from anvil.node.child import Child
from anvil.node.parts import Parts
from anvil.node.worker import run_worker


async def _worker(process: Child) -> None:
    await run_worker(process, build_worker)


async def _background(process: Child) -> None:
    await run_background(process, build_background)


PARTS = Parts(embedded, prepare, _worker, _background)
