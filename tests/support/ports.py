"""Ports for servers that tests start: each is given to one of them, whatever else runs beside.

Owns: the counter, one for all processes of this user. Invariant: below the ports that the system gives to connections, so that nobody takes
one between the choice and the start of the server, or while the server is down. Given again only after all others were.
"""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from pathlib import Path

FIRST = 10_240
ENOUGH = 1_000
COUNTER = Path(tempfile.gettempdir()) / f"anvil-test-ports-{os.getuid()}"


def end() -> int:
    """The first port that the system gives to connections."""
    return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of a server that is gone do not count
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of the loopback. Raises OSError when there is none."""
    last = end()
    if last - FIRST < ENOUGH:  # this machine was set up otherwise
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])
    with COUNTER.open("a+") as counter:
        fcntl.flock(counter, fcntl.LOCK_EX)
        counter.seek(0)
        said = counter.read()
        number = int(said) if said else random.randrange(FIRST, last)
        for _ in range(last - FIRST):
            number = number + 1 if FIRST <= number < last - 1 else FIRST
            if is_free(number):
                counter.truncate(0)
                counter.write(str(number))
                return number
    raise OSError(f"no port from {FIRST} to {last} is free")
