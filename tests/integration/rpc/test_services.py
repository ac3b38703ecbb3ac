"""The services with grpcio as client, through the port, on an engine of real parts: payloads, checksums, multipart, conditions."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import uvloop
from grpc.aio import AioRpcError, insecure_channel

from anvil._ec.digest import crc32c
from anvil.api.grpc.proto import bucket_pb2, bucket_pb2_grpc, object_pb2_grpc
from anvil.api.grpc.proto import object_pb2 as pb
from anvil.api.grpc.services.bucket import BucketService
from anvil.api.grpc.services.object import ObjectService
from anvil.api.operations.caller import Services
from anvil.api.s3.errors import classify
from anvil.auth.authorize import Authorizer
from anvil.base.limits import MIB
from anvil.meta.migrate import Database
from anvil.model.identity import Principal
from anvil.net.server import serve
from anvil.net.stream import Stream
from anvil.rpc.context import Context
from anvil.rpc.host import GrpcHost, Status
from tests.postgres_fixture import Postgres
from tests.support.engine import Bench, engine_bench
from tests.unit.api.fakes import FakeCatalog, app_of
from tests.unit.api.grpc.desk import Caller

SIZES = (0, 1, 2047, 65_536, MIB, MIB + 1, 5 * MIB + 3)


def describe(error: Exception, context: Context) -> Status:
    """The S3 code as the message: the table of statuses is tested elsewhere."""
    return Status(9, classify(error).code)


class Rig:
    def __init__(self, bench: Bench, channel: grpc.aio.Channel, caller: Caller) -> None:
        self.bench = bench
        self.caller = caller
        self.objects: Any = object_pb2_grpc.ObjectServiceStub(channel)
        self.buckets: Any = bucket_pb2_grpc.BucketServiceStub(channel)

    async def put(self, key: str, data: bytes, *, chunk: int = MIB, trailer: bytes | None = None, **header: Any) -> Any:
        fields = {"bucket": self.bench.bucket.name, "key": key, "size": len(data)} | header

        def messages() -> Iterator[pb.PutObjectRequest]:
            yield pb.PutObjectRequest(header=pb.PutObjectHeader(**fields))
            for start in range(0, len(data), chunk):
                yield pb.PutObjectRequest(chunk=data[start : start + chunk])
            if trailer is not None:
                yield pb.PutObjectRequest(trailer=pb.UploadTrailer(checksum=trailer))

        return await self.objects.PutObject(messages())

    async def get(self, key: str, **more: Any) -> tuple[pb.GetObjectHead, bytes]:
        request = pb.GetObjectRequest(bucket=self.bench.bucket.name, key=key, **more)
        items = [item async for item in self.objects.GetObject(request)]
        assert [item.WhichOneof("part") for item in items] == ["head"] + ["chunk"] * (len(items) - 1)
        return items[0].head, b"".join(item.chunk for item in items[1:])

    async def refused(self, call: Any) -> str:
        with pytest.raises(AioRpcError) as caught:
            await call
        return str(caught.value.details())


@asynccontextmanager
async def rig(bench: Bench) -> AsyncIterator[Rig]:
    async def nobody(stream: Stream) -> None:
        await stream.respond(404, ())

    catalog = FakeCatalog()
    catalog.rows[bench.bucket.name] = bench.bucket
    services = Services(bench.engine, catalog, Authorizer(), None, bench.bucket.region)  # type: ignore[arg-type]
    caller = Caller(services, Principal(app_of(bench.bucket.tenant)))

    async def admit(context: Context) -> None:
        context.caller = caller

    host = GrpcHost(admit=admit, describe=describe)
    object_pb2_grpc.add_ObjectServiceServicer_to_server(ObjectService(), host)  # type: ignore[no-untyped-call]
    bucket_pb2_grpc.add_BucketServiceServicer_to_server(BucketService(), host)  # type: ignore[no-untyped-call]
    server = await serve(nobody, [("127.0.0.1", 0)], grpc=host)
    try:
        async with insecure_channel(f"127.0.0.1:{server.addresses[0][1]}") as channel:
            yield Rig(bench, channel, caller)
    finally:
        await server.close()


def on_rig(postgres: Postgres, tmp_path: Path, scenario: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
    url = postgres.fresh(Database.REGIONAL)

    async def main() -> None:
        async with engine_bench(url, tmp_path) as bench, rig(bench) as running:
            await scenario(running)

    uvloop.run(main())


def data_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def crc(data: bytes) -> bytes:
    return crc32c(data).to_bytes(4, "big")


def test_objects_of_every_size(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for size in SIZES:
            data = data_of(size)
            for chunk in (10_007, 3 * MIB):
                key = f"{size}/{chunk}"
                answer = await rig.put(key, data, chunk=chunk, checksum_algorithm="CHECKSUM_ALGORITHM_CRC32C", trailer=crc(data))
                assert answer.etag == hashlib.md5(data).hexdigest() and answer.checksum.value == crc(data)
                head, got = await rig.get(key)
                assert got == data and head.length == size and head.checksum.value == crc(data)
                assert await rig.bench.get(key) == data
            if size > 10:
                head, got = await rig.get(key, range=pb.ByteRange(offset=-10))
                assert got == data[-10:] and head.start == size - 10

    on_rig(postgres, tmp_path, scenario)


def test_uploads_that_are_not_what_they_say(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        crc32c_of: dict[str, Any] = {"checksum_algorithm": "CHECKSUM_ALGORITHM_CRC32C"}
        for size in (0, 100, MIB + 1):
            data = data_of(size)
            assert await rig.refused(rig.put("k", data, trailer=bytes(4) if size else b"1234", **crc32c_of)) == "BadDigest"
            assert await rig.refused(rig.put("k", data, trailer=b"", **crc32c_of)) == "InvalidRequest"
            assert await rig.refused(rig.put("k", data, trailer=crc(data))) == "InvalidRequest"
            assert await rig.refused(rig.put("k", data, md5=bytes(16))) == "BadDigest"
            assert await rig.refused(rig.put("k", data, size=size + 1)) == "IncompleteBody"
            assert await rig.refused(rig.put("k", data + b"x", size=size)) == "InvalidRequest"
        assert await rig.refused(rig.put("k", b"", size=None)) == "MissingContentLength"
        assert await rig.refused(rig.objects.PutObject(iter(()))) == "InvalidRequest"
        listed = await rig.objects.ListObjects(pb.ListObjectsRequest(bucket=rig.bench.bucket.name))
        assert not listed.objects

    on_rig(postgres, tmp_path, scenario)


def test_a_multipart_upload(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        named = {"bucket": rig.bench.bucket.name, "key": "big"}
        started = await rig.objects.InitiateMultipartUpload(
            pb.InitiateMultipartUploadRequest(
                **named,
                attributes=pb.Attributes(content_type="video/x", user_metadata={"a": "ö"}),
                checksum_algorithm="CHECKSUM_ALGORITHM_CRC32C",
                checksum_type="CHECKSUM_TYPE_FULL_OBJECT",
            )
        )
        data = data_of(11 * MIB)
        parts = [data[: 5 * MIB], data[5 * MIB : 10 * MIB], data[10 * MIB :]]

        async def send(number: int, part: bytes) -> pb.CompletedPart:
            def messages() -> Iterator[pb.UploadPartRequest]:
                header = pb.UploadPartHeader(**named, upload_id=started.upload_id, part_number=number, size=len(part))
                header.checksum_algorithm = pb.CHECKSUM_ALGORITHM_CRC32C
                yield pb.UploadPartRequest(header=header)
                for start in range(0, len(part), MIB):
                    yield pb.UploadPartRequest(chunk=part[start : start + MIB])
                yield pb.UploadPartRequest(trailer=pb.UploadTrailer(checksum=crc(part)))

            answer = await rig.objects.UploadPart(messages())
            return pb.CompletedPart(number=number, etag=answer.etag, checksum=answer.checksum.value)

        listed = await asyncio.gather(*(send(number, part) for number, part in enumerate(parts, 1)))
        completion: dict[str, Any] = {**named, "upload_id": started.upload_id, "parts": listed, "size": len(data)}
        wrong = pb.Checksum(algorithm="CHECKSUM_ALGORITHM_CRC32C", value=bytes(4))
        refused = rig.objects.CompleteMultipartUpload(pb.CompleteMultipartUploadRequest(**completion, checksum=wrong))
        assert await rig.refused(refused) == "BadDigest"
        right = pb.Checksum(algorithm="CHECKSUM_ALGORITHM_CRC32C", value=crc(data), type="CHECKSUM_TYPE_FULL_OBJECT")
        done = await rig.objects.CompleteMultipartUpload(pb.CompleteMultipartUploadRequest(**completion, checksum=right))
        assert done.checksum == right and done.etag.endswith("-3")
        head, got = await rig.get("big")
        assert got == data and head.object.part_count == 3 and head.object.attributes.user_metadata["a"] == "ö"
        head, got = await rig.get("big", part_number=2)
        assert got == parts[1] and head.checksum.value == crc(parts[1])
        copied = await rig.objects.CopyObject(
            pb.CopyObjectRequest(source=pb.CopySource(**named), bucket=named["bucket"], key="copy")
        )
        assert copied.checksum.value == crc(data)
        assert (await rig.get("copy"))[1] == data

    on_rig(postgres, tmp_path, scenario)


def test_conditions_and_buckets(postgres: Postgres, tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        name = rig.bench.bucket.name
        once = pb.WriteConditions(if_none_match=["*"])
        put = await rig.put("k", b"data", conditions=once)
        assert await rig.refused(rig.put("k", b"other", conditions=once)) == "PreconditionFailed"
        seen = pb.ReadConditions(if_none_match=[put.etag])
        assert await rig.refused(rig.get("k", conditions=seen)) == "NotModified"
        since = pb.ReadConditions(if_modified_since=put.modified_at)
        assert (
            await rig.refused(rig.objects.HeadObject(pb.HeadObjectRequest(bucket=name, key="k", conditions=since)))
            == "NotModified"
        )
        found = await rig.buckets.HeadBucket(bucket_pb2.HeadBucketRequest(bucket=name))
        assert (found.bucket.name, found.bucket.region) == (name, rig.bench.bucket.region)
        assert [one.name for one in (await rig.buckets.ListBuckets(bucket_pb2.ListBucketsRequest())).buckets] == [name]
        rig.caller.principal = Principal(app_of(rig.bench.bucket.tenant, ("object:list", "*")))
        assert await rig.refused(rig.put("k", b"other")) == "AccessDenied"
        assert await rig.refused(rig.get("k")) == "AccessDenied"

    on_rig(postgres, tmp_path, scenario)
