"""The guide for trying out a cluster (docs/CLUSTER.md, "Try it"), typed as it stands: `make cluster`'s six nodes, kills, healing, growth.

In a network namespace of its own, where the ports of the guide are free.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import needs
from tests.support.network import can_make_networks, ip
from tests.support.node import ROOT, wait_until

pytestmark = pytest.mark.slow
START_S, STEP_S = 240.0, 180.0


def blocks() -> list[str]:
    text = (ROOT / "docs" / "CLUSTER.md").read_text().partition("## Try it")[2].partition("\n## ")[0]
    return re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


class Shell:
    """Runs a line of the guide, in its folder and network, with what was exported before."""

    def __init__(self, folder: Path, within: tuple[str, ...]) -> None:
        self.folder = folder
        self._within = within
        self._exported = ""

    def run(self, line: str, *, check: bool = True) -> str:
        if line.startswith("export "):
            self._exported += line + "\n"
            return ""
        script = f"set -o pipefail\n{self._exported}{line}"
        command = [*self._within, "bash", "-c", script]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=STEP_S, check=False)
        assert not check or done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def metric(self, name: str) -> float:
        told = self.run(f"curl -s http://127.0.0.1:50051/metrics | grep ^{name}")
        return sum(float(line.rsplit(" ", 1)[1]) for line in told.splitlines())


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    if not can_make_networks():
        needs.missing("this user cannot make network namespaces")
    for name in ("tools", "docs", "README.md", ".venv"):
        (tmp_path / name).symlink_to(ROOT / name)
    namespace = f"anvil-{uuid.uuid4().hex[:8]}"
    ip("netns", "add", namespace)
    within = ("ip", "netns", "exec", namespace)
    try:
        subprocess.run([*within, "ip", "link", "set", "lo", "up"], check=True)
        recipe = re.search(
            r"^cluster:.*\n\t@exec \$\(BIN\)/python (.*) \$\(ARGS\)", (ROOT / "Makefile").read_text(), re.MULTILINE
        )
        assert recipe is not None
        with (tmp_path / "cluster.log").open("wb") as log:
            started = [*within, ".venv/bin/python", *recipe[1].split()]
            process = subprocess.Popen(started, cwd=tmp_path, stdout=log, stderr=log, env={**os.environ, "ANVIL_WORKERS": "1"})
        try:
            yield Shell(tmp_path, within)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
    finally:
        ip("netns", "del", namespace)


def test_the_guide(shell: Shell) -> None:
    first, use, kill, heal, grow = blocks()
    assert first.startswith("make cluster")
    log = shell.folder / "cluster.log"
    wait_until("six nodes are ready", lambda: "Ctrl-C stops all" in log.read_text(), START_S)

    for line in use.splitlines():
        said = shell.run(line)
    assert "CLUSTER.md" in said, "another node lists what this one took"
    *kills, listed = kill.splitlines()
    said = "".join(shell.run(line) for line in kills)
    assert "# Several nodes" in said, said

    def down() -> set[str]:
        rows = [row.split() for row in shell.run(listed).splitlines()]
        return {row[1] for row in rows if row[3:4] == ["no"]}

    wait_until("the list says so", lambda: down() == {"n3", "n5"})
    refused = shell.run("head -c 1000000 /dev/zero | aws s3 cp - s3://first/refused", check=False)
    assert "SlowDown" in refused or "ServiceUnavailable" in refused, refused

    *starts, watched = heal.splitlines()
    for line in starts:
        shell.run(line)
    assert "anvil_shards_unhealthy" in watched
    wait_until("it has healed", lambda: shell.metric("anvil_shards_unhealthy") == 0, STEP_S)
    shell.run("tools/cluster.py hang 2")
    assert "# Several nodes" in shell.run("aws s3 cp s3://first/CLUSTER.md -")
    shell.run("tools/cluster.py resume 2")

    add, show, drain, remove = grow.splitlines()
    shell.run(add)

    def moved() -> bool:
        told = shell.run(show)
        return "in effect everywhere" in told and "n6" in told

    wait_until("the seventh node has its part", moved, STEP_S)
    shell.run(drain)
    wait_until("it is drained", lambda: "drained" in shell.run("tools/cluster.py admin node list"), STEP_S)
    shell.run(remove)
    assert "# Several nodes" in shell.run("aws s3 cp s3://first/CLUSTER.md -")
    assert shell.run("aws s3 cp s3://first/while-one-is-dead - | cmp - README.md") == ""
