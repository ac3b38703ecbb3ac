#!/usr/bin/env python3
"""Several nodes on this machine, for trying out what a cluster does: `make cluster`, or `tools/cluster.py run`. See docs/CLUSTER.md.

    tools/cluster.py run [--nodes 6] [--drives 1]    start them, in the foreground; Ctrl-C stops all
    tools/cluster.py status                          who runs, with process ids
    tools/cluster.py kill 3 | hang 3 | resume 3      SIGKILL, SIGSTOP, SIGCONT to all processes of a node
    tools/cluster.py stop 3 | start 3                in order
    tools/cluster.py add                             one more node, which joins
    tools/cluster.py admin node list                 any `anvil admin` command, with the settings of the cluster

Owns: the folder (./anvil-cluster), the PostgreSQL in it, and every node that `run` started: the other commands ask it over a socket there.
"""

from __future__ import annotations

import argparse
import configparser
import contextlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
if VENV.exists() and Path(sys.prefix) != VENV:
    os.execv(VENV / "bin" / "python", [str(VENV / "bin" / "python"), *sys.argv])  # noqa: S606 - where the packages are
sys.path.insert(0, str(ROOT))

from anvil.base.errors import AnvilError  # noqa: E402
from anvil.meta.embedded import DATABASE_GLOBAL, DATABASE_REGIONAL, EmbeddedPostgres  # noqa: E402
from anvil.node.datadir import running_node, write_private  # noqa: E402

API_PORT, CLUSTER_PORT = 50051, 7443
START_S, STOP_S = 120.0, 60.0
REPAIR_DELAY_S = "30"  # nobody wants to wait ten minutes to see it


class Node:
    """One `anvil server` with fixed ports; `number` counts from 0."""

    def __init__(self, folder: Path, number: int, env: dict[str, str], drives: int) -> None:
        self.number = number
        self.data_dir = folder / f"n{number}"
        self.endpoint = f"http://127.0.0.1:{API_PORT + number}"
        self.log = folder / f"n{number}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.expected = False  # to run
        self.env = {
            **env,
            "ANVIL_DATA_DIR": str(self.data_dir),
            "ANVIL_API_LISTEN_ADDR": f"127.0.0.1:{API_PORT + number}",
            "ANVIL_CLUSTER_LISTEN_ADDR": f"127.0.0.1:{CLUSTER_PORT + number}",
            "ANVIL_NODE_NAME": f"n{number}",
            "ANVIL_DRIVES": ",".join(str(folder / f"n{number}-drive{drive}") for drive in range(drives)),
            **({"ANVIL_INIT_CLUSTER": "true"} if number == 0 else {}),
        }

    @property
    def runs(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def identity(self) -> str:
        """Its id, as `anvil admin node list` shows it."""
        file = self.data_dir / "node-id"
        return file.read_text().strip() if file.exists() else ""

    def launch(self) -> None:
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches the runner, which stops nodes before the database.
            self.process = subprocess.Popen(
                [sys.executable, "-m", "anvil.cli.main", "server"],
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.expected = True

    def wait_ready(self) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if not self.runs:
                raise SystemExit(f"n{self.number} did not start: see {self.log}")
            with contextlib.suppress(URLError, OSError), urlopen(f"{self.endpoint}/ready", timeout=2) as answer:  # noqa: S310 - our own port
                if answer.status == 200:
                    return
            time.sleep(0.1)
        raise SystemExit(f"n{self.number} is not ready after {START_S:.0f} s: see {self.log} and {self.endpoint}/ready")

    def pids(self) -> list[int]:
        """The supervisor first, then everything below it."""
        if self.process is None or not self.runs:
            return []
        return [self.process.pid, *_below(self.process.pid)]

    def signal(self, number: signal.Signals) -> None:
        self.expected = self.expected and number != signal.SIGKILL
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self) -> None:
        self.expected = False
        if self.process is None or not self.runs:
            return
        self.signal(signal.SIGCONT)  # it may be hung
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)
            self.process.wait()


