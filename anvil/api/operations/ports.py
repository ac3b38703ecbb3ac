"""What the operations need from the rest of the node, as Protocols.

Owns: the surface of the engine and of authorization that they may use. Not here: any implementation. The catalog's and the
body's Protocols are `engine/ports.py`'s.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from anvil.base.errors import AnvilError
from anvil.engine.ports import Body
from anvil.engine.types import CompletePart, ObjectInfo, PutResult, PutSpec
from anvil.model.identity import Action, Bucket, Principal
from anvil.model.records import (
    Algorithm,
    Attributes,
    Checksum,
    ChecksumType,
    Condition,
    ListPage,
    ListQuery,
    PartRecord,
    UploadRecord,
    UploadsPage,
    UploadsQuery,
)


class Engine(Protocol):
    async def put_object(self, bucket: Bucket, key: str, body: Body, spec: PutSpec) -> PutResult: ...
    async def stat(self, bucket: Bucket, key: str) -> ObjectInfo:
        """Strictly fresh. Raises NoSuchKey."""
        ...

    async def open(self, bucket: Bucket, key: str) -> ObjectInfo:
        """As `stat`, with extents and parts."""
        ...

    def at_hand(self, bucket: Bucket, info: ObjectInfo, start: int, length: int) -> memoryview | None: ...
    def read(self, bucket: Bucket, info: ObjectInfo, start: int, length: int) -> AsyncIterator[memoryview]:
        """Views stay valid after the next one was asked for; closing the iterator stops reading ahead."""
        ...

    async def delete_object(self, bucket: Bucket, key: str, condition: Condition) -> bool: ...
    async def copy_object(self, source: Bucket, info: ObjectInfo, target: Bucket, key: str, spec: PutSpec) -> PutResult: ...
    async def list_objects(self, query: ListQuery) -> ListPage: ...

    async def create_upload(
        self,
        bucket: Bucket,
        key: str,
        attributes: Attributes,
        owner: str,
        algorithm: Algorithm | None,
        type: ChecksumType | None,
    ) -> UploadRecord: ...
    async def get_upload(self, bucket: Bucket, key: str, upload_id: bytes) -> UploadRecord: ...
    async def put_part(self, bucket: Bucket, key: str, upload_id: bytes, number: int, body: Body, spec: PutSpec) -> PutResult: ...
    async def copy_part(
        self,
        source: Bucket,
        info: ObjectInfo,
        start: int,
        length: int,
        bucket: Bucket,
        key: str,
        upload_id: bytes,
        number: int,
        spec: PutSpec,
    ) -> PutResult: ...
    async def list_parts(self, bucket: Bucket, key: str, upload_id: bytes, after: int, limit: int) -> tuple[PartRecord, ...]: ...
    async def complete_upload(
        self,
        bucket: Bucket,
        key: str,
        upload_id: bytes,
        parts: Sequence[CompletePart],
        *,
        condition: Condition,
        expected_size: int | None,
        expected: Checksum | None,
    ) -> PutResult:
        """Raises InvalidPart, EntityTooSmall, BadDigest (`expected`), InvalidRequest (`expected_size`), NoSuchUpload."""
        ...

    async def abort_upload(self, bucket: Bucket, key: str, upload_id: bytes) -> None: ...
    async def list_uploads(self, query: UploadsQuery) -> UploadsPage: ...


class Authorizer(Protocol):
    def allowed(self, principal: Principal, action: Action, resource: str) -> bool: ...
    def require(self, principal: Principal, action: Action, resource: str) -> None: ...
    def visible_bucket(self, principal: Principal, bucket: Bucket | None) -> Bucket: ...
    def require_bucket(self, principal: Principal, action: Action, bucket: Bucket | None) -> Bucket: ...
    def require_object(self, principal: Principal, action: Action, bucket: Bucket | None, key: str) -> Bucket: ...
    def require_covered(self, principal: Principal, action: str, pattern: str) -> None: ...
    def missing_key_error(self, principal: Principal, bucket: Bucket) -> AnvilError: ...
