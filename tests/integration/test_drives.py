"""Drives that come, go, move and are replaced: what docs/OPERATE.md promises about them, on a real node."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from anvil.model.layout import Layout
from tests.support.load import all_paid, assert_clean, assert_readable, blobs_held, put_some, rows, shard_files
from tests.support.node import AnvilNode, wait_until

BUCKET = "drives"


@pytest.fixture
def drives(tmp_path: Path) -> list[Path]:
    return [tmp_path / f"drive{number}" for number in range(6)]


@pytest.fixture
def node(tmp_path: Path, drives: list[Path]) -> Iterator[AnvilNode]:
    env = {"ANVIL_DRIVES": named(drives[:5]), "ANVIL_SCHEME": "2+2", "ANVIL_WORKERS": "1", "ANVIL_GC_GRACE_S": "0"}
    with AnvilNode(tmp_path / "data", env=env) as running:
        running.s3().create_bucket(Bucket=BUCKET)
        yield running


def named(drives: list[Path]) -> str:
    return ",".join(map(str, drives))


def layout(node: AnvilNode) -> Layout:
    [(packed,)] = rows(node, "SELECT packed FROM layouts WHERE state = 'current'")
    return Layout.unpack(packed)


def in_effect(node: AnvilNode) -> None:
    """Until everything is where the present layout wants it."""
    wait_until("the layout is in effect", lambda: rows(node, "SELECT count(*) FROM layouts WHERE state = 'old'") == [(0,)], 60)


def restart(node: AnvilNode, drives: list[Path]) -> None:
    node.stop()
    node.configure(ANVIL_DRIVES=named(drives))
    node.start()


def test_growing_and_shrinking(node: AnvilNode, drives: list[Path]) -> None:
    objects = put_some(node.s3(), BUCKET)
    before = layout(node)
    restart(node, drives)  # one more
    after = layout(node)
    assert (len(after.drives), after.version) == (6, before.version + 1)
    more = {f"more-{key}": data for key, data in objects.items()}
    for key, data in more.items():
        node.s3().put_object(Bucket=BUCKET, Key=key, Body=data)
    assert_readable(node.s3(), BUCKET, {**objects, **more})
    assert blobs_held(drives[5]), "new objects use it at once"
    assert rows(node, "SELECT count(*) FROM degraded") == [(0,)], "what was there stays where it is"

    restart(node, drives[1:])  # one less: what was on it is rebuilt from the others
    assert len(layout(node).drives) == 5
    in_effect(node)
    all_paid(node)
    shutil.rmtree(drives[0])
    for lost in drives[2:4]:
        shutil.rmtree(lost)
    assert_readable(node.s3(), BUCKET, {**objects, **more})


def test_a_drive_that_is_not_there_is_lost_not_made_anew(node: AnvilNode, drives: list[Path]) -> None:
    objects = put_some(node.s3(), BUCKET)
    node.stop()
    away = drives[0].with_name("away")
    drives[0].rename(away)
    for put_there in (None, "empty", "stranger"):  # not mounted: no folder, or an empty one; or another disk
        if put_there is not None:
            drives[0].mkdir()
        if put_there == "stranger":
            other = {"drive_id": "ab" * 16, "format": 1, "created_us": 1}
            (drives[0] / "drive.json").write_text(json.dumps(other))
        node.start()
        state = node.readiness()
        assert state["status"] == "ready"
        assert not state["checks"]["drive:drive0"]["ok"]
        assert_readable(node.s3(), BUCKET, objects)
        told = node.anvil("doctor").stdout
        assert "another drive is in its place" in told if put_there == "stranger" else "is not there" in told
        held = list(drives[0].iterdir()) if put_there is not None else []
        assert [path.name for path in held] == (["drive.json"] if put_there == "stranger" else []), "nothing is made there"
        node.s3().put_object(Bucket=BUCKET, Key=f"with-{put_there}", Body=b"w" * 300_000)
        node.stop()
        if put_there is not None:
            shutil.rmtree(drives[0])
    away.rename(drives[0])
    node.start()
    assert node.readiness()["checks"]["drive:drive0"]["ok"]
    all_paid(node)
    assert_clean(node, drives[:5])


def test_drives_are_known_wherever_they_are_mounted(node: AnvilNode, drives: list[Path]) -> None:
    objects = put_some(node.s3(), BUCKET)
    node.stop()
    spare = drives[0].with_name("spare")
    for source, target in ((drives[0], spare), (drives[1], drives[0]), (spare, drives[1])):
        source.rename(target)
    drives[2].rename(spare)
    before = {path.name: json.loads((path / "drive.json").read_text())["drive_id"] for path in (drives[0], drives[1], spare)}
    node.configure(ANVIL_DRIVES=named([drives[0], drives[1], spare, *drives[3:5]]))
    node.start()
    assert layout(node).version == 1, "nothing moves"
    listed = {Path(row["path"]).name: row for row in json.loads(node.anvil("admin", "drive", "list", "--json").stdout)}
    assert {name: listed[name]["drive"] for name in before} == before
    assert {row["state"] for row in listed.values()} == {"active"}
    assert_readable(node.s3(), BUCKET, objects)


def test_replacing_a_dead_disk(node: AnvilNode, drives: list[Path]) -> None:
    objects = put_some(node.s3(), BUCKET)
    shutil.rmtree(drives[2])
    wait_until("it is seen", lambda: not node.readiness()["checks"]["drive:drive2"]["ok"])
    states = {Path(row["path"]).name: row["state"] for row in json.loads(node.anvil("admin", "drive", "list", "--json").stdout)}
    assert states == {f"drive{number}": "absent" if number == 2 else "active" for number in range(5)}
    refused = node.anvil("admin", "drive", "replace", str(drives[2]))
    assert (refused.returncode, "--yes" in refused.stderr) == (2, True)
    assert node.anvil("admin", "drive", "replace", str(drives[1]), "--yes").returncode == 5, "that one is there"
    done = node.anvil("admin", "drive", "replace", str(drives[2]), "--yes")
    assert done.returncode == 0, done.stderr
    restart(node, drives[:5])
    assert node.readiness()["checks"]["drive:drive2"]["ok"]
    # Without anybody asking: the layout changed, and what the new disk should hold is rebuilt.
    in_effect(node)
    all_paid(node)
    assert blobs_held(drives[2])
    for lost in (drives[0], drives[4]):
        shutil.rmtree(lost)
    assert_readable(node.s3(), BUCKET, objects)


def test_deleted_data_gives_its_space_back(node: AnvilNode, drives: list[Path]) -> None:
    s3 = node.s3()
    for _ in range(3):  # overwritten twice
        put_some(s3, BUCKET)
    for number in range(60):
        s3.put_object(Bucket=BUCKET, Key=f"small-{number}", Body=b"s" * 200_000)
    listed = [{"Key": item["Key"]} for item in s3.list_objects_v2(Bucket=BUCKET)["Contents"]]
    assert len(s3.delete_objects(Bucket=BUCKET, Delete={"Objects": listed})["Deleted"]) == len(listed)
    assert_clean(node, drives[:5])
    assert all(not blobs_held(drive) for drive in drives[:5])
    node.stop()  # seals the active segments
    node.start()
    # Each worker prepares a fresh segment when it first writes, so an idle node's drives are empty.
    wait_until("every file is gone", lambda: not any(shard_files(drive) for drive in drives[:5]), 90)
