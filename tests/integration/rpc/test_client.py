"""anvil.client and the `anvil` commands against a real node: gRPC by them, S3 by boto3, on one port."""

from __future__ import annotations

import asyncio
import io
import json
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from anvil.base.limits import MIB
from anvil.client import (
    AnvilClient,
    Attributes,
    BadCredentials,
    BadDigest,
    BucketNotEmpty,
    BucketPolicy,
    ByteRange,
    Checksum,
    ChecksumAlgorithm,
    InvalidRange,
    NoSuchBucket,
    NoSuchKey,
    NotModified,
    PermissionMissing,
    PreconditionFailed,
    Prefix,
    ReadConditions,
    TransferOptions,
    Unreachable,
    WriteConditions,
    open_source,
)
from tests.support.certificates import make_pair
from tests.support.node import ROOT, AnvilNode

BLOCK = random.Random(31).randbytes(37 * MIB + 5)
OPTIONS = TransferOptions(part_bytes=5 * MIB, multipart_bytes=10 * MIB, range_bytes=5 * MIB, ranged_bytes=10 * MIB)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AnvilNode]:
    folder = tmp_path_factory.mktemp("node")
    pair = make_pair(folder / "tls", serial=1, days=30)
    with AnvilNode(folder / "data", env={"ANVIL_WORKERS": "2"}, tls=pair) as running:
        yield running


def connect(node: AnvilNode, *, tls: bool = False, keys: tuple[str, str] | None = None) -> AnvilClient:
    assert node.tls is not None
    host, ca = (node.tls_endpoint, node.tls.cert) if tls else (node.endpoint, None)
    return AnvilClient(host, *(keys or (node.access_key, node.secret_key)), ca=ca, transfer=OPTIONS)


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(data), 300_001):
        yield data[at : at + 300_001]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_objects_of_all_sizes_both_ways(node: AnvilNode, tmp_path: Path, tls: bool) -> None:
    bucket, s3 = f"sizes-{int(tls)}", node.s3()

    async def work() -> None:
        async with connect(node, tls=tls) as client:
            await client.buckets.create(bucket)
            for size in (0, 1, 2048, 100_000, MIB, 10 * MIB - 1, 10 * MIB, len(BLOCK)):
                data = BLOCK[:size]
                attributes = Attributes(content_type="text/x", user_metadata={"n": str(size)})
                made = await client.objects.upload(bucket, f"k{size}", data, attributes=attributes)
                assert made.checksum is not None and made.size == size
                answer = s3.get_object(Bucket=bucket, Key=f"k{size}")
                assert answer["Body"].read() == data
                assert (answer["ContentType"], answer["Metadata"]) == ("text/x", {"n": str(size)})
                assert answer["ETag"] == f'"{made.etag}"'
                got = await client.objects.download(bucket, f"k{size}", tmp_path / "f")
                assert (tmp_path / "f").read_bytes() == data and got.verified
                streamed = await client.objects.upload(bucket, "stream", pieces(data))
                assert (streamed.etag, streamed.checksum) == (made.etag, made.checksum)
                sink = io.BytesIO()
                assert (await client.objects.download(bucket, "stream", sink)).verified and sink.getvalue() == data
                if size:
                    body = await client.objects.get(bucket, f"k{size}", range=ByteRange(-min(size, 70_000)))
                    assert await body.read() == data[-70_000:]

    asyncio.run(work())


def test_what_others_have_put(node: AnvilNode, tmp_path: Path) -> None:
    """boto3's checksums: CRC32 of small objects is compared, a composite one of parts cannot be."""
    s3 = node.s3()
    s3.create_bucket(Bucket="others")
    s3.put_object(Bucket="others", Key="crc32", Body=BLOCK[:MIB])
    s3.put_object(Bucket="others", Key="sha256", Body=BLOCK[: 11 * MIB], ChecksumAlgorithm="SHA256")
    s3.upload_fileobj(io.BytesIO(BLOCK), "others", "parts", ExtraArgs={"ChecksumAlgorithm": "SHA256"})

    async def work() -> None:
        async with connect(node) as client:
            for key, size, verified in (("crc32", MIB, True), ("sha256", 11 * MIB, True), ("parts", len(BLOCK), False)):
                got = await client.objects.download("others", key, tmp_path / key)
                assert (tmp_path / key).read_bytes() == BLOCK[:size]
                assert got.verified is verified, key
            copied = await client.objects.copy_large("others", "parts", "others", "copy")
            assert (await client.objects.head("others", "copy")).etag == copied.etag

    asyncio.run(work())


