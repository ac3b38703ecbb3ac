"""Where a request's time goes: a load on a real node, its workers sampled by py-spy, and microseconds of processor per request by layer.

    python -m bench.profile                 all loads; writes bench/flames/NAME.svg and prints the tables of docs/PERFORMANCE.md
    python -m bench.profile put-small       one of them: put-small, get-small, put-large, get-large, list, and those of six nodes

Owns: the loads that are profiled and how samples are attributed: each to the innermost frame that is Anvil's own, by the folder below
`anvil/`; what the kernel does for a socket or file counts for whoever called it, and is told apart as far as Python sees it (`send`).
Shares are of samples of one worker; the microseconds are those shares of the processor time that all workers took. The other processes of
the nodes and the client are measured beside them. Needs py-spy and the right to look into other processes.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import psutil

from bench.macro import load
from bench.macro.cluster import NODES, six_nodes
from bench.macro.s3 import MIB, SMALL, Signer, address, node, require
from tests.support.node import AnvilNode

FLAMES = Path(__file__).with_name("flames")
RATE_HZ = 400
SECONDS = 4
KEYS = 12_000
SPY = Path(sys.executable).with_name("py-spy")


@dataclass(frozen=True)
class Load:
    """`requests`: made for a node by its signer. `before`: what has to be there first. `nodes`: one, or six, which take turns."""

    name: str
    clients: int
    requests: Callable[[Signer], list[bytes]]
    before: Callable[[Signer], list[bytes]] = lambda signer: []
    nbytes: int = 0
    nodes: int = 1


def keys(count: int) -> Iterable[str]:
    return (f"/bench/{number:06d}" for number in range(count))


def puts(size: int, count: int) -> Callable[[Signer], list[bytes]]:
    body = random.Random(1).randbytes(size)
    return lambda signer: [signer("PUT", key, body) for key in keys(count)]


def gets(count: int, times: int) -> Callable[[Signer], list[bytes]]:
    return lambda signer: [signer("GET", key) for key in keys(count)] * times


LOADS = (
    Load("put-small", 64, puts(SMALL, 2 * KEYS)),
    Load("get-small", 64, gets(KEYS, 4), puts(SMALL, KEYS)),
    Load("put-large", 4, puts(10 * MIB, 60), nbytes=10 * MIB),
    Load("get-large", 4, gets(4, 150), puts(10 * MIB, 4), nbytes=10 * MIB),
    Load("list", 8, lambda signer: [signer("GET", "/bench?list-type=2&max-keys=100")] * 3000, puts(SMALL, KEYS)),
    Load("six-put-small", 48, puts(SMALL, KEYS // 2), nodes=NODES),
    Load("six-get-small", 48, gets(KEYS // 4, 4), puts(SMALL, KEYS // 4), nodes=NODES),
    Load("six-put-large", 6, puts(10 * MIB, 40), nbytes=10 * MIB, nodes=NODES),
    Load("six-get-large", 6, gets(12, 5), puts(10 * MIB, 12), nbytes=10 * MIB, nodes=NODES),
)


class Target(NamedTuple):
    """`workers`: of all nodes; `others`: every other process that belongs to them, their PostgreSQL included."""

    nodes: list[AnvilNode]
    workers: list[int]
    others: list[int]


@contextmanager
def target_of(one: Load) -> Iterator[Target]:
    if one.nodes == 1:
        with node() as running:
            yield _target([running], [])
    else:
        with six_nodes() as cluster:
            yield _target(cluster.nodes, below(cluster.postgres.pid or 0))


def _target(nodes: list[AnvilNode], more: list[int]) -> Target:
    workers = [pid for running in nodes for pid in running.worker_pids]
    return Target(nodes, workers, [*more, *(pid for running in nodes for pid in below(running.pid) if pid not in workers)])


def spy(pid: int, form: str, target: Path) -> subprocess.Popen[bytes]:
    command = [SPY, "record", "-p", str(pid), "-d", str(SECONDS), "-r", str(RATE_HZ), "-f", form, "-o", target]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def layer_of(stack: str) -> str | None:
    """Of one sample, `outer (file:line);...;inner (file:line)`. None for a thread of a pool that waits for work, which py-spy takes for
    running now and then."""
    frames = stack.split(";")
    if frames[-1].startswith("_worker (concurrent/futures/thread.py"):
        return None
    for frame in reversed(frames):
        if "(anvil/node/child.py" in frame:
            return "event loop"  # uvloop, and the kernel below it
        found = re.search(r"\(anvil/(?:(api/\w+|\w+)/)?", frame)
        if found is not None:
            layer = found[1] or "anvil"
            return f"{layer}: send" if frame.startswith(("Outbound.send", "Outbound.write")) else layer
    return "threads"


def layers(raw: Path) -> Counter[str]:
    """Samples by layer."""
    found: Counter[str] = Counter()
    for line in raw.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        layer = layer_of(stack)
        if layer is not None:
            found[layer] += int(count)
    return found


def seconds(pids: Iterable[int]) -> float:
    """Processor time so far."""
    total = 0.0
    for pid in pids:
        times = psutil.Process(pid).cpu_times()
        total += times.user + times.system
    return total


def below(pid: int) -> list[int]:
    """A process, and all that descend from it."""
    return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]


def profile(one: Load) -> None:
    with target_of(one) as (nodes, workers, others), tempfile.TemporaryDirectory() as folder:
        (host, port), *also = map(address, nodes)
        signer = Signer(nodes[0])
        before = one.before(signer)
        if before:
            require(load.run(host, port, before, one.clients, also))
        requests = one.requests(signer)
        raw, flame = Path(folder) / "raw", Path(folder) / "flame.svg"
        spies: list[subprocess.Popen[bytes]] = []

        def look() -> None:
            spies.extend((spy(workers[0], "raw", raw), spy(workers[1], "flamegraph", flame)))

        timer = threading.Timer(0.5, look)
        began = (seconds(workers), seconds(others), seconds([psutil.Process().pid]))
        timer.start()
        outcome = require(load.run(host, port, requests, one.clients, also))
        ended = (seconds(workers), seconds(others), seconds([psutil.Process().pid]))
        timer.join()
        for process in spies:
            process.wait()
        taken = [(after - at) / len(requests) * 1e6 for at, after in zip(began, ended, strict=True)]
        tell(one, outcome, taken, layers(raw))
        FLAMES.mkdir(exist_ok=True)
        ElementTree.parse(flame)  # whole, and what it says it is
        # py-spy's title is its command line, with the folders of this machine.
        title = rf"\g<1>{one.name}: a worker\g<2>"
        drawn = re.sub(r'(<text id="title"[^>]*>)[^<]*(</text>)', title, flame.read_text())
        (FLAMES / f"{one.name}.svg").write_text(drawn)


def tell(one: Load, outcome: load.Outcome, taken: list[float], found: Counter[str]) -> None:
    worker, other, client = taken
    rate = f", {outcome.per_second * one.nbytes / 1e9:.2f} GB/s" if one.nbytes else ""
    print(
        f"\n{one.name}: {outcome.per_second:,.0f} requests/s{rate} with {one.clients} clients; microseconds of processor per request:\n"
    )
    print("| where | us |\n|---|---|")
    total = sum(found.values())
    for layer, count in found.most_common():
        if count * 100 >= total:
            print(f"| {layer} | {count / total * worker:,.0f} |")
    print(
        f"| **workers** | **{worker:,.0f}** |\n| PostgreSQL, other processes | {other:,.0f} |\n| client | {client:,.0f} |",
        flush=True,
    )


def main() -> None:
    wanted = sys.argv[1:]
    if unknown := set(wanted) - {one.name for one in LOADS}:
        sys.exit(f"no such load: {', '.join(sorted(unknown))}")
    for one in LOADS:
        if not wanted or one.name in wanted:
            profile(one)


if __name__ == "__main__":
    main()
