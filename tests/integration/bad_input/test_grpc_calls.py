"""Every gRPC call with the wrong credentials, and with values that no field should have: what S3's operations refuse, these refuse, too."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from anvil.api.grpc.proto import auth_pb2, bucket_pb2, object_pb2
from tests.integration.bad_input.conftest import World
from tests.support.node import wait_until
from tests.support.rawclient import Client

DEADLINE_S = 20.0
UPLOAD = "0" * 32
SEED = 20261129
OK = grpc.StatusCode.OK
DENIED = (grpc.StatusCode.PERMISSION_DENIED, "AccessDenied")
HIDDEN = (grpc.StatusCode.NOT_FOUND, "NoSuchBucket")
UNKNOWN_APP = (grpc.StatusCode.NOT_FOUND, "NoSuchEntity")
SERVER_FAULTS = {
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in (auth_pb2, bucket_pb2, object_pb2)
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def attempts(bucket: str, key: str = "kept") -> dict[str, tuple[Any, ...]]:
    """The messages of each call about an existing bucket. None of them may be obeyed."""
    named: dict[str, Any] = {"bucket": bucket, "key": key}
    upload = {**named, "upload_id": UPLOAD}
    source = object_pb2.CopySource(bucket="second", key="kept")
    put = object_pb2.PutObjectHeader(**named, size=4)
    part = object_pb2.UploadPartHeader(**upload, part_number=1, size=4)
    mine = bucket_pb2.BucketPolicy(public_read=True)
    right = {"app": "reader", "action": "object:read", "resource": f"{bucket}/*"}
    calls: dict[str, tuple[Any, ...]] = {
        "AuthService/GrantAccess": (auth_pb2.GrantAccessRequest(**right),),
        "AuthService/RevokeAccess": (auth_pb2.RevokeAccessRequest(**right),),
        "AuthService/SetPublicAccess": (auth_pb2.SetPublicAccessRequest(bucket=bucket, allow=True),),
        "BucketService/DeleteBucket": (bucket_pb2.DeleteBucketRequest(bucket=bucket),),
        "BucketService/HeadBucket": (bucket_pb2.HeadBucketRequest(bucket=bucket),),
        "BucketService/GetBucketPolicy": (bucket_pb2.GetBucketPolicyRequest(bucket=bucket),),
        "BucketService/PutBucketPolicy": (bucket_pb2.PutBucketPolicyRequest(bucket=bucket, policy=mine),),
        "ObjectService/PutObject": (object_pb2.PutObjectRequest(header=put), object_pb2.PutObjectRequest(chunk=b"mine")),
        "ObjectService/GetObject": (object_pb2.GetObjectRequest(**named),),
        "ObjectService/HeadObject": (object_pb2.HeadObjectRequest(**named),),
        "ObjectService/DeleteObject": (object_pb2.DeleteObjectRequest(**named),),
        "ObjectService/ListObjects": (object_pb2.ListObjectsRequest(bucket=bucket),),
        "ObjectService/CopyObject": (object_pb2.CopyObjectRequest(source=source, **named),),
        "ObjectService/InitiateMultipartUpload": (object_pb2.InitiateMultipartUploadRequest(**named),),
        "ObjectService/UploadPart": (object_pb2.UploadPartRequest(header=part), object_pb2.UploadPartRequest(chunk=b"mine")),
        "ObjectService/UploadPartCopy": (object_pb2.UploadPartCopyRequest(source=source, part_number=1, **upload),),
        "ObjectService/ListParts": (object_pb2.ListPartsRequest(**upload),),
        "ObjectService/CompleteMultipartUpload": (
            object_pb2.CompleteMultipartUploadRequest(**upload, parts=[object_pb2.CompletedPart(number=1, etag="x")]),
        ),
        "ObjectService/AbortMultipartUpload": (object_pb2.AbortMultipartUploadRequest(**upload),),
    }
    return {f"/anvil.v1.{name}": messages for name, messages in calls.items()}


ATTEMPTS = tuple(attempts("attacked"))
RIGHTS = {"/anvil.v1.AuthService/GrantAccess", "/anvil.v1.AuthService/RevokeAccess"}  # name a pattern, and an app of one's tenant
READS = {"/anvil.v1.ObjectService/GetObject", "/anvil.v1.ObjectService/HeadObject"}
SIGN_IN = "/anvil.v1.AuthService/GetAccessToken"
ELSEWHERE = {  # calls that name no existing bucket
    SIGN_IN: auth_pb2.GetAccessTokenRequest(client_id="AKIAX", client_secret="x"),
    "/anvil.v1.BucketService/CreateBucket": bucket_pb2.CreateBucketRequest(bucket="made-by-grpc"),
    "/anvil.v1.BucketService/ListBuckets": bucket_pb2.ListBucketsRequest(),
}


class Said(NamedTuple):
    status: grpc.StatusCode
    reason: str


class Caller:
    """One connection; `tokens` of those who have one."""

    def __init__(self, world: World) -> None:
        self._channel = grpc.insecure_channel(f"127.0.0.1:{world.node.port}")
        self._world = world
        self._tokens: dict[str, str] = {}

    def close(self) -> None:
        self._channel.close()

    def __call__(self, who: Client | None, path: str, *messages: Any, **more: Any) -> Said:
        return self.bare(path, [message.SerializeToString() for message in messages], **{"metadata": self.head(who), **more})

    def bare(self, path: str, messages: list[bytes], metadata: tuple[tuple[str, str], ...]) -> Said:
        """Serialized messages, which need not be any."""
        try:
            for _ in self._channel.stream_stream(path)(iter(messages), timeout=DEADLINE_S, metadata=metadata):
                pass
        except grpc.RpcError as failed:
            error: Any = failed
            details = dict(error.trailing_metadata()).get("grpc-status-details-bin", b"")
            info = ErrorInfo()
            any(detail.Unpack(info) for detail in Status.FromString(details).details)
            return Said(error.code(), info.reason)
        return Said(OK, "")

    def head(self, who: Client | None) -> tuple[tuple[str, str], ...]:
        """The metadata of a call by `who`; None: nobody."""
        if who is None:
            return ()
        if who.access_key not in self._tokens:
            request = auth_pb2.GetAccessTokenRequest(client_id=who.access_key, client_secret=who.secret)
            call = self._channel.unary_unary(SIGN_IN, None, auth_pb2.GetAccessTokenResponse.FromString)
            self._tokens[who.access_key] = call(request.SerializeToString(), timeout=DEADLINE_S).access_token
        return (("authorization", f"Bearer {self._tokens[who.access_key]}"),)


@pytest.fixture(scope="module")
def ask(world: World) -> Iterator[Caller]:
    caller = Caller(world)
    yield caller
    caller.close()


# -- who calls ---------------------------------------------------------------------------------------------------------------


def test_every_call_is_here() -> None:
    assert METHODS.keys() == set(ATTEMPTS) | ELSEWHERE.keys()


@pytest.mark.parametrize("path", ATTEMPTS)
def test_who_has_no_token_is_denied(ask: Caller, path: str) -> None:
    """CVE-2026-73080, and nobody learns which buckets there are."""
    for bucket in ("attacked", "no-such-bucket"):
        assert ask(None, path, *attempts(bucket)[path]) == DENIED


def test_nor_does_he_make_or_list_any(ask: Caller) -> None:
    for path, request in ELSEWHERE.items():
        wrong_pair = (grpc.StatusCode.UNAUTHENTICATED, "InvalidAccessKeyId")
        assert ask(None, path, request) == (wrong_pair if path == SIGN_IN else DENIED)


@pytest.mark.parametrize("path", ATTEMPTS)
def test_what_is_another_tenants_is_not_there(world: World, ask: Caller, path: str) -> None:
    said = ask(world.other, path, *attempts("attacked")[path])
    assert said == (UNKNOWN_APP if path in RIGHTS else HIDDEN)


@pytest.mark.parametrize("path", ATTEMPTS)
def test_one_narrow_right(world: World, ask: Caller, path: str) -> None:
    """`object:read` on `attacked/public/*`: reads there and nothing else anywhere."""
    assert ask(world.reader, path, *attempts("attacked")[path]) == DENIED
    inside = ask(world.reader, path, *attempts("attacked", "public/kept")[path])
    assert inside == ((OK, "") if path in READS else DENIED)


def test_sources_of_copies_are_authorized(world: World, ask: Caller) -> None:
    """Of whoever may write the target, and begun an upload to it."""
    writer = world.app("default", "grpc-writer", ("object:write", "attacked/drafts/*"))
    wait_until("the new app is known", lambda: writer("POST", "/attacked/drafts/copy?uploads").status == 200)
    begun = writer("POST", "/attacked/drafts/copy?uploads").body
    upload_id = begun.partition(b"<UploadId>")[2].partition(b"</UploadId>")[0].decode()
    calls = attempts("attacked", "drafts/copy")
    (copy,), (part,) = calls["/anvil.v1.ObjectService/CopyObject"], calls["/anvil.v1.ObjectService/UploadPartCopy"]
    part.upload_id = upload_id
    assert ask(writer, "/anvil.v1.ObjectService/CopyObject", copy) == DENIED
    assert ask(writer, "/anvil.v1.ObjectService/UploadPartCopy", part) == DENIED
    assert ask(world.own, "/anvil.v1.ObjectService/UploadPartCopy", part).status is OK, "it was the source"


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer x", "Bearer a.b.c", "Basic eDp5", "Bearer " + "a" * 7000, "AWS4-HMAC-SHA256 Credential=x"],
)
def test_a_token_that_is_none_is_worse_than_none(ask: Caller, authorization: str) -> None:
    """Not taken for the anonymous, on any call but that for a token."""
    for path in METHODS:
        said = ask.bare(path, [b""], (("authorization", authorization),))
        reason = "InvalidAccessKeyId" if path == SIGN_IN else "InvalidToken"
        assert said == (grpc.StatusCode.UNAUTHENTICATED, reason), path


# -- what is said ------------------------------------------------------------------------------------------------------------

TEXTS = (
    "\0", "\r\nx-amz-acl: public-read", "../../etc/passwd", "/", "*", "%00", "null", "\u202e\U0001f600\ufffe", "a" * 1025, "a" * 9000,
    '"', "W/", "A" * 43, "0" * 32, "-1",
)  # fmt: skip
NUMBERS = (-1, 0, 1, 10_001, 2**31 - 1, -(2**31))
LARGE = (*NUMBERS, 2**63 - 1, -(2**63), 2**40)
RAW = (b"", b"\0", bytes(8), bytes(1000))


def values(field: FieldDescriptor) -> tuple[Any, ...]:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return RAW if field.type == FieldDescriptor.TYPE_BYTES else TEXTS
    return {
        FieldDescriptor.CPPTYPE_INT32: NUMBERS,
        FieldDescriptor.CPPTYPE_INT64: LARGE,
        FieldDescriptor.CPPTYPE_ENUM: NUMBERS,
        FieldDescriptor.CPPTYPE_BOOL: (True, False),
    }[kind]


def spoiled(message: Message) -> Iterator[tuple[str, Message]]:
    """The message with one field at a time set to what it should not be, in the messages within it, too."""
    for field in message.DESCRIPTOR.fields:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            for text in TEXTS:
                for name, value in ((text, "v"), ("n", text)):
                    copy = clone(message)
                    getattr(copy, field.name)[name] = value
                    yield f"{field.name}[{name[:20]!r}]={value[:20]!r}", copy
        elif field.message_type is not None:
            inner = getattr(message, field.name)
            repeated = field.is_repeated
            within = field.message_type._concrete_class() if repeated else inner
            for what, made in spoiled(within):
                copy = clone(message)
                if repeated:
                    getattr(copy, field.name).add().CopyFrom(made)
                else:
                    getattr(copy, field.name).CopyFrom(made)
                yield f"{field.name}.{what}", copy
        else:
            for value in values(field):
                copy = clone(message)
                if field.is_repeated:
                    getattr(copy, field.name).append(value)
                else:
                    setattr(copy, field.name, value)
                yield f"{field.name}={str(value)[:20]!r}", copy


def clone(message: Message) -> Message:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def known(said: Said) -> bool:
    """Done, or refused as the client's fault with a reason."""
    return said.status is OK or (said.status not in SERVER_FAULTS and said.reason not in ("", "InternalError"))


