"""A Compose file as services: merges, variables, paths and shorthands resolved.

Owns: which keys are understood. Invariant: a key that is not raises Unknown, so what the file asks for is never left out in silence. Not
here: what an image brings (`images.py`), running it (`engine.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

TOP = {"name", "services", "networks", "volumes", "secrets"}
# Nothing follows from these here: what crashes stays down, so that a test sees it; logs are files; what `build` names is read by images.py.
WITHOUT_EFFECT = {"restart", "logging"}
VARIABLE = re.compile(r"\$(?:(\$)|\{(\w+)(?:(:-)([^}]*))?\}|(.?))")
UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
UNITS_BYTES = {"": 1, "b": 1, "k": 2**10, "m": 2**20, "g": 2**30}


class Unknown(Exception):
    """The file says something that is not understood here."""


@dataclass(frozen=True)
class Health:
    command: tuple[str, ...]
    interval_s: float
    timeout_s: float
    retries: int
    start_s: float

    @property
    def deadline_s(self) -> float:
        """When a service that never answered is unhealthy."""
        return self.start_s + self.retries * (self.interval_s + self.timeout_s)


@dataclass(frozen=True)
class Mount:
    """`volume`: a name; otherwise `source` is a path of this machine."""

    target: str
    source: str
    volume: bool
    read_only: bool


@dataclass(frozen=True)
class Service:
    name: str
    image: str
    dockerfile: Path | None
    command: tuple[str, ...]
    environment: Mapping[str, str]
    mounts: tuple[Mount, ...]
    tmpfs: Mapping[str, str]
    networks: tuple[str, ...]
    ports: tuple[tuple[str, int, int], ...]
    health: Health | None
    depends: Mapping[str, str]
    capabilities: tuple[str, ...] | None  # those that are left; None: all
    no_new_privileges: bool
    open_files: int | None
    shm_bytes: int
    read_only: bool
    stop_s: float


@dataclass(frozen=True)
class Project:
    name: str
    services: Mapping[str, Service]
    networks: tuple[str, ...]


def load(path: Path, environment: Mapping[str, str]) -> Project:
    """`environment`: what `${NAME:-default}` is taken from, before a file `.env` beside `path`. Raises Unknown."""
    beside = path.parent / ".env"
    lines = beside.read_text().splitlines() if beside.exists() else []
    names = dict(line.split("=", 1) for line in lines if line.strip() and not line.startswith("#")) | dict(environment)
    tree = interpolated(yaml.safe_load(path.read_text()), names)
    only("the file", {key for key in tree if not key.startswith("x-")}, TOP)
    for name, network in tree["networks"].items():
        only(f"network {name}", network or {}, {"internal"})  # no network reaches the outside here
    for name, volume in tree["volumes"].items():
        only(f"volume {name}", volume or {}, set())
    for name, secret in tree["secrets"].items():
        only(f"secret {name}", secret, {"file"})
    services = {name: service(name, dict(keys), tree, path.parent.resolve()) for name, keys in tree["services"].items()}
    return Project(tree["name"], services, tuple(tree["networks"]))


def interpolated(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: interpolated(each, names) for key, each in value.items()}
    if isinstance(value, list):
        return [interpolated(each, names) for each in value]
    return VARIABLE.sub(lambda found: variable(found, names), value) if isinstance(value, str) else value


def variable(found: re.Match[str], names: Mapping[str, str]) -> str:
    dollar, name, has_default, default, other = found.groups()
    if dollar:
        return "$"
    if other is not None:
        raise Unknown(f"a variable is ${{NAME}} or ${{NAME:-default}}, not {found.group()!r}")
    if names.get(name):
        return names[name]
    if not has_default:
        raise Unknown(f"{name} is not set, and {found.group()} has no default")
    return str(default)


def only(where: str, keys: Any, known: set[str]) -> None:
    if unknown := set(keys) - known:
        raise Unknown(f"{where}: {', '.join(sorted(unknown))} is not understood by tests/support/compose")


def service(name: str, keys: dict[str, Any], tree: dict[str, Any], folder: Path) -> Service:
    for key in WITHOUT_EFFECT:
        keys.pop(key, None)
    build = keys.pop("build", None)
    if build is not None:
        only(f"{name}: build", build, {"context", "dockerfile"})
    limits = keys.pop("ulimits", {})
    only(f"{name}: ulimits", limits, {"nofile"})
    options = keys.pop("security_opt", [])
    only(f"{name}: security_opt", options, {"no-new-privileges:true"})
    dropped, added = keys.pop("cap_drop", None), keys.pop("cap_add", [])
    if dropped not in (None, ["ALL"]) or (added and dropped is None):
        raise Unknown(f"{name}: capabilities are dropped all, or none")
    depends = keys.pop("depends_on", [])
    if isinstance(depends, list):
        depends = {each: {"condition": "service_started"} for each in depends}
    made = Service(
        name=name,
        image=keys.pop("image"),
        dockerfile=None if build is None else folder / build["context"] / build["dockerfile"],
        command=tuple(keys.pop("command", ())),
        environment={key: str(value) for key, value in keys.pop("environment", {}).items()},
        mounts=(*mounts(name, keys.pop("volumes", []), tree, folder), *secrets(name, keys.pop("secrets", []), tree, folder)),
        tmpfs=dict((*line.split(":", 1), "")[:2] for line in keys.pop("tmpfs", [])),
        networks=tuple(keys.pop("networks")),
        ports=tuple(port(line) for line in keys.pop("ports", [])),
        health=health(name, keys.pop("healthcheck", None)),
        depends={each: told["condition"] for each, told in depends.items()},
        capabilities=None if dropped is None else tuple(added),
        no_new_privileges=bool(options),
        open_files=limits.get("nofile"),
        shm_bytes=size(keys.pop("shm_size", "64m")),
        read_only=keys.pop("read_only", False),
        stop_s=seconds(keys.pop("stop_grace_period", "10s")),
    )
    only(name, keys, set())
    only(f"{name}: networks", made.networks, set(tree["networks"]))
    only(f"{name}: depends_on", made.depends, set(tree["services"]))
    only(f"{name}: depends_on", made.depends.values(), {"service_started", "service_healthy"})
    return made


def mounts(name: str, lines: list[str], tree: dict[str, Any], folder: Path) -> list[Mount]:
    made = []
    for line in lines:
        source, target, *how = line.split(":")
        only(f"{name}: {line}", how, {"ro", "rw"})
        volume = not source.startswith((".", "/"))
        if volume:
            only(f"{name}: volumes", {source}, set(tree["volumes"]))
        elif not (folder / source).exists():
            raise Unknown(f"{name}: {line}: there is no {folder / source}")
        made.append(Mount(target, source if volume else str((folder / source).resolve()), volume, "ro" in how))
    return made


def secrets(name: str, names: list[str], tree: dict[str, Any], folder: Path) -> list[Mount]:
    only(f"{name}: secrets", names, set(tree["secrets"]))
    made = [Mount(f"/run/secrets/{each}", str(folder / tree["secrets"][each]["file"]), False, True) for each in names]
    if lacking := [mount.source for mount in made if not Path(mount.source).exists()]:
        raise Unknown(f"{name}: secrets are not there: {lacking}")
    return made


def port(line: str) -> tuple[str, int, int]:
    """Address and port that are published, and the service's own."""
    *address, outside, inside = line.split(":")
    return (address[0] if address else "", int(outside), int(inside))


def health(name: str, keys: dict[str, Any] | None) -> Health | None:
    if keys is None:
        return None
    only(f"{name}: healthcheck", keys, {"test", "interval", "timeout", "retries", "start_period"})
    kind, *command = keys["test"]
    if kind != "CMD":
        raise Unknown(f"{name}: healthcheck: {kind}")
    interval, timeout = seconds(keys.get("interval", "30s")), seconds(keys.get("timeout", "30s"))
    return Health(tuple(command), interval, timeout, keys.get("retries", 3), seconds(keys.get("start_period", "0s")))


def seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+)(ms|s|m|h)", text)
    if found is None:
        raise Unknown(f"{text!r} is no time")
    return int(found[1]) * UNITS_S[found[2]]


def size(text: str | int) -> int:
    found = re.fullmatch(r"(\d+)([bkmg]?)b?", str(text).lower())
    if found is None:
        raise Unknown(f"{text!r} is no size")
    return int(found[1]) * UNITS_BYTES[found[2]]
