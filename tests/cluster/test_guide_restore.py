"""The restore of docs/BACKUP.md for Compose, typed by a test: a cluster is backed up and lost, and another machine brings it back."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.compose.machine import Machine, checkout
from tests.support.node import ROOT

pytestmark = pytest.mark.slow  # a cluster, and another one made from its backup. `make drill` runs it.

HOME = "/srv/anvil"
BLOCK_S = 300.0
CREDENTIALS = "docker compose exec -T node1 cat /var/lib/anvil/credentials >keys"
CLIENT = """
docker compose cp caddy:/data/caddy/pki/authorities/local/root.crt ca.crt
export AWS_SHARED_CREDENTIALS_FILE=$PWD/keys AWS_ENDPOINT_URL=https://localhost AWS_CA_BUNDLE=$PWD/ca.crt
"""


def block() -> str:
    text = (ROOT / "docs" / "BACKUP.md").read_text()
    [found] = [one for one in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) if "docker compose" in one]
    return str(found)


def ran(machine: Machine, script: str) -> str:
    done = machine.run(script, BLOCK_S)
    logs = "\n".join(f"--- {name}\n{text}" for name, text in machine.logs().items())
    assert done.code == 0, f"{done.text}\nended with {done.code}\n{logs}"
    return done.text


def test_another_machine_brings_it_back(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    kept = tmp_path / "kept"
    with Machine(old, checkout(old / "anvil"), HOME) as machine:
        ran(machine, "docker/make-secrets.sh; export COMPOSE_FILE=docker/compose.yaml; docker compose up -d --build --wait")
        ran(machine, f"{CREDENTIALS}\n{CLIENT}\naws s3 mb s3://kept; head -c 3000000 /dev/urandom >large")
        ran(machine, "aws s3 cp --recursive --quiet docs s3://kept/docs/; aws s3 cp --quiet large s3://kept/")
        ran(machine, "docker compose exec -T node1 anvil admin backup create /backup")
        subprocess.run(["cp", "-a", old / "engine" / "volumes" / "backup", kept], check=True)

    with Machine(new, checkout(new / "anvil"), HOME) as machine:
        secrets, volumes = new / "anvil" / "docker" / "secrets", new / "engine" / "volumes"
        secrets.mkdir(mode=0o700)
        volumes.mkdir()
        subprocess.run(["cp", old / "anvil" / "docker" / "secrets" / "encryption_key", secrets], check=True)
        subprocess.run(["cp", "-a", kept, volumes / "backup"], check=True)
        text = ran(machine, block())
        assert re.search(r"^\d+ shards of \d+ blobs, \d+ rows: clean$", text, re.MULTILINE), text
        for name in ("keys", "large"):  # of the first cluster: it is the same one
            subprocess.run(["cp", old / "anvil" / name, new / "anvil"], check=True)
        ran(
            machine,
            f"{CLIENT}\naws s3 cp --quiet s3://kept/large - | cmp - large; aws s3 cp --recursive --quiet s3://kept/docs/ again",
        )
        ran(
            machine,
            "diff -r docs again; aws s3 cp --quiet large s3://kept/new; docker compose exec -T node1 anvil health --ready",
        )