def _below(pid: int) -> list[int]:
    """All descendants of a process."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, task.read_text().split()):
                found += [child, *_below(child)]
    return found


class Cluster:
    """Everything that `run` holds."""

    def __init__(self, folder: Path, drives: int) -> None:
        self.folder = folder
        self.drives = drives
        self.postgres = EmbeddedPostgres(folder / "postgres")
        self.nodes: list[Node] = []
        self._env: dict[str, str] = {}
        self._lock = threading.Lock()

    def start(self, count: int) -> None:
        self.postgres.start()
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("ANVIL_")} | {
            "ANVIL_WORKERS": "1",
            "ANVIL_REPAIR_DELAY_S": REPAIR_DELAY_S,
            **{name: value for name, value in os.environ.items() if name.startswith("ANVIL_")},
            "PYTHONPATH": str(ROOT),
            **self._urls(),
            **_secrets(self.folder),
        }
        known = sum(1 for path in self.folder.glob("n[0-9]*") if path.is_dir() and "-" not in path.name)
        for number in range(max(count, known)):
            self._leave_nothing_behind(self.folder / f"n{number}")
            self.nodes.append(Node(self.folder, number, self._env, self.drives))
        for node in self.nodes:
            node.launch()
        for node in self.nodes:
            node.wait_ready()

    def _urls(self) -> dict[str, str]:
        return {
            "ANVIL_GLOBAL_DATABASE_URL": self.postgres.url(DATABASE_GLOBAL),
            "ANVIL_REGIONAL_DATABASE_URL": self.postgres.url(DATABASE_REGIONAL),
        }

    def _leave_nothing_behind(self, data_dir: Path) -> None:
        """A node of a runner that was killed."""
        left = running_node(data_dir)
        if left is None:
            return
        print(f"stopping a node that was left behind (process {left.pid})")
        os.kill(left.pid, signal.SIGINT)
        end = time.monotonic() + STOP_S
        while running_node(data_dir) is not None and time.monotonic() < end:
            time.sleep(0.1)

    def stop(self) -> None:
        with self._lock:
            for node in self.nodes:
                node.expected = False
            stopping = [threading.Thread(target=node.stop) for node in self.nodes]
            for thread in stopping:
                thread.start()
            for thread in stopping:
                thread.join()
        self.postgres.stop()

    def command(self, words: list[str]) -> str:
        """What another terminal asks. Returns what it is told."""
        with self._lock:
            verb, *rest = words
            if verb == "status":
                return self.status()
            if verb == "urls":
                return json.dumps(self._urls())
            if verb == "add":
                node = Node(self.folder, len(self.nodes), self._env, self.drives)
                self.nodes.append(node)
                node.launch()
                node.wait_ready()
                return f"n{node.number} has joined: {node.endpoint}"
            node = self.nodes[int(rest[0])]
            name = f"n{node.number}"
            if verb == "start":
                if node.runs:
                    return f"{name} runs"
                node.launch()
                node.wait_ready()
                return f"{name} is ready again: {node.endpoint}"
            if not node.runs:
                return f"{name} does not run"
            if verb == "stop":
                node.stop()
                return f"{name} is stopped"
            node.signal({"kill": signal.SIGKILL, "hang": signal.SIGSTOP, "resume": signal.SIGCONT}[verb])
            return f"{name}: {verb}"

    def status(self) -> str:
        lines = [f"{'node':6} {'id':10} {'supervisor':>10}  {'endpoint':24} {'log'}"]
        for node in self.nodes:
            pid = str(node.process.pid) if node.process is not None and node.runs else "-"
            lines.append(f"n{node.number:<5} {node.identity[:8]:10} {pid:>10}  {node.endpoint:24} {node.log}")
        return "\n".join(lines)


def _secrets(folder: Path) -> dict[str, str]:
    """Of the deployment: the same for all nodes, made once."""
    file = folder / "secrets.json"
    if not file.exists():
        names = ("ANVIL_SECRET_ENCRYPTION_KEY", "ANVIL_JWT_SECRET", "ANVIL_CLUSTER_SECRET")
        write_private(file, json.dumps({name: secrets.token_hex(32) for name in names}))
    found: dict[str, str] = json.loads(file.read_text())
    return found


# -- one terminal runs it ------------------------------------------------------------------------------------------------------


def run(folder: Path, count: int, drives: int) -> int:
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    if _ask(folder, ["status"]) is not None:
        print(f"a cluster runs in {folder} already", file=sys.stderr)
        return 3
    cluster, stopped = Cluster(folder, drives), threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stopped.set())
    print(f"starting PostgreSQL and {count} nodes in {folder} ...", flush=True)
    try:
        cluster.start(count)
        with _listen(folder, cluster):
            print(_welcome(cluster), flush=True)
            _watch(cluster, stopped)
        print("\nstopping ...", flush=True)
    except AnvilError as error:
        print(error.message, file=sys.stderr)
        return 3
    finally:
        cluster.stop()
    return 0


def _watch(cluster: Cluster, stopped: threading.Event) -> None:
    """Say who died, until told to stop."""
    told: set[int] = set()
    while not stopped.wait(0.5):
        for node in list(cluster.nodes):
            if node.runs:
                told.discard(node.number)
            elif node.process is not None and node.number not in told:
                told.add(node.number)
                print(
                    f"n{node.number} does not run any more; to start it again: tools/cluster.py start {node.number}", flush=True
                )


@contextlib.contextmanager
def _listen(folder: Path, cluster: Cluster) -> Iterator[None]:
    """Answer the other commands."""
    path = folder / "control.sock"
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        with _inside(folder):
            listener.bind(path.name)
        path.chmod(0o600)
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=_answer, args=(connection, cluster), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _answer(connection: socket.socket, cluster: Cluster) -> None:
    with connection, connection.makefile("rw") as stream:
        try:
            text = cluster.command(json.loads(stream.readline()))
        except (IndexError, ValueError, KeyError):
            text = "there is no such node"
        except SystemExit as error:
            text = str(error)
        with contextlib.suppress(OSError):
            stream.write(text + "\n")


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    """Sockets have short names only."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def _welcome(cluster: Cluster) -> str:
    credentials = cluster.nodes[0].data_dir / "credentials"
    keys = configparser.ConfigParser(interpolation=None)
    keys.read(credentials)
    pair = keys["default"]
    secret = [f"  secret key   {pair['aws_secret_access_key']}"] if sys.stdout.isatty() else []
    return "\n".join(
        [
            "",
            cluster.status(),
            "",
            f"  access key   {pair['aws_access_key_id']}",
            *secret,
            f"  credentials  {credentials}",
            "",
            "Try it, in another terminal:",
            f"  export AWS_SHARED_CREDENTIALS_FILE={credentials} AWS_ENDPOINT_URL={cluster.nodes[0].endpoint}",
            "  aws s3 mb s3://first && aws s3 cp --recursive docs s3://first/",
            "  tools/cluster.py kill 3; tools/cluster.py kill 5        # two of six: everything is still read",
            f"  aws s3 cp s3://first/CLUSTER.md - --endpoint-url {cluster.nodes[-2].endpoint} | head -3",
            "  tools/cluster.py admin node list",
            "  tools/cluster.py start 3; tools/cluster.py start 5      # and watch it heal:",
            f"  curl -s {cluster.nodes[0].endpoint}/metrics | grep anvil_shards_unhealthy",
            "  tools/cluster.py add; tools/cluster.py admin layout show",
            "",
            "Ctrl-C stops all. More in docs/CLUSTER.md.",
        ]
    )


