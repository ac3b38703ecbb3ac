"""`anvil server`: starts everything in order, keeps it running, and stops it in order.

Order: data directory and its lock, secrets, port, PostgreSQL, migrations and first key pair, background process, workers.
Owns: the processes of the node and their exit. Invariants: what one step needs was done by an earlier one; SIGTERM and
SIGINT drain (503 on /ready first, then nothing new is accepted, requests finish, leases are released, the database stops
last); a second signal ends everything at once; no child survives. Not here: what the children do (`node/worker.py`,
`node/background.py`), the restarts of PostgreSQL (`meta/embedded.py`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from anvil.base import log as logs
from anvil.base.addresses import here
from anvil.base.config import Address, Config
from anvil.base.errors import AnvilError, InvalidSetting, Unavailable
from anvil.base.limits import LEAVE_TASKS_S, STOP_MARGIN_S
from anvil.base.version import VERSION
from anvil.net.tls import load
from anvil.node.child import Drain, Members, Plan
from anvil.node.datadir import DataDirectory, RunningNode
from anvil.node.forkserver import ForkServer
from anvil.node.parts import Embedded, KeyPair, Parts
from anvil.node.processes import ManagedProcess

log = logging.getLogger(__name__)
T = TypeVar("T")
EXIT_OK, EXIT_FAILED, EXIT_SETTING, EXIT_UNAVAILABLE = 0, 1, 2, 3  # as `cli/exits.py` has them


class StopEarly(BaseException):
    """A signal came before the node served."""


def run(config: Config, parts: Parts | None = None) -> int:
    """Run a node until it is told to stop. Returns the exit code. `parts`: the real ones unless given."""
    logs.setup(config.log, "supervisor")
    logs.protect(*config.secret_values)
    parts = parts or _real_parts()
    directory = DataDirectory(config.node.data_path)
    forks: ForkServer | None = None
    try:
        forks = ForkServer({"worker": parts.worker, "background": parts.background})
        directory.open()
        with _signals_raise():
            return _with_directory(config, parts, directory, forks)
    except StopEarly:
        return EXIT_OK
    except InvalidSetting as error:
        return _refuse(error, EXIT_SETTING)
    except Unavailable as error:
        return _refuse(error, EXIT_UNAVAILABLE)
    except AnvilError as error:
        return _refuse(error, EXIT_FAILED)
    finally:
        if forks is not None:
            forks.close()
        directory.close()


def _real_parts() -> Parts:
    from anvil.node.program import PARTS

    return PARTS


def _refuse(error: AnvilError, code: int) -> int:
    sys.stderr.write(f"anvil: {logs.redact(error.message)}\n")
    return code


def _with_directory(config: Config, parts: Parts, directory: DataDirectory, forks: ForkServer) -> int:
    config = directory.with_secrets(config)
    logs.protect(*config.secret_values)
    node_id = directory.node_id()
    api = config.api
    if api.tls_cert:
        load(api.tls_cert, api.tls_key)  # each worker loads it for itself; what is wrong with it is told now
    with ExitStack() as held:
        address = _hold(held, api.listen, "ANVIL_API_LISTEN_ADDR")
        tls_address = None if api.tls_listen is None else _hold(held, api.tls_listen, "ANVIL_TLS_LISTEN_ADDR")
        cluster = None if config.cluster.listen is None else _hold(held, config.cluster.listen, "ANVIL_CLUSTER_LISTEN_ADDR")
        embedded = parts.embedded(config) if config.database.embedded else None
        try:
            urls = embedded.start() if embedded is not None else (config.database.global_url, config.database.regional_url)
            keys = _run(parts.prepare(config, *urls, node_id))
            if keys is not None:
                directory.write_credentials(keys.access_key, keys.secret, config.node.region)
            supervisor = Supervisor(config, forks, directory, node_id, urls, address, tls_address, embedded, cluster)
            return asyncio.run(supervisor.run())
        finally:
            if embedded is not None:
                embedded.stop()  # again, which does nothing, where the supervisor got so far as to stop it


def _run(work: Coroutine[Any, Any, T]) -> T:
    """As `asyncio.run`, but what a disk that hangs still keeps busy is left behind, not waited for."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(work)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left, timeout=LEAVE_TASKS_S))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Until the loop takes the signals over, they end the start in order."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise StopEarly

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _hold(held: ExitStack, address: Address, name: str) -> Address:
    """The address with the port that it got."""
    return Address(address.host, held.enter_context(reserve(address, name)).getsockname()[1])


