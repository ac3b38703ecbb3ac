"""A network of our own for the nodes of a cluster: a namespace each, one bridge between them, links that can be cut pair by pair.

    with Network(6) as network:
        AnvilNode(..., host=network.address(0), within=network.within(0))
        network.cut(0, 3)

Owns: the namespaces, the bridge, and their removal. Invariant: what is cut is silent, as a pulled cable is: nothing is refused, packets go
to a hardware address that nobody has. A route that drops would tell the sender at once. Needs root and iproute2; PostgreSQL's Unix
socket passes between namespaces.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from types import TracebackType
from typing import Self

NOBODY = "02:00:00:00:fa:11"
TRIES = 20


def can_make_networks() -> bool:
    """Whether this user on this machine may."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    name = f"anvil-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode == 0
    if made:
        ip("netns", "del", name)
    return made


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


class Network:
    """`count` namespaces; this process is on the bridge as well, and reaches all of them whatever is cut."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._name = ""
        self._prefix = ""

    def __enter__(self) -> Self:
        for attempt in range(TRIES):
            number = random.SystemRandom().randrange(1 << 16)
            # 10.224.0.0/11: seldom in use; a bridge of the same name or an address in use is another run's.
            self._name, self._prefix = f"anv{number:04x}", f"10.{224 + number // 4096}.{number % 256}"
            try:
                ip("link", "add", self._name, "type", "bridge")
                break
            except OSError:
                if attempt == TRIES - 1:
                    raise
        try:
            ip("addr", "add", f"{self._prefix}.1/24", "dev", self._name)
            ip("link", "set", self._name, "up")
            for number in range(self._count):
                self._add(number)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def _add(self, number: int) -> None:
        space, outside = self._space(number), f"{self._name}v{number}"
        ip("netns", "add", space)
        ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("link", "set", outside, "master", self._name, "up")
        ip("-n", space, "link", "set", "lo", "up")
        ip("-n", space, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")

    def _remove(self) -> None:
        """The pairs of devices go with their namespaces."""
        for number in range(self._count):
            subprocess.run(["ip", "netns", "del", self._space(number)], capture_output=True, check=False)
            subprocess.run(["ip", "link", "del", f"{self._name}v{number}"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "del", self._name], capture_output=True, check=False)

    def _space(self, number: int) -> str:
        return f"{self._name}-{number}"

    def address(self, number: int) -> str:
        return f"{self._prefix}.{10 + number}"

    def within(self, number: int) -> tuple[str, ...]:
        """What runs a command in that namespace. It becomes the command, so its process id stays."""
        return ("ip", "netns", "exec", self._space(number))

    def cut(self, one: int, other: int) -> None:
        """Nothing gets from one to the other any more, either way."""
        for here, there in ((one, other), (other, one)):
            ip(
                "-n",
                self._space(here),
                "neigh",
                "replace",
                self.address(there),
                "lladdr",
                NOBODY,
                "nud",
                "permanent",
                "dev",
                "eth0",
            )

    def heal(self, one: int, other: int) -> None:
        for here, there in ((one, other), (other, one)):
            ip("-n", self._space(here), "neigh", "del", self.address(there), "dev", "eth0")