# -- others ask it ----------------------------------------------------------------------------------------------------------------


def _ask(folder: Path, words: list[str]) -> str | None:
    """The answer of what runs in the folder, or None when nothing does."""
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            with _inside(folder):
                connection.connect("control.sock")
        except OSError:
            return None
        with connection.makefile("rw") as stream:
            stream.write(json.dumps(words) + "\n")
            stream.flush()
            return stream.read().rstrip("\n")


def _admin(folder: Path, arguments: list[str]) -> int:
    """`anvil admin` with the cluster's settings."""
    urls = _ask(folder, ["urls"])
    if urls is None:
        print(f"no cluster runs in {folder}: `make cluster` starts one", file=sys.stderr)
        return 3
    env = {
        **os.environ,
        **_secrets(folder),
        "PYTHONPATH": str(ROOT),
        "ANVIL_DATA_DIR": str(folder / "n0"),
        **json.loads(urls),
    }
    return subprocess.run([sys.executable, "-m", "anvil.cli.main", "admin", *arguments], env=env, check=False).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path("anvil-cluster"), help="where everything is kept (./anvil-cluster)")
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run", help="start the nodes, in the foreground")
    running.add_argument("--nodes", type=int, default=6)
    running.add_argument("--drives", type=int, default=1, help="per node")
    for verb in ("start", "stop", "kill", "hang", "resume"):
        commands.add_parser(verb, help=f"{verb} one node").add_argument("number", type=int)
    for verb in ("status", "add"):
        commands.add_parser(verb)
    commands.add_parser("admin", help="an `anvil admin` command").add_argument("arguments", nargs=argparse.REMAINDER)
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    if chosen.command == "run":
        return run(folder, chosen.nodes, chosen.drives)
    if chosen.command == "admin":
        return _admin(folder, chosen.arguments)
    said = _ask(folder, [chosen.command, *([str(chosen.number)] if "number" in chosen else [])])
    if said is None:
        print(f"no cluster runs in {folder}: `make cluster` starts one", file=sys.stderr)
        return 3
    print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
