"""What the images of docker/compose.yaml bring, as far as this machine has it.

Anvil's is read from its Dockerfile: user, variables, folders that volumes take their owner from, command. The others are known by name,
with the programs that are installed here, which are of other versions: PostgreSQL is the embedded one. Grafana is not run.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from anvil.meta.embedded import installed
from tests.support.compose.file import Service, Unknown
from tests.support.needs import find

ROOT = Path(__file__).parents[3]
POSTGRES_UID, NOBODY_UID = 999, 65534
SYSTEM = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INITIAL = ("/usr/bin/tini", "--")  # process 1; here that of box.py


@dataclass(frozen=True)
class Image:
    """`entry` comes before the command. `owners`: user and mode of folders that are there. `links`: programs, by their path there."""

    identity: str
    uid: int
    entry: tuple[str, ...]
    command: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    folder: str = "/"
    owners: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    stop: str = "TERM"


def image(service: Service) -> Image | None:
    """None where there is nothing here that could run it. Raises Unknown."""
    if service.dockerfile is not None:
        return anvil(service.dockerfile)
    name = service.image.partition(":")[0]
    if name == "grafana/grafana":
        return None
    if name not in OTHERS:
        raise Unknown(f"{service.name}: nothing here stands for the image {service.image}")
    return OTHERS[name](service.image)


def anvil(dockerfile: Path) -> Image:
    text = dockerfile.read_text().replace("\\\n", " ")
    final = text.rsplit("\nFROM ", 1)[-1]
    variables = dict(re.findall(r"([A-Z_]+)=(\S+)", " ".join(re.findall(r"^ENV (.*)", final, re.MULTILINE))))
    uid, folder = one(r"^USER (\d+):\d+$", final), one(r"^WORKDIR (\S+)$", final)
    mode, folders = re.search(r"install -d -m (\d+) -o anvil -g anvil (.*)", final).groups()  # type: ignore[union-attr]
    entry = tuple(re.findall(r'"([^"]*)"', one(r"^ENTRYPOINT (.*)", final)))
    if entry[: len(INITIAL)] != INITIAL:
        raise Unknown(f"{dockerfile}: process 1 is not {INITIAL[0]}")
    program = Path(sys.executable).parent / "anvil"
    return Image(
        identity=digest(dockerfile),
        uid=int(uid),
        entry=entry[len(INITIAL) :],
        command=tuple(re.findall(r'"([^"]*)"', one(r"^CMD (.*)", final))),
        environment=variables,
        folder=folder,
        owners={path: (int(uid), int(mode, 8)) for path in folders.split()},
        links={"/opt/anvil/bin/anvil": str(program), "/opt/anvil/postgres/bin": str(postgres())},
    )


def one(pattern: str, text: str) -> str:
    [found] = re.findall(pattern, text, re.MULTILINE)
    return str(found)


def digest(dockerfile: Path) -> str:
    """Another one when a file has changed that the image is built from. Folders are those of the release, and do not change here."""
    context = dockerfile.parents[1]
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile.read_text(), re.MULTILINE)
    files = [dockerfile, *(context / name for line in copied for name in line.split())]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files if path.is_file())).hexdigest()


def postgres() -> Path:
    """The folder of PostgreSQL's programs."""
    return installed()[0]


def database(name: str) -> Image:
    return Image(
        identity=name,
        uid=POSTGRES_UID,  # root there, until its script has become this user
        entry=(str(Path(__file__).with_name("postgres.sh")),),
        command=("postgres",),
        environment={"PATH": f"{postgres()}:{SYSTEM}", "LANG": "C.UTF-8"},
        owners={"/var/lib/postgresql/data": (POSTGRES_UID, 0o700), "/var/run/postgresql": (POSTGRES_UID, 0o755)},
        stop="INT",
    )


def caddy(name: str) -> Image:
    return Image(
        identity=name,
        uid=0,
        entry=(),
        command=(found("caddy"), "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"),
        environment={"PATH": SYSTEM, "XDG_CONFIG_HOME": "/config", "XDG_DATA_HOME": "/data"},
        folder="/srv",
        owners={"/config": (0, 0o755), "/data": (0, 0o755), "/srv": (0, 0o755)},
    )


def prometheus(name: str) -> Image:
    return Image(
        identity=name,
        uid=NOBODY_UID,
        entry=(found("prometheus"),),
        environment={"PATH": SYSTEM},
        folder="/prometheus",
        owners={"/prometheus": (NOBODY_UID, 0o755)},
    )


def found(name: str) -> str:
    path = find(name)
    if path is None:
        raise Unknown(f"{name} is not installed")
    return path


OTHERS = {"postgres": database, "caddy": caddy, "prom/prometheus": prometheus}
