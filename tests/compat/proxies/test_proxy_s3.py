"""S3 through every shipped proxy configuration: what clients store is what they get, byte for byte and name for name."""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import random
import secrets
import socket
import ssl
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.compat.conftest import Shell
from tests.compat.proxies.conftest import client
from tests.support.node import AnvilNode
from tests.support.proxies import CADDY_SIMPLE, DOMAIN, NGINX_SIMPLE, Proxy, resolving

LARGE = random.Random(64).randbytes(64 << 20)
ODD_KEYS = (
    "with space and+plus",
    "/leading/slash",
    "two//slashes///three",
    "trailing/",
    "per%2Fcent%2f%25%",
    "ümläut/日本/€",
    "../up",
    "a/../b/./c",
    "..",
    "query?x=1&y=2#z",
    "quote'\"<&>;,:@=$*()!~|^`[]{}",
    "back\\slash",
)


def code(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    answer = error.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def test_aws_cli_moves_a_large_file_both_ways(shell: Shell, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "up").write_bytes(LARGE)
    shell("aws", "s3", "cp", "up", f"s3://{bucket}/large", "--only-show-errors")
    shell("aws", "s3", "cp", f"s3://{bucket}/large", "down", "--only-show-errors")
    assert (tmp_path / "down").read_bytes() == LARGE


def test_one_put_of_64_mib_with_a_trailing_checksum(s3: Any, bucket: str) -> None:
    sent: list[object] = []
    s3.meta.events.register("before-send.s3.PutObject", lambda request, **_: sent.append(request.headers["x-amz-content-sha256"]))
    put = s3.put_object(Bucket=bucket, Key="k", Body=LARGE, ChecksumAlgorithm="CRC32")
    assert sent == [b"STREAMING-UNSIGNED-PAYLOAD-TRAILER"], "this is about aws-chunked bodies"
    assert put["ETag"] == f'"{hashlib.md5(LARGE).hexdigest()}"'
    assert put["ChecksumCRC32"] == base64.b64encode(zlib.crc32(LARGE).to_bytes(4, "big")).decode()
    assert s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")["Body"].read() == LARGE


def test_a_put_without_a_checksum(node: AnvilNode, proxy: Proxy, bucket: str) -> None:
    """With Content-Length and a plain body."""
    s3 = client(node, proxy, Config(request_checksum_calculation="when_required"))
    put = s3.put_object(Bucket=bucket, Key="k", Body=LARGE[: 9 << 20])
    assert put["ETag"] == f'"{hashlib.md5(LARGE[: 9 << 20]).hexdigest()}"'


def test_multipart(s3: Any, bucket: str) -> None:
    config = TransferConfig(multipart_threshold=8 << 20, multipart_chunksize=8 << 20, max_concurrency=4)
    s3.upload_fileobj(io.BytesIO(LARGE), bucket, "m", Config=config)
    digests = b"".join(hashlib.md5(LARGE[at : at + (8 << 20)]).digest() for at in range(0, len(LARGE), 8 << 20))
    assert s3.head_object(Bucket=bucket, Key="m")["ETag"] == f'"{hashlib.md5(digests).hexdigest()}-8"'
    back = io.BytesIO()
    s3.download_fileobj(bucket, "m", back, Config=config)
    assert back.getvalue() == LARGE


def test_ranges(s3: Any, bucket: str) -> None:
    data = LARGE[: 3 << 20]
    s3.put_object(Bucket=bucket, Key="k", Body=data)
    for header, expected in {
        "bytes=0-0": data[:1],
        "bytes=-5": data[-5:],
        "bytes=1048570-1048590": data[1048570:1048591],
        "bytes=5-": data[5:],
    }.items():
        got = s3.get_object(Bucket=bucket, Key="k", Range=header)
        assert (got["Body"].read(), got["ResponseMetadata"]["HTTPStatusCode"]) == (expected, 206)
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key="k", Range="bytes=3145728-")
    assert code(error) == (416, "InvalidRange")