def test_conditions_listings_and_multipart_by_hand(node: AnvilNode) -> None:
    async def work() -> None:
        async with connect(node) as client:
            await client.buckets.create("rules")
            first = await client.objects.put("rules", "k", b"one", conditions=WriteConditions(if_none_match=("*",)))
            with pytest.raises(PreconditionFailed):
                await client.objects.put("rules", "k", b"two", conditions=WriteConditions(if_none_match=("*",)))
            with pytest.raises(NotModified):
                await client.objects.head("rules", "k", conditions=ReadConditions(if_none_match=(first.etag,)))
            with pytest.raises(InvalidRange):
                await client.objects.get("rules", "k", range=ByteRange(3))
            with pytest.raises(NoSuchKey) as caught:
                await client.objects.get("rules", "absent")
            assert caught.value.request_id and caught.value.metadata["Key"] == "absent"
            with pytest.raises(NoSuchBucket):
                await client.buckets.head("no-such-bucket")
            with pytest.raises(BucketNotEmpty):
                await client.buckets.delete("rules")
            for key in ("a/1", "a/2", "b"):
                await client.objects.put("rules", key, b"")
            found = [one async for one in client.objects.list("rules", delimiter="/", page_size=1)]
            assert [one.prefix if isinstance(one, Prefix) else one.key for one in found] == ["a/", "b", "k"]
            parts, source = client.objects.multipart, open_source(BLOCK[: 6 * MIB], None)
            upload = await parts.initiate("rules", "m")
            sent = [
                await parts.upload_part("rules", "m", upload, 1, source, 0, 5 * MIB),  # type: ignore[arg-type]
                await parts.upload_part("rules", "m", upload, 2, source, 5 * MIB),  # type: ignore[arg-type]
            ]
            assert [(one.number, one.etag) async for one in parts.list_parts("rules", "m", upload, 1)] == [
                (one.number, one.etag) for one in sent
            ]
            wrong = Checksum(ChecksumAlgorithm.CRC64NVME, bytes(8))
            with pytest.raises(BadDigest):
                await parts.complete("rules", "m", upload, sent, checksum=wrong)
            done = await parts.complete("rules", "m", upload, sent)
            assert done.etag.endswith("-2")
            async with await client.objects.get("rules", "m", part_number=2) as body:
                assert (body.start, body.length) == (5 * MIB, MIB)
                assert await body.read() == BLOCK[5 * MIB : 6 * MIB] and body.verified

    asyncio.run(work())


async def refused(error: type[Exception], call: Callable[[], Awaitable[object]], *until_then: type[Exception]) -> None:
    """What was taken away is refused within a second (docs/CLUSTER.md); beside other tests the machine is given five."""
    for _ in range(100):
        try:
            await call()
        except error:
            return
        except until_then:
            pass
        await asyncio.sleep(0.05)
    pytest.fail("what was taken away is still allowed")


