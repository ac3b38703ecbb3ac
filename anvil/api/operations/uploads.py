"""Multipart uploads: initiate, parts, part copies, completion, abort, listings.

Owns: how an upload id is shown (32 hex digits), and which uploads and parts are acceptable. Invariant: parts of an upload that
was created with a checksum algorithm all have that checksum, stated by the client or computed here, so that the object's can be
derived from them. Not here: deriving it, and the ETag (`engine`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from anvil.api.operations import access
from anvil.api.operations.caller import Caller
from anvil.api.operations.integrity import Integrity, fit_part
from anvil.api.operations.objects import Source, check_size
from anvil.base.errors import InvalidArgument, InvalidPartOrder, InvalidRequest, NoSuchUpload
from anvil.base.limits import PART_NUMBER_MAX
from anvil.engine.ports import Body
from anvil.engine.types import CompletePart, PutResult
from anvil.model.identity import Bucket
from anvil.model.records import (
    Algorithm,
    Attributes,
    Checksum,
    ChecksumType,
    Condition,
    PartRecord,
    UploadRecord,
    UploadsPage,
    UploadsQuery,
)

_NONE = Attributes()
_HEX = frozenset("0123456789abcdef")


class Upload(NamedTuple):
    """An upload, for who may write its key."""

    bucket: Bucket
    record: UploadRecord

    @property
    def key(self) -> str:
        return self.record.key

    @property
    def upload_id(self) -> bytes:
        return self.record.upload_id


def upload_id(text: str) -> bytes | None:
    """None for what is no upload id."""
    return bytes.fromhex(text) if len(text) == 32 and _HEX.issuperset(text) else None


def _known(text: str) -> bytes:
    found = upload_id(text)
    if found is None:
        raise NoSuchUpload(UploadId=text)
    return found


async def initiate(
    caller: Caller,
    bucket: Bucket,
    key: str,
    attributes: Attributes,
    algorithm: Algorithm | None,
    type: ChecksumType | None,
) -> UploadRecord:
    """`bucket`: writable. `algorithm` and `type`: as `integrity.upload_checksum` gives them."""
    app = caller.principal.app
    owner = app.access_key if app else ""
    return await caller.services.engine.create_upload(bucket, key, attributes, owner, algorithm, type)


async def open_upload(
    caller: Caller, bucket: str, key: str, text: str, *, owner: str | None = None, completed: bool = False
) -> Upload:
    """The upload with that id. `completed`: also one that was completed, which is kept for repeated completions only.

    Raises NoSuchUpload, and as `access.writable`."""
    wanted = _known(text)
    found = await access.writable(caller, bucket, key, owner)
    record = await caller.services.engine.get_upload(found, key, wanted)
    if record.completed and not completed:
        raise NoSuchUpload(UploadId=text)
    return Upload(found, record)


async def put_part(caller: Caller, upload: Upload, number: int, body: Body, stated: Integrity) -> PutResult:
    """Raises InvalidRequest, EntityTooLarge, NoSuchUpload, what `Integrity.check` and the engine raise."""
    check_size(body.length)
    fit_part(stated, upload.record.checksum_algorithm)
    engine = caller.services.engine
    return await engine.put_part(upload.bucket, upload.key, upload.upload_id, number, body, stated.spec(_NONE))


async def copy_part(caller: Caller, upload: Upload, number: int, source: Source, start: int, length: int) -> PutResult:
    """`start` and `length`: as `ranges.of_source` gives them. Raises EntityTooLarge, NoSuchUpload, what the engine raises."""
    check_size(length)
    spec = Integrity(algorithm=upload.record.checksum_algorithm).spec(_NONE)
    return await caller.services.engine.copy_part(
        source.bucket, source.info, start, length, upload.bucket, upload.key, upload.upload_id, number, spec
    )


async def list_parts(caller: Caller, upload: Upload, after: int, limit: int) -> tuple[tuple[PartRecord, ...], bool]:
    """Up to `limit` parts with a number above `after`, and whether there are more."""
    if not limit:
        return (), False
    engine = caller.services.engine
    parts = await engine.list_parts(upload.bucket, upload.key, upload.upload_id, after, limit + 1)
    return parts[:limit], len(parts) > limit


def listed_part(number: int, etag: str, checksum: bytes | None) -> CompletePart:
    """A part as a completion lists it. Raises InvalidArgument for a number that no part can have."""
    if not 1 <= number <= PART_NUMBER_MAX:
        raise InvalidArgument(
            f"PartNumber must be an integer between 1 and {PART_NUMBER_MAX}.",
            ArgumentName="partNumber",
            ArgumentValue=str(number),
        )
    return CompletePart(number, etag.strip('"'), checksum)


def check_count(parts: int) -> None:
    """How many parts a completion may list. Raises InvalidRequest."""
    if not 1 <= parts <= PART_NUMBER_MAX:
        raise InvalidRequest(f"You must specify from 1 to {PART_NUMBER_MAX} parts")


def check_list(parts: Sequence[CompletePart]) -> None:
    """Raises InvalidRequest for none or too many, InvalidPartOrder."""
    check_count(len(parts))
    for before, after in pairwise(parts):
        if before.number >= after.number:
            raise InvalidPartOrder()


async def complete(
    caller: Caller,
    upload: Upload,
    parts: Sequence[CompletePart],
    *,
    condition: Condition,
    size: int | None,
    expected: Checksum | None,
) -> PutResult:
    """`parts`: at least one, in order. `size`, `expected`: what the client says of the object. Raises AccessDenied, and what the
    engine raises."""
    access.check_condition(caller, upload.bucket, upload.key, condition)
    return await caller.services.engine.complete_upload(
        upload.bucket, upload.key, upload.upload_id, parts, condition=condition, expected_size=size, expected=expected
    )


async def abort(caller: Caller, bucket: str, key: str, text: str, owner: str | None = None) -> None:
    """Raises NoSuchUpload, and as `access.writable`."""
    wanted = _known(text)
    found = await access.writable(caller, bucket, key, owner)
    await caller.services.engine.abort_upload(found, key, wanted)


async def list_uploads(caller: Caller, query: UploadsQuery) -> UploadsPage:
    """A page of the uploads in a listable bucket."""
    return await caller.services.engine.list_uploads(query) if query.limit else UploadsPage((), ())