@pytest.mark.parametrize("version", ["s3v4", "s3"])
def test_presigned(node: AnvilNode, proxy: Proxy, bucket: str, trust: ssl.SSLContext, version: str) -> None:
    s3 = client(node, proxy, Config(signature_version=version))
    where = {"Bucket": bucket, "Key": "a b/ü%2F//c"}
    data = LARGE[:300_000]
    url = s3.generate_presigned_url("put_object", where | {"ContentType": "x/y"})
    put = Request(url, data=data, method="PUT", headers={"Content-Type": "x/y"})
    with urlopen(put, timeout=20, context=trust) as answer:
        assert answer.headers["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    with urlopen(s3.generate_presigned_url("get_object", where), timeout=20, context=trust) as answer:
        assert answer.read() == data


def test_odd_keys(s3: Any, bucket: str) -> None:
    """Also with a condition: nginx hands those out from another place of its configuration."""
    for number, key in enumerate(ODD_KEYS):
        s3.put_object(Bucket=bucket, Key=key, Body=b"first")
        s3.put_object(Bucket=bucket, Key=f"new/{key}", Body=b"%d" % number, IfNoneMatch="*")
    listed = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    expected = [*ODD_KEYS, *(f"new/{key}" for key in ODD_KEYS)]
    assert listed == sorted(expected, key=lambda key: key.encode())
    for number, key in enumerate(ODD_KEYS):
        assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == b"first"
        assert s3.get_object(Bucket=bucket, Key=f"new/{key}")["Body"].read() == b"%d" % number
        s3.delete_object(Bucket=bucket, Key=key)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == len(ODD_KEYS)


def test_virtual_host_style(node: AnvilNode, proxy: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", resolving(socket.getaddrinfo))
    style = Config(s3={"addressing_style": "virtual"})
    s3 = client(node, proxy, style, endpoint=f"https://{DOMAIN}:{proxy.port}")
    asked: list[str] = []
    s3.meta.events.register("before-send.s3", lambda request, **_: asked.append(request.url))
    s3.put_object(Bucket=bucket, Key="a/b c", Body=LARGE[: 1 << 20])
    assert asked[0] == f"https://{bucket}.{DOMAIN}:{proxy.port}/a/b%20c", "this is about host names"
    assert s3.get_object(Bucket=bucket, Key="a/b c")["Body"].read() == LARGE[: 1 << 20]
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["a/b c"]


def test_metadata_with_underscores(s3: Any, proxy: Proxy, bucket: str) -> None:
    meta = {"my_name": "x", "dashed-name": "a b"}
    if proxy.kind is NGINX_SIMPLE:  # as its comments say
        with pytest.raises(ClientError) as error:
            s3.put_object(Bucket=bucket, Key="k", Body=b"x", Metadata=meta)
        assert code(error) == (403, "SignatureDoesNotMatch")
    else:
        s3.put_object(Bucket=bucket, Key="k", Body=b"x", Metadata=meta)
        got = s3.head_object(Bucket=bucket, Key="k")["Metadata"]
        assert {name.lower(): value for name, value in got.items()} == meta, "Caddy writes header names its own way"


def test_packed_objects_stay_packed(s3: Any, proxy: Proxy, bucket: str, trust: ssl.SSLContext) -> None:
    """For a client that does not say what it accepts: Accept-Encoding is the proxy's own then."""
    packed = gzip.compress(b"hello " * 1000)
    s3.put_object(Bucket=bucket, Key="k", Body=packed, ContentEncoding="gzip")
    url = s3.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "k"})
    path = url.partition(proxy.target)[2]
    with (
        socket.create_connection(("127.0.0.1", proxy.port), 20) as plain,
        trust.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(f"GET {path} HTTP/1.1\r\nHost: {proxy.target}\r\nConnection: close\r\n\r\n".encode())
        head, _, body = b"".join(iter(lambda: tls.recv(1 << 16), b"")).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    if proxy.kind is CADDY_SIMPLE:  # as its comments say
        assert b"content-encoding" not in head.lower()
    else:
        assert (body, b"content-encoding: gzip" in head.lower()) == (packed, True)


def test_what_is_missing(s3: Any, bucket: str) -> None:
    for _ in range(3):  # the connection is good for more
        with pytest.raises(ClientError) as error:
            s3.head_object(Bucket=bucket, Key="none")
        assert code(error) == (404, "404")
        with pytest.raises(ClientError) as error:
            s3.get_object(Bucket=bucket, Key="none")
        assert code(error) == (404, "NoSuchKey")


def test_names_that_look_like_grpc(s3: Any, node: AnvilNode) -> None:
    """A bucket with the name of a gRPC package, and objects of gRPC's content type, are S3's."""
    bucket = f"anvil.v1.{secrets.token_hex(6)}"
    node.s3().create_bucket(Bucket=bucket)
    data = LARGE[:100_000]
    put = s3.put_object(Bucket=bucket, Key="Get", Body=data, ContentType="application/grpc")
    assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="Get")
    assert (got["Body"].read(), got["ContentType"]) == (data, "application/grpc")
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m", ContentType="application/grpc+proto")["UploadId"]
    s3.abort_multipart_upload(Bucket=bucket, Key="m", UploadId=upload)
    assert s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "Get"}]})["Deleted"] == [{"Key": "Get"}]


def test_metrics_are_not_for_the_world(proxy: Proxy, trust: ssl.SSLContext) -> None:
    """The proxy is on the node's machine, its clients are not."""
    with pytest.raises(HTTPError) as error:
        urlopen(f"{proxy.endpoint}/metrics", timeout=20, context=trust)
    assert error.value.code == 403


def test_32_at_once(node: AnvilNode, proxy: Proxy, bucket: str) -> None:
    s3 = client(node, proxy, Config(max_pool_connections=32))

    def both_ways(number: int) -> bool:
        data = LARGE[number : number + 200_000 + number * 1000]
        s3.put_object(Bucket=bucket, Key=f"k{number}", Body=data)
        return bool(s3.get_object(Bucket=bucket, Key=f"k{number}")["Body"].read() == data)

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(both_ways, range(128)))
