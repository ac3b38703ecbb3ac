"""A worker with short time-outs: slow clients are found out while a test waits."""

from __future__ import annotations

from anvil.net import port
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


async def run_impatiently(process: Child) -> None:
    port.NetLimits = lambda: LIMITS  # type: ignore[misc, assignment]
    await run_worker(process, build_worker)
