"""One object, two protocols, on a real node: what is put by one is what the other reads, and both refuse the same things."""

from __future__ import annotations

import hashlib
import secrets
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import botocore.exceptions
import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from anvil.api.grpc.proto import auth_pb2, auth_pb2_grpc, bucket_pb2, bucket_pb2_grpc, object_pb2_grpc
from anvil.api.grpc.proto import object_pb2 as pb
from tests.support.node import AnvilNode

DATA = b"both" * 300_000


class Both:
    bucket = ""

    def __init__(self, node: AnvilNode, channel: grpc.Channel) -> None:
        keys = auth_pb2.GetAccessTokenRequest(client_id=node.access_key, client_secret=node.secret_key)
        auth: Any = auth_pb2_grpc.AuthServiceStub(channel)
        self.token = (("authorization", f"Bearer {auth.GetAccessToken(keys).access_token}"),)
        self.s3: Any = node.s3()
        self.objects: Any = object_pb2_grpc.ObjectServiceStub(channel)
        self.buckets: Any = bucket_pb2_grpc.BucketServiceStub(channel)

    def ask(self, method: Any, request: Any) -> Any:
        return method(request, metadata=self.token)

    def refused(self, method: Any, request: Any) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            self.ask(method, request)
        error: Any = caught.value
        status, info = Status(), ErrorInfo()
        status.ParseFromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
        assert any(detail.Unpack(info) for detail in status.details)
        return error.code(), info.reason


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with (
        AnvilNode(tmp_path_factory.mktemp("both") / "data") as node,
        grpc.insecure_channel(node.endpoint.removeprefix("http://")) as channel,
    ):
        yield Both(node, channel)


@pytest.fixture
def both(running: Both) -> Both:
    """Each test has a bucket of its own, not created yet."""
    running.bucket = f"shared-{secrets.token_hex(4)}"
    return running


def put(both: Both, key: str, **header: Any) -> Any:
    head = pb.PutObjectHeader(bucket=both.bucket, key=key, size=len(DATA), **header)
    chunks = (pb.PutObjectRequest(chunk=DATA[start : start + 500_000]) for start in range(0, len(DATA), 500_000))
    return both.ask(both.objects.PutObject, iter([pb.PutObjectRequest(header=head), *chunks]))


def test_what_one_puts_the_other_reads(both: Both) -> None:
    both.ask(both.buckets.CreateBucket, bucket_pb2.CreateBucketRequest(bucket=both.bucket))
    said = pb.Attributes(
        content_type="text/plain; charset=utf-8", cache_control="no-cache", user_metadata={"colour": "blue", "place": "Köln"}
    )
    answer = put(both, "by grpc/ä", attributes=said, checksum_algorithm="CHECKSUM_ALGORITHM_SHA256")
    found = both.s3.get_object(Bucket=both.bucket, Key="by grpc/ä", ChecksumMode="ENABLED")
    assert found["Body"].read() == DATA
    assert found["ETag"] == f'"{answer.etag}"' == f'"{hashlib.md5(DATA).hexdigest()}"'
    assert (found["ContentType"], found["CacheControl"]) == ("text/plain; charset=utf-8", "no-cache")
    assert found["Metadata"] == {"colour": "blue", "place": "=?UTF-8?B?S8O2bG4=?="}  # as S3 shows what is not ASCII
    assert b64decode(found["ChecksumSHA256"]) == answer.checksum.value == hashlib.sha256(DATA).digest()

    both.s3.put_object(
        Bucket=both.bucket, Key="by-s3", Body=DATA, Metadata={"a": "b"}, ContentLanguage="de", ChecksumAlgorithm="CRC32"
    )
    head, *chunks = both.ask(both.objects.GetObject, pb.GetObjectRequest(bucket=both.bucket, key="by-s3"))
    assert b"".join(chunk.chunk for chunk in chunks) == DATA
    info = head.head.object
    assert (dict(info.attributes.user_metadata), info.attributes.content_language) == ({"a": "b"}, "de")
    assert info.checksum.algorithm == pb.CHECKSUM_ALGORITHM_CRC32
    listed = both.ask(both.objects.ListObjects, pb.ListObjectsRequest(bucket=both.bucket))
    assert [entry.key for entry in listed.objects] == ["by grpc/ä", "by-s3"]
    assert [entry["Key"] for entry in both.s3.list_objects_v2(Bucket=both.bucket)["Contents"]] == ["by grpc/ä", "by-s3"]


