"""gRPC through the shipped proxy configurations, with grpcio as the client."""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from anvil.api.grpc.proto import auth_pb2, auth_pb2_grpc, object_pb2, object_pb2_grpc
from tests.compat.proxies.conftest import need
from tests.support.node import AnvilNode, wait_until
from tests.support.ports import free_port
from tests.support.proxies import KINDS, NGINX_SIMPLE, Certificate, Proxy, ProxyKind

DEADLINE_S = 20.0
MIB = 1 << 20
WITH_GRPC = [kind for kind in KINDS if kind.grpc]


def channel(target: str, certificate: Certificate) -> grpc.Channel:
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(certificate.authority.read_bytes()))


def reaches_the_node(opened: grpc.Channel) -> None:
    """One call for the whole server, of the service that every gRPC server has."""
    answer = health_pb2_grpc.HealthStub(opened).Check(health_pb2.HealthCheckRequest(), timeout=DEADLINE_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


class Objects:
    """ObjectService through a proxy, with a token of the node's app."""

    def __init__(self, opened: grpc.Channel, node: AnvilNode, bucket: str) -> None:
        keys = auth_pb2.GetAccessTokenRequest(client_id=node.access_key, client_secret=node.secret_key)
        token = auth_pb2_grpc.AuthServiceStub(opened).GetAccessToken(keys, timeout=DEADLINE_S).access_token
        self.metadata = [("authorization", f"Bearer {token}")]
        self.stub = object_pb2_grpc.ObjectServiceStub(opened)
        self.bucket = bucket

    def put(self, key: str, data: bytes, chunk: int = MIB) -> Any:
        def messages() -> Iterator[object_pb2.PutObjectRequest]:
            header = object_pb2.PutObjectHeader(bucket=self.bucket, key=key, size=len(data))
            yield object_pb2.PutObjectRequest(header=header)
            for at in range(0, len(data), chunk):
                yield object_pb2.PutObjectRequest(chunk=data[at : at + chunk])

        return self.stub.PutObject(messages(), metadata=self.metadata, timeout=60)

    def get(self, key: str, **selection: Any) -> bytes:
        request = object_pb2.GetObjectRequest(bucket=self.bucket, key=key, **selection)
        return b"".join(one.chunk for one in self.stub.GetObject(request, metadata=self.metadata, timeout=60))


@pytest.fixture
def objects(node: AnvilNode, proxy: Proxy, certificate: Certificate, bucket: str) -> Iterator[Objects]:
    with channel(proxy.target, certificate) as opened:
        yield Objects(opened, node, bucket)


with_grpc = pytest.mark.parametrize("proxy", WITH_GRPC, ids=lambda kind: kind.name, indirect=True)


@with_grpc
def test_unary_calls(proxy: Proxy, certificate: Certificate, objects: Objects) -> None:
    with channel(proxy.target, certificate) as opened:
        reaches_the_node(opened)
        reaches_the_node(opened)  # on the connection that is now open
    odd = "a b/ü//%2F/../c"
    objects.put(odd, b"hello")
    listed = objects.stub.ListObjects(object_pb2.ListObjectsRequest(bucket=objects.bucket), metadata=objects.metadata)
    assert [one.key for one in listed.objects] == [odd]
    objects.stub.DeleteObject(object_pb2.DeleteObjectRequest(bucket=objects.bucket, key=odd), metadata=objects.metadata)
    with pytest.raises(grpc.RpcError) as error:
        objects.get(odd)
    assert error.value.code() is grpc.StatusCode.NOT_FOUND
    trailers = dict(error.value.trailing_metadata())
    status = status_pb2.Status.FromString(trailers["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info) and info.reason == "NoSuchKey"


@with_grpc
def test_streams_up_and_down(node: AnvilNode, objects: Objects) -> None:
    data = random.Random(3).randbytes(64 * MIB)
    assert objects.put("big", data).etag == hashlib.md5(data).hexdigest()
    assert objects.get("big") == data
    assert objects.get("big", range=object_pb2.ByteRange(offset=5 * MIB - 1, length=MIB + 2)) == data[5 * MIB - 1 : 6 * MIB + 1]
    assert node.s3().get_object(Bucket=objects.bucket, Key="big")["Body"].read() == data
    small = data[:100_000]
    assert objects.put("small chunks", small, chunk=100).etag == hashlib.md5(small).hexdigest()


@with_grpc
def test_an_early_refusal_arrives(objects: Objects) -> None:
    objects.bucket = "there-is-no-such-bucket"
    for _ in range(20):
        with pytest.raises(grpc.RpcError) as error:
            objects.put("key", bytes(4 * MIB))
        assert error.value.code() is grpc.StatusCode.NOT_FOUND, error.value


@with_grpc
def test_cancellation_and_deadline_reach_the_node(node: AnvilNode, objects: Objects) -> None:
    started, release = threading.Event(), threading.Event()

    def endless() -> Iterator[object_pb2.PutObjectRequest]:
        header = object_pb2.PutObjectHeader(bucket=objects.bucket, key="never", size=64 * MIB)
        yield object_pb2.PutObjectRequest(header=header)
        yield object_pb2.PutObjectRequest(chunk=bytes(3 * MIB))
        started.set()
        release.wait(DEADLINE_S)

    def in_flight() -> float:
        return node.metric("anvil_api_requests_in_flight", api="grpc")

    try:
        call = objects.stub.PutObject.future(endless(), metadata=objects.metadata)
        assert started.wait(DEADLINE_S)
        wait_until("the node serves the upload", lambda: in_flight() == 1)
        call.cancel()
        wait_until("the node gave the upload up", lambda: in_flight() == 0)
        with pytest.raises(grpc.RpcError) as error:
            objects.stub.PutObject(endless(), metadata=objects.metadata, timeout=1)
        assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until("the node gave the upload up", lambda: in_flight() == 0)
    finally:
        release.set()
    assert node.s3().list_objects_v2(Bucket=objects.bucket)["KeyCount"] == 0


@pytest.mark.parametrize("proxy", [NGINX_SIMPLE], ids=lambda kind: kind.name, indirect=True)
def test_a_proxy_that_cannot_pass_grpc_on_hands_over_the_reason(proxy: Proxy, certificate: Certificate) -> None:
    with channel(proxy.target, certificate) as opened, pytest.raises(grpc.RpcError) as error:
        opened.unary_unary("/anvil.v1.ObjectService/HeadObject")(b"", timeout=DEADLINE_S)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "use grpc_pass in nginx" in error.value.details()


@pytest.fixture(params=[kind for kind in KINDS if kind.recommended], ids=lambda kind: kind.name)
def half_dead(
    request: pytest.FixtureRequest, node: AnvilNode, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    """Two nodes, the first of which does not listen."""
    kind: ProxyKind = request.param
    need(kind)
    with Proxy(kind, [free_port(), node.port], tmp_path_factory.mktemp("half-dead") / kind.name, certificate) as running:
        yield running


def test_a_dead_node_among_two_is_not_noticed_by_grpc(half_dead: Proxy, certificate: Certificate) -> None:
    with channel(half_dead.target, certificate) as opened:
        for _ in range(20):
            reaches_the_node(opened)