def reserve(address: Address, setting: str = "ANVIL_API_LISTEN_ADDR") -> socket.socket:
    """A socket bound to the address, not listening: it keeps the port for the workers, who bind beside it with
    SO_REUSEPORT. Raises Unavailable when somebody listens there (another node, too, which SO_REUSEPORT alone would let
    share the port unnoticed).
    """
    try:
        family, kind, protocol, _, name = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidSetting(f"{setting}={address} cannot be resolved ({error.strerror}): name an address") from None
    probe, held = socket.socket(family, kind, protocol), socket.socket(family, kind, protocol)
    try:
        with probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(name)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(name)
    except OSError as error:
        held.close()
        raise Unavailable(f"cannot listen on {address} ({error.strerror}): free it, or choose another {setting}") from None
    return held


class Supervisor:
    """The running node: one background process and the workers."""

    def __init__(
        self,
        config: Config,
        forks: ForkServer,
        directory: DataDirectory,
        node_id: bytes,
        urls: tuple[str, str],
        address: Address,
        tls_address: Address | None,
        embedded: Embedded | None,
        cluster_address: Address | None = None,
    ) -> None:
        self.config = config
        self.address = address
        self.tls_address = tls_address
        self._directory = directory
        self._forks = forks
        self._embedded = embedded
        self._urls = urls
        named = [("background", 0, "background")]
        named += [(f"worker-{index}", index, "worker") for index in range(config.node.worker_count)]
        tls, cluster = tls_address or Address("", 0), cluster_address or Address("", 0)
        self.processes = [
            ManagedProcess(
                Plan(name, index, config, *urls, node_id, *_parts(address), *_parts(tls), *_parts(cluster)),
                target,
                forks,
                self._tell_members,
            )
            for name, index, target in named
        ]
        self._signal: int | None = None
        self._signalled = asyncio.Event()

    @property
    def background(self) -> ManagedProcess:
        return self.processes[0]

    @property
    def workers(self) -> list[ManagedProcess]:
        return self.processes[1:]

    @property
    def endpoint(self) -> str:
        """The URL to give to clients on this machine."""
        if self.config.api.public_addrs:
            return self.config.api.public_urls[0]
        return f"{self.config.api.scheme}://{here(self.address)}"

    @property
    def tls_endpoint(self) -> str:
        """The same for TLS beside plaintext; empty where that is not configured."""
        return "" if self.tls_address is None else f"https://{here(self.tls_address)}"

    async def run(self) -> int:
        """Until a signal, or until a child shows that the node cannot run. Returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        if self.config.api.tls_cert:  # else the end of a terminal ends the node, as it does other programs
            loop.add_signal_handler(signal.SIGHUP, self._reload)
        stopped = loop.create_task(self._signalled.wait())
        self._forks.attach()
        keeping: list[asyncio.Task[None]] = [loop.create_task(self._forks.lost())]
        try:
            for group in (self.processes[:1], self.workers):
                keeping += [loop.create_task(process.run()) for process in group]
                for process in group:
                    await _first([loop.create_task(process.serving()), stopped], keeping)
                if stopped.done():
                    break
            else:
                self._announce()
                await _first([stopped], keeping)
            await self._stop()
        except Unavailable as error:
            log.error("the node cannot run: %s", error.message)
            return EXIT_FAILED
        finally:
            stopped.cancel()
            for process in self.processes:
                process.kill()
            keeping[0].cancel()
            self._forks.close()
            await asyncio.gather(*keeping, return_exceptions=True)
            if self._embedded is not None:
                await asyncio.to_thread(self._embedded.stop)  # in a thread, so that a second signal is still heard
        log.info("stopped")
        return EXIT_OK

    def _announce(self) -> None:
        self._directory.announce(RunningNode(os.getpid(), self.endpoint, *self._urls, self.tls_endpoint))
        log.info(
            "serving",
            extra={
                "endpoint": self.endpoint,
                **({"tls_endpoint": self.tls_endpoint} if self.tls_endpoint else {}),
                "version": VERSION,
                "workers": len(self.workers),
                "region": self.config.node.region,
            },
        )
        pair = self._directory.read_credentials()
        keys = KeyPair(*pair) if pair is not None else None
        terminal = sys.stdout.isatty()
        credentials = str(self._directory.credentials)
        region = self.config.node.region
        sys.stdout.write(welcome(self.endpoint, region, credentials, keys, terminal, self.tls_endpoint, container()))
        sys.stdout.flush()

    async def _stop(self) -> None:
        """Workers first, then the background process that serves them. PostgreSQL is stopped by the caller, last."""
        # Ctrl-C: somebody at the terminal waits, and no load balancer needs to notice.
        notice_s = 0.0 if self._signal == signal.SIGINT else self.config.node.drain_notice_s
        drain = Drain(notice_s, self.config.node.drain_s)
        log.info("stopping", extra={"notice_s": notice_s, "drain_s": drain.drain_s})
        self.background.tell("draining", None)
        patience_s = drain.notice_s + drain.drain_s + STOP_MARGIN_S
        await asyncio.gather(*(worker.stop(drain, patience_s) for worker in self.workers))
        await self.background.stop(Drain(0.0, STOP_MARGIN_S), STOP_MARGIN_S * 2)

    def _reload(self) -> None:
        """SIGHUP: whoever has renewed the certificate does not want to wait until the workers notice."""
        for worker in self.workers:
            worker.tell("reload", None)

    def _on_signal(self, number: int) -> None:
        if self._signal is not None:
            self._end_at_once(number)
        self._signal = number
        self._signalled.set()

    def _end_at_once(self, number: int) -> None:
        """The second signal: kill what runs. Acknowledged data is safe, since acknowledged means durable."""
        for process in self.processes:
            process.kill()
        if self._embedded is not None and self._embedded.pid is not None:
            os.kill(self._embedded.pid, signal.SIGQUIT)  # PostgreSQL's immediate shutdown: it recovers at the next start
        os._exit(128 + number)

    def _tell_members(self) -> None:
        pids = {process.plan.name: process.pid for process in self.processes if process.pid is not None}
        members = Members(pids | {"supervisor": os.getpid()}, {process.plan.name: process.restarts for process in self.processes})
        self.background.tell("members", members)


async def _first(wanted: list[asyncio.Task[object]], keeping: list[asyncio.Task[None]]) -> None:
    """Wait for one of `wanted`. Raises what a child's keeper raised, if one of these ends first."""
    done, _ = await asyncio.wait([*wanted, *keeping], return_when=asyncio.FIRST_COMPLETED)
    for task in keeping:
        if task in done:
            task.result()


