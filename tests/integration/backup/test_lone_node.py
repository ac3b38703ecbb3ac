"""A node that is alone, with the embedded PostgreSQL: backed up, backed up again, destroyed, restored, compared."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

from tests.support.backups import KEY, assert_same, fill, refusal, said
from tests.support.load import assert_readable, blobs_held, rows
from tests.support.node import AnvilNode, wait_until


def settings(tmp_path: Path, name: str, drives: int = 4, **more: str) -> dict[str, str]:
    return {
        "ANVIL_DRIVES": ",".join(str(tmp_path / f"{name}-drive{number}") for number in range(drives)),
        "ANVIL_SCHEME": "2+2",
        "ANVIL_WORKERS": "1",
        "ANVIL_GC_GRACE_S": "1",
        "ANVIL_SECRET_ENCRYPTION_KEY": KEY,
        **more,
    }


def test_destroyed_and_restored(tmp_path: Path) -> None:
    rng, repository = random.Random(5), str(tmp_path / "repository")
    with AnvilNode(tmp_path / "old", env=settings(tmp_path, "old")) as node:
        objects = fill(node.s3(), "kept", rng)
        first = said(node, "backup", "create", repository)
        assert first["complete"] and first["blobs"] == first["copied"] > 0
        assert rows(node, "SELECT count(*) FROM settings WHERE starts_with(name, 'backup_hold')") == [(0,)], "the hold is over"
        assert rows(node, "SELECT (value ->> 'finished_us')::bigint FROM settings WHERE name = 'last_backup'") == [
            (first["finished_us"],)
        ]
        node.s3().put_object(Bucket="kept", Key="later", Body=b"x" * 100_000, ContentType="text/x-odd", Metadata={"of": "mine"})
        objects["later"] = b"x" * 100_000
        second = said(node, "backup", "create", repository)
        assert (second["copied"], second["copied_bytes"], second["blobs"]) == (1, 100_000, first["blobs"] + 1)
        key = said(node, "app", "create", "--tenant", "default", "--name", "reader")
        said(node, "policy", "grant", "--app", "reader", "--action", "object:read", "--resource", "kept/*")
        third = said(node, "backup", "create", repository)
        assert third["copied"] == 0
        listed = said(node, "backup", "list", repository)
        assert [one["snapshot"] for one in listed] == [first["snapshot"], second["snapshot"], third["snapshot"]]
        verdict = said(node, "backup", "verify", repository, "--deep")
        assert verdict["good"] and verdict["snapshots"] == 3 and verdict["opened"] == verdict["blobs"] and not verdict["keyless"]
    shutil.rmtree(tmp_path / "old")
    for drive in tmp_path.glob("old-drive*"):
        shutil.rmtree(drive)

    new = AnvilNode(tmp_path / "new", env=settings(tmp_path, "new", drives=6))
    restored = said(new, "restore", "metadata", repository)
    assert restored["manifest"]["snapshot"] == third["snapshot"] and restored["changes"]["epoch"] == 1
    with new as node:
        wait_until("it says so", lambda: "recovery mode" in " ".join(node.readiness()["notices"]))
        report = said(node, "restore", "data", repository)
        assert report["complete"] and report["refilled"]["written"] == third["blobs"]
        assert said(node, "restore", "data", repository)["refilled"]["present"] == third["blobs"], "it does only what is left"
        assert_same(node.s3(), "kept", objects)
        assert_readable(node.s3(access_key=key["access_key"], secret_key=key["secret"]), "kept", objects)
        drives = sorted(tmp_path.glob("new-drive*"))
        held = set().union(*map(blobs_held, drives))
        node.s3().delete_object(Bucket="kept", Key="later")
        assert node.anvil("admin", "recovery", "end").returncode == 5, "it takes an fsck"
        assert said(node, "fsck", "--deep")["clean"]
        assert set().union(*map(blobs_held, drives)) == held, "nothing is removed"
        assert said(node, "recovery", "end")["ended"]
        assert said(node, "recovery", "status")["recovery"] is None
        wait_until("garbage goes again", lambda: len(set().union(*map(blobs_held, drives))) == len(held) - 1)
        objects.pop("later")
        assert_same(node.s3(), "kept", objects)


def test_only_the_databases_were_lost(tmp_path: Path) -> None:
    repository = str(tmp_path / "repository")
    with AnvilNode(tmp_path / "data", env=settings(tmp_path, "d")) as node:
        objects = fill(node.s3(), "kept", random.Random(8))
        made = said(node, "backup", "create", repository)
        node.s3().put_object(Bucket="kept", Key="afterwards", Body=b"x" * 300_000)
        drives = sorted(tmp_path.glob("d-drive*"))
        held = set().union(*map(blobs_held, drives))
        node.stop()
        shutil.rmtree(tmp_path / "data" / "postgres")
        said(node, "restore", "metadata", repository, "--keep-nodes")
        node.start()
        refilled = said(node, "restore", "data", repository)["refilled"]
        assert (refilled["present"], refilled["written"]) == (made["blobs"], 0), "everything is there"
        assert_same(node.s3(), "kept", objects)
        assert said(node, "fsck", code=1)["orphans"] == 4, "what came after the backup is nobody's"
        assert node.anvil("admin", "scrub", "--shallow").returncode == 0
        assert set().union(*map(blobs_held, drives)) == held, "and stays"
        assert "4 shards belong to no row" in refusal(node, "recovery", "end", code=5)
        assert said(node, "recovery", "end", "--force")["ended"]

        def gone() -> bool:
            assert node.anvil("admin", "scrub", "--shallow").returncode == 0
            return len(set().union(*map(blobs_held, drives))) == len(held) - 1

        wait_until("once somebody has said that nothing of it is wanted", gone, 60)
        assert_same(node.s3(), "kept", objects)
