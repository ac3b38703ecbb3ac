"""What a backup or restore refuses, before anything is changed; and a node that is killed in the middle."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.integration.backup.test_lone_node import settings
from tests.support.backups import KEY, OTHER_KEY, flip, packs, refusal, said
from tests.support.load import assert_readable, put_some
from tests.support.node import AnvilNode, wait_until


def test_what_is_refused(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    with AnvilNode(tmp_path / "data", env=settings(tmp_path, "d", drives=1, ANVIL_SCHEME="1+0")) as node:
        assert "no backup repository" in refusal(node, "backup", "list", str(repository), code=4)
        (tmp_path / "photos").mkdir()
        (tmp_path / "photos" / "cat.jpg").touch()
        assert "not empty" in refusal(node, "backup", "create", str(tmp_path / "photos"), code=2)
        node.s3().create_bucket(Bucket="kept")
        objects = put_some(node.s3(), "kept")
        made = said(node, "backup", "create", str(repository))
        assert "repeat this with --yes" in refusal(node, "backup", "forget", str(repository), made["snapshot"], code=2)
        assert "no snapshot" in refusal(node, "backup", "forget", str(repository), "../..", "--yes", code=4)
        assert "another node" in refusal(node, "restore", "metadata", str(repository), code=3)
        node.stop()
        assert "not empty" in refusal(node, "restore", "metadata", str(repository), code=5)
        assert said(node, "backup", "verify", str(repository), "--deep")["good"], "it takes no node"

        new = AnvilNode(
            tmp_path / "new", env=settings(tmp_path, "new", drives=1, ANVIL_SCHEME="1+0", ANVIL_SECRET_ENCRYPTION_KEY=OTHER_KEY)
        )
        assert "made under the master key" in refusal(new, "restore", "metadata", str(repository), code=2)
        assert "made under the master key" in refusal(new, "backup", "verify", str(repository), "--deep", code=2)
        new.configure(ANVIL_SECRET_ENCRYPTION_KEY="")
        assert "master key of the backup is needed" in refusal(
            AnvilNode(tmp_path / "bare", env=settings(tmp_path, "new", ANVIL_SECRET_ENCRYPTION_KEY="")),
            *("restore", "metadata", str(repository)),
            code=2,
        )
        new.configure(ANVIL_SECRET_ENCRYPTION_KEY=KEY, ANVIL_REGION="elsewhere")
        assert "ANVIL_REGION" in refusal(new, "restore", "metadata", str(repository), code=2)
        new.configure(ANVIL_REGION="us-east-1")
        dump = repository / "snapshots" / made["snapshot"] / "global.dump"
        whole = dump.read_bytes()
        flip(dump, 0.5)
        assert "not what was written" in refusal(new, "restore", "metadata", str(repository), code=1)
        dump.write_bytes(whole)
        assert not (tmp_path / "new" / "postgres" / "cluster" / "postmaster.pid").exists(), "it leaves nothing running"

        node.start()
        assert_readable(node.s3(), "kept", objects)
        node.configure(ANVIL_SECRET_ENCRYPTION_KEY=KEY)
        verdict = said(node, "backup", "verify", str(repository))
        assert verdict["good"]
        [pack] = packs(repository)
        flip(pack, 0.5)
        verdict = said(node, "backup", "verify", str(repository), "--set-aside", code=1)
        assert verdict["missing"] == 1 and verdict["damaged"] == [pack.name] and not packs(repository)
        again = said(node, "backup", "create", str(repository))
        assert again["copied"] == made["blobs"]
        assert said(node, "backup", "verify", str(repository), again["snapshot"], "--deep")["good"]
        (repository / "snapshots" / made["snapshot"] / "manifest.json").unlink()
        assert said(node, "backup", "list", str(repository), code=1)[1]["state"].startswith("DAMAGED")
        assert "no manifest" in refusal(new, "restore", "metadata", str(repository), "--snapshot", made["snapshot"], code=1)


@pytest.mark.slow  # a minute: `make drill`
def test_killed_in_the_middle_and_begun_again(tmp_path: Path) -> None:
    with AnvilNode(tmp_path / "data", env=settings(tmp_path, "d", drives=2, ANVIL_SCHEME="1+1")) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="kept")
        objects = {f"k{number}": os.urandom(24 << 20) for number in range(6)}
        for key, data in objects.items():
            s3.put_object(Bucket="kept", Key=key, Body=data)
        for attempt in range(5):
            repository = tmp_path / f"repository{attempt}"
            if _killed(node, repository):
                break
        else:
            pytest.fail("the backup was always faster than the kill")
        assert packs(repository) == [] and list((repository / "packs").glob("*.part")), "nothing half is taken for whole"
        assert said(node, "backup", "list", str(repository)) == []
        wait_until("its successor answers", lambda: node.anvil("admin", "scrub", "--shallow", "--no-wait").returncode == 0)
        made = said(node, "backup", "create", str(repository))
        assert made["complete"] and made["copied"] == 6
        assert not list((repository / "packs").glob("*.part")) and not list((repository / "snapshots").glob("*.new"))
        assert said(node, "backup", "verify", str(repository), "--deep")["good"]
        assert said(node, "recovery", "status")["holds"] == [], "the hold of the dead one was taken over, and is over"
        assert_readable(s3, "kept", objects)
        shutil.rmtree(repository)


def _killed(node: AnvilNode, repository: Path) -> bool:
    """Kill the background process while a pack is being written. False if the backup was faster."""
    background = node.background_pid
    assert background is not None
    command = subprocess.Popen(
        [sys.executable, "-m", "anvil.cli.main", "admin", "backup", "create", str(repository)],
        env=node._env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while command.poll() is None and not any(path.stat().st_size > 1 << 20 for path in (repository / "packs").glob("*.part")):
        time.sleep(0.001)
    node.kill(background, signal.SIGKILL)
    _, said_last = command.communicate(timeout=60)
    if command.returncode == 0:
        wait_until("its successor answers", lambda: node.anvil("admin", "scrub", "--shallow", "--no-wait").returncode == 0)
        return False
    assert command.returncode == 3, said_last
    return True
