"""A real node for tests: `anvil server` as a process of its own, on a free loopback port, in a folder of its own.

    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "2"}) as node:
        node.s3().create_bucket(Bucket="b")

Owns: the process and everything below it, which never outlives the `with`. Invariant: `start` returns once /ready says 200,
or fails with the node's own log. The port and the folder stay the same over `stop` and `start`.
"""

from __future__ import annotations

import configparser
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

import psutil

from tests.support.certificates import Pair
from tests.support.ports import free_port

START_S = 120.0
LOG_TAIL_BYTES = 20_000
ROOT = Path(__file__).parents[2]

RUNNING: list[AnvilNode] = []  # entered and not left: a failing test shows their logs (tests/conftest.py)


class NodeFailed(AssertionError):
    """The node did not do what was waited for; the message ends with its log."""


def wait_until(what: str, condition: Callable[[], object], deadline_s: float = 60.0) -> None:
    """Poll until `condition` holds, more seldom the longer it takes: to ask costs what is waited for. Fails with `what` after the
    deadline."""
    began = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began
        if waited_s > deadline_s:
            raise AssertionError(f"not within {deadline_s:g} s: {what}")
        time.sleep(min(0.02 + waited_s / 20, 0.2))


def lives(process: psutil.Process) -> bool:
    """Whether it still does something: one that has ended may be listed until process 1 has time for it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class AnvilNode:
    """`env`: settings beside those that a test node always gets (dev mode, no drain notice). `command`: what runs the server.
    `tls`: TLS on a port of its own beside plaintext, or alone where `plaintext` is False. `host`: where it listens; `within`: what its
    command is run by (`ip netns exec ...`), which must become the server itself."""

    def __init__(
        self,
        data_dir: Path,
        env: dict[str, str] | None = None,
        *,
        command: tuple[str, ...] = ("anvil.cli.main", "server"),
        tls: Pair | None = None,
        plaintext: bool = True,
        host: str = "127.0.0.1",
        within: tuple[str, ...] = (),
    ) -> None:
        self.data_dir = data_dir
        self.host = host
        self.port = free_port()
        self.tls = tls
        self.tls_port = free_port() if plaintext else self.port
        self._plaintext = plaintext
        secure = {} if tls is None else {"ANVIL_TLS_CERT": str(tls.cert), "ANVIL_TLS_KEY": str(tls.key)}
        if tls is not None and plaintext:
            secure["ANVIL_TLS_LISTEN_ADDR"] = f"{host}:{self.tls_port}"
        self.region = (env or {}).get("ANVIL_REGION", "us-east-1")
        self._command = [*within, sys.executable, "-m", *command]
        self._log = data_dir.parent / f"{data_dir.name}.log"
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("ANVIL_")} | {
            "PYTHONPATH": str(ROOT),
            "ANVIL_DATA_DIR": str(data_dir),
            "ANVIL_API_LISTEN_ADDR": f"{host}:{self.port}",
            "ANVIL_DEV_MODE": "true",
            "ANVIL_DRAIN_NOTICE_S": "0",
            **secure,
            **(env or {}),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._seen: dict[int, psutil.Process] = {}

    def configure(self, **env: str) -> None:
        """Other settings from the next start on."""
        self._env |= env

    # -- life ----------------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        RUNNING.append(self)
        try:
            self.start()
        except BaseException:
            RUNNING.remove(self)
            self.reap()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        RUNNING.remove(self)
        try:
            self.stop()
        finally:
            self.reap()
        if kind is not None:
            sys.stderr.write(f"\n--- log of the node in {self.data_dir}\n{self.log_tail()}\n")

    def start(self, deadline_s: float = START_S) -> None:
        """Start it (again) and wait until it is ready."""
        self.launch()
        self.wait_ready(deadline_s)

    def wait_ready(self, deadline_s: float = START_S) -> None:
        """Until a launched node is ready. Raises NodeFailed when it ends before that, or takes longer."""
        end = time.monotonic() + deadline_s
        while not self.is_ready():
            if self.process.poll() is not None:
                raise NodeFailed(f"the node ended with code {self.process.returncode}\n{self.log_tail()}")
            if time.monotonic() > end:
                raise NodeFailed(f"the node was not ready within {deadline_s:g} s: {self._why()}\n{self.log_tail()}")
            time.sleep(0.05)
        self._remember()

    def launch(self) -> None:
        """Start it without waiting."""
        self.data_dir.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.data_dir.parent
            )
        self._remember()

    def stop(self, deadline_s: float = 60.0) -> int:
        """SIGTERM and wait. Returns the exit code."""
        if self._process is None:
            return 0
        self._remember()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise NodeFailed(f"the node did not stop within {deadline_s:g} s\n{self.log_tail()}") from None

    def kill(self, pid: int, sig: int = signal.SIGKILL) -> None:
        """Signal one process of the node."""
        self._remember()
        os.kill(pid, sig)

    def signal_all(self, sig: int) -> None:
        """Signal every process of the node, the supervisor first, so that it sees nothing of it."""
        self._remember()
        for one in [one for one in self._seen.values() if one.is_running()]:
            try:
                one.send_signal(sig)
            except psutil.NoSuchProcess:
                continue

    def kill_all(self) -> None:
        """SIGKILL to every process of the node, as if the machine's power was cut (but for what only the page cache has)."""
        self.signal_all(signal.SIGKILL)
        psutil.wait_procs([one for one in self._seen.values() if one.pid != self.pid], timeout=30)
        self.process.wait(30)

    @property
    def launched(self) -> bool:
        """Whether it was ever started."""
        return self._process is not None

    @property
    def runs(self) -> bool:
        """Whether the supervisor is there, hung or not."""
        return self._process is not None and self._process.poll() is None

    def _remember(self) -> None:
        """Note everything below the supervisor, so that nothing is left behind whatever happens to it."""
        try:
            below = psutil.Process(self.process.pid)
            self._seen |= {one.pid: one for one in (below, *below.children(recursive=True))}
        except psutil.NoSuchProcess:
            return

    def reap(self) -> None:
        """Kill whatever is left of the node, children of a dead supervisor included."""
        if self.runs:
            self._remember()
        left = [one for one in self._seen.values() if lives(one) and one.pid != os.getpid()]
        for one in left:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        wait_until("what was killed has ended", lambda: not any(lives(one) for one in left), 10.0)

    # -- what it says ----------------------------------------------------------------------------------------------------------

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None, "the node was not started"
        return self._process

    @property
    def pid(self) -> int:
        """The supervisor's."""
        return self.process.pid

    @property
    def endpoint(self) -> str:
        return f"http://{self.host}:{self.port}" if self._plaintext else self.tls_endpoint

    @property
    def tls_endpoint(self) -> str:
        return f"https://{self.host}:{self.tls_port}"

    @property
    def worker_pids(self) -> list[int]:
        return self._children("worker")

    @property
    def background_pid(self) -> int | None:
        return next(iter(self._children("background")), None)

    def _children(self, kind: str) -> list[int]:
        found = []
        for one in psutil.Process(self.pid).children(recursive=True):
            try:
                title = " ".join(one.cmdline())
            except psutil.NoSuchProcess:
                continue
            if title.startswith(f"anvil: {kind}"):
                found.append(one.pid)
        return found

    def get(self, path: str, headers: dict[str, str] | None = None, timeout_s: float = 10.0) -> tuple[int, dict[str, str], bytes]:
        """Status, headers (lower case) and body of an unsigned GET. Raises URLError or OSError when nobody answers."""
        try:
            context = None if self._plaintext or self.tls is None else self.tls.client()
            with urlopen(Request(self.endpoint + path, headers=headers or {}), timeout=timeout_s, context=context) as answer:
                return answer.status, {name.lower(): value for name, value in answer.headers.items()}, answer.read()
        except HTTPError as error:
            return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()

    def _why(self) -> str:
        try:
            return self.get("/ready", timeout_s=5)[2].decode()
        except (URLError, OSError) as error:
            return str(error)

    def is_ready(self) -> bool:
        try:
            return self.get("/ready", timeout_s=5)[0] == 200
        except (URLError, OSError):
            return False

    def readiness(self) -> dict[str, Any]:
        """The body of /ready."""
        found: dict[str, Any] = json.loads(self.get("/ready")[2])
        return found

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric over all its label sets that have these labels."""
        token = self._env.get("ANVIL_METRICS_TOKEN")
        lines = self.get("/metrics", {"authorization": f"Bearer {token}"} if token else None)[2].decode().splitlines()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        found = [line for line in lines if line.startswith((f"{name} ", f"{name}{{")) and all(one in line for one in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def log_text(self) -> str:
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def log_tail(self) -> str:
        return self.log_text()[-LOG_TAIL_BYTES:]

    # -- clients -----------------------------------------------------------------------------------------------------------------

    @property
    def credentials_file(self) -> Path:
        return self.data_dir / "credentials"

    def _credential(self, name: str) -> str:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read(self.credentials_file)
        return parser["default"][name]

    @property
    def access_key(self) -> str:
        return self._credential("aws_access_key_id")

    @property
    def secret_key(self) -> str:
        return self._credential("aws_secret_access_key")

    def s3(self, config: Any = None, *, access_key: str | None = None, secret_key: str | None = None, tls: bool = False) -> Any:
        """A boto3 client, path-style unless `config` says otherwise. `tls`: over https."""
        import boto3
        from botocore.config import Config

        base = Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3, "mode": "standard"})
        return boto3.client(
            "s3",
            endpoint_url=self.tls_endpoint if tls else self.endpoint,
            verify=None if self.tls is None else str(self.tls.cert),
            region_name=self.region,
            aws_access_key_id=access_key or self.access_key,
            aws_secret_access_key=secret_key or self.secret_key,
            config=base.merge(config) if config is not None else base,
        )

    def anvil(self, *arguments: str, timeout_s: float = 180.0) -> subprocess.CompletedProcess[str]:
        """Run an `anvil` command with this node's settings."""
        return subprocess.run(
            [sys.executable, "-m", "anvil.cli.main", *arguments],
            env=self._env,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            cwd=self.data_dir.parent,
        )
