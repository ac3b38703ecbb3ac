"""Crashes, damage and failing parts, provoked on a real node with real signals and real files.

What must hold in all of them: every acknowledged object is there and intact, no unacknowledged one is half visible, the node recovers
without being asked to, /ready tells the truth, and nothing is left lying about.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.support.faults import FailingDisk
from tests.support.load import (
    ONE_TRY,
    Load,
    all_paid,
    assert_clean,
    assert_exact,
    assert_readable,
    children,
    put_some,
    rows,
    shard_files,
)
from tests.support.node import AnvilNode, lives, wait_until

WORKER = "anvil: worker"


@pytest.fixture
def disk(tmp_path: Path) -> FailingDisk:
    return FailingDisk(tmp_path)


@pytest.fixture
def node(tmp_path: Path, disk: FailingDisk) -> Iterator[AnvilNode]:
    drives = ",".join(str(tmp_path / f"drive{number}") for number in range(6))
    env = {"ANVIL_DRIVES": drives, "ANVIL_WORKERS": "2", "ANVIL_GC_GRACE_S": "0", **disk.env}
    with AnvilNode(tmp_path / "data", env=env) as running:
        yield running


@pytest.fixture
def drives(tmp_path: Path) -> list[Path]:
    return [tmp_path / f"drive{number}" for number in range(6)]


@pytest.fixture
def bucket(node: AnvilNode) -> str:
    node.s3().create_bucket(Bucket="survival")
    return "survival"


def kill_all(processes: list[psutil.Process]) -> None:
    for victim in processes:
        try:
            victim.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=30)


def put_begun(node: AnvilNode, bucket: str, key: str, begin: bytes, length: int) -> http.client.HTTPConnection:
    """A PutObject of which only the beginning was sent."""
    s3 = node.s3(config=Config(signature_version="s3v4"))
    url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": key})
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
    connection.putrequest("PUT", url.removeprefix(node.endpoint))
    connection.putheader("Content-Length", str(length))
    connection.endheaders(begin)
    return connection


# -- processes that die ----------------------------------------------------------------------------------------------------------


def test_a_killed_worker_loses_nothing_and_leaves_nothing(node: AnvilNode, bucket: str, drives: list[Path]) -> None:
    with Load(node, bucket) as load:
        for _ in range(3):
            load.wait_for(60)
            children(node, WORKER)[0].send_signal(signal.SIGKILL)
            wait_until("the worker is replaced", lambda: len(children(node, WORKER)) == 2)
        load.wait_for(60)
        wait_until("those of the last two that were killed before they reported are replaced, too", node.is_ready)
    load.check()
    wait_until("its death is counted", lambda: node.metric("anvil_process_restarts_total") == 3)
    assert_exact(node, bucket)
    assert_clean(node, drives)


def test_killing_everything_loses_nothing(node: AnvilNode, bucket: str, drives: list[Path]) -> None:
    with Load(node, bucket) as load:
        load.wait_for(150)
        kill_all([psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)])
    node.start()
    load.check()
    assert_exact(node, bucket)
    assert_clean(node, drives)


def test_a_kill_in_the_middle_of_uploads(node: AnvilNode, bucket: str, drives: list[Path]) -> None:
    s3 = node.s3()
    upload = s3.create_multipart_upload(Bucket=bucket, Key="parts")["UploadId"]
    part = {"Bucket": bucket, "Key": "parts", "UploadId": upload}
    pieces = [bytes([number]) * (5 << 20) for number in (1, 2, 3)]
    etags = [s3.upload_part(**part, PartNumber=1, Body=pieces[0])["ETag"]]
    # An upload of which a worker has one half when it dies: its shards are under way in temporary files.
    half = put_begun(node, bucket, "half", bytes(32 << 20), 64 << 20)
    wait_until("its shards are being written", lambda: any(list((drive / "tmp").iterdir()) for drive in drives))
    kill_all(children(node, WORKER))
    half.close()
    wait_until("the workers are replaced", node.is_ready)
    etags += [s3.upload_part(**part, PartNumber=number, Body=pieces[number - 1])["ETag"] for number in (2, 3)]
    listed = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    s3.complete_multipart_upload(**part, MultipartUpload={"Parts": listed})
    assert s3.get_object(Bucket=bucket, Key="parts")["Body"].read() == b"".join(pieces)
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["parts"], "half an object is none"
    assert_clean(node, drives)


def test_a_killed_supervisor_takes_everything_with_it_and_is_succeeded(node: AnvilNode, bucket: str) -> None:
    objects = put_some(node.s3(), bucket)
    ours = children(node, "anvil: ")
    postgres = min(children(node, "postgres"), key=lambda process: process.create_time())
    node.kill(node.pid)
    node.process.wait()
    wait_until("its children died with it", lambda: not any(lives(one) for one in ours))
    assert postgres.is_running(), "it is told nothing; the next start deals with it"
    node.start()
    assert not lives(postgres)
    assert "an earlier supervisor left behind" in node.log_text()
    assert_readable(node.s3(), bucket, objects)


def test_a_second_server_on_the_directory_is_refused_in_one_line(node: AnvilNode) -> None:
    done = node.anvil("server")
    assert done.returncode == 3
    assert done.stderr.strip().splitlines() == [
        f"anvil: another node (process {node.pid}) runs on {str(node.data_dir)!r}: stop it, or choose another ANVIL_DATA_DIR"
    ]


# -- the database ----------------------------------------------------------------------------------------------------------------


def test_postgresql_restarting_under_load(node: AnvilNode, bucket: str, drives: list[Path]) -> None:
    with Load(node, bucket) as load:
        load.wait_for(60)
        postmaster = min(children(node, "postgres"), key=lambda process: process.create_time())
        workers = {process.pid for process in children(node, WORKER)}
        postmaster.send_signal(signal.SIGKILL)
        load.wait_for(60)
        assert {process.pid for process in children(node, WORKER)} == workers, "no worker had to restart"
    load.check()
    assert_exact(node, bucket)
    # A put whose outcome nobody could learn (the server died with it in flight) keeps its shards while its writer's session lives.
    node.stop()
    node.start()
    assert_clean(node, drives)


def test_postgresql_away_for_longer_is_503_until_it_is_back(node: AnvilNode, bucket: str) -> None:
    s3 = node.s3(config=ONE_TRY)
    s3.put_object(Bucket=bucket, Key="before", Body=b"b" * 10_000)
    [settings] = node.data_dir.rglob("postgresql.conf")
    hidden = settings.with_name("postgresql.away")
    settings.rename(hidden)  # PostgreSQL does not start without it
    try:
        min(children(node, "postgres"), key=lambda process: process.create_time()).send_signal(signal.SIGKILL)
        for request in (
            lambda: s3.put_object(Bucket=bucket, Key="during", Body=b"d" * 10_000),
            lambda: s3.get_object(Bucket=bucket, Key="before"),
        ):
            with pytest.raises(ClientError) as error:
                request()
            answer: dict[str, Any] = error.value.response
            assert answer["ResponseMetadata"]["HTTPStatusCode"] == 503
            assert answer["Error"]["Code"] in ("ServiceUnavailable", "SlowDown"), "S3's own XML"
        state = node.readiness()
        assert state["status"] == "not_ready"
        assert not state["checks"]["regional_database"]["ok"]
        assert any("regional database" in reason for reason in state["reasons"])
    finally:
        hidden.rename(settings)
    workers = {process.pid for process in children(node, WORKER)}
    wait_until("the node is ready again", node.is_ready)
    assert s3.get_object(Bucket=bucket, Key="before")["Body"].read() == b"b" * 10_000
    s3.put_object(Bucket=bucket, Key="after", Body=b"a")
    assert {process.pid for process in children(node, WORKER)} == workers, "nothing had to restart"


# -- stopping and starting -----------------------------------------------------------------------------------------------------


def test_a_drain_under_load_loses_nothing(node: AnvilNode, bucket: str, drives: list[Path]) -> None:
    node.stop()
    node.configure(ANVIL_DRAIN_NOTICE_S="1")
    node.start()
    with Load(node, bucket) as load:
        load.wait_for(60)
        slow = put_begun(node, bucket, "slow", b"1" * (4 << 20), 8 << 20)
        node.process.send_signal(signal.SIGTERM)
        wait_until("/ready says no while requests are still served", lambda: node.get("/ready")[0] == 503)
        assert node.readiness()["status"] == "draining"
        wait_until("nothing new is accepted", lambda: not answers(node))
        slow.send(b"2" * (4 << 20))
        assert slow.getresponse().status == 200, "what runs is finished"
    assert node.process.wait(30) == 0
    slow.close()
    node.start()
    load.check()
    assert node.s3().get_object(Bucket=bucket, Key="slow")["Body"].read() == b"1" * (4 << 20) + b"2" * (4 << 20)
    assert_exact(node, bucket)
    assert_clean(node, drives)


def answers(node: AnvilNode) -> bool:
    try:
        node.get("/")
    except OSError:
        return False
    return True


# -- drives ------------------------------------------------------------------------------------------------------------------------


def test_two_lost_drives_are_invisible_to_readers(node: AnvilNode, bucket: str, drives: list[Path]) -> None:
    s3 = node.s3()
    objects = put_some(s3, bucket)
    shutil.rmtree(drives[0])
    s3.put_object(Bucket=bucket, Key="after", Body=b"a" * 2_000_000)
    assert_readable(s3, bucket, {**objects, "after": b"a" * 2_000_000})
    shutil.rmtree(drives[3])
    assert_readable(s3, bucket, objects)
    # 4 + 2 acknowledges a write with five durable shards, and there are four drives: refused, aloud.
    with pytest.raises(ClientError) as error:
        node.s3(config=ONE_TRY).put_object(Bucket=bucket, Key="refused", Body=b"b" * 2_000_000)
    assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503
    assert "refused" not in [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    wait_until("it is seen that nothing can be written", lambda: node.get("/ready/cluster")[0] == 503)
    state = node.readiness()
    assert state["status"] == "ready", "what can still be read is served"
    assert [state["checks"][f"drive:drive{number}"]["ok"] for number in range(6)] == [False, True, True, False, True, True]


def test_damage_is_read_around_counted_and_repaired(node: AnvilNode, bucket: str, drives: list[Path]) -> None:
    s3 = node.s3()
    objects = put_some(s3, bucket)
    flip_all(drives[1])
    truncate_all(drives[4])
    assert_readable(s3, bucket, objects)
    assert node.metric("anvil_shard_damage_total") > 0
    # Readers do not meet every shard; the scrub does.
    assert node.anvil("admin", "scrub").returncode == 0
    all_paid(node)
    wait_until("the metrics say so", lambda: node.metric("anvil_shards_unhealthy") == 0)
    # Two other drives now: only what was really repaired can carry the load.
    flip_all(drives[0])
    truncate_all(drives[2])
    assert_readable(s3, bucket, objects)


def flip_all(drive: Path) -> None:
    """Flip a byte in every 512 of every shard on the drive."""
    for path in shard_files(drive):
        data = bytearray(path.read_bytes())
        for at in range(200, len(data), 512):
            if data[at]:
                data[at] ^= 0xFF
        with open(path, "r+b") as file:
            file.write(data)


def truncate_all(drive: Path) -> None:
    for path in shard_files(drive):
        with open(path, "r+b") as file:
            file.truncate(path.stat().st_size // 2)


def test_a_drive_that_fails_to_write(node: AnvilNode, bucket: str, drives: list[Path], disk: FailingDisk) -> None:
    s3 = node.s3()
    objects = put_some(s3, bucket)
    disk.fail(drives[2], writes=True)
    during = {f"during-{size}": bytes([7]) * size for size in (4096, 300_000, 5_000_000)}
    for key, data in during.items():
        s3.put_object(Bucket=bucket, Key=key, Body=data)
    assert_readable(s3, bucket, {**objects, **during})
    wait_until("/ready names the drive", lambda: not node.readiness()["checks"]["drive:drive2"]["ok"])
    assert node.readiness()["status"] == "ready"
    disk.heal()
    assert not node.readiness()["checks"]["drive:drive2"]["ok"], "what failed once stays read-only until a restart"
    node.stop()
    node.start()
    all_paid(node)
    assert node.readiness()["checks"]["drive:drive2"]["ok"]
    for lost in (drives[0], drives[5]):
        shutil.rmtree(lost)
    assert_readable(node.s3(), bucket, {**objects, **during})


def test_a_drive_that_fails_to_read(node: AnvilNode, bucket: str, drives: list[Path], disk: FailingDisk) -> None:
    s3 = node.s3()
    objects = put_some(s3, bucket)
    for number in (0, 4):
        disk.fail(drives[number] / "blobs", reads=True)
        assert_readable(s3, bucket, objects)
    wait_until("it became a debt", lambda: rows(node, "SELECT count(*) FROM degraded WHERE corrupt <> 0") != [(0,)])
    disk.heal()
    all_paid(node)


def test_a_full_drive_refuses_and_the_node_stays_up(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(small)], check=True)
    try:
        with AnvilNode(tmp_path / "data", env={"ANVIL_DRIVES": str(small / "drive"), "ANVIL_WORKERS": "1"}) as node:
            s3 = node.s3(config=ONE_TRY)
            s3.create_bucket(Bucket="full")
            s3.put_object(Bucket="full", Key="first", Body=b"1" * 3_000_000)
            (small / "ballast").write_bytes(b"\0" * max(shutil.disk_usage(small).free - 1_000_000, 0))
            for size in (100_000, 3_000_000):
                with pytest.raises(ClientError) as error:
                    s3.put_object(Bucket="full", Key="second", Body=b"2" * size)
                answer = error.value.response
                assert answer["ResponseMetadata"]["HTTPStatusCode"] in (503, 507)
                assert "room" in answer["Error"]["Message"]
            assert [item["Key"] for item in s3.list_objects_v2(Bucket="full")["Contents"]] == ["first"]
            assert s3.get_object(Bucket="full", Key="first")["Body"].read() == b"1" * 3_000_000
            wait_until("/ready names the drive", lambda: not node.readiness()["checks"]["drive:drive"]["ok"])
            assert node.readiness()["status"] == "ready", "what is stored is served"
            (small / "ballast").unlink()

            def accepted() -> bool:
                try:
                    s3.put_object(Bucket="full", Key="second", Body=b"2" * 3_000_000)
                except ClientError:
                    return False
                return True

            wait_until("writes are taken again once there is room", accepted)
    finally:
        subprocess.run(["umount", str(small)], check=True)
