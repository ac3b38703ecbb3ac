"""Processes that nobody ended: a worker of an interrupted run is killed with its fixtures half way."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

WAIT_S = 10.0


def reap(folder: Path) -> list[int]:
    """Kill what works in the folder or below it, or names it in its command, until there is no more. Returns the process ids."""
    killed: list[psutil.Process] = []
    while found := [
        one for one in psutil.process_iter() if one.pid != os.getpid() and one not in killed and belongs(one, folder)
    ]:
        for one in found:
            try:
                one.kill()
            except psutil.Error:
                continue
        killed += found
    psutil.wait_procs(killed, timeout=WAIT_S)
    return [one.pid for one in killed]


def belongs(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd()).is_relative_to(folder) or any(f"{folder}/" in word for word in process.cmdline())
    except psutil.Error:
        return False  # it has ended, or is somebody else's
