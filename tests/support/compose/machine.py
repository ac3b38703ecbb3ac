"""A machine of the test's own, on which an operator types: a network, processes and a root file system that nothing else is in.

Owns: the box that it is, the command `docker` in its PATH, and what runs on it. Invariant: it ends with the `with`, or with this process,
and with it everything that was started on it. Needs root and iproute2.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.support.compose.box import ROOT, Spec
from tests.support.compose.images import SYSTEM
from tests.support.needs import program
from tests.support.network import can_make_networks
from tests.support.node import wait_until

SHELLS = {"_", "SHLVL", "PWD", "OLDPWD"}  # variables that are each shell's own
PROGRAMS = ("ip", "caddy", "prometheus", "curl", "openssl", "nsenter", "setpriv")


@dataclass
class Ran:
    """What a script wrote to both outputs, how it ended, and how long it took."""

    text: str
    code: int
    seconds: float


@dataclass
class Machine:
    """`folder` is there under the same path, and `tree` as `home`, where scripts begin; nothing else lasts. `folders` are made."""

    folder: Path
    tree: Path
    home: str
    folders: tuple[str, ...] = ()
    process: int = 0
    variables: dict[str, str] = field(default_factory=dict)
    _holder: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("only root can make namespaces")
        for name in PROGRAMS:
            program(name)
        if not can_make_networks():
            pytest.skip("this machine does not let root make namespaces")
        commands, state = self.folder / "bin", self.folder / "engine"
        commands.mkdir()
        state.mkdir()
        docker = commands / "docker"
        docker.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m tests.support.compose "$@"\n')
        docker.chmod(0o755)
        self.variables |= {
            "PATH": f"{commands}:{Path(sys.executable).parent}:{SYSTEM}",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            "COMPOSE_STATE": str(state),
        }
        spec = Spec(
            host="machine",
            command=("sleep", "infinity"),
            environment=dict(self.variables),
            mounts=((str(self.folder), str(self.folder), False), (str(self.tree), self.home, False)),
            owners={"/root": (0, 0o700), "/run": (0, 0o755), **dict.fromkeys(self.folders, (0, 0o755))},
            files={"/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n"},
        ).save(self.folder / "machine.json")
        self._holder = subprocess.Popen(
            [sys.executable, "-m", "tests.support.compose.box", str(spec)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert self._holder.stdout is not None
        said = self._holder.stdout.readline()
        assert said, f"the machine did not start: {spec.with_suffix('.log').read_text()}"
        self.process = int(said)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._holder is not None
        self._holder.kill()
        self._holder.wait(30)
        wait_until("the kernel has ended what was on the machine", lambda: not Path(f"/proc/{self.process}").exists())

    def command(self, *words: str) -> list[str]:
        enter = ["nsenter", "-t", str(self.process), "-m", "-u", "-i", "-n", "-p"]
        variables = [f"{name}={value}" for name, value in self.variables.items()]
        return [*enter, "env", "-i", "-C", self.home, *variables, *words]

    def run(self, script: str, deadline_s: float = 120.0) -> Ran:
        """By bash, which ends at the first command that fails and shows each. What it exports is there for the next one."""
        began = time.monotonic()
        kept = self.folder / "exported"
        kept.unlink(missing_ok=True)
        saving = f"trap '{{ env -0 >{kept}; }} 2>/dev/null' EXIT; set -x"
        done = self._bash(f"{saving}\n{script}", subprocess.STDOUT, deadline_s)
        if kept.exists():
            exported = (line.partition("=") for line in kept.read_text().split("\0") if line)
            self.variables |= {name: value for name, _, value in exported if name not in SHELLS}
        return Ran(done.stdout, done.returncode, time.monotonic() - began)

    def ask(self, script: str, deadline_s: float = 120.0) -> str:
        """The standard output of a script that must not fail; what it exports is forgotten."""
        done = self._bash(script, subprocess.PIPE, deadline_s)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}\nended with {done.returncode}"
        return done.stdout

    def _bash(self, script: str, errors: int, deadline_s: float) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command("bash", "-eo", "pipefail", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            errors="replace",
            timeout=deadline_s,
            check=False,
        )

    def launch(self, words: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Something beside: its process is that of nsenter, which ends with it."""
        with log.open("wb") as output:
            return subprocess.Popen(self.command(*words), stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def logs(self) -> dict[str, str]:
        """The end of what each service said."""
        paths = (self.folder / "engine" / "services").glob("*/log")
        return {path.parent.name: path.read_text(errors="replace")[-6000:] for path in sorted(paths)}


def checkout(folder: Path) -> Path:
    """A copy of what an operator has of the tree: the documents and `docker/`, without anybody's secrets."""
    folder.mkdir(parents=True)
    for path in [*ROOT.glob("*.md"), ROOT / "LICENSE", ROOT / "pyproject.toml", ROOT / "requirements.lock", ROOT / "setup.py"]:
        shutil.copy(path, folder)
    for name in ("docker", "docs", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("secrets", "__pycache__"))
    return folder
