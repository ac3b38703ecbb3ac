"""What the gRPC services are tested on: the real rights and the S3 tests' fakes under them, a caller, and uploads from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from anvil.api.grpc.proto import object_pb2 as pb
from anvil.api.grpc.services.bucket import BucketService
from anvil.api.grpc.services.object import ObjectService
from anvil.api.operations.caller import Services
from anvil.auth.authorize import Authorizer
from anvil.base.errors import IncompleteBody, InvalidRequest
from anvil.model.identity import App, Principal
from tests.unit.api.fake_engine import FakeEngine
from tests.unit.api.fakes import ACME, REGION, FakeCatalog, app_of


class Caller(msgspec.Struct):
    services: Services
    principal: Principal
    request_id: str = "ID"
    peer: str = "192.0.2.1"


class Context:
    def __init__(self, caller: Caller) -> None:
        self.caller = caller


class Incoming:
    """As `api/grpc/chunks.py` has it, over messages in memory."""

    def __init__(self, messages: Sequence[Any]) -> None:
        self._messages = [message.SerializeToString() for message in messages]
        self._kind = type(messages[0]) if messages else pb.PutObjectRequest
        self.opened: int | None = None

    async def first(self) -> bytes:
        if not self._messages:
            raise InvalidRequest("The call has no message.")
        return self._messages[0]

    def body(self, length: int) -> Body:
        self.opened = length
        parsed = [self._kind.FromString(message) for message in self._messages[1:]]
        trailers = [
            raw for raw, message in zip(self._messages[1:], parsed, strict=True) if message.WhichOneof("part") == "trailer"
        ]
        return Body(length, b"".join(message.chunk for message in parsed), trailers[0] if trailers else None)


class Body:
    def __init__(self, length: int, data: bytes, trailer: bytes | None) -> None:
        self.length = length
        self.trailer: bytes | None = None
        self.trailers: dict[str, str] = {}
        self._data, self._last = data, trailer

    async def readinto(self, view: memoryview) -> int:
        if len(self._data) < self.length:
            raise IncompleteBody()
        if len(self._data) > self.length:
            raise InvalidRequest()
        view[: self.length] = self._data
        self.trailer = self._last
        return self.length


class Desk:
    """`ask`: one call of a method by name, as the app that `act_as` named (everything is allowed to it unless told)."""

    def __init__(self) -> None:
        self.engine, self.catalog = FakeEngine(), FakeCatalog()
        self.closed = ""
        services = Services(
            engine=self.engine,
            catalog=self.catalog,
            authorizer=Authorizer(),
            rights=None,  # type: ignore[arg-type]  # `test_auth_service.py` has some
            region=REGION,
            closed=lambda: self.closed,
        )
        self.caller = Caller(services, Principal(app_of(ACME)))
        self.bucket = self.catalog.add("bucket")
        self.incoming: Incoming | None = None
        self._objects, self._buckets = ObjectService(), BucketService()

    def act_as(self, app: App | None) -> None:
        self.caller.principal = Principal(app)

    def ask(self, method: str, request: Any) -> Any:
        service: Any = self._objects if hasattr(self._objects, method) else self._buckets
        return asyncio.run(getattr(service, method)(request, Context(self.caller)))

    def get(self, request: pb.GetObjectRequest) -> tuple[pb.GetObjectHead, bytes]:
        """The head, and the chunks joined."""
        items = self.items(request)
        assert items and items[0].WhichOneof("part") == "head"
        assert all(type(item) is memoryview for item in items[1:])
        return items[0].head, b"".join(items[1:])

    def items(self, request: pb.GetObjectRequest, into: list[Any] | None = None) -> list[Any]:
        items = [] if into is None else into

        async def run() -> None:
            async for item in self._objects.GetObject(request, Context(self.caller)):
                items.append(item)

        asyncio.run(run())
        return items

    def upload(self, method: str, messages: Sequence[Any]) -> Any:
        self.incoming = Incoming(messages)
        return self.ask(method, self.incoming)

    def put(self, data: bytes, *, chunks: int = 2, trailer: bytes | None = None, **header: Any) -> pb.PutObjectResponse:
        """PutObject of `data` as `key` in `bucket`; `header`: its fields, `size` that of the data unless given (None: none)."""
        return self.upload("PutObject", messages(pb.PutObjectRequest, pb.PutObjectHeader, data, chunks, trailer, header))

    def put_part(
        self, upload_id: str, number: int, data: bytes, *, trailer: bytes | None = None, **header: Any
    ) -> pb.UploadPartResponse:
        header |= {"upload_id": upload_id, "part_number": number}
        return self.upload("UploadPart", messages(pb.UploadPartRequest, pb.UploadPartHeader, data, 2, trailer, header))


def messages(request: Any, head: Any, data: bytes, chunks: int, trailer: bytes | None, header: dict[str, Any]) -> list[Any]:
    fields = {"bucket": "bucket", "key": "key", "size": len(data)} | header
    step = max(1, -(-len(data) // chunks))
    sent = [request(header=head(**fields))]
    sent += [request(chunk=data[start : start + step]) for start in range(0, len(data), step)]
    if trailer is not None:
        sent.append(request(trailer=pb.UploadTrailer(checksum=trailer)))
    return sent
