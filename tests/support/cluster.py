"""Several real nodes that make up one region, for tests: a PostgreSQL of their own, six `anvil server`s, and every fault there is.

    with AnvilCluster(tmp_path) as cluster:
        cluster.s3(0).create_bucket(Bucket="b")
        cluster.kill(2)
        cluster.kill(5)
        cluster.s3(1).put_object(Bucket="b", Key="k", Body=b"still")

Owns: the PostgreSQL, the nodes, the network between them where one was asked for. Invariants: whatever happens, nothing of it outlives the
`with`; a node keeps its number, ports and folders over kill and start. Not here: load and its model (`load.py`, tests/cluster/storm.py).
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import asyncpg
from botocore.config import Config

from anvil.meta.embedded import DATABASE_GLOBAL, DATABASE_REGIONAL, EmbeddedPostgres
from anvil.model.scheme import Scheme
from tests.support.network import Network
from tests.support.node import RUNNING, AnvilNode, wait_until
from tests.support.ports import free_port
from tests.support.shards import damage, session_of, shards_held, shards_on

START_S = 120.0  # six nodes on two processors
HEAL_S = 180.0
MOVE_S = 240.0
LOOK_S = 600.0  # a survey gives way to whatever else is to be done
# A node that is hung or cut off is found out by the others within seconds; a client of the tests waits for its answer a little longer.
PATIENT = Config(retries={"max_attempts": 1, "mode": "standard"}, connect_timeout=5, read_timeout=60, max_pool_connections=20)


class Holdings(NamedTuple):
    """Blobs, in hex: rows name a shard that no drive holds; a drive holds a shard that no row names, and nobody may commit it any more
    (its writer's session is gone); two drives hold the same shard."""

    missing: set[str]
    orphans: set[str]
    doubled: set[str]


CLEAN = Holdings(set(), set(), set())


class AnvilCluster:
    """`env`: settings of all nodes beside those every test cluster has. `zones`: one per node, where they are to have some. `network`: give
    every node a network of its own, so that `cut` works (root only). `start`: how many of the nodes are started at first (0: only
    the database)."""

    def __init__(
        self,
        folder: Path,
        nodes: int = 6,
        drives: int = 1,
        env: dict[str, str] | None = None,
        *,
        zones: Sequence[str] = (),
        network: bool = False,
        start: int | None = None,
    ) -> None:
        self.folder = folder
        self._drives = drives
        self._more: Counter[int] = Counter()  # drives that nodes were given later
        self._first = nodes if start is None else start
        self._zones = zones
        self._network = Network(nodes) if network else None
        self._held = ExitStack()
        self._metrics_token = secrets.token_hex(16)
        self._env = {
            "ANVIL_WORKERS": "1",
            "ANVIL_GC_GRACE_S": "0",
            "ANVIL_REPAIR_DELAY_S": "5",
            "ANVIL_SECRET_ENCRYPTION_KEY": secrets.token_hex(32),
            "ANVIL_JWT_SECRET": secrets.token_hex(32),
            "ANVIL_CLUSTER_SECRET": secrets.token_hex(32),
            "ANVIL_METRICS_TOKEN": self._metrics_token,
            **(env or {}),
        }
        self._count = nodes
        self.postgres = EmbeddedPostgres(folder / "postgres")
        self.nodes: list[AnvilNode] = []
        self.left: set[int] = set()  # nodes that were drained or removed: they are not missed
        self.hung: set[int] = set()
        self.cuts: set[tuple[int, int]] = set()
        self.started_s = 0.0  # how long the first start took

    # -- life --------------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self._close(failed=True)
            raise
        return self

    def _open(self) -> None:
        began = time.monotonic()
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._network is not None:
            self._held.enter_context(self._network)
        self.postgres.start()
        self._held.callback(self.postgres.stop)
        for _ in range(self._count):
            self.add_node()
        if self._first:
            self.start(*range(self._first))
            self.wait_active(range(self._first))
        self.started_s = time.monotonic() - began

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close(failed=kind is not None)

    def _close(self, *, failed: bool) -> None:
        """Everything ends at once: what it takes to stop in order is a matter of other tests."""
        for node in self.nodes:
            if failed and node.launched:
                sys.stderr.write(f"\n--- log of the node in {node.data_dir}\n{node.log_tail()[-4000:]}\n")
            node.reap()
            if node in RUNNING:
                RUNNING.remove(node)
        self._held.close()

    def add_node(self, **env: str) -> int:
        """One more, not started yet. Returns its number."""
        number = len(self.nodes)
        host = "127.0.0.1" if self._network is None else self._network.address(number)
        address = f"{host}:{free_port()}"
        settings = {
            **self._env,
            "ANVIL_GLOBAL_DATABASE_URL": self.postgres.url(DATABASE_GLOBAL),
            "ANVIL_REGIONAL_DATABASE_URL": self.postgres.url(DATABASE_REGIONAL),
            "ANVIL_CLUSTER_LISTEN_ADDR": address,
            "ANVIL_DRIVES": ",".join(map(str, self.drives(number))),
            **({"ANVIL_ZONE": self._zones[number]} if number < len(self._zones) else {}),
            **({"ANVIL_INIT_CLUSTER": "true"} if number == 0 else {}),
            **env,
        }
        within = () if self._network is None else self._network.within(number)
        self.nodes.append(AnvilNode(self.folder / f"n{number}", env=settings, host=host, within=within))
        return number

    def start(self, *numbers: int) -> None:
        """Start these (again), side by side, and wait until each is ready."""
        for number in numbers:
            self.nodes[number].launch()
            if self.nodes[number] not in RUNNING:
                RUNNING.append(self.nodes[number])
        for number in numbers:
            self.nodes[number].wait_ready(START_S)

    def stop(self, number: int) -> None:
        """In order: SIGTERM, and wait."""
        self.nodes[number].stop()

    def restart(self) -> None:
        """All members at once, in order: no writer session of before is left, so whatever it did not commit is nobody's."""
        before = self._sessions()
        with ThreadPoolExecutor(len(self.members)) as pool:
            list(pool.map(self.stop, self.members))
        self.start(*self.members)
        self.wait_active()
        assert before.isdisjoint(self._sessions())

    def drain(self, number: int) -> subprocess.CompletedProcess[str]:
        """Ask another node's `anvil admin` to. It may refuse."""
        by = next(one for one in self.members if one != number)
        return self.nodes[by].anvil("admin", "node", "drain", self.node_id(number).hex(), timeout_s=120)

    def wait_drained(self, number: int) -> None:
        """Until no layout names it any more."""
        wanted = self.node_id(number).hex()
        by = next(one for one in self.members if one != number)

        def through() -> bool:
            [row] = [row for row in self.anvil("admin", "node", "list", by=by) if row["node"] == wanted]
            return not row["holds"]

        wait_until(f"node {number} holds nothing any more", through, MOVE_S)

    def leave(self, number: int) -> None:
        """What an operator does with a node that is being drained: wait, stop it, remove it."""
        self.wait_drained(number)
        self.left.add(number)
        self.stop(number)
        self.anvil("admin", "node", "remove", self.node_id(number).hex(), "--yes", by=self.members[0])
        assert self.state(number) == "removed"
        self.wait_active()

    def add_drive(self, number: int) -> Path:
        """One more for that node, which is restarted for it. Returns its folder."""
        self._more[number] += 1
        self.nodes[number].stop()
        self.nodes[number].configure(ANVIL_DRIVES=",".join(map(str, self.drives(number))))
        self.start(number)
        return self.drives(number)[-1]

    # -- faults ------------------------------------------------------------------------------------------------------------------

    def kill(self, *numbers: int) -> None:
        """SIGKILL to every process of these nodes."""
        for number in numbers:
            self.nodes[number].signal_all(signal.SIGKILL)
        for number in numbers:
            self.nodes[number].kill_all()
            self.hung.discard(number)

    def hang(self, number: int) -> None:
        """The node stands still: its sockets take connections, and nobody answers."""
        self.hung.add(number)
        self.nodes[number].signal_all(signal.SIGSTOP)

    def resume(self, number: int) -> None:
        self.nodes[number].signal_all(signal.SIGCONT)
        self.hung.discard(number)

    def wipe_drive(self, number: int, drive: int = 0) -> None:
        """Everything on the drive is gone, its identity too. The node may be running or not."""
        shutil.rmtree(self.drives(number)[drive], ignore_errors=True)

    def new_drive(self, number: int, drive: int = 0) -> None:
        """What an operator does about a dead drive: give it up, put an empty one in its place, restart the node."""
        node, path = self.nodes[number], self.drives(number)[drive]
        done = node.anvil("admin", "drive", "replace", str(path), "--yes")
        assert done.returncode == 0, done.stderr
        node.stop()
        shutil.rmtree(path, ignore_errors=True)  # what the running node put there meanwhile
        path.mkdir()
        self.start(number)

    def flip_bits(self, bucket: str, key: str, numbers: Iterable[int], per_shard: int = 3) -> int:
        """Flip bits in the payload of every shard of the object that these nodes hold. Returns in how many shards."""
        blobs = self.blobs_of(bucket, key)
        damaged = 0
        for number in numbers:
            for drive in self.drives(number):
                for path, offset, length in shards_on(drive, blobs):
                    damage(path, offset, length, per_shard)
                    damaged += 1
        return damaged

    def cut(self, one: int, other: int) -> None:
        """Nothing gets from one of them to the other any more."""
        assert self._network is not None, "ask for a network"
        self._network.cut(one, other)
        self.cuts.add((one, other))

    def heal(self, one: int, other: int) -> None:
        assert self._network is not None, "ask for a network"
        self._network.heal(one, other)
        self.cuts.discard((one, other))

    def crash_postgres(self) -> None:
        """SIGKILL to the postmaster; it is started again at once."""
        before = self.postgres.restarts
        assert self.postgres.pid is not None
        os.kill(self.postgres.pid, signal.SIGKILL)
        wait_until("PostgreSQL is there again", lambda: self.postgres.restarts > before and self.postgres.pid is not None, 60)

    def restart_postgres(self, away_s: float = 0.0) -> None:
        """Stop it in order, leave it away for a while, start it."""
        self.postgres.stop()
        time.sleep(away_s)  # the length of the outage is what the caller asked for
        self.postgres.start()

    def mend(self) -> None:
        """Undo every fault but for lost drives, and wait until all members are active and nothing is owed."""
        for one, other in sorted(self.cuts):
            self.heal(one, other)
        for number in sorted(self.hung):
            self.resume(number)
        if self.postgres.pid is None:
            self.postgres.start()
        self.start(*(number for number in self.members if not self.nodes[number].runs))
        self.wait_active(self.members)
        self.wait_healthy()

    # -- what it says --------------------------------------------------------------------------------------------------------------

    @property
    def members(self) -> list[int]:
        """The nodes that were started and have not left."""
        return [number for number, node in enumerate(self.nodes) if node.launched and number not in self.left]

    def drives(self, number: int) -> list[Path]:
        return [self.folder / f"n{number}-drive{drive}" for drive in range(self._drives + self._more[number])]

    def s3(self, number: int = 0, config: Config | None = None) -> Any:
        """A client of that node that tries once, so that a failure is seen. All nodes know the same key pair."""
        keys = next(node for node in self.nodes if node.credentials_file.exists())
        return self.nodes[number].s3(
            PATIENT if config is None else PATIENT.merge(config), access_key=keys.access_key, secret_key=keys.secret_key
        )

    def anvil(self, *arguments: str, by: int = 0, timeout_s: float = 120.0) -> Any:
        """What a command says with --json, run with that node's settings. Fails with its message."""
        done = self.nodes[by].anvil(*arguments, "--json", timeout_s=timeout_s)
        assert done.returncode == 0, f"anvil {' '.join(arguments)}: {done.returncode} {done.stderr or done.stdout}"
        return json.loads(done.stdout)

    def node_id(self, number: int) -> bytes:
        return bytes.fromhex((self.nodes[number].data_dir / "node-id").read_text().strip())

    def sql(self, statement: str, *arguments: object, database: str = DATABASE_REGIONAL) -> list[tuple[Any, ...]]:
        """Rows of a statement in the regional database, or another one."""

        async def ask() -> list[tuple[Any, ...]]:
            connection = await asyncpg.connect(self.postgres.url(database), timeout=10)
            try:
                return [tuple(row) for row in await connection.fetch(statement, *arguments)]
            finally:
                await connection.close()

        return asyncio.run(ask())

    def state(self, number: int) -> str:
        """As the region has it; empty for a node that never registered."""
        if not (self.nodes[number].data_dir / "node-id").exists():
            return ""
        found = self.sql("SELECT state FROM nodes WHERE node_id = $1", self.node_id(number))
        return str(found[0][0]) if found else ""

    def wait_state(self, number: int, state: str, deadline_s: float = 60.0) -> None:
        wait_until(f"node {number} is {state} (it is {self.state(number)!r})", lambda: self.state(number) == state, deadline_s)

    def wait_active(self, numbers: Iterable[int] | None = None, deadline_s: float = START_S) -> None:
        """Until these (all members) are active, nothing is being moved, and no older layout is left."""
        wanted = self.members if numbers is None else list(numbers)

        def settled() -> bool:
            return all(self.state(number) == "active" for number in wanted) and self.layouts() == ["current"]

        wait_until(f"nodes {wanted} are active in one layout", settled, deadline_s)
        ids = {self.node_id(number).hex() for number in wanted}
        shown = {row["node"]: row["state"] for row in self.anvil("admin", "node", "list", by=wanted[0])}
        assert {node: shown.get(node) for node in ids} == dict.fromkeys(ids, "active")

    def layouts(self) -> list[str]:
        """States of those that are not retired, oldest first."""
        return [row[0] for row in self.sql("SELECT state FROM layouts WHERE state <> 'retired' ORDER BY version")]

    def layout_version(self) -> int:
        return int(self.sql("SELECT max(version) FROM layouts")[0][0])

    def debts(self) -> int:
        """Blobs that shards are owed to."""
        return int(self.sql("SELECT count(*) FROM degraded")[0][0])

    def wait_healthy(self, deadline_s: float = HEAL_S) -> None:
        """Until no shard is owed, by the table and by the metric, and no older layout is left."""

        def healthy() -> bool:
            return self.debts() == 0 and self.layouts() == ["current"]

        wait_until("no debts, one layout", healthy, deadline_s)
        live = [node for node in self.nodes if node.runs]
        wait_until("the metrics say so", lambda: all(node.metric("anvil_shards_unhealthy") == 0 for node in live), 60)

    def blobs_of(self, bucket: str, key: str) -> set[bytes]:
        """Of an object: its own, or those of its parts."""
        bucket_id = self.sql("SELECT bucket_id FROM buckets WHERE name = $1", bucket, database=DATABASE_GLOBAL)[0][0]
        found = self.sql(
            """SELECT blob_id FROM objects WHERE bucket_id = $1 AND key = $2 AND blob_id IS NOT NULL AND inline IS NULL
               UNION ALL SELECT p.blob_id FROM objects o JOIN parts p USING (bucket_id, upload_id)
               WHERE o.bucket_id = $1 AND o.key = $2 AND p.blob_id IS NOT NULL AND p.inline IS NULL""",
            bucket_id,
            key,
        )
        return {row[0] for row in found}

    def holders(self, blobs: set[bytes]) -> dict[int, int]:
        """How many shards of these blobs each node holds."""
        return {
            number: sum(len(shards_on(drive, blobs)) for drive in self.drives(number) if (drive / "index").exists())
            for number in range(len(self.nodes))
        }

    def holdings(self) -> Holdings:
        """What is wrong between rows and drives: judged from outside, by nothing that the nodes themselves use for that."""
        rows = [
            row
            for table in ("objects", "versions", "parts")
            for row in self.sql(f"SELECT blob_id, scheme FROM {table} WHERE blob_id IS NOT NULL AND inline IS NULL")
        ]
        expected = {(blob_id, index) for blob_id, scheme in rows for index in range(Scheme.unpack(scheme).width)}
        places = [(drive, shard) for number in self.members for drive in self.drives(number) for shard in shards_held(drive)]
        held = Counter(shard for _, shard in places)
        sessions = self._sessions()
        orphans = {shard[0] for drive, shard in places if shard not in expected and session_of(drive, *shard) not in sessions}
        return Holdings(
            missing={blob_id.hex() for blob_id, index in expected if not held[blob_id, index]},
            orphans={blob_id.hex() for blob_id in orphans},
            doubled={blob_id.hex() for (blob_id, index), copies in held.items() if copies > 1},
        )

    def _sessions(self) -> set[bytes]:
        return {row[0] for row in self.sql("SELECT session_id FROM writer_sessions")}

    def look(self) -> None:
        """Have every node look for its shards now: what is missing becomes a debt, what is left over goes. By themselves they do that every
        hour. Nodes that were removed do not count."""

        def one(number: int) -> str:
            done = self.nodes[number].anvil("admin", "scrub", "--shallow", timeout_s=LOOK_S)
            return "" if done.returncode == 0 else f"node {number}: {done.stderr}"

        with ThreadPoolExecutor(len(self.members)) as pool:
            assert not (wrong := [said for said in pool.map(one, self.members) if said]), wrong

    def wait_clean(self, deadline_s: float = HEAL_S) -> None:
        """Until every shard that a row names is on exactly one drive, and there is no other one. Nothing may be writing."""
        end = time.monotonic() + deadline_s
        while True:
            self.look()  # again and again: what a repair has made twice is met by the next one
            self.wait_healthy(deadline_s)
            if (found := self.holdings()) == CLEAN:
                return
            counts = {name: len(blobs) for name, blobs in found._asdict().items()}
            assert time.monotonic() < end, f"not clean within {deadline_s:g} s: {counts}, debts {self.debts()}: {found}"
