"""The command-line clients people use, storing and fetching a tree of real files: AWS CLI, s5cmd, rclone, s3cmd."""

from __future__ import annotations

import json
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from tests.compat.conftest import Shell, Tree


def test_aws_cli_stores_lists_and_fetches_a_tree(shell: Shell, bucket: str, tree: Tree, tmp_path: Path) -> None:
    shell("aws", "s3", "sync", tree.root, f"s3://{bucket}/tree", "--only-show-errors")
    listed = shell("aws", "s3", "ls", f"s3://{bucket}/tree/", "--recursive", "--summarize")
    assert f"Total Objects: {len(Tree.SIZES)}" in listed
    assert f"Total Size: {sum(Tree.SIZES)}" in listed
    shell("aws", "s3", "sync", f"s3://{bucket}/tree", tmp_path / "back", "--only-show-errors")
    assert Tree.digest(tmp_path / "back") == Tree.digest(tree.root)
    assert shell("aws", "s3", "sync", tree.root, f"s3://{bucket}/tree", "--size-only") == "", "nothing is left to be done"
    shell("aws", "s3", "rm", f"s3://{bucket}/tree", "--recursive", "--only-show-errors")
    shell("aws", "s3", "rb", f"s3://{bucket}")


def test_aws_cli_streams_copies_and_presigns(shell: Shell, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "hello.txt").write_text("hello")
    shell("aws", "s3", "cp", "hello.txt", f"s3://{bucket}/a/hello.txt", "--content-type", "text/plain", "--metadata", "who=me")
    shell("aws", "s3", "mv", f"s3://{bucket}/a/hello.txt", f"s3://{bucket}/b/hello.txt")
    head = json.loads(shell("aws", "s3api", "head-object", "--bucket", bucket, "--key", "b/hello.txt"))
    assert (head["ContentType"], head["Metadata"], head["ContentLength"]) == ("text/plain", {"who": "me"}, 5)
    assert shell("aws", "s3", "cp", f"s3://{bucket}/b/hello.txt", "-") == "hello"
    url = shell("aws", "s3", "presign", f"s3://{bucket}/b/hello.txt").strip()
    with urlopen(url, timeout=10) as answer:
        assert answer.read() == b"hello"
    said = shell("aws", "s3", "cp", f"s3://{bucket}/none", "-", ok=False)
    assert "404" in said


def test_aws_cli_with_every_checksum(shell: Shell, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(bytes(range(256)) * 40)
    for algorithm in ("CRC32", "CRC32C", "SHA1", "SHA256", "CRC64NVME"):
        put = ("put-object", "--bucket", bucket, "--key", algorithm, "--body", "f", "--checksum-algorithm", algorithm)
        stored = json.loads(shell("aws", "s3api", *put))
        got = json.loads(
            shell("aws", "s3api", "get-object", "--bucket", bucket, "--key", algorithm, "--checksum-mode", "ENABLED", "out")
        )
        assert got[f"Checksum{algorithm}"] == stored[f"Checksum{algorithm}"]
        assert (tmp_path / "out").read_bytes() == (tmp_path / "f").read_bytes()


def test_s5cmd_stores_and_fetches_a_tree(shell: Shell, bucket: str, tree: Tree, tmp_path: Path) -> None:
    shell("s5cmd", "cp", f"{tree.root}/", f"s3://{bucket}/t/")
    assert len(shell("s5cmd", "ls", f"s3://{bucket}/t/*").splitlines()) == len(Tree.SIZES)
    shell("s5cmd", "cp", f"s3://{bucket}/t/*", f"{tmp_path}/back/")
    assert Tree.digest(tmp_path / "back") == Tree.digest(tree.root)
    shell("s5cmd", "rm", f"s3://{bucket}/t/*")
    shell("s5cmd", "rb", f"s3://{bucket}")


def test_rclone_syncs_and_checks(shell: Shell, bucket: str, tree: Tree, tmp_path: Path) -> None:
    options = ["env_auth=true", "provider=Other", f"endpoint='{shell.node.endpoint}'", f"region={shell.node.region}"]
    remote = f":s3,{','.join(options)}:{bucket}/r"
    shell("rclone", "sync", tree.root, remote, "--s3-upload-cutoff", "8M", "--s3-chunk-size", "5M")
    shell("rclone", "check", tree.root, remote)
    shell("rclone", "sync", remote, tmp_path / "back")
    assert Tree.digest(tmp_path / "back") == Tree.digest(tree.root)
    shell("rclone", "purge", remote)


def test_s3cmd_stores_and_fetches(shell: Shell, bucket: str, tree: Tree, tmp_path: Path) -> None:
    host = urlsplit(shell.node.endpoint).netloc
    options = [f"--access_key={shell.node.access_key}", f"--secret_key={shell.node.secret_key}", f"--host={host}"]
    options += [f"--host-bucket={host}", "--no-ssl", f"--region={shell.node.region}", "--no-progress", "--no-preserve"]

    def s3cmd(*command: str | Path) -> str:
        return shell("s3cmd", *options, *command)

    s3cmd("sync", f"{tree.root}/", f"s3://{bucket}/x/")
    assert len(s3cmd("ls", "--recursive", f"s3://{bucket}/x/").splitlines()) == len(Tree.SIZES)
    (tmp_path / "back").mkdir()
    s3cmd("sync", f"s3://{bucket}/x/", f"{tmp_path}/back/")
    assert Tree.digest(tmp_path / "back") == Tree.digest(tree.root)
    s3cmd("del", "--recursive", "--force", f"s3://{bucket}/x/")