def _parts(address: Address) -> tuple[str, int]:
    return address.host, address.port


def container() -> tuple[str, str]:
    """The program and the name by which the container that this node is the purpose of is reached from outside (`docker exec NAME`); empty
    outside of one, and where somebody at a shell in one started the node. Engines make a file of their own and name the host after
    the container; Kubernetes does neither.
    """
    if os.getpid() != 1 and os.getppid() != 1:
        return "", ""
    for mark, engine in (("/run/.containerenv", "podman"), ("/.dockerenv", "docker")):
        if Path(mark).exists():
            return engine, os.uname().nodename
    return "", ""


def welcome(
    endpoint: str,
    region: str,
    credentials: str,
    keys: KeyPair | None,
    terminal: bool,
    tls_endpoint: str = "",
    inside: tuple[str, str] = ("", ""),
) -> str:
    """What is printed once the node serves. The secret only to a terminal: elsewhere, standard output ends up in log files. `inside`: as
    `container` tells it."""
    also = f" and {tls_endpoint}" if tls_endpoint else ""
    lines = ["", f"Anvil {VERSION} serves S3 and gRPC at {endpoint}{also}  (region {region})", ""]
    if keys is not None:
        lines += [f"  access key   {keys.access_key}"]
        lines += [f"  secret key   {keys.secret}"] if terminal else []
    lines += [f"  credentials  {credentials}", ""]
    engine, name = inside
    if engine:
        lines += ["Try it, outside of this container, where its port is published:"]
        lines += [f"  {engine} exec {name} cat {credentials} > anvil-credentials"]
        credentials = "anvil-credentials"
    else:
        lines += ["Try it:"]
    lines += [
        f"  export AWS_SHARED_CREDENTIALS_FILE={credentials} AWS_ENDPOINT_URL={endpoint}",
        "  aws s3 mb s3://first && aws s3 cp README.md s3://first/ && aws s3 ls s3://first",
        "",
        "",
    ]
    return "\n".join(lines)
