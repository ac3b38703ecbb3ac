"""Put, read, delete and copy one object. The bucket each takes has come from `access`, by the function for that use.

Invariant: nothing is written or removed on a condition that the caller may not know the answer to; the bytes of a read are all
that was promised, or it fails. Not here: rights (`access`), what the bytes are made of (`engine`).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import NamedTuple

from anvil.api.operations import access, conditions
from anvil.api.operations.attributes import of_copy
from anvil.api.operations.caller import Caller
from anvil.api.operations.integrity import Integrity
from anvil.api.operations.ranges import Selection
from anvil.base.errors import DataLost, EntityTooLarge, InvalidRequest, NotSupported, PermanentRedirect
from anvil.base.limits import PUT_BYTES_MAX
from anvil.engine.ports import Body
from anvil.engine.types import ObjectInfo, PutResult
from anvil.model.identity import Bucket
from anvil.model.records import NO_CONDITION, Algorithm, Attributes, Condition


def check_size(size: int) -> int:
    """What one PutObject, UploadPart or UploadPartCopy may bring. Raises EntityTooLarge."""
    if size > PUT_BYTES_MAX:
        raise EntityTooLarge(ProposedSize=size, MaxSizeAllowed=PUT_BYTES_MAX)
    return size


async def put(
    caller: Caller,
    bucket: Bucket,
    key: str,
    body: Body,
    stated: Integrity,
    attributes: Attributes,
    condition: Condition = NO_CONDITION,
) -> PutResult:
    """`bucket`: writable. Raises AccessDenied, EntityTooLarge, what `Integrity.check` and the engine raise."""
    access.check_condition(caller, bucket, key, condition)
    check_size(body.length)
    return await caller.services.engine.put_object(bucket, key, body, stated.spec(attributes, condition))


def at_hand(caller: Caller, bucket: Bucket, info: ObjectInfo, chosen: Selection) -> memoryview | None:
    """As `read`, all at once, for what is small and in memory. None: `read` it."""
    return caller.services.engine.at_hand(bucket, info, chosen.start, chosen.length)


async def read(caller: Caller, bucket: Bucket, info: ObjectInfo, chosen: Selection) -> AsyncGenerator[memoryview, None]:
    """The bytes of an object that `access.find` gave with its content; `bucket`: readable. To be closed by who stops early.

    Raises DataLost, also after some of them."""
    views = caller.services.engine.read(bucket, info, chosen.start, chosen.length)
    try:
        sent = 0
        async for view in views:
            sent += len(view)
            yield view
        if sent != chosen.length:
            raise DataLost()
    finally:
        close = getattr(views, "aclose", None)
        if close is not None:
            await close()


async def delete(caller: Caller, bucket: Bucket, key: str, condition: Condition) -> None:
    """`bucket`: deletable. A key that is not there is deleted, too. Raises NotSupported, AccessDenied, PreconditionFailed."""
    conditions.check_delete(condition)
    access.check_condition(caller, bucket, key, condition)
    await caller.services.engine.delete_object(bucket, key, condition)


# -- copies ----------------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """What a copy reads: `info` with its content, in a readable bucket."""

    bucket: Bucket
    info: ObjectInfo


async def open_source(caller: Caller, bucket: str, key: str, version: str | None, owner: str | None = None) -> Source:
    """Seen and authorized exactly as a GET of that key would be; its conditions are to be judged next, by
    `conditions.check_source`. It may be in any bucket the principal can read, of its own tenant or public.

    Raises NoSuchBucket, NoSuchKey, NoSuchVersion, AccessDenied, NotSupported."""
    try:
        found = await access.readable(caller, bucket, key, owner)
    except PermanentRedirect as error:
        # A redirect would name the source's region to a client that is right where it is: the target's.
        raise NotSupported(f"The source is in the region {error.fields['Region']}: copies between regions are not.") from None
    return Source(found, await access.find(caller, found, key, content=True, version=version))


def check_copied(source: Source) -> None:
    """Raises InvalidRequest for an object that only a multipart copy can take."""
    if source.info.size > PUT_BYTES_MAX:
        raise InvalidRequest(
            f"The specified copy source is larger than the maximum allowable size for a copy source: {PUT_BYTES_MAX}"
        )


def check_itself(source: Source, target: Bucket, key: str, *, changed: bool) -> None:
    """Raises InvalidRequest for a copy of an object onto itself that asks for nothing new."""
    if source.bucket.bucket_id == target.bucket_id and source.info.key == key and not changed:
        raise InvalidRequest(
            "This copy request is illegal because it is trying to copy an object to itself without changing the object's "
            "metadata, storage class, website redirect location or encryption attributes."
        )


async def copy(
    caller: Caller,
    source: Source,
    target: Bucket,
    key: str,
    stated: Attributes,
    *,
    replace: bool,
    algorithm: Algorithm | None,
    changed: bool = False,
    condition: Condition = NO_CONDITION,
) -> PutResult:
    """`target`: writable. `replace`: the attributes become those `stated`; else the source's are kept, but for the redirect.
    `algorithm`: of the copy's checksum; None: the source's, if it has one. `changed`: something else is asked to be new.

    Raises InvalidRequest, AccessDenied, and what the engine raises."""
    check_copied(source)
    changed = changed or replace or stated.website_redirect is not None or algorithm is not None
    check_itself(source, target, key, changed=changed)
    access.check_condition(caller, target, key, condition)
    if algorithm is None and source.info.checksum is not None:
        algorithm = source.info.checksum.algorithm
    spec = Integrity(algorithm=algorithm).spec(of_copy(source.info.attributes, stated, replace=replace), condition)
    return await caller.services.engine.copy_object(source.bucket, source.info, target, key, spec)
