"""`anvil bench` against a real node: every operation, what it finds wrong, what it leaves behind, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from anvil.bench.content import contents
from anvil.bench.sizes import parse_sizes
from anvil.cli.exits import Exit
from tests.support.certificates import make_pair
from tests.support.node import ROOT, AnvilNode, wait_until
from tests.support.ports import free_port

BUCKET = "bench"


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilNode]:
    folder = tmp_path_factory.mktemp("bench")
    with AnvilNode(folder / "data", env={"ANVIL_WORKERS": "1"}, tls=make_pair(folder)) as running:
        running.s3().create_bucket(Bucket=BUCKET)
        yield running


def environment(node: AnvilNode, folder: Path, **changes: str) -> dict[str, str]:
    """Without whatever the tests' own environment says of AWS."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANVIL_", "AWS_"))}
    return kept | {
        "HOME": str(folder),
        "PYTHONPATH": str(ROOT),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "AWS_ENDPOINT_URL": node.endpoint,
        "AWS_ACCESS_KEY_ID": node.access_key,
        "AWS_SECRET_ACCESS_KEY": node.secret_key,
        **changes,
    }


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "anvil.cli.main", "bench", *arguments]


def bench(node: AnvilNode, folder: Path, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        env=environment(node, folder, **changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=folder,
    )


def report(node: AnvilNode, folder: Path, *arguments: str, code: int = Exit.OK, **changes: str) -> dict[str, Any]:
    done = bench(node, folder, *arguments, "--bucket", BUCKET, "--json", "-", **changes)
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def keys(node: AnvilNode) -> list[str]:
    return [one["Key"] for one in node.s3().list_objects_v2(Bucket=BUCKET).get("Contents", [])]


@pytest.mark.parametrize(
    ("arguments", "counts"),
    [
        (("put", "--count", "40", "--size", "1KiB..64KiB"), {"put": 40}),
        (("put", "--count", "10", "--payload", "signed", "--size", "100B:1,200KiB:1"), {"put": 10}),
        (("get", "--count", "60", "--objects", "9", "--size", "0..300KiB", "--prefixes", "3"), {"get": 60}),
        (("stat", "--count", "40", "--objects", "9", "--size", "5KiB"), {"stat": 40}),
        (("list", "--count", "30", "--objects", "50", "--prefixes", "3", "--max-keys", "4"), {"list": 30}),
        (("delete", "--count", "30", "--objects", "35"), {"delete": 30}),
        (
            ("multipart", "--count", "3", "--size", "11MiB", "--part-size", "5MiB", "--parallel", "2"),
            {"part": 9, "complete": 3, "multipart": 3},
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_every_operation(node: AnvilNode, tmp_path: Path, arguments: tuple[str, ...], counts: dict[str, int]) -> None:
    found = report(node, tmp_path, *arguments, "--concurrency", "4", "--processes", "2")
    assert {name: one["requests"] for name, one in found["operations"].items()} == counts
    assert found["failures"] == [] and found["damaged"] == [] and found["left"] == ""
    for one in found["operations"].values():
        figures = one["latency_us"]
        assert 0 < figures["min"] <= figures["p50"] <= figures["p90"] <= figures["p99"] <= figures["p99.9"] <= figures["max"]
        assert one["per_second"] == pytest.approx(one["requests"] / one["seconds"], rel=1e-3)
        assert sum(bucket["requests"] for bucket in one["buckets"]) == one["requests"]
    if "part" in counts:
        assert found["operations"]["part"]["bytes"] == found["operations"]["multipart"]["bytes"] == 3 * 11 << 20
    assert len(found["processes"]) == 2 and all(one["cpu_s"] > 0 for one in found["processes"])
    assert keys(node) == []
    assert node.s3().list_multipart_uploads(Bucket=BUCKET).get("Uploads", []) == []


def test_mixed_for_a_time_and_what_is_written(node: AnvilNode, tmp_path: Path) -> None:
    arguments = (
        "--bucket",
        BUCKET,
        "--duration",
        "2s",
        "--warmup",
        "0.3s",
        "--objects",
        "20",
        "--concurrency",
        "4",
        "--processes",
        "2",
    )
    done = bench(node, tmp_path, "mixed", *arguments, "--json", "a.json", "--csv", "a.csv", "--plot", "a.svg")
    assert done.returncode == Exit.OK, done.stdout + done.stderr
    assert "requests/s" in done.stdout and "closed loop" in done.stdout and "client: " in done.stdout
    found = json.loads((tmp_path / "a.json").read_text())
    assert set(found["operations"]) == {"get", "put", "stat", "delete"}
    assert all(one["seconds"] == 2.0 and len(one["buckets"]) == 2 for one in found["operations"].values())
    with (tmp_path / "a.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["requests"]) for row in rows if row["operation"] == "get") == found["operations"]["get"]["requests"]
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    compared = bench(node, tmp_path, "compare", "a.json", "a.json", "--json")
    made = json.loads(compared.stdout)
    assert made["differences"] == [] and {row["ratio"] for row in made["rows"]} == {1.0}
    assert bench(node, tmp_path, "plot", "a.json", "a.json", "b.png").returncode == Exit.OK
    assert (tmp_path / "b.png").read_bytes().startswith(b"\x89PNG")


def test_a_rate(node: AnvilNode, tmp_path: Path) -> None:
    found = report(
        node, tmp_path, "stat", "--duration", "2s", "--rate", "50", "--objects", "5", "--concurrency", "4", "--processes", "2"
    )
    assert 95 <= found["operations"]["stat"]["requests"] <= 100
    assert any(note.startswith("open loop") for note in found["notes"])


def test_over_tls(node: AnvilNode, tmp_path: Path) -> None:
    assert node.tls is not None
    arguments = (
        "get",
        "--count",
        "30",
        "--objects",
        "4",
        "--size",
        "2MiB",
        "--endpoint",
        node.tls_endpoint,
        "--concurrency",
        "2",
    )
    found = report(node, tmp_path, *arguments, "--ca", str(node.tls.cert))
    assert found["operations"]["get"]["bytes"] == 60 << 20 and found["endpoint"].startswith("https://")
    done = bench(node, tmp_path, *arguments, "--bucket", BUCKET)
    assert done.returncode == Exit.UNAVAILABLE and "--ca names the certificates" in done.stderr and "Traceback" not in done.stderr


def test_objects_that_are_kept_hold_what_their_keys_say(node: AnvilNode, tmp_path: Path) -> None:
    prefix = ("--prefix", "kept/")
    found = report(node, tmp_path, "put", "--count", "6", "--size", "1KiB..40KiB", "--seed", "9", "--keep", *prefix)
    assert "were kept" in found["left"]
    there = keys(node)
    assert len(there) == 6 and all(key.startswith("kept/w") for key in there)
    made = contents(9, parse_sizes("1KiB..40KiB"))
    for key in there:
        assert node.s3().get_object(Bucket=BUCKET, Key=key)["Body"].read() == made.of(key.encode()).whole()
    refused = bench(node, tmp_path, "put", "--count", "1", "--bucket", BUCKET, *prefix)
    assert refused.returncode == Exit.CONFLICT and "already" in refused.stderr
    for key in there:
        node.s3().delete_object(Bucket=BUCKET, Key=key)


def test_a_planted_mismatch_is_found(node: AnvilNode, tmp_path: Path) -> None:
    """An object is replaced by one of the same size while the run reads."""
    arguments = ("get", "--objects", "1", "--size", "4KiB", "--duration", "60s", "--concurrency", "1", "--bucket", BUCKET)
    with subprocess.Popen(
        command(*arguments, "--json", "a.json"), env=environment(node, tmp_path), cwd=tmp_path, stderr=subprocess.PIPE
    ) as running:
        try:
            wait_until("the object is there", lambda: keys(node))
            (key,) = keys(node)
            whole = contents(1, parse_sizes("4KiB")).of(key.encode()).whole()
            node.s3().put_object(Bucket=BUCKET, Key=key, Body=whole[:-1] + bytes([whole[-1] ^ 1]))
            before = node.metric("anvil_api_requests_total")
            wait_until("it was read again", lambda: node.metric("anvil_api_requests_total") > before + 50)
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 130
    found = json.loads((tmp_path / "a.json").read_text())
    (failure,) = found["failures"]
    assert (failure["operation"], failure["kind"], failure["code"]) == ("get", "content", "damaged")
    assert found["damaged"][0] == f"{key}: other bytes between 0 and 4096"
    assert found["interrupted"] and keys(node) == []


def test_damage_is_the_exit_code(node: AnvilNode, tmp_path: Path) -> None:
    arguments = ("stat", "--objects", "1", "--duration", "4s", "--concurrency", "1", "--bucket", BUCKET)
    with subprocess.Popen(
        command(*arguments, "--json", "a.json"), env=environment(node, tmp_path), cwd=tmp_path, stderr=subprocess.PIPE
    ) as running:
        wait_until("the object is there", lambda: keys(node))
        node.s3().put_object(Bucket=BUCKET, Key=keys(node)[0], Body=b"short")
        running.communicate(timeout=60)
    assert running.returncode == Exit.FAILED
    assert "Content-Length 5 instead of 4096" in json.loads((tmp_path / "a.json").read_text())["damaged"][0]


def test_wrong_keys(node: AnvilNode, tmp_path: Path) -> None:
    done = bench(node, tmp_path, "put", "--count", "1", "--bucket", BUCKET, AWS_SECRET_ACCESS_KEY="wrong")
    assert done.returncode == Exit.DENIED and done.stderr.startswith("anvil: SignatureDoesNotMatch: ")
    done = bench(node, tmp_path, "put", "--count", "1", "--bucket", BUCKET, AWS_ACCESS_KEY_ID="nobody")
    assert done.returncode == Exit.DENIED and "InvalidAccessKeyId" in done.stderr
    assert "Traceback" not in done.stderr


def test_refusals_are_counted_by_their_code(node: AnvilNode, tmp_path: Path) -> None:
    """The app may list and read the bucket, and not write to it."""
    made = json.loads(node.anvil("admin", "app", "create", "--tenant", "default", "--name", "looker", "--json").stdout)
    for action in ("object:list", "bucket:read"):
        done = node.anvil("admin", "policy", "grant", "--app", "looker", "--action", action, "--resource", BUCKET)
        assert done.returncode == 0, done.stderr
    names = {"AWS_ACCESS_KEY_ID": made["access_key"], "AWS_SECRET_ACCESS_KEY": made["secret"]}
    found = report(node, tmp_path, "put", "--count", "12", "--concurrency", "2", code=Exit.FAILED, **names)
    (failure,) = found["failures"]
    assert (failure["operation"], failure["kind"], failure["code"], failure["count"]) == ("put", "s3", "AccessDenied", 12)
    assert (found["operations"]["put"]["requests"], found["operations"]["put"]["failed"]) == (0, 12)


def test_the_bucket(node: AnvilNode, tmp_path: Path) -> None:
    done = bench(node, tmp_path, "put", "--count", "1", "--bucket", "absent")
    assert done.returncode == Exit.NOT_FOUND and "--create-bucket" in done.stderr
    assert bench(node, tmp_path, "put", "--count", "1", "--bucket", "made-now", "--create-bucket").returncode == Exit.OK
    assert "made-now" in [one["Name"] for one in node.s3().list_buckets()["Buckets"]]


def test_nobody_is_there(node: AnvilNode, tmp_path: Path) -> None:
    done = bench(node, tmp_path, "put", "--count", "1", "--bucket", BUCKET, AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port()}")
    assert done.returncode == Exit.UNAVAILABLE
    assert done.stderr.count("\n") == 1 and "connection refused" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("put", "--size", "x"), "not a size"),
        (("put", "--count", "1", "--duration", "1s"), "either --duration or --count"),
        (("put", "--count", "1", "--json", "absent/a.json"), "no such folder"),
        (("get", "--plot", "a.pdf"), "a .png or an .svg"),
        (("put", "--mix", "get=1"), "No such option"),
        (("delete", "--warmup", "1s"), "No such option"),
        (("get", "--payload", "signed"), "No such option"),
        (("mixed", "--mix", "delete=1"), "run out"),
    ],
)
def test_wrong_options(node: AnvilNode, tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = bench(node, tmp_path, *arguments, "--bucket", BUCKET)
    assert done.returncode == Exit.USAGE and says in done.stderr, done.stderr


def test_where_keys_and_endpoint_come_from(node: AnvilNode, tmp_path: Path) -> None:
    nothing = {"AWS_ENDPOINT_URL": "", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    run = ("put", "--count", "2", "--bucket", BUCKET)
    done = bench(node, tmp_path, *run, **nothing)
    assert done.returncode == Exit.USAGE and "whose keys?" in done.stderr
    keys_of = ("--access-key", node.access_key, "--secret-key", node.secret_key)
    done = bench(node, tmp_path, *run, *keys_of, **nothing)
    assert done.returncode == Exit.USAGE and "which endpoint?" in done.stderr
    assert bench(node, tmp_path, *run, *keys_of, "--endpoint", node.endpoint, **nothing).returncode == Exit.OK
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").write_text(node.credentials_file.read_text())
    (tmp_path / ".aws" / "config").write_text(f"[default]\nendpoint_url = {node.endpoint}\nregion = us-east-1\n")
    assert bench(node, tmp_path, *run, **nothing).returncode == Exit.OK
    assert bench(node, tmp_path, *run, "--aws-profile", "absent", **nothing).returncode == Exit.USAGE
    pair = ("--client-id", node.access_key, "--client-secret", node.secret_key)
    saved = subprocess.run(
        [sys.executable, "-m", "anvil.cli.main", "static-config", "--name", "work", "--host", node.endpoint, *pair, "--default"],
        env=environment(node, tmp_path),
        check=False,
    )
    assert saved.returncode == 0
    assert bench(node, tmp_path, *run, "--profile", "work", **nothing).returncode == Exit.OK
    (tmp_path / ".aws" / "credentials").unlink()
    (tmp_path / ".aws" / "config").unlink()
    assert bench(node, tmp_path, *run, **nothing).returncode == Exit.OK  # the default profile


def test_a_server_that_is_killed(tmp_path: Path) -> None:
    """The run ends by itself, says what was measured until then, and why it ended."""
    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "1"}) as node:
        node.s3().create_bucket(Bucket=BUCKET)
        arguments = (
            "put",
            "--duration",
            "120s",
            "--concurrency",
            "4",
            "--processes",
            "2",
            "--bucket",
            BUCKET,
            "--json",
            "a.json",
        )
        with subprocess.Popen(
            command(*arguments),
            env=environment(node, tmp_path),
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as running:
            wait_until("objects are put", lambda: len(keys(node)) > 20)
            began = time.monotonic()
            node.kill_all()
            out, err = running.communicate(timeout=60)
        assert time.monotonic() - began < 40
    assert running.returncode == Exit.FAILED and err == ""
    assert "the endpoint did not answer for 10 s" in out and "objects are left under" in out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["operations"]["put"]["requests"] > 20
    assert {failure["kind"] for failure in found["failures"]} == {"transport"}
    assert "connection refused" in {failure["code"] for failure in found["failures"]}
