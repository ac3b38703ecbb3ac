"""The storm: random kills, hangs, lost drives and database crashes on six nodes, within what 4+2 promises, under mixed load.

    make storm ARGS="--seed 7 --seconds 600"

Owns: the choice of faults. The budget: at most m nodes are impaired at a time, and a drive is wiped only while every blob would survive it,
which debts that are not paid count against. At the end everything is mended, read back and compared with what was acknowledged; then all
nodes are restarted, so that no writer may yet commit anything, and every byte on the drives is compared with what the rows name. The seed
decides the order of faults and load; processes and time decide the rest.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from anvil.cli.exits import Exit
from tests.support.cluster import AnvilCluster
from tests.support.node import wait_until
from tests.support.workload import Workload

M = 2
BUCKET = "storm"


class Storm:
    """`run` raises Wrong, or another AssertionError, when something is lost or does not heal."""

    def __init__(self, cluster: AnvilCluster, seed: int, seconds: float) -> None:
        self._cluster = cluster
        self._seconds = seconds
        self._seed = seed
        self._rng = random.Random(seed)
        self._down: set[int] = set()
        self._hung: set[int] = set()
        self._wiped: set[int] = set()
        self._unhealed = 0  # drives lost since everything was whole
        self._began = time.monotonic()

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f} s  {what}", flush=True)

    @property
    def _nodes(self) -> list[int]:
        return list(range(len(self._cluster.nodes)))

    @property
    def _well(self) -> list[int]:
        return [number for number in self._nodes if number not in self._down | self._hung | self._wiped]

    def _targets(self) -> list[int]:
        """Where requests go: also to a node whose drive is lost. Not always away from those that are down: clients do not know."""
        return [number for number in self._nodes if number not in self._down | self._hung] or self._nodes

    def run(self) -> Workload:
        self.say(f'seed {self._seed}; again: make storm ARGS="--seed {self._seed} --seconds {self._seconds:g}"')
        self._cluster.s3(0).create_bucket(Bucket=BUCKET)
        end = time.monotonic() + self._seconds
        with Workload(self._cluster, BUCKET, seed=self._seed, targets=self._targets) as load:
            load.wait_for(20)
            while time.monotonic() < end:
                self._step()
                self._rest(load, self._rng.uniform(0.5, 4.0))
            self._mend()
            self.say("all nodes are well again")
            load.wait_for(20)
        self.say(f"answered {dict(load.done)}, failed {len(load.failures)}")
        for (operation, error), count in Counter((one.operation, _kind(one.error)) for one in load.failures).most_common(12):
            self.say(f"  {count} x {operation}: {error}")
        self._heal()
        self._verify(load)
        return load

    def _rest(self, load: Workload, seconds: float) -> None:
        """Time passes, under load; what goes wrong meanwhile is told at once."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            load.assert_right()
            time.sleep(0.1)

    # -- faults

    def _step(self) -> None:
        rng = self._rng
        impaired = len(self._down | self._hung | self._wiped)
        if impaired and (impaired == M or rng.random() < 0.45):
            self._mend_one()
        elif rng.random() < 0.06:
            self.say("PostgreSQL is killed")
            self._cluster.crash_postgres()
        elif self._unhealed and not impaired and rng.random() < 0.7:
            self._heal()
        else:
            self._fault(rng.choice(self._well))

    def _fault(self, victim: int) -> None:
        kind = self._rng.choices(("kill", "hang", "stop", "wipe"), (40, 30, 10, 20))[0]
        if kind == "wipe" and self._unhealed + self._owed() >= M:
            kind = "kill"
        self.say(f"{kind} {victim}")
        if kind == "kill":
            self._cluster.kill(victim)
            self._down.add(victim)
        elif kind == "hang":
            self._cluster.hang(victim)
            self._hung.add(victim)
        elif kind == "stop":
            self._down.add(victim)
            self._cluster.stop(victim)
        else:
            self._unhealed += 1
            self._wiped.add(victim)
            self._cluster.wipe_drive(victim)

    def _owed(self) -> int:
        """The most shards that any blob lacks. A write that is acknowledged right now lacks at most m-1, and survives one loss more."""
        rows = self._cluster.sql("SELECT coalesce(max(bit_count(missing::bit(32))), 0) FROM degraded")
        return int(rows[0][0])

    def _mend_one(self) -> None:
        victim = self._rng.choice(sorted(self._down | self._hung | self._wiped))
        if victim in self._hung:
            self.say(f"resume {victim}")
            self._cluster.resume(victim)
            self._hung.discard(victim)
        elif victim in self._down:
            self.say(f"start {victim}")
            self._cluster.start(victim)
            self._down.discard(victim)
        elif victim in self._wiped:
            self.say(f"a new drive for {victim}")
            self._down.add(victim)  # it is restarted
            self._cluster.new_drive(victim)
            self._down.discard(victim)
            self._wiped.discard(victim)

    def _heal(self) -> None:
        """Until nothing is owed and every shard was looked for."""
        self.say("heal")
        self._cluster.wait_active(self._nodes)
        self._cluster.look()
        self._cluster.wait_healthy()
        self._unhealed = 0

    def _mend(self) -> None:
        while self._down or self._hung or self._wiped:
            self._mend_one()

    # -- what must hold

    def _verify(self, load: Workload) -> None:
        load.check(self._nodes)
        self.say(f"{len(load.model)} keys read back: all as acknowledged")
        wait_until("the outbox is empty", lambda: self._cluster.sql("SELECT count(*) FROM outbox") == [(0,)], 120)
        self._cluster.restart()
        self._cluster.wait_clean()
        self.say("the drives hold what the rows name, and nothing else")
        done = self._cluster.nodes[0].anvil("admin", "fsck", "--deep", "--json", timeout_s=600)
        assert done.returncode == Exit.OK, f"fsck: {done.stdout} {done.stderr}"
        found = json.loads(done.stdout)
        assert found["rows"] and not (found["unsettled"] or found["superfluous"] or found["misplaced"]), found
        self.say(f"fsck is clean: it has read {found['shards']} shards")


def _kind(error: str) -> str:
    """An error without what differs each time."""
    return re.sub(r"https?://\S+|\d{3,}", "...", error)[:110]


def storm(folder: Path, seed: int, seconds: float, nodes: int = 6, **env: str) -> dict[str, Any]:
    """Returns what was answered. A node that is away for longer than the delay is rebuilt elsewhere in the midst of it."""
    with AnvilCluster(folder, nodes=nodes, env={"ANVIL_REPAIR_DELAY_S": "20", **env}) as cluster:
        print(f"{nodes} nodes were ready after {cluster.started_s:.1f} s", flush=True)
        load = Storm(cluster, seed, seconds).run()
        return {"answered": dict(load.done), "failed": len(load.failures)}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--nodes", type=int, default=6, help="six or more")
    chosen = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="anvil-storm-", dir="/tmp"))
    try:
        found = storm(folder / "c", chosen.seed, chosen.seconds, chosen.nodes)
    except BaseException as error:
        print(
            f"\nFAILED: {type(error).__name__}: {error}\nseed {chosen.seed}; logs, drives and database are in {folder}",
            file=sys.stderr,
        )
        raise
    shutil.rmtree(folder)
    print(f"nothing lost, nothing wrong: {found}, seed {chosen.seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
