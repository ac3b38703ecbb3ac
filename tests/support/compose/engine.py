"""What `docker compose` does to a project: start, stop, look at and enter its services.

Owns: the folder of the state (volumes; of each service its specification, log, process and end) and the network devices: a bridge for each
network, and a pair between it and each service, as an engine lays them. Published ports are passed on by a process of their own
(`relay.py`). Invariant: whatever is started belongs to process 1 of the machine (`machine.py`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tests.support.compose.box import Spec, open_box
from tests.support.compose.file import Mount, Project, Service
from tests.support.compose.images import Image, image

PREFIX = "172.30"  # of the machine's own networks: nothing else is in its namespace
FIRST_HOST = 10
START_S = 30.0
ONCE_S = 120.0
POLL_S = 0.2


class Failed(Exception):
    """It could not be done; the message says why, with the end of the service's log."""


class Engine:
    def __init__(self, state: Path, project: Project) -> None:
        self._state = state
        self._project = project
        self._names = list(project.services)

    # -- what there is --------------------------------------------------------------------------------------------------------

    def _folder(self, name: str) -> Path:
        folder = self._state / "services" / name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def service(self, name: str) -> Service:
        if name not in self._project.services:
            raise Failed(f"no such service: {name}")
        return self._project.services[name]

    def image(self, name: str) -> Image | None:
        return image(self.service(name))

    def process(self, name: str) -> int | None:
        """Of its process 1, if it runs."""
        path = self._folder(name) / "pid"
        if not path.exists():
            return None
        number, began = path.read_text().split()
        return int(number) if began == start_time(int(number)) else None

    def running(self, name: str) -> int:
        process = self.process(name)
        if process is None:
            raise Failed(f"service {name!r} is not running")
        return process

    def log(self, name: str) -> Path:
        return self._folder(name) / "log"

    def state(self, name: str) -> str:
        if self.image(name) is None:
            return "not run: nothing here stands for its image"
        if self.process(name) is None:
            ended = self._folder(name) / "exit"
            return f"exited ({(ended.read_text() if ended.exists() else '') or 137})"
        return "running" if self.service(name).health is None else f"running ({'' if self.healthy(name) else 'un'}healthy)"

    def healthy(self, name: str) -> bool:
        health = self.service(name).health
        if health is None:
            return self.process(name) is not None
        command = self.within(name, health.command)
        try:
            return subprocess.run(command, capture_output=True, timeout=health.timeout_s, check=False).returncode == 0
        except subprocess.TimeoutExpired:
            return False

    # -- starting and stopping ---------------------------------------------------------------------------------------------------

    def up(self, names: Sequence[str], *, dependencies: bool, wait: bool) -> Iterator[str]:
        """Start what does not run, and anew what runs on another image or otherwise than the file says. Yields what was done."""
        wanted = self._ordered(names or self._names) if dependencies else list(names or self._names)
        self._networks()
        for name in wanted:
            made = self.image(name)
            if made is None:
                yield f"{name}: {self.state(name)}"
                continue
            spec = self._specification(self.service(name), made)
            saved = self._folder(name) / "spec.json"
            told = {"image": made.identity, "spec": repr(spec)}
            same = saved.exists() and json.loads(saved.read_text()) == told
            if self.process(name) is not None:
                if same:
                    yield f"{name}: running"
                    continue
                self.stop(name)
            saved.write_text(json.dumps(told))
            for dependency, condition in self.service(name).depends.items() if dependencies else ():
                if condition == "service_healthy":
                    self._wait_healthy(dependency)
            self._start(name, spec)
            yield f"{name}: started"
        for name in wanted if wait else ():
            if self.image(name) is not None:
                self._wait_healthy(name)
                yield f"{name}: {self.state(name)}"

    def _ordered(self, names: Sequence[str]) -> list[str]:
        """With what they depend on, that first."""
        found: list[str] = []
        for name in names:
            found += [each for each in [*self._ordered(list(self.service(name).depends)), name] if each not in found]
        return found

    def _wait_healthy(self, name: str) -> None:
        health = self.service(name).health
        end = time.monotonic() + (START_S if health is None else health.deadline_s)
        while not self.healthy(name):
            if self.process(name) is None:
                raise Failed(f"{name}: {self.state(name)}\n{tail(self.log(name))}")
            if time.monotonic() > end:
                raise Failed(f"{name} is unhealthy\n{tail(self.log(name))}")
            time.sleep(POLL_S)

    def start(self, name: str) -> None:
        made = self.image(name)
        if made is None or not (self._folder(name) / "spec.json").exists():
            raise Failed(f"there is no container for {name}")
        if self.process(name) is None:
            self._start(name, self._specification(self.service(name), made))

    def _start(self, name: str, spec: Spec) -> None:
        folder = self._folder(name)

        def ready(process: int) -> None:
            (folder / "pid").write_text(f"{process} {start_time(process)}")
            self._connect(name, process)

        open_box(spec, self.log(name), ready, apart=True)
        service = self.service(name)
        if service.ports:
            target = self._address(name, service.networks[0])
            ports = [f"{address}:{outside}:{target}:{inside}" for address, outside, inside in service.ports]
            with (folder / "ports.log").open("ab") as log:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.support.compose.relay", *ports],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            (folder / "ports").write_text(f"{process.pid} {start_time(process.pid)}")

    def once(self, name: str, command: Sequence[str]) -> tuple[int, str]:
        """A service that does not run, with another command, to its end; what it depends on is started. Returns its status and output."""
        if self.process(name) is not None:
            raise Failed(f"{name} runs, and has its address")
        for _ in self.up(list(self.service(name).depends), dependencies=True, wait=True):
            continue
        made = self.image(name)
        assert made is not None
        log, ended = self._folder(name) / "once.log", self._folder(name) / "once"
        log.unlink(missing_ok=True)
        spec = self._specification(self.service(name), made)
        spec = dataclasses.replace(spec, command=(*made.entry, *command), exit_file=str(ended))
        process = open_box(spec, log, lambda process: self._connect(name, process), apart=True)
        began = start_time(process)
        if not wait_for(lambda: not began or start_time(process) != began, ONCE_S):
            raise Failed(f"{name}: {' '.join(command)} does not end\n{tail(log)}")
        return int(ended.read_text() or 137), log.read_text(errors="replace")

    def stop(self, name: str) -> None:
        """As its image wants to be asked, and by force after the grace."""
        process, made = self.process(name), self.image(name)
        if process is None or made is None:
            return
        os.kill(process, signal.Signals[f"SIG{made.stop}"])
        if not wait_for(lambda: self.process(name) is None, self.service(name).stop_s):
            self.kill(name)
        self._end_ports(name)

    def kill(self, name: str) -> None:
        """Everything in it, at once: the kernel ends what is below process 1."""
        os.kill(self.running(name), signal.SIGKILL)
        if not wait_for(lambda: self.process(name) is None, START_S):
            raise Failed(f"{name} does not end")
        (self._folder(name) / "exit").unlink(missing_ok=True)
        self._end_ports(name)

    def signal(self, name: str, sent: str) -> None:
        os.kill(self.running(name), signal.Signals[f"SIG{sent.removeprefix('SIG')}"])

    def _end_ports(self, name: str) -> None:
        path = self._folder(name) / "ports"
        if path.exists():
            number, began = path.read_text().split()
            if began == start_time(int(number)):
                os.kill(int(number), signal.SIGKILL)
            path.unlink()

    def down(self) -> None:
        """Volumes stay."""
        for name in reversed(self._ordered(self._names)):
            self.stop(name)
            shutil.rmtree(self._folder(name))

    # -- entering ----------------------------------------------------------------------------------------------------------------

    def within(self, name: str, command: Sequence[str]) -> list[str]:
        """What runs a command in a service as its user."""
        made = self.image(name)
        process = self.running(name)
        assert made is not None
        spec = self._specification(self.service(name), made)
        variables = [f"{key}={value}" for key, value in spec.environment.items()]
        enter = ["nsenter", "-t", str(process), "-m", "-u", "-i", "-n", "-p"]
        return [*enter, "env", "-i", "-C", spec.folder, *variables, *spec.privileges(), *command]

    def path(self, name: str, path: str) -> Path:
        """Where this machine finds a file of a service."""
        return Path(f"/proc/{self.running(name)}/root") / path.lstrip("/")

    # -- what a service is made of -------------------------------------------------------------------------------------------------

    def _specification(self, service: Service, made: Image) -> Spec:
        hosts = ["127.0.0.1 localhost", "::1 localhost"]
        for other in self._project.services.values():
            shared = [network for network in service.networks if network in other.networks]
            hosts += [f"{self._address(other.name, network)} {other.name}" for network in shared[:1]]
        return Spec(
            host=service.name,
            command=(*made.entry, *(service.command or made.command)),
            environment={**made.environment, **service.environment, "HOME": made.folder},
            folder=made.folder,
            user=made.uid,
            capabilities=service.capabilities,
            no_new_privileges=service.no_new_privileges,
            open_files=service.open_files,
            shm_bytes=service.shm_bytes,
            read_only=service.read_only,
            mounts=tuple((self._source(mount, made), mount.target, mount.read_only) for mount in service.mounts),
            tmpfs=dict(service.tmpfs),
            owners=dict(made.owners),
            links=dict(made.links),
            files={"/etc/hosts": "\n".join(hosts) + "\n"},
            exit_file=str(self._folder(service.name) / "exit"),
        )

    def _source(self, mount: Mount, made: Image) -> str:
        """A new volume takes over owner and mode of the folder that the image has there."""
        if not mount.volume:
            return mount.source
        path = self._state / "volumes" / mount.source
        if not path.exists():
            path.mkdir(parents=True)
            uid, mode = made.owners.get(mount.target, (0, 0o755))
            os.chown(path, uid, uid)
            path.chmod(mode)
        return str(path)

    # -- networks ----------------------------------------------------------------------------------------------------------------

    def _address(self, name: str, network: str) -> str:
        return f"{PREFIX}.{self._project.networks.index(network)}.{FIRST_HOST + self._names.index(name)}"

    def _networks(self) -> None:
        ip("link", "set", "lo", "up")
        for number, network in enumerate(self._project.networks):
            with contextlib.suppress(Failed):  # it is there
                ip("link", "add", bridge(network), "type", "bridge")
                ip("addr", "add", f"{PREFIX}.{number}.1/24", "dev", bridge(network))
                ip("link", "set", bridge(network), "up")

    def _connect(self, name: str, process: int) -> None:
        inside = ("nsenter", "-t", str(process), "-n", "ip")
        run(*inside, "link", "set", "lo", "up")
        for number, network in enumerate(self.service(name).networks):
            device, outside = f"eth{number}", f"v{self._names.index(name)}n{number}"
            with contextlib.suppress(Failed):  # that of a service which has only just gone, or none
                ip("link", "del", outside)
            ip("link", "add", outside, "type", "veth", "peer", "name", device, "netns", str(process))
            ip("link", "set", outside, "master", bridge(network), "up")
            run(*inside, "addr", "add", f"{self._address(name, network)}/24", "dev", device)
            run(*inside, "link", "set", device, "up")


def bridge(network: str) -> str:
    return f"br-{network}"


def ip(*arguments: str) -> None:
    run("ip", *arguments)


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")


def start_time(process: int) -> str:
    """What tells a process from a later one of the same number; empty when it is not there, or has ended."""
    try:
        words = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if words[0] in "ZX" else words[19]


def wait_for(condition: Callable[[], bool], deadline_s: float) -> bool:
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def tail(path: Path) -> str:
    return path.read_text(errors="replace")[-4000:] if path.exists() else ""
