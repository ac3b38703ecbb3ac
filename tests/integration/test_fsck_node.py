"""`anvil admin fsck` on a real node: clean, damaged, repaired, clean again; what it prints and how it exits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.load import all_paid, assert_readable, put_some, shard_files
from tests.support.node import AnvilNode

BUCKET = "checked"


@pytest.fixture
def drives(tmp_path: Path) -> list[Path]:
    return [tmp_path / f"drive{number}" for number in range(4)]


@pytest.fixture
def node(tmp_path: Path, drives: list[Path]) -> Iterator[AnvilNode]:
    env = {"ANVIL_DRIVES": ",".join(map(str, drives)), "ANVIL_SCHEME": "2+2", "ANVIL_WORKERS": "1", "ANVIL_GC_GRACE_S": "0"}
    with AnvilNode(tmp_path / "data", env=env) as running:
        running.s3().create_bucket(Bucket=BUCKET)
        yield running


def test_it_says_what_is_wrong_and_puts_it_right(node: AnvilNode, drives: list[Path]) -> None:
    objects = put_some(node.s3(), BUCKET)
    done = node.anvil("admin", "fsck", "--deep")
    assert (done.returncode, done.stderr) == (0, "")
    assert "clean" in done.stdout and "NOT" not in done.stdout
    report = json.loads(node.anvil("admin", "fsck", "--json").stdout)
    assert report["clean"] and report["blobs"] == report["rows"] > 0 and report["partitions"] == 4096

    [gone, flipped] = [path for path in shard_files(drives[1]) if "blobs" in path.parts][:2]
    gone.unlink()
    data = bytearray(flipped.read_bytes())
    data[len(data) // 2] ^= 0xFF
    flipped.write_bytes(data)
    assert json.loads(node.anvil("admin", "fsck", "--json").stdout)["missing"] == 1
    done = node.anvil("admin", "fsck", "--deep")
    assert done.returncode == 1
    assert "NOT clean" in done.stdout and "missing: blob" in done.stdout and "corrupt: blob" in done.stdout
    assert node.anvil("admin", "fsck", "--repair").returncode == 2, "it takes --yes"
    assert node.anvil("admin", "fsck", "--deep", "--repair", "--yes").returncode == 1, "what it met, not what it will be"
    all_paid(node)
    done = node.anvil("admin", "fsck", "--deep")
    assert done.returncode == 0, done.stdout
    assert_readable(node.s3(), BUCKET, objects)


def test_without_a_node_it_says_so(node: AnvilNode) -> None:
    node.stop()
    done = node.anvil("admin", "fsck")
    assert done.returncode == 3
    assert "no node runs" in done.stderr
