"""BucketService: create, head, list, delete. What is expected is what S3 documents for the operation of the same name."""

from __future__ import annotations

from typing import Any

import pytest

from anvil.api.grpc.proto import bucket_pb2 as pb
from anvil.base import errors as e
from tests.unit.api.fakes import ACME, OTHER, REGION, app_of
from tests.unit.api.grpc.desk import Desk


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_create_and_head(desk: Desk) -> None:
    made = desk.ask("CreateBucket", pb.CreateBucketRequest(bucket="new-bucket")).bucket
    assert (made.name, made.region, made.created_at.seconds) == ("new-bucket", REGION, 1_700_000_000)
    assert desk.ask("HeadBucket", pb.HeadBucketRequest(bucket="new-bucket")).bucket == made
    desk.ask("CreateBucket", pb.CreateBucketRequest(bucket="another", region=REGION))


@pytest.mark.parametrize(
    ("field", "error"),
    [
        ({"bucket": ""}, e.InvalidBucketName),
        ({"bucket": "ab"}, e.InvalidBucketName),
        ({"bucket": "UPPER"}, e.InvalidBucketName),
        ({"bucket": "ready"}, e.InvalidBucketName),
        ({"bucket": "a..b"}, e.InvalidBucketName),
        ({"bucket": "10.0.0.1"}, e.InvalidBucketName),
        ({"bucket": "new", "region": "eu-west-1"}, e.IllegalLocationConstraint),
        ({"bucket": "new", "region": "eu-west-7"}, e.InvalidLocationConstraint),
        ({"bucket": "bucket"}, e.BucketAlreadyOwnedByYou),
        ({"bucket": "foreign"}, e.BucketAlreadyExists),
    ],
)
def test_buckets_that_are_not_created(desk: Desk, field: dict[str, Any], error: type[Exception]) -> None:
    desk.catalog.add("foreign", OTHER)
    before = set(desk.catalog.rows)
    with pytest.raises(error):
        desk.ask("CreateBucket", pb.CreateBucketRequest(**field))
    assert set(desk.catalog.rows) == before


def test_delete(desk: Desk) -> None:
    desk.catalog.nonempty.add("bucket")
    with pytest.raises(e.BucketNotEmpty):
        desk.ask("DeleteBucket", pb.DeleteBucketRequest(bucket="bucket"))
    desk.catalog.nonempty.clear()
    desk.ask("DeleteBucket", pb.DeleteBucketRequest(bucket="bucket"))
    with pytest.raises(e.NoSuchBucket):
        desk.ask("DeleteBucket", pb.DeleteBucketRequest(bucket="bucket"))
    with pytest.raises(e.InvalidBucketName):
        desk.ask("DeleteBucket", pb.DeleteBucketRequest())


def test_pages(desk: Desk) -> None:
    for name in ("b-1", "b-2", "b-3"):
        desk.catalog.add(name)
    desk.catalog.add("b-4", OTHER)
    seen: list[list[str]] = []
    token = ""
    while True:
        page = desk.ask("ListBuckets", pb.ListBucketsRequest(prefix="b-", page_size=2, page_token=token))
        seen.append([bucket.name for bucket in page.buckets])
        token = page.next_page_token
        if not token:
            break
    assert seen == [["b-1", "b-2"], ["b-3"]]
    everything = desk.ask("ListBuckets", pb.ListBucketsRequest(page_size=2**31 - 1))
    assert [bucket.name for bucket in everything.buckets] == ["b-1", "b-2", "b-3", "bucket"]
    for field in ({"page_size": -1}, {"page_token": "x"}):
        with pytest.raises(e.InvalidArgument):
            desk.ask("ListBuckets", pb.ListBucketsRequest(**field))


def test_rights(desk: Desk) -> None:
    desk.act_as(app_of(ACME, ("bucket:list", "buck*")))
    desk.catalog.add("hidden")
    assert [bucket.name for bucket in desk.ask("ListBuckets", pb.ListBucketsRequest()).buckets] == ["bucket"]
    for method, request in (
        ("CreateBucket", pb.CreateBucketRequest(bucket="new")),
        ("DeleteBucket", pb.DeleteBucketRequest(bucket="bucket")),
        ("HeadBucket", pb.HeadBucketRequest(bucket="bucket")),
    ):
        with pytest.raises(e.AccessDenied):
            desk.ask(method, request)
    desk.act_as(None)
    for method, request in (
        ("ListBuckets", pb.ListBucketsRequest()),
        ("CreateBucket", pb.CreateBucketRequest(bucket="new")),
        ("HeadBucket", pb.HeadBucketRequest(bucket="bucket")),
        ("HeadBucket", pb.HeadBucketRequest(bucket="missing")),
    ):
        with pytest.raises(e.AccessDenied):
            desk.ask(method, request)
