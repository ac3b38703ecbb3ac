"""A region that is closed for recovery: no operation says anything of an object, over either API."""

from __future__ import annotations

from typing import Any

import pytest

from anvil.api.grpc.proto import bucket_pb2, object_pb2
from anvil.api.s3.routes import ROUTES, Route
from anvil.base.errors import InRecovery
from tests.unit.api.fakes import World
from tests.unit.api.grpc.desk import Desk
from tests.unit.api.test_routes import target_of

ASKS_NOTHING_OF_THE_REGION = {"ListBuckets", "GetBucketLocation"}  # answered by the global database
DOCUMENTS = {
    "DeleteObjects": b"<Delete><Object><Key>key</Key></Object></Delete>",
    "CompleteMultipartUpload": b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>e</ETag></Part></CompleteMultipartUpload>",
}
SERVED = [route for route in ROUTES if route.handler is not None and route.operation not in ASKS_NOTHING_OF_THE_REGION]
UPLOAD = "0" * 32


def asked(world: World, route: Route) -> Any:
    target = target_of(route)
    if "uploadId" in target:
        target = target.replace("uploadId", f"uploadId={UPLOAD}")
    if route.operation in ("UploadPart", "UploadPartCopy"):
        target += f"{'&' if '?' in target else '?'}partNumber=1"
    if route.operation == "ListObjectsV2":
        target += "=2"
    if route.operation == "CreateBucket":
        target = "/new-bucket"
    headers = {"authorization": "x"} | ({"x-amz-copy-source": "/bucket/key"} if route.copies else {})
    body = DOCUMENTS.get(route.operation, b"" if route.method in ("PUT", "POST") else None)
    return world.ask(route.method, target, body, headers=headers)


@pytest.mark.parametrize("route", SERVED, ids=lambda route: route.operation)
def test_every_operation_says_503_and_why(route: Route) -> None:
    world = World()
    world.engine.store(world.bucket, "key", b"data")
    world.closed = "its database was lost"
    answer = asked(world, route)
    assert answer.status == 503, answer.sent
    if route.method != "HEAD":
        assert answer.code == "ServiceUnavailable" and b"its database was lost" in answer.sent
    world.closed = ""
    assert asked(world, route).status != 503
    assert len(SERVED) > 15


def test_what_the_global_database_knows_is_still_told() -> None:
    world = World()
    world.closed = "its database was lost"
    assert world.ask("GET", "/").status == 200
    assert world.ask("GET", "/bucket?location").status == 200


def test_who_may_not_see_the_bucket_hears_that_first() -> None:
    world = World()
    world.closed = "its database was lost"
    world.act_as(None)
    assert world.ask("GET", "/bucket/key").status == 403
    assert world.ask("GET", "/none/key").status in (403, 404)


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("HeadObject", object_pb2.HeadObjectRequest(bucket="bucket", key="key")),
        ("DeleteObject", object_pb2.DeleteObjectRequest(bucket="bucket", key="key")),
        ("CreateBucket", bucket_pb2.CreateBucketRequest(bucket="new-bucket")),
        ("DeleteBucket", bucket_pb2.DeleteBucketRequest(bucket="bucket")),
    ],
)
def test_grpc_says_the_same(method: str, request_: Any) -> None:
    desk = Desk()
    desk.closed = "its database was lost"
    with pytest.raises(InRecovery, match="its database was lost"):
        desk.ask(method, request_)
    with pytest.raises(InRecovery):
        desk.put(b"data")
