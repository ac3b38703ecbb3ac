"""Disks that hang: they do not fail, they do not answer. Nobody else may be held up, and whoever needs them is told so in bounded time.

To see a scenario alone: tests/support/hung_engine.py.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

from anvil.base.limits import DRIVE_STALLED_S
from anvil.meta.migrate import Database
from tests.postgres_fixture import Postgres
from tests.support.faults import FailingDisk
from tests.support.load import ONE_TRY
from tests.support.node import ROOT, AnvilNode, wait_until


@pytest.fixture
def disk(tmp_path: Path) -> FailingDisk:
    return FailingDisk(tmp_path)


@pytest.mark.parametrize("scenario", ["six", "one", "late", "start"])
def test_an_engine_whose_disks_hang(postgres: Postgres, tmp_path: Path, disk: FailingDisk, scenario: str) -> None:
    url = postgres.fresh(Database.REGIONAL)
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.hung_engine", scenario, url, str(tmp_path)],
        env={**os.environ, **disk.env, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}"
    assert "never awaited" not in done.stderr
    assert "never retrieved" not in done.stderr


def test_a_node_whose_only_drive_hangs(tmp_path: Path, disk: FailingDisk) -> None:
    drive = tmp_path / "drive"
    with AnvilNode(tmp_path / "data", env={"ANVIL_DRIVES": str(drive), "ANVIL_WORKERS": "1", **disk.env}) as node:
        s3 = node.s3(config=ONE_TRY)
        s3.create_bucket(Bucket="hung")
        s3.put_object(Bucket="hung", Key="before", Body=b"b" * 1_000_000)
        disk.hang(drive)
        wait_until("/ready says no", lambda: node.get("/ready")[0] == 503, 10)
        assert "drives: 0 of 1 take a write" in " ".join(node.readiness()["reasons"])
        # The first waits until the drive counts as stalled, those after it wait no longer.
        for bound_s in (DRIVE_STALLED_S + 4, 2, 2):
            began = time.monotonic()
            for request in (
                lambda: s3.put_object(Bucket="hung", Key="during", Body=b"d" * 4096),
                lambda: s3.get_object(Bucket="hung", Key="before"),
            ):
                with pytest.raises(ClientError) as error:
                    request()
                answer = error.value.response
                assert answer["ResponseMetadata"]["HTTPStatusCode"] == 503
                assert answer["Error"]["Code"] in ("ServiceUnavailable", "SlowDown")
                assert node.get("/", timeout_s=1)[0] in (200, 403), "what needs no drive is answered"
                assert s3.list_objects_v2(Bucket="hung")["KeyCount"] == 1
            assert time.monotonic() - began < bound_s
        assert node.readiness()["checks"]["loop"]["ms"] < 500
        assert node.metric("anvil_storage_drive_up") == 0
        assert node.log_text().count("drive drive does not answer") <= 3, "once in each process"
        disk.heal()
        wait_until("the node is ready again", node.is_ready)
        wait_until("it takes a write again", lambda: stored(s3))
        assert s3.get_object(Bucket="hung", Key="before")["Body"].read() == b"b" * 1_000_000
        assert [item["Key"] for item in s3.list_objects_v2(Bucket="hung")["Contents"]] == ["after", "before"]
        assert node.metric("anvil_shard_damage_total") == 0, "a disk that does not answer has lost nothing"


def stored(s3: object) -> bool:
    try:
        s3.put_object(Bucket="hung", Key="after", Body=b"a" * 4096)  # type: ignore[attr-defined]
    except ClientError:
        return False
    return True