@pytest.mark.parametrize("path", METHODS)
def test_fields_of_any_value(world: World, ask: Caller, path: str) -> None:
    """By an app that may do everything: none of it is a failure of the server's."""
    bucket = "spoiled-by-grpc"
    created = bucket_pb2.CreateBucketRequest(bucket=bucket)
    ask(world.own, "/anvil.v1.BucketService/CreateBucket", created)
    first, *rest = attempts(bucket)[path] if path in ATTEMPTS else (ELSEWHERE[path],)
    for what, request in spoiled(first):
        said = ask(world.own, path, request, *rest)
        assert known(said), (what, said)


@pytest.mark.parametrize("path", METHODS)
def test_messages_that_are_noise(world: World, ask: Caller, path: str) -> None:
    rng = random.Random(SEED)
    good = [
        message.SerializeToString() for message in (attempts("no-such-bucket")[path] if path in ATTEMPTS else (ELSEWHERE[path],))
    ]
    noise = [
        [],
        [b"\xff"],
        [b"\x0a\xff\xff\xff\xff\x0f"],
        [b"\x0a\x02\xff\xfe"],
        [good[0] + b"\x0a"],
        [*good, *good],
        [good[0][:-1]],
    ]
    noise += [[b"\x0b" * 5000], [b"\x0a" * 5001], [rng.randbytes(rng.randrange(1, 200))]]
    noise += [[rng.randbytes(40)] for _ in range(20)]
    metadata = ask.head(world.own)
    for messages in noise:
        said = ask.bare(path, messages, metadata)
        assert known(said), (messages, said, f"seed {SEED}")
