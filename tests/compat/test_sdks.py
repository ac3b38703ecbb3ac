"""boto3 and minio-py: what SDKs send today, checksums, multipart uploads, conditions, listing, errors."""

from __future__ import annotations

import base64
import hashlib
import io
import random
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from minio import Minio

from tests.support.node import AnvilNode

PART = 5 << 20


def code(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    answer = error.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


@pytest.mark.parametrize("size", [0, 1, 2047, 2048, 4096, 65535, 65536, 1 << 20, (1 << 20) + 1, 3_500_000])
def test_put_get_head_of_every_storage_form(s3: Any, bucket: str, size: int) -> None:
    data = random.Random(size).randbytes(size)
    put = s3.put_object(Bucket=bucket, Key="k", Body=data)
    assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == data
    head = s3.head_object(Bucket=bucket, Key="k")
    assert (head["ContentLength"], head["ETag"]) == (size, put["ETag"])


def test_ranges(s3: Any, bucket: str) -> None:
    data = random.Random(1).randbytes(3 << 20)
    s3.put_object(Bucket=bucket, Key="k", Body=data)
    for header, expected in {
        "bytes=0-0": data[:1],
        "bytes=-5": data[-5:],
        "bytes=1048570-1048590": data[1048570:1048591],
        "bytes=3145727-": data[3145727:],
        "bytes=5-99999999": data[5:],
    }.items():
        got = s3.get_object(Bucket=bucket, Key="k", Range=header)
        assert got["Body"].read() == expected
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key="k", Range="bytes=3145728-")
    assert code(error) == (416, "InvalidRange")


def test_multipart_by_hand(s3: Any, bucket: str) -> None:
    parts = [random.Random(number).randbytes(size) for number, size in enumerate((PART, PART + 1, 100))]
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m", ChecksumAlgorithm="SHA256", Metadata={"a": "b"})["UploadId"]
    listed = []
    for number, data in enumerate(parts, 1):
        done = s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=number, Body=data, ChecksumAlgorithm="SHA256")
        listed.append({"PartNumber": number, "ETag": done["ETag"], "ChecksumSHA256": done["ChecksumSHA256"]})
    assert [part["Size"] for part in s3.list_parts(Bucket=bucket, Key="m", UploadId=upload)["Parts"]] == [len(p) for p in parts]
    assert [u["Key"] for u in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == ["m"]
    done = s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": listed})
    etag = hashlib.md5(b"".join(hashlib.md5(data).digest() for data in parts)).hexdigest()
    assert done["ETag"] == f'"{etag}-3"'
    composite = base64.b64encode(hashlib.sha256(b"".join(hashlib.sha256(data).digest() for data in parts)).digest()).decode()
    assert done["ChecksumSHA256"] == f"{composite}-3"
    got = s3.get_object(Bucket=bucket, Key="m")
    assert got["Body"].read() == b"".join(parts)
    assert got["Metadata"] == {"a": "b"}
    second = s3.get_object(Bucket=bucket, Key="m", PartNumber=2)
    assert (second["Body"].read(), second["PartsCount"]) == (parts[1], 3)
    again = s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": listed})
    assert again["ETag"] == done["ETag"], "completing is idempotent"
    span = s3.get_object(Bucket=bucket, Key="m", Range=f"bytes={PART - 10}-{PART + 10}")["Body"].read()
    assert span == b"".join(parts)[PART - 10 : PART + 11]


def test_multipart_mistakes(s3: Any, bucket: str) -> None:
    upload = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    small = [s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=n, Body=b"x" * 100)["ETag"] for n in (1, 2)]

    def complete(*parts: tuple[int, str]) -> Any:
        listed = [{"PartNumber": number, "ETag": etag} for number, etag in parts]
        return s3.complete_multipart_upload(Bucket=bucket, Key="m", UploadId=upload, MultipartUpload={"Parts": listed})

    for parts, expected in (
        ([(1, small[0]), (2, small[1])], (400, "EntityTooSmall")),
        ([(2, small[1]), (1, small[0])], (400, "InvalidPartOrder")),
        ([(1, small[0]), (3, small[1])], (400, "InvalidPart")),
        ([(1, '"0123456789abcdef0123456789abcdef"')], (400, "InvalidPart")),
    ):
        with pytest.raises(ClientError) as error:
            complete(*parts)
        assert code(error) == expected
    s3.abort_multipart_upload(Bucket=bucket, Key="m", UploadId=upload)
    with pytest.raises(ClientError) as error:
        s3.upload_part(Bucket=bucket, Key="m", UploadId=upload, PartNumber=1, Body=b"x")
    assert code(error) == (404, "NoSuchUpload")


