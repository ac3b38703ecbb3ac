"""Six nodes as one store: what they give beside one node, how long a lost drive takes to be rebuilt, whether changes are noticed.

Seven nodes, two PostgreSQLs and the clients share the machine, so `beside` says what it costs to spread objects over nodes, not what more
machines give. Every ratio is taken within one run, its two sides in turn (first one of them, then the other), medians of ROUNDS.
Owns: the loads and what counts as "over". Invariant: nothing that was started outlives a part, whatever ends it but SIGKILL.
Not here: the nodes and the checked load (`tests/support/cluster.py`, `tests/support/workload.py`), the plain load (`load.py`).
Run: python -m bench.macro.cluster [beside|rebuild|changes].
"""

from __future__ import annotations

import math
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import psutil

from anvil.base.limits import MOVE_BYTES_PER_S
from bench.figures import figure
from bench.macro import load
from bench.macro.s3 import Signer, address, node, require
from tests.support.cluster import MOVE_S, AnvilCluster
from tests.support.node import AnvilNode, wait_until
from tests.support.shards import shards_held
from tests.support.workload import Workload

PART_S_MAX = 600  # less than `bench.run` waits before it kills
ROUNDS = 3
NODES = 6
SCHEME = {"ANVIL_SCHEME": "4+2"}
MIB = 1 << 20
GIB = 1 << 30
LARGE = 10 * MIB
SMALL = 4096
LARGE_CONNECTIONS = NODES
SMALL_CONNECTIONS = 8 * NODES
LARGE_PUTS, LARGE_GETS = 24, 48
SMALL_PUTS, SMALL_GETS = 2400, 4800
REST_S = 3.0
REBUILT_OBJECTS = math.ceil(GIB / LARGE)
SHARDS_PER_REBUILT = 4 + 1  # read and written for one of 4+2, which is what a mover's throttle counts
STEADY = 60  # requests before, between and after changes, and the fewest that say anything about one
LEAVING = 3
KEPT_OBJECTS = 24  # of LARGE: what a change has to move, beside what the load writes


@contextmanager
def six_nodes() -> Iterator[AnvilCluster]:
    """With a bucket `bench`. A node that is away stays a member."""
    folder = Path(tempfile.mkdtemp(prefix="anvil-bench-"))
    try:
        with AnvilCluster(folder / "c", nodes=NODES, env={**SCHEME, "ANVIL_REPAIR_DELAY_S": "3600"}) as cluster:
            cluster.s3().create_bucket(Bucket="bench")
            yield cluster
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Side(NamedTuple):
    """What is compared: where its clients go, and the processes it consists of."""

    addresses: list[load.Address]
    request: Signer
    roots: list[int]

    @classmethod
    def of(cls, nodes: list[AnvilNode], *others: int | None) -> Side:
        return cls([address(one) for one in nodes], Signer(nodes[0]), [*(one.pid for one in nodes), *filter(None, others)])

    def processor_s(self) -> float:
        """Processor time of all its processes so far, its PostgreSQL included."""
        spent = 0.0
        for root in map(psutil.Process, self.roots):
            for one in (root, *root.children(recursive=True)):
                try:
                    times = one.cpu_times()
                except psutil.NoSuchProcess:
                    continue
                spent += times.user + times.system
        return spent

    def put_large(self, turn: int, body: bytes) -> load.Outcome:
        heads = [self.request("PUT", f"/bench/large/{turn}/{n:03d}", length=len(body)) for n in range(LARGE_PUTS)]
        return load.upload(*self.addresses[0], heads, memoryview(body), LARGE_CONNECTIONS, also=self.addresses[1:])

    def get_large(self, turn: int, body: bytes) -> load.Outcome:
        requests = [self.request("GET", f"/bench/large/{turn}/{n % LARGE_PUTS:03d}") for n in range(LARGE_GETS)]
        return load.download(*self.addresses[0], requests, LARGE_CONNECTIONS, len(body), self.addresses[1:])

    def put_small(self, turn: int, body: bytes) -> load.Outcome:
        requests = [self.request("PUT", f"/bench/small/{turn}/{n:05d}", body[:SMALL]) for n in range(SMALL_PUTS)]
        return load.run(*self.addresses[0], requests, SMALL_CONNECTIONS, self.addresses[1:])

    def get_small(self, turn: int, body: bytes) -> load.Outcome:
        requests = [self.request("GET", f"/bench/small/{turn}/{n % SMALL_PUTS:05d}") for n in range(SMALL_GETS)]
        return load.run(*self.addresses[0], requests, SMALL_CONNECTIONS, self.addresses[1:])