def test_rights_and_credentials(node: AnvilNode) -> None:
    made = json.loads(node.anvil("admin", "app", "create", "--tenant", "default", "--name", "guest", "--json").stdout)
    keys = (made["access_key"], made.get("secret") or made["secret_key"])

    async def work() -> None:
        async with connect(node) as owner, connect(node, keys=keys) as guest:
            await owner.buckets.create("shared")
            await owner.objects.put("shared", "k", b"x")
            with pytest.raises(PermissionMissing) as caught:
                await guest.objects.put("shared", "k", bytes(3 * MIB))
            assert caught.value.message == f"not allowed: object:write on shared/k (app {keys[0]})"
            assert await owner.auth.grant("guest", "object:read", "shared/*") is True
            assert await owner.auth.grant(keys[0], "object:read", "shared/*") is False
            assert await (await guest.objects.get("shared", "k")).read() == b"x"
            with pytest.raises(PermissionMissing, match="policy:grant"):
                await guest.auth.grant("guest", "object:write", "shared/*")
            policy = await owner.buckets.get_policy("shared")
            assert [one.action for one in policy.policy.grants] == ["object:read"]
            assert await owner.auth.revoke("guest", "object:read", "shared/*") is True
            await refused(PermissionMissing, lambda: guest.objects.get("shared", "k"))
            with pytest.raises(PreconditionFailed):
                await owner.buckets.put_policy("shared", BucketPolicy(True, ()), if_match=policy.etag)
            await owner.buckets.set_public("shared", True)
            assert (await owner.buckets.get_policy("shared")).policy.public_read
        async with connect(node, keys=(keys[0], "wrong" * 8)) as nobody:
            with pytest.raises(BadCredentials):
                await nobody.auth.get_token()

    asyncio.run(work())
    assert node.get("/shared/k")[2] == b"x"


def test_a_reset_secret_voids_the_token_and_the_client_says_so(node: AnvilNode) -> None:
    made = json.loads(node.anvil("admin", "app", "create", "--tenant", "default", "--name", "reset", "--json").stdout)
    keys = (made["access_key"], made.get("secret") or made["secret_key"])

    async def work() -> None:
        async with connect(node, keys=keys) as client:
            assert (await client.auth.get_token()).value
            assert node.anvil("admin", "app", "reset-secret", "--app", keys[0]).returncode == 0
            await refused(BadCredentials, lambda: client.buckets.head("rules"), PermissionMissing, NoSuchBucket)

    asyncio.run(work())


# -- the commands ----------------------------------------------------------------------------------------------------------


def anvil(home: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANVIL_")}
    environment |= {"PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": str(home)}
    return subprocess.run(
        [sys.executable, "-m", "anvil.cli.main", *arguments],
        env=environment,
        input=stdin,
        capture_output=True,
        timeout=60,
        check=False,
    )


def test_the_commands(node: AnvilNode, tmp_path: Path) -> None:
    home = tmp_path / "home"
    made = anvil(
        home,
        *("static-config", "--name", "n", "--host", node.endpoint, "--client-id", node.access_key, "--client-secret", "-"),
        stdin=node.secret_key.encode() + b"\n",
    )
    assert made.returncode == 0, made.stderr
    assert anvil(home, "bucket", "create", "commands").returncode == 0
    (tmp_path / "big.bin").write_bytes(BLOCK)
    done = anvil(home, "object", "put", str(tmp_path / "big.bin"), "s3://commands/", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["size"] == len(BLOCK)
    assert anvil(home, "object", "get", "s3://commands/big.bin", "-").stdout == BLOCK
    assert anvil(home, "object", "put", "-", "s3://commands/in", stdin=b"piped").returncode == 0
    listed = json.loads(anvil(home, "object", "ls", "s3://commands/", "--json").stdout)
    assert [(one["key"], one["size"]) for one in listed] == [("big.bin", len(BLOCK)), ("in", 5)]
    missing = anvil(home, "object", "get", "s3://commands/absent", str(tmp_path / "x"))
    assert missing.returncode == 4 and b"does not exist: commands/absent" in missing.stderr
    assert anvil(home, "bucket", "rm", "commands", "--force").returncode == 0
    assert json.loads((home / "anvil" / "tokens.json").read_text()), "one token served all of these"


def test_a_node_that_is_down_and_comes_back(tmp_path: Path) -> None:
    async def work(node: AnvilNode) -> None:
        async with connect(node) as client:
            await client.buckets.create("back")
            await asyncio.to_thread(node.stop)
            with pytest.raises(Unreachable):
                await client.buckets.head("back")
            await asyncio.to_thread(node.start)
            for _ in range(20):  # the channel waits up to CLIENT_BACKOFF_S_MAX between attempts
                try:
                    assert (await client.buckets.head("back")).name == "back"
                    return
                except Unreachable:
                    await asyncio.sleep(0.2)
            raise AssertionError("it did not connect again")

    pair = make_pair(tmp_path / "tls", serial=1, days=30)
    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "1"}, tls=pair) as node:
        asyncio.run(work(node))