def test_both_refuse_the_same(both: Both) -> None:
    both.s3.create_bucket(Bucket=both.bucket)
    both.s3.put_object(Bucket=both.bucket, Key="k", Body=b"data")
    once = pb.WriteConditions(if_none_match=["*"])
    for s3, method, request, status in (
        (
            lambda: both.s3.head_bucket(Bucket="missing-bucket"),
            both.buckets.HeadBucket,
            bucket_pb2.HeadBucketRequest(bucket="missing-bucket"),
            grpc.StatusCode.NOT_FOUND,
        ),
        (
            lambda: both.s3.delete_bucket(Bucket=both.bucket),
            both.buckets.DeleteBucket,
            bucket_pb2.DeleteBucketRequest(bucket=both.bucket),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (
            lambda: both.s3.copy_object(Bucket=both.bucket, Key="k", CopySource=f"{both.bucket}/k"),
            both.objects.CopyObject,
            pb.CopyObjectRequest(source=pb.CopySource(bucket=both.bucket, key="k"), bucket=both.bucket, key="k"),
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (
            lambda: both.s3.copy_object(
                Bucket=both.bucket, Key="k", CopySource=f"{both.bucket}/k", MetadataDirective="REPLACE", IfNoneMatch="*"
            ),
            both.objects.CopyObject,
            pb.CopyObjectRequest(
                source=pb.CopySource(bucket=both.bucket, key="k"),
                bucket=both.bucket,
                key="k",
                replace_attributes=True,
                conditions=once,
            ),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (
            lambda: both.s3.abort_multipart_upload(Bucket=both.bucket, Key="k", UploadId="0" * 32),
            both.objects.AbortMultipartUpload,
            pb.AbortMultipartUploadRequest(bucket=both.bucket, key="k", upload_id="0" * 32),
            grpc.StatusCode.NOT_FOUND,
        ),
    ):
        with pytest.raises(botocore.exceptions.ClientError) as caught:
            s3()
        code = caught.value.response["Error"]["Code"]
        assert both.refused(method, request) == (status, {"404": "NoSuchBucket"}.get(code, code))


def test_an_upload_begun_by_one_is_completed_by_the_other(both: Both) -> None:
    both.s3.create_bucket(Bucket=both.bucket)
    upload_id = both.s3.create_multipart_upload(Bucket=both.bucket, Key="big", ChecksumAlgorithm="CRC32C")["UploadId"]
    part: dict[str, Any] = {"bucket": both.bucket, "key": "big", "upload_id": upload_id}
    header = pb.UploadPartHeader(**part, part_number=1, size=len(DATA))
    sent = both.ask(both.objects.UploadPart, iter([pb.UploadPartRequest(header=header), pb.UploadPartRequest(chunk=DATA)]))
    listed = both.s3.list_parts(Bucket=both.bucket, Key="big", UploadId=upload_id)["Parts"]
    assert [(one["PartNumber"], one["ETag"], b64decode(one["ChecksumCRC32C"])) for one in listed] == [
        (1, f'"{sent.etag}"', sent.checksum.value)
    ]
    parts = [pb.CompletedPart(number=1, etag=sent.etag, checksum=sent.checksum.value)]
    done = both.ask(both.objects.CompleteMultipartUpload, pb.CompleteMultipartUploadRequest(**part, parts=parts))
    head = both.s3.head_object(Bucket=both.bucket, Key="big")
    assert (head["ETag"], head["ContentLength"]) == (f'"{done.etag}"', len(DATA))