class Kind(NamedTuple):
    """A load; a request counts as `scale` of the `unit`."""

    name: str
    work: Callable[[Side, int, bytes], load.Outcome]
    unit: str
    scale: float


KINDS = (
    Kind(f"PUT 10 MiB, {LARGE_CONNECTIONS} connections", Side.put_large, "MB/s", LARGE / 1e6),
    Kind(f"GET 10 MiB, {LARGE_CONNECTIONS} connections", Side.get_large, "MB/s", LARGE / 1e6),
    Kind(f"PUT 4 KiB, {SMALL_CONNECTIONS} connections", Side.put_small, "requests/s", 1.0),
    Kind(f"GET 4 KiB, {SMALL_CONNECTIONS} connections", Side.get_small, "requests/s", 1.0),
)


class Turn(NamedTuple):
    per_second: float
    processor_ms: float  # of the side's processes, per request, beyond what they take at rest


def measure(kind: Kind, side: Side, rest: float, turn: int, body: bytes) -> Turn:
    before, began = side.processor_s(), time.monotonic()
    outcome = require(kind.work(side, turn, body))
    spent = side.processor_s() - before - rest * (time.monotonic() - began)
    return Turn(outcome.per_second, spent * 1000 / outcome.count)


def at_rest(side: Side) -> float:
    """Share of one core that its processes take when nobody asks them anything."""
    before = side.processor_s()
    time.sleep(REST_S)  # the length of what is measured
    return (side.processor_s() - before) / REST_S


def beside() -> None:
    """PUT and GET over six nodes of one drive beside one node of six drives: both code 4+2 and share the disk and the cores."""
    with tempfile.TemporaryDirectory(prefix="anvil-bench-") as folder, six_nodes() as cluster:
        drives = ",".join(str(Path(folder) / f"drive{number}") for number in range(NODES))
        with node(drives=drives) as alone:
            sides = Side.of(cluster.nodes, cluster.postgres.pid), Side.of([alone])
            rests = [at_rest(side) for side in sides]
            turns: dict[str, list[tuple[Turn, Turn]]] = {kind.name: [] for kind in KINDS}
            for number in range(ROUNDS + 1):
                body = os.urandom(LARGE)
                for kind in KINDS:
                    order = (0, 1) if number % 2 else (1, 0)
                    taken = {which: measure(kind, sides[which], rests[which], number, body) for which in order}
                    if number:  # the first round warms up
                        turns[kind.name].append((taken[0], taken[1]))
    for kind in KINDS:
        pairs = turns[kind.name]
        for which, title in enumerate(("six nodes", "one node with six drives")):
            cost = statistics.median(pair[which].processor_ms for pair in pairs)
            note = f"{cost:.3g} ms of processor each, and {rests[which] * 100:.0f}% of a core at rest"
            value = statistics.median(pair[which].per_second for pair in pairs) * kind.scale
            figure(f"{title}, {kind.name}", value, kind.unit, note=note)
        ratios = sorted(six.per_second / one.per_second for six, one in pairs)
        note = f"between {ratios[0]:.2f} and {ratios[-1]:.2f}; seven nodes and the clients on {os.cpu_count()} cores and one disk"
        figure(f"six nodes beside one, {kind.name}", statistics.median(ratios), "ratio", note=note)


def fill(cluster: AnvilCluster, prefix: str, count: int) -> bytes:
    """So many objects of 10 MiB, over all nodes. Returns what is in each of them."""
    side, body = Side.of(cluster.nodes), os.urandom(LARGE)
    heads = [side.request("PUT", f"/bench/{prefix}/{n:04d}", length=LARGE) for n in range(count)]
    require(load.upload(*side.addresses[0], heads, memoryview(body), LARGE_CONNECTIONS, also=side.addresses[1:]))
    return body


def read_back(cluster: AnvilCluster, prefix: str, count: int, body: bytes) -> None:
    """Exits when an object of `fill` is not what it was."""
    clients = [cluster.s3(number) for number in cluster.members]
    for n in range(count):
        if clients[n % len(clients)].get_object(Bucket="bench", Key=f"{prefix}/{n:04d}")["Body"].read() != body:
            sys.exit(f"{prefix}/{n:04d} is not what it was")


def busy_share(before: Any, after: Any) -> float:
    """Of all processors of the machine, between two looks at `psutil.cpu_times`."""
    spent = {name: getattr(after, name) - getattr(before, name) for name in ("user", "nice", "system", "idle", "iowait")}
    return 1 - (spent["idle"] + spent["iowait"]) / sum(spent.values())


