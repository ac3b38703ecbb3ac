"""A worker with short time-outs, as `python -m` runs it: slow clients are found out while a test waits."""

from __future__ import annotations

import sys

from anvil.net import port
from anvil.node import child
from anvil.node.assemble import build_worker
from anvil.node.child import Child
from anvil.node.worker import run_worker

HEADER_S, IDLE_S, BODY_S, PRESSED_S = 2.0, 4.0, 3.0, 1.0
LIMITS = port.NetLimits(
    header_s=HEADER_S,
    idle_s=IDLE_S,
    body_stall_s=BODY_S,
    pressed_stall_s=PRESSED_S,
    linger_s=1.0,
    half_close_s=0.5,
    sweep_s=0.1,
)


async def _target(process: Child) -> None:
    await run_worker(process, build_worker)


if __name__ == "__main__":
    port.NetLimits = lambda: LIMITS  # type: ignore[misc, assignment]
    sys.exit(child.main(_target))