def test_managed_transfer_and_copies(s3: Any, bucket: str) -> None:
    data = random.Random(9).randbytes(17 << 20)
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, max_concurrency=4)
    s3.upload_fileobj(io.BytesIO(data), bucket, "big", Config=config, ExtraArgs={"ContentType": "x/y"})
    s3.copy({"Bucket": bucket, "Key": "big"}, bucket, "copy", Config=config)
    back = io.BytesIO()
    s3.download_fileobj(bucket, "copy", back, Config=config)
    assert back.getvalue() == data
    s3.copy_object(
        Bucket=bucket,
        Key="big",
        CopySource={"Bucket": bucket, "Key": "big"},
        MetadataDirective="REPLACE",
        Metadata={"new": "meta"},
        ContentType="a/b",
    )
    head = s3.head_object(Bucket=bucket, Key="big")
    assert (head["Metadata"], head["ContentType"], head["ContentLength"]) == ({"new": "meta"}, "a/b", len(data))
    assert s3.get_object(Bucket=bucket, Key="big")["Body"].read() == data


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "SHA1", "SHA256", "CRC64NVME"])
def test_checksums_are_kept_and_checked(s3: Any, bucket: str, algorithm: str) -> None:
    data = random.Random(5).randbytes(300_000)
    put = s3.put_object(Bucket=bucket, Key="k", Body=data, ChecksumAlgorithm=algorithm)
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert head[f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    facts = s3.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ETag", "Checksum", "ObjectSize"])
    assert facts["ObjectSize"] == len(data)
    assert facts["Checksum"][f"Checksum{algorithm}"] == put[f"Checksum{algorithm}"]
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="bad", Body=data, **{f"Checksum{algorithm}": put[f"Checksum{algorithm}"][::-1]})
    assert code(error)[0] == 400
    with pytest.raises(ClientError) as error:
        s3.head_object(Bucket=bucket, Key="bad")
    assert code(error)[0] == 404, "a refused upload leaves nothing visible"


def test_conditional_writes_and_reads(s3: Any, bucket: str) -> None:
    first = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    for condition in ({"IfNoneMatch": "*"}, {"IfMatch": '"00000000000000000000000000000000"'}):
        with pytest.raises(ClientError) as error:
            s3.put_object(Bucket=bucket, Key="k", Body=b"2", **condition)
        assert code(error) == (412, "PreconditionFailed")
    second = s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfMatch=first)["ETag"]
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="none", Body=b"2", IfMatch=first)
    assert code(error) == (404, "NoSuchKey")
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key="k", IfNoneMatch=second)
    assert code(error)[0] == 304
    with pytest.raises(ClientError) as error:
        s3.delete_object(Bucket=bucket, Key="k", IfMatch=first)
    assert code(error) == (412, "PreconditionFailed")
    s3.delete_object(Bucket=bucket, Key="k", IfMatch=second)


def test_listing_is_exact(s3: Any, bucket: str) -> None:
    keys = [*sorted(f"{top}/{number:03d}" for top in ("a", "a b", "b", "b+", "é") for number in range(25)), "a", "zz"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    ordered = sorted(keys, key=lambda key: key.encode())
    for size in (1, 7, 1000):
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": size})
        assert [item["Key"] for page in pages for item in page.get("Contents", [])] == ordered
        pages = s3.get_paginator("list_objects").paginate(Bucket=bucket, PaginationConfig={"PageSize": size})
        assert [item["Key"] for page in pages for item in page.get("Contents", [])] == ordered
        pages = list(
            s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": size})
        )
        assert [item["Key"] for page in pages for item in page.get("Contents", [])] == ["a", "zz"]
        assert [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])] == ["a b/", "a/", "b+/", "b/", "é/"]
    after = s3.list_objects_v2(Bucket=bucket, StartAfter="b/023")["Contents"]
    assert [item["Key"] for item in after] == ordered[ordered.index("b/023") + 1 :]
    assert s3.list_objects_v2(Bucket=bucket, MaxKeys=0)["KeyCount"] == 0