def rebuild() -> None:
    """A drive is lost for good and an empty one put in its place: from there until every shard is back and nothing is owed."""
    with six_nodes() as cluster:
        body = fill(cluster, "rebuilt", REBUILT_OBJECTS)
        cluster.wait_healthy()
        victim = NODES - 1
        [drive] = cluster.drives(victim)
        held = shards_held(drive)
        nbytes = sum(path.stat().st_size for path in (drive / "blobs").rglob("*") if path.is_file())
        cluster.wipe_drive(victim)
        cluster.new_drive(victim)
        began = time.monotonic()
        # When there were how many of the shards, and the processors' times then.
        looks = [(0.0, len(shards_held(drive) & held), psutil.cpu_times())]

        def whole() -> bool:
            looks.append((time.monotonic() - began, len(shards_held(drive) & held), psutil.cpu_times()))
            return looks[-1][1] == len(held) and cluster.debts() == 0 and cluster.layouts() == ["current"]

        wait_until("the new drive holds what the old one held, and nothing is owed", whole, MOVE_S)
        seconds = time.monotonic() - began
        cluster.wait_healthy()
        shown = time.monotonic() - began
        read_back(cluster, "rebuilt", REBUILT_OBJECTS, body)
    first = max(look for look in looks if look[1] == looks[0][1])
    last = min(look for look in looks if look[1] == len(held))
    writing = last[0] - first[0]
    stored = REBUILT_OBJECTS * LARGE / GIB
    note = f"{stored:.2f} GiB of objects, {len(held)} shards with {nbytes / MIB:.0f} MiB on the drive; "
    note += f"{first[0]:.1f} s until the first is there, {writing:.1f} s writing, {seconds - last[0]:.1f} s until the change is "
    note += f"closed; in the gauge after {shown:.1f} s"
    figure("lost drive of six rebuilt in place, per GiB of objects", seconds / stored, "s/GiB", note=note)
    rate = nbytes / MIB * (1 - looks[0][1] / len(held)) / writing
    allowed = NODES * MOVE_BYTES_PER_S / MIB / SHARDS_PER_REBUILT
    busy = busy_share(first[2], last[2]) * 100
    note = f"processors {busy:.0f}% busy meanwhile; MOVE_BYTES_PER_S of six nodes allows {allowed:.0f}"
    figure("lost drive of six rebuilt in place, shards written", rate, "MiB/s", note=note)


@contextmanager
def counted(what: str, work: Workload, shards: Callable[[], str]) -> Iterator[None]:
    """The figure of what fails of the requests that begin or are under way meanwhile."""
    began, done, failed = time.monotonic(), work.acknowledged, len(work.failures)
    yield
    seconds = time.monotonic() - began
    work.go_round()  # what began meanwhile has ended, too
    failures = work.failures[failed:]
    for failure in failures:
        print(failure, file=sys.stderr)
    requests = work.acknowledged - done + len(failures)
    if requests < STEADY:
        sys.exit(f"only {requests} requests while {what}: that says nothing")
    note = f"of {requests:,} in {seconds:.0f} s, contents compared; {shards()}"
    figure(f"requests failed while {what}", len(failures), "requests", note=note)


def changes() -> None:
    """A seventh node joins and another one leaves, under a load that compares every content it reads."""
    with six_nodes() as cluster:
        body = fill(cluster, "kept", KEPT_OBJECTS)
        cluster.s3().create_bucket(Bucket="load")
        targets = list(range(NODES))

        def carried(number: int) -> Callable[[], str]:
            return lambda: f"{len(shards_held(cluster.drives(number)[0]))} shards on its drive now"

        with Workload(cluster, "load", seed=random.SystemRandom().randrange(1 << 32), targets=lambda: targets) as work:
            work.wait_for(STEADY)
            new = cluster.add_node()
            with counted("a seventh node joins", work, carried(new)):
                cluster.start(new)
                cluster.wait_active(deadline_s=MOVE_S)
            targets.append(new)
            work.wait_for(STEADY)
            with counted("a node of seven drains", work, carried(LEAVING)):
                done = cluster.drain(LEAVING)
                if done.returncode:
                    sys.exit(done.stderr)
                cluster.wait_drained(LEAVING)
            targets.remove(LEAVING)  # as a balancer is told before a node is stopped
            work.go_round()
            cluster.leave(LEAVING)
            work.wait_for(STEADY)
        work.check(cluster.members)
        read_back(cluster, "kept", KEPT_OBJECTS, body)
        cluster.wait_healthy()


PARTS: dict[str, Callable[[], None]] = {"beside": beside, "rebuild": rebuild, "changes": changes}


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(f"ended by {signal.Signals(number).name}")


if __name__ == "__main__":
    for one in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(one, _end)
    for part in sys.argv[1:] or PARTS:
        signal.alarm(PART_S_MAX)
        PARTS[part]()
