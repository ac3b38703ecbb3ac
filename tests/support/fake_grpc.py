"""Anvil's three gRPC services in memory, for tests of the client: strict about what it is sent, and able to do harm.

    with FakeServer() as server:
        AnvilClient(server.host, *server.keys)

Owns: a grpcio server in threads of its own, on a free loopback port. What the .proto files say must be so is checked here, with checksums
of another implementation (awscrt). `faults` damages, breaks and refuses. Not here: Anvil's own server.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from awscrt import checksums
from google.protobuf import any_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2, status_pb2

from anvil.api.grpc.proto import auth_pb2, auth_pb2_grpc, bucket_pb2, bucket_pb2_grpc, object_pb2, object_pb2_grpc

CHUNK = 1 << 20
CRC64 = object_pb2.CHECKSUM_ALGORITHM_CRC64NVME
STATUS = {
    "NoSuchBucket": grpc.StatusCode.NOT_FOUND,
    "NoSuchKey": grpc.StatusCode.NOT_FOUND,
    "NoSuchUpload": grpc.StatusCode.NOT_FOUND,
    "NoSuchEntity": grpc.StatusCode.NOT_FOUND,
    "BucketAlreadyOwnedByYou": grpc.StatusCode.ALREADY_EXISTS,
    "BucketNotEmpty": grpc.StatusCode.FAILED_PRECONDITION,
    "PreconditionFailed": grpc.StatusCode.FAILED_PRECONDITION,
    "AccessDenied": grpc.StatusCode.PERMISSION_DENIED,
    "InvalidAccessKeyId": grpc.StatusCode.UNAUTHENTICATED,
    "SignatureDoesNotMatch": grpc.StatusCode.UNAUTHENTICATED,
    "InvalidToken": grpc.StatusCode.UNAUTHENTICATED,
    "ExpiredToken": grpc.StatusCode.UNAUTHENTICATED,
    "InvalidRange": grpc.StatusCode.OUT_OF_RANGE,
    "SlowDown": grpc.StatusCode.UNAVAILABLE,
}


class Refused(Exception):
    def __init__(self, reason: str, message: str = "", **metadata: str) -> None:
        super().__init__(message or reason)
        self.reason = reason
        self.metadata = metadata


@dataclass
class Stored:
    data: bytes
    etag: str
    attributes: Any
    parts: int = 0
    checksum: Any = None
    modified: float = field(default_factory=time.time)


@dataclass
class FakeUpload:
    bucket: str
    key: str
    attributes: Any
    parts: dict[int, tuple[bytes, str]] = field(default_factory=dict)


class Faults:
    """What goes wrong. `fail`: per method, refusals for the next calls. `flip_up`: offsets of bytes that are damaged on their way, one per
    upload; `flip_up_always`, `flip_down_always`: one of every transfer. `break_down_after`: a download of more bytes ends with
    UNAVAILABLE after so many, one per entry. `before`: is told of every call first, and may wait."""

    def __init__(self) -> None:
        self.fail: dict[str, list[Refused]] = defaultdict(list)
        self.flip_up: list[int] = []
        self.flip_up_always = False
        self.flip_down_always = False
        self.break_down_after: list[int] = []
        self.before: Callable[[str], None] = lambda method: None


def crc64(data: bytes) -> bytes:
    return int(checksums.crc64nvme(data)).to_bytes(8, "big")


def stamp(seconds: float) -> Timestamp:
    made = Timestamp()
    made.FromNanoseconds(int(seconds * 1e9))
    return made


class FakeServer(auth_pb2_grpc.AuthServiceServicer, bucket_pb2_grpc.BucketServiceServicer, object_pb2_grpc.ObjectServiceServicer):
    def __init__(self, *, part_bytes_min: int = 5 << 20, credentials: Any = None) -> None:
        self.keys = ("AKOWNER", "s3cr3t-" + secrets.token_hex(8))
        self.apps = {self.keys[0]: self.keys[1]}
        self.rights: set[tuple[str, str, str]] = {("AKOWNER", "*", "*")}
        self.public: set[str] = set()
        self.buckets: dict[str, float] = {}
        self.objects: dict[tuple[str, str], Stored] = {}
        self.uploads: dict[str, FakeUpload] = {}
        self.tokens: dict[str, tuple[str, float]] = {}
        self.token_s = 3600.0
        self.part_bytes_min = part_bytes_min
        self.page = 1000
        self.calls: Counter[str] = Counter()
        self.seen: list[Any] = []  # headers of uploads, requests of downloads
        self.faults = Faults()
        self._lock = threading.RLock()
        self._server = grpc.server(ThreadPoolExecutor(16))
        auth_pb2_grpc.add_AuthServiceServicer_to_server(self, self._server)
        bucket_pb2_grpc.add_BucketServiceServicer_to_server(self, self._server)
        object_pb2_grpc.add_ObjectServiceServicer_to_server(self, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        self.host = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None).wait(10)

    # -- rules of all calls ------------------------------------------------------------------------------------------------

    def _enter(self, method: str, context: Any, action: str = "", resource: str = "") -> str:
        """Counts, fails as told, checks token and right. Returns the app."""
        self.calls[method] += 1
        self.faults.before(method)
        if self.faults.fail[method]:
            self._abort(context, self.faults.fail[method].pop(0))
        header = dict(context.invocation_metadata()).get("authorization", "")
        app, expires = self.tokens.get(header.removeprefix("Bearer "), ("", 0.0))
        if not app:
            self._abort(context, Refused("InvalidToken", "The provided token is malformed or otherwise invalid."))
        if time.time() > expires:
            self._abort(context, Refused("ExpiredToken", "The provided token has expired."))
        if action and not self.may(app, action, resource):
            self._abort(context, Refused("AccessDenied", "Access Denied."))
        return app

    def may(self, app: str, action: str, resource: str) -> bool:
        for whose, what, where in self.rights:
            fits = where == resource or (where.endswith("*") and resource.startswith(where[:-1]))
            if whose == app and what in ("*", action) and fits:
                return True
        return False

    def _abort(self, context: Any, refused: Refused) -> None:
        status = STATUS.get(refused.reason, grpc.StatusCode.INVALID_ARGUMENT)
        info = error_details_pb2.ErrorInfo(
            reason=refused.reason, domain="anvil", metadata={"RequestId": "0123456789ABCDEF", **refused.metadata}
        )
        packed = any_pb2.Any()
        packed.Pack(info)
        rich = status_pb2.Status(code=status.value[0], message=str(refused), details=[packed])
        context.set_trailing_metadata((("grpc-status-details-bin", rich.SerializeToString()),))
        context.abort(status, str(refused))

    def _bucket(self, bucket: str, context: Any) -> None:
        if bucket not in self.buckets:
            self._abort(context, Refused("NoSuchBucket", "The specified bucket does not exist.", BucketName=bucket))

    def _object(self, bucket: str, key: str, context: Any) -> Stored:
        self._bucket(bucket, context)
        found = self.objects.get((bucket, key))
        if found is None:
            self._abort(context, Refused("NoSuchKey", "The specified key does not exist.", Key=key))
        assert found is not None
        return found

    # -- AuthService -------------------------------------------------------------------------------------------------------

    def GetAccessToken(self, request: Any, context: Any) -> Any:
        self.calls["GetAccessToken"] += 1
        self.faults.before("GetAccessToken")
        if self.faults.fail["GetAccessToken"]:
            self._abort(context, self.faults.fail["GetAccessToken"].pop(0))
        if request.client_id not in self.apps:
            self._abort(context, Refused("InvalidAccessKeyId", "The access key ID you provided does not exist in our records."))
        if self.apps[request.client_id] != request.client_secret:
            self._abort(context, Refused("SignatureDoesNotMatch", "The secret does not match."))
        token, expires = secrets.token_urlsafe(24), time.time() + self.token_s
        self.tokens[token] = (request.client_id, expires)
        return auth_pb2.GetAccessTokenResponse(access_token=token, expires_at=stamp(expires))

    def GrantAccess(self, request: Any, context: Any) -> Any:
        self._enter("GrantAccess", context, "policy:grant", request.resource)
        right = (request.app, request.action, request.resource)
        changed = right not in self.rights
        self.rights.add(right)
        return auth_pb2.GrantAccessResponse(changed=changed)

    def RevokeAccess(self, request: Any, context: Any) -> Any:
        self._enter("RevokeAccess", context, "policy:revoke", request.resource)
        right = (request.app, request.action, request.resource)
        changed = right in self.rights
        self.rights.discard(right)
        return auth_pb2.RevokeAccessResponse(changed=changed)

    def SetPublicAccess(self, request: Any, context: Any) -> Any:
        self._enter("SetPublicAccess", context, "policy:grant" if request.allow else "policy:revoke", f"{request.bucket}/*")
        self._bucket(request.bucket, context)
        (self.public.add if request.allow else self.public.discard)(request.bucket)
        return auth_pb2.SetPublicAccessResponse()

    # -- BucketService -----------------------------------------------------------------------------------------------------

    def _shown(self, bucket: str) -> Any:
        return bucket_pb2.Bucket(name=bucket, region="us-east-1", created_at=stamp(self.buckets[bucket]))

    def CreateBucket(self, request: Any, context: Any) -> Any:
        self._enter("CreateBucket", context, "bucket:create", request.bucket)
        if request.bucket in self.buckets:
            self._abort(context, Refused("BucketAlreadyOwnedByYou", "You already own it."))
        self.buckets[request.bucket] = time.time()
        return bucket_pb2.CreateBucketResponse(bucket=self._shown(request.bucket))

    def DeleteBucket(self, request: Any, context: Any) -> Any:
        self._enter("DeleteBucket", context, "bucket:delete", request.bucket)
        self._bucket(request.bucket, context)
        if any(bucket == request.bucket for bucket, _ in self.objects):
            self._abort(context, Refused("BucketNotEmpty", "The bucket you tried to delete is not empty."))
        del self.buckets[request.bucket]
        return bucket_pb2.DeleteBucketResponse()

    def ListBuckets(self, request: Any, context: Any) -> Any:
        self._enter("ListBuckets", context, "bucket:list", "*")
        names = sorted(name for name in self.buckets if name.startswith(request.prefix) and name > request.page_token)
        size = request.page_size or self.page
        more = names[size - 1] if len(names) > size else ""
        return bucket_pb2.ListBucketsResponse(buckets=[self._shown(name) for name in names[:size]], next_page_token=more)

    def HeadBucket(self, request: Any, context: Any) -> Any:
        self._enter("HeadBucket", context, "bucket:read", request.bucket)
        self._bucket(request.bucket, context)
        return bucket_pb2.HeadBucketResponse(bucket=self._shown(request.bucket))

    def _policy(self, bucket: str) -> tuple[Any, str]:
        inside = sorted(one for one in self.rights if one[2] == bucket or one[2].startswith(f"{bucket}/"))
        grants = [bucket_pb2.Grant(app=app, action=action, resource=resource) for app, action, resource in inside]
        policy = bucket_pb2.BucketPolicy(public_read=bucket in self.public, grants=grants)
        return policy, hashlib.sha256(policy.SerializeToString(deterministic=True)).hexdigest()

    def GetBucketPolicy(self, request: Any, context: Any) -> Any:
        self._enter("GetBucketPolicy", context, "policy:grant", request.bucket)
        self._bucket(request.bucket, context)
        policy, etag = self._policy(request.bucket)
        return bucket_pb2.GetBucketPolicyResponse(policy=policy, etag=etag)

    def PutBucketPolicy(self, request: Any, context: Any) -> Any:
        self._enter("PutBucketPolicy", context, "policy:grant", request.bucket)
        self._bucket(request.bucket, context)
        old, etag = self._policy(request.bucket)
        if request.if_match and request.if_match != etag:
            self._abort(context, Refused("PreconditionFailed", "It changed."))
        self.rights -= {(one.app, one.action, one.resource) for one in old.grants}
        self.rights |= {(one.app, one.action, one.resource) for one in request.policy.grants}
        (self.public.add if request.policy.public_read else self.public.discard)(request.bucket)
        return bucket_pb2.PutBucketPolicyResponse(etag=self._policy(request.bucket)[1])

    # -- ObjectService: up -------------------------------------------------------------------------------------------------

    def _receive(self, header: Any, requests: Iterator[Any], context: Any) -> bytes:
        """The chunks, as the .proto file says they come: verified, and damaged before that where told."""
        assert header.HasField("size"), "the size is required"
        data, trailer = bytearray(), None
        for request in requests:
            part = request.WhichOneof("part")
            assert trailer is None and part in ("chunk", "trailer"), f"{part} after the trailer or a second header"
            if part == "chunk":
                assert 0 < len(request.chunk) <= CHUNK, "chunks are up to 1 MiB"
                data += request.chunk
            else:
                trailer = request.trailer
        if len(data) != header.size:
            self._abort(context, Refused("IncompleteBody", f"{len(data)} of {header.size} bytes came."))
        with self._lock:
            if data and (self.faults.flip_up_always or self.faults.flip_up):
                data[self.faults.flip_up.pop(0) if self.faults.flip_up else 0] ^= 1
        assert trailer is not None and header.checksum_algorithm == CRC64, "the client promises a CRC-64/NVME"
        if trailer.checksum != crc64(bytes(data)):
            self._abort(
                context, Refused("BadDigest", "The Content-MD5 or checksum you specified did not match what we received.")
            )
        return bytes(data)

    def _checksum(self, data: bytes) -> Any:
        return object_pb2.Checksum(algorithm=CRC64, value=crc64(data), type=object_pb2.CHECKSUM_TYPE_FULL_OBJECT)

    def store(self, bucket: str, key: str, data: bytes, **attributes: Any) -> Stored:
        """As if somebody had put it."""
        etag = hashlib.md5(data).hexdigest()
        made = Stored(data, etag, object_pb2.Attributes(**attributes), checksum=self._checksum(data))
        self.objects[bucket, key] = made
        return made

    def _write_conditions(self, bucket: str, key: str, conditions: Any, context: Any) -> None:
        there = self.objects.get((bucket, key))
        for etag in conditions.if_match:
            if there is None or etag not in ("*", there.etag):
                self._abort(context, Refused("PreconditionFailed", "If-Match"))
        for etag in conditions.if_none_match:
            if there is not None and etag in ("*", there.etag):
                self._abort(context, Refused("PreconditionFailed", "If-None-Match"))

    def PutObject(self, requests: Iterator[Any], context: Any) -> Any:
        header = next(requests).header
        self.seen.append(header)
        self._enter("PutObject", context, "object:write", f"{header.bucket}/{header.key}")
        self._bucket(header.bucket, context)
        data = self._receive(header, requests, context)
        self._write_conditions(header.bucket, header.key, header.conditions, context)
        made = self.store(header.bucket, header.key, data)
        made.attributes = header.attributes
        return object_pb2.PutObjectResponse(
            etag=made.etag, version_id="null", checksum=made.checksum, modified_at=stamp(made.modified)
        )

    def InitiateMultipartUpload(self, request: Any, context: Any) -> Any:
        self._enter("InitiateMultipartUpload", context, "object:write", f"{request.bucket}/{request.key}")
        self._bucket(request.bucket, context)
        assert request.checksum_algorithm == CRC64 and request.checksum_type == object_pb2.CHECKSUM_TYPE_FULL_OBJECT
        name = secrets.token_hex(8)
        self.uploads[name] = FakeUpload(request.bucket, request.key, request.attributes)
        return object_pb2.InitiateMultipartUploadResponse(
            upload_id=name, checksum_algorithm=CRC64, checksum_type=request.checksum_type
        )

    def _upload(self, request: Any, context: Any) -> FakeUpload:
        found = self.uploads.get(request.upload_id)
        if found is None or (found.bucket, found.key) != (request.bucket, request.key):
            self._abort(context, Refused("NoSuchUpload", "The specified upload does not exist."))
        assert found is not None
        return found

    def UploadPart(self, requests: Iterator[Any], context: Any) -> Any:
        header = next(requests).header
        self._enter("UploadPart", context, "object:write", f"{header.bucket}/{header.key}")
        upload = self._upload(header, context)
        data = self._receive(header, requests, context)
        upload.parts[header.part_number] = (data, hashlib.md5(data).hexdigest())
        return object_pb2.UploadPartResponse(etag=upload.parts[header.part_number][1], checksum=self._checksum(data))

    def UploadPartCopy(self, request: Any, context: Any) -> Any:
        self._enter("UploadPartCopy", context, "object:write", f"{request.bucket}/{request.key}")
        upload = self._upload(request, context)
        there = self._object(request.source.bucket, request.source.key, context)
        if request.source.conditions.if_match and there.etag not in request.source.conditions.if_match:
            self._abort(context, Refused("PreconditionFailed", "The source changed."))
        start, length = request.range.offset, request.range.length
        assert start >= 0 and start + length <= len(there.data), "the range must lie inside the source"
        data = there.data[start : start + length]
        upload.parts[request.part_number] = (data, hashlib.md5(data).hexdigest())
        return object_pb2.UploadPartCopyResponse(
            etag=upload.parts[request.part_number][1], checksum=self._checksum(data), modified_at=stamp(time.time())
        )

    def ListParts(self, request: Any, context: Any) -> Any:
        self._enter("ListParts", context, "object:write", f"{request.bucket}/{request.key}")
        upload = self._upload(request, context)
        numbers = sorted(number for number in upload.parts if number > request.after)
        size = request.page_size or self.page
        parts = [
            object_pb2.Part(
                number=number,
                size=len(upload.parts[number][0]),
                etag=upload.parts[number][1],
                modified_at=stamp(time.time()),
                checksum=self._checksum(upload.parts[number][0]),
            )
            for number in numbers[:size]
        ]
        return object_pb2.ListPartsResponse(parts=parts, truncated=len(numbers) > size)

    def CompleteMultipartUpload(self, request: Any, context: Any) -> Any:
        self._enter("CompleteMultipartUpload", context, "object:write", f"{request.bucket}/{request.key}")
        upload = self._upload(request, context)
        numbers = [one.number for one in request.parts]
        assert numbers == sorted(set(numbers)) and numbers
        pieces = []
        for one in request.parts:
            data, etag = upload.parts.get(one.number, (b"", ""))
            if etag != one.etag or (one.checksum and one.checksum != crc64(data)):
                self._abort(context, Refused("InvalidPart", "One or more of the specified parts could not be found."))
            pieces.append(data)
        if any(len(data) < self.part_bytes_min for data in pieces[:-1]):
            self._abort(context, Refused("EntityTooSmall", "Your proposed upload is smaller than the minimum allowed size."))
        whole = b"".join(pieces)
        if request.HasField("size") and request.size != len(whole):
            self._abort(context, Refused("InvalidRequest", "The size differs."))
        if request.HasField("checksum") and request.checksum != self._checksum(whole):
            self._abort(context, Refused("BadDigest", "The checksum differs."))
        self._write_conditions(request.bucket, request.key, request.conditions, context)
        made = self.store(request.bucket, request.key, whole)
        made.attributes, made.parts = upload.attributes, len(pieces)
        made.etag = f"{hashlib.md5(b''.join(hashlib.md5(one).digest() for one in pieces)).hexdigest()}-{len(pieces)}"
        del self.uploads[request.upload_id]
        return object_pb2.CompleteMultipartUploadResponse(
            etag=made.etag, version_id="null", checksum=made.checksum, modified_at=stamp(made.modified)
        )

    def AbortMultipartUpload(self, request: Any, context: Any) -> Any:
        self._enter("AbortMultipartUpload", context, "object:write", f"{request.bucket}/{request.key}")
        self._upload(request, context)
        del self.uploads[request.upload_id]
        return object_pb2.AbortMultipartUploadResponse()

    # -- ObjectService: down -----------------------------------------------------------------------------------------------

    def _head(self, key: str, stored: Stored) -> Any:
        return object_pb2.Object(
            key=key,
            size=len(stored.data),
            etag=stored.etag,
            modified_at=stamp(stored.modified),
            version_id="null",
            attributes=stored.attributes,
            checksum=stored.checksum,
            part_count=stored.parts,
        )

    def HeadObject(self, request: Any, context: Any) -> Any:
        self._enter("HeadObject", context, "object:read", f"{request.bucket}/{request.key}")
        stored = self._object(request.bucket, request.key, context)
        return object_pb2.HeadObjectResponse(object=self._head(request.key, stored))

    def GetObject(self, request: Any, context: Any) -> Iterator[Any]:
        self.seen.append(request)
        self._enter("GetObject", context, "object:read", f"{request.bucket}/{request.key}")
        stored = self._object(request.bucket, request.key, context)
        if request.conditions.if_match and stored.etag not in request.conditions.if_match:
            self._abort(context, Refused("PreconditionFailed", "If-Match"))
        start, end = 0, len(stored.data)
        if request.WhichOneof("selection") == "range":
            asked = request.range
            start = max(0, end + asked.offset) if asked.offset < 0 else asked.offset
            if start >= end:
                self._abort(context, Refused("InvalidRange", "The requested range is not satisfiable."))
            end = min(end, start + asked.length) if asked.HasField("length") else end
        data = bytearray(stored.data[start:end])
        with self._lock:
            if data and self.faults.flip_down_always:
                data[len(data) // 2] ^= 1
            cut = self.faults.break_down_after.pop(0) if self.faults.break_down_after else None
        whole = end - start == len(stored.data)
        yield object_pb2.GetObjectResponse(
            head=object_pb2.GetObjectHead(
                object=self._head(request.key, stored),
                start=start,
                length=end - start,
                checksum=stored.checksum if whole else None,
            )
        )
        for offset in range(0, len(data), CHUNK):
            piece = bytes(data[offset : offset + CHUNK])
            if cut is not None and offset + len(piece) > cut:
                yield object_pb2.GetObjectResponse(chunk=piece[: cut - offset])
                self._abort(context, Refused("SlowDown", "Please reduce your request rate."))
            yield object_pb2.GetObjectResponse(chunk=piece)

    def DeleteObject(self, request: Any, context: Any) -> Any:
        self._enter("DeleteObject", context, "object:delete", f"{request.bucket}/{request.key}")
        self._bucket(request.bucket, context)
        self._write_conditions(request.bucket, request.key, request.conditions, context)
        self.objects.pop((request.bucket, request.key), None)
        return object_pb2.DeleteObjectResponse()

    def ListObjects(self, request: Any, context: Any) -> Any:
        self._enter("ListObjects", context, "object:list", request.bucket)
        self._bucket(request.bucket, context)
        after = base64.b64decode(request.page_token) if request.page_token else request.start_after.encode()
        objects, prefixes, last = [], [], b""
        for key in sorted((name.encode() for bucket, name in self.objects if bucket == request.bucket)):
            if not key.startswith(request.prefix.encode()):
                continue
            at = key.find(request.delimiter.encode(), len(request.prefix.encode())) if request.delimiter else -1
            name = key[: at + len(request.delimiter.encode())] if at >= 0 else key
            if name <= after or (at >= 0 and name.decode() in prefixes):
                continue
            if len(objects) + len(prefixes) == (request.page_size or self.page):
                token = base64.b64encode(last).decode()
                return object_pb2.ListObjectsResponse(objects=objects, prefixes=prefixes, next_page_token=token)
            last = name
            if at >= 0:
                prefixes.append(name.decode())
            else:
                stored = self.objects[request.bucket, key.decode()]
                objects.append(
                    object_pb2.ObjectSummary(
                        key=key.decode(), size=len(stored.data), etag=stored.etag, modified_at=stamp(stored.modified)
                    )
                )
        return object_pb2.ListObjectsResponse(objects=objects, prefixes=prefixes)

    def CopyObject(self, request: Any, context: Any) -> Any:
        self._enter("CopyObject", context, "object:write", f"{request.bucket}/{request.key}")
        source = self._object(request.source.bucket, request.source.key, context)
        self._bucket(request.bucket, context)
        made = self.store(request.bucket, request.key, source.data)
        made.attributes = request.attributes if request.replace_attributes else source.attributes
        return object_pb2.CopyObjectResponse(
            etag=made.etag, version_id="null", checksum=made.checksum, modified_at=stamp(made.modified)
        )
