"""What stands for Docker in tests (tests/support/compose): it understands docker/compose.yaml, and says so where it does not."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.compose import __main__ as docker
from tests.support.compose.engine import Failed
from tests.support.compose.file import Project, Unknown, load
from tests.support.compose.images import image
from tests.support.network import can_make_networks
from tests.support.node import ROOT, wait_until

Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of docker/ with secrets."""
    subprocess.run(["cp", "-r", ROOT / "docker", tmp_path], check=True)
    subprocess.run([tmp_path / "docker" / "make-secrets.sh", tmp_path / "docker" / "secrets"], check=True, capture_output=True)
    return tmp_path / "docker"


def changed(folder: Path, change: Change) -> Project:
    tree = yaml.safe_load((folder / "compose.yaml").read_text())
    change(tree)
    path = folder / "changed.yaml"
    path.write_text(yaml.safe_dump(tree))
    return load(path, {})


def test_what_the_file_says(folder: Path) -> None:
    project = load(folder / "compose.yaml", {"ANVIL_WORKERS": "3", "ANVIL_SITE": ""})
    node = project.services["node2"]
    assert node.environment["ANVIL_WORKERS"] == "3"
    assert node.environment["ANVIL_PUBLIC_API_ADDR"] == "https://localhost", "empty is unset"
    assert node.depends == {"global-database": "service_healthy", "regional-database": "service_healthy"}
    assert (node.networks, node.read_only, node.capabilities, node.open_files, node.stop_s) == (
        ("front", "inside"),
        True,
        (),
        65536,
        60,
    )
    assert {mount.target: mount.source for mount in node.mounts if mount.volume}["/backup"] == "backup"
    assert {mount.target for mount in node.mounts if not mount.volume} == {
        f"/run/secrets/{name}"
        for name in (
            "encryption_key",
            "jwt_secret",
            "cluster_secret",
            "metrics_token",
            "global_database_url",
            "regional_database_url",
        )
    }
    assert node.health is not None and node.health.command == ("anvil", "health", "--ready")
    assert project.services["caddy"].ports == (("", 80, 80), ("", 443, 443))
    assert project.services["caddy"].capabilities == ("NET_BIND_SERVICE",)
    assert project.services["prometheus"].ports == (("127.0.0.1", 9090, 9090),)
    assert project.services["global-database"].shm_bytes == 256 << 20


def test_a_file_beside_it_sets_variables(folder: Path) -> None:
    (folder / ".env").write_text("# of the store\nANVIL_SITE=s3.example.com\n")
    project = load(folder / "compose.yaml", {})
    assert project.services["caddy"].environment["ANVIL_SITE"] == "s3.example.com"
    assert load(folder / "compose.yaml", {"ANVIL_SITE": "other"}).services["caddy"].environment["ANVIL_SITE"] == "other"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda tree: tree.update(include=["more.yaml"]), "include"),
        (lambda tree: tree["services"]["node1"].update(privileged=True), "privileged"),
        (lambda tree: tree["services"]["node1"]["healthcheck"].update(start_interval="1s"), "start_interval"),
        (lambda tree: tree["services"]["node1"]["volumes"].append("nowhere:/x"), "nowhere"),
        (lambda tree: tree["services"]["node1"]["volumes"].append("./nowhere:/x"), "nowhere"),
        (lambda tree: tree["services"]["node1"]["secrets"].append("nowhere"), "nowhere"),
        (lambda tree: tree["services"]["node1"].update(networks=["nowhere"]), "nowhere"),
        (lambda tree: tree["services"]["caddy"].update(depends_on=["nowhere"]), "nowhere"),
        (lambda tree: tree["services"]["caddy"]["environment"].update(ANVIL_TLS="${NOWHERE}"), "NOWHERE"),
        (lambda tree: tree["services"]["caddy"]["environment"].update(ANVIL_TLS="${NOWHERE:?}"), "NAME"),
        (lambda tree: tree["volumes"].update(backup={"driver": "nfs"}), "driver"),
        (lambda tree: tree["networks"].update(front={"ipam": {}}), "ipam"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_understood_fails(folder: Path, change: Change, named: str) -> None:
    with pytest.raises(Unknown, match=re.escape(named)):
        changed(folder, change)


def test_an_image_that_nothing_stands_for_fails(folder: Path) -> None:
    project = changed(folder, lambda tree: tree["services"]["caddy"].update(image="traefik:3"))
    with pytest.raises(Unknown, match="traefik"):
        image(project.services["caddy"])


@pytest.mark.parametrize(
    "words",
    ["run -it debian", "compose up", "compose up -d --scale node1=2", "compose exec -u root node1 id", "compose rm node1"],
)
def test_a_command_that_no_document_uses_fails(folder: Path, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    monkeypatch.setenv("COMPOSE_FILE", str(folder / "compose.yaml"))
    monkeypatch.setenv("COMPOSE_STATE", str(folder / "state"))
    with pytest.raises(Failed, match="does not know"):
        docker.main(words.split())


@pytest.mark.skipif(not can_make_networks(), reason="only root can make networks, with iproute2")
def test_nothing_outlives_the_process_that_made_the_machine(tmp_path: Path) -> None:
    """However that ends. What was started on it has a session of its own, as services have."""
    script = (
        "import sys, time; from pathlib import Path; from tests.support.compose.machine import Machine\n"
        f"with Machine(Path({str(tmp_path)!r}), Path({str(tmp_path)!r}), '/srv/anvil') as machine:\n"
        "    machine.ask('setsid sleep 1000 >/dev/null 2>&1 & disown')\n"
        "    print(machine.process, flush=True); time.sleep(1000)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert owner.stdout is not None
        first = int(owner.stdout.readline())
        namespace = str(Path(f"/proc/{first}/ns/pid").readlink())

        def there() -> list[int]:
            found = []
            for path in Path("/proc").glob("[0-9]*/ns/pid"):
                try:
                    found += [int(path.parts[2])] if str(path.readlink()) == namespace else []
                except OSError:
                    continue
            return found

        assert len(there()) == 3  # process 1, what the machine does, what was started
    finally:
        owner.send_signal(signal.SIGKILL)
        owner.wait(30)
    wait_until("all of it is gone", lambda: there() == [])