def test_delete_objects(s3: Any, bucket: str) -> None:
    for number in range(5):
        s3.put_object(Bucket=bucket, Key=f"k{number}", Body=b"x")
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": f"k{n}"} for n in (0, 1, 2, 9)]})
    assert sorted(item["Key"] for item in answer["Deleted"]) == ["k0", "k1", "k2", "k9"], "deleting what is not there succeeds"
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]] == ["k3", "k4"]


def test_buckets(s3: Any, bucket: str) -> None:
    with pytest.raises(ClientError) as error:
        s3.create_bucket(Bucket=bucket)
    assert code(error) == (409, "BucketAlreadyOwnedByYou")
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    with pytest.raises(ClientError) as error:
        s3.delete_bucket(Bucket=bucket)
    assert code(error) == (409, "BucketNotEmpty")
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None
    assert bucket in [item["Name"] for item in s3.list_buckets()["Buckets"]]
    s3.delete_object(Bucket=bucket, Key="k")
    s3.delete_bucket(Bucket=bucket)
    with pytest.raises(ClientError) as error:
        s3.head_bucket(Bucket=bucket)
    assert code(error)[0] == 404


def test_what_is_not_there_says_so(s3: Any, bucket: str) -> None:
    for call in (
        lambda: s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Enabled"}),
        lambda: s3.get_bucket_lifecycle_configuration(Bucket=bucket),
        lambda: s3.put_object_tagging(Bucket=bucket, Key="k", Tagging={"TagSet": []}),
        lambda: s3.put_object(Bucket=bucket, Key="k", Body=b"", ACL="public-read"),
    ):
        with pytest.raises(ClientError) as error:
            call()
        assert code(error) == (501, "NotImplemented")


@pytest.mark.parametrize("version", [None, "s3v4"])
def test_presigned_urls(node: AnvilNode, bucket: str, version: str | None) -> None:
    """As boto3 makes them when nobody configured a signature version, and with the one that should be."""
    s3 = node.s3(config=Config(signature_version=version)) if version else node.s3()
    put = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "dir/a b", "ContentType": "text/x"})
    with urlopen(Request(put, data=b"by url", method="PUT", headers={"content-type": "text/x"}), timeout=10) as answer:
        assert answer.status == 200
    disposition = 'attachment; filename="x y"'
    params = {"Bucket": bucket, "Key": "dir/a b", "ResponseContentDisposition": disposition}
    with urlopen(s3.generate_presigned_url("get_object", Params=params), timeout=10) as answer:
        assert (answer.read(), answer.headers["content-type"]) == (b"by url", "text/x")
        assert answer.headers["content-disposition"] == disposition
    with pytest.raises(HTTPError) as refused:
        urlopen(s3.generate_presigned_url("get_object", Params=params).replace("dir/a", "dir/b"), timeout=10)
    assert refused.value.code == 403


def test_minio_py(node: AnvilNode, bucket: str) -> None:
    client = Minio(
        urlsplit(node.endpoint).netloc,
        access_key=node.access_key,
        secret_key=node.secret_key,
        secure=False,
        region=node.region,
    )
    assert client.bucket_exists(bucket)
    data = random.Random(3).randbytes(12 << 20)
    client.put_object(bucket, "dir/m", io.BytesIO(data), len(data), part_size=PART)
    answer = client.get_object(bucket, "dir/m")
    assert answer.read() == data
    answer.close()
    answer.release_conn()
    client.put_object(bucket, "small", io.BytesIO(b"abc"), 3, metadata={"x-amz-meta-Who": "me"})
    assert client.stat_object(bucket, "small").metadata["x-amz-meta-who"] == "me"
    assert {item.object_name for item in client.list_objects(bucket)} == {"dir/", "small"}
    assert {item.object_name for item in client.list_objects(bucket, recursive=True)} == {"dir/m", "small"}
    client.remove_object(bucket, "small")
