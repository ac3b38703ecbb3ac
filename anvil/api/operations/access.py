"""The way from a name to a bucket or object that may be used: look-up, visibility, rights, owner, region, recovery, in this order.

Owns: that order, and which right each kind of use needs. Invariant: nothing about a bucket (not even its region) is told to
who may not see it, and no condition or key is looked at before the right to it was established. The decisions are the
`Authorizer`'s. `owner`, where it is asked for: the account that the client expects the bucket to belong to, if it named one.
"""

from __future__ import annotations

from anvil.api.operations.caller import Caller
from anvil.api.operations.names import NULL_VERSION, owner_id
from anvil.base.errors import AccessDenied, AnvilError, NoSuchBucket, NoSuchKey, NoSuchVersion, PermanentRedirect
from anvil.engine.types import ObjectInfo
from anvil.model.identity import Action, Bucket
from anvil.model.records import Condition

# -- buckets ---------------------------------------------------------------------------------------------------------------


async def visible(caller: Caller, name: str, *actions: Action, owner: str | None = None, anywhere: bool = False) -> Bucket:
    """The bucket, for who holds any of `actions` on it; without actions, for who may know that it exists (the caller then asks
    for a right on each key). `anywhere`: of other regions, too. Raises NoSuchBucket, AccessDenied (naming the first action),
    PermanentRedirect."""
    authorizer = caller.services.authorizer
    found = await caller.services.catalog.bucket(name)
    try:
        bucket = authorizer.visible_bucket(caller.principal, found)
    except NoSuchBucket:
        raise NoSuchBucket(BucketName=name) from None
    if actions and not any(authorizer.allowed(caller.principal, action, name) for action in actions):
        authorizer.require(caller.principal, actions[0], name)  # says which right is missing
    return await _checked(caller, bucket, owner, anywhere)


async def described(caller: Caller, name: str, owner: str | None = None) -> Bucket:
    """A bucket whose facts are asked for. Raises as `visible`."""
    return await visible(caller, name, Action.BUCKET_READ, Action.OBJECT_LIST, owner=owner)


async def located(caller: Caller, name: str, owner: str | None = None) -> Bucket:
    """A bucket whose region is asked for: every node knows it. Raises NoSuchBucket, AccessDenied."""
    return await visible(caller, name, Action.BUCKET_READ, Action.OBJECT_LIST, owner=owner, anywhere=True)


async def listable(caller: Caller, name: str, owner: str | None = None) -> Bucket:
    """A bucket whose keys or uploads are to be listed. Raises as `visible`."""
    return await visible(caller, name, Action.OBJECT_LIST, owner=owner)


async def removable(caller: Caller, name: str, owner: str | None = None) -> Bucket:
    """A bucket that is to be deleted. Raises as `visible`."""
    return await visible(caller, name, Action.BUCKET_DELETE, owner=owner)


# -- objects ---------------------------------------------------------------------------------------------------------------


async def readable(caller: Caller, name: str, key: str, owner: str | None = None) -> Bucket:
    """The bucket of an object to be read, also as the source of a copy. Raises as `visible`."""
    return await _of_object(caller, Action.OBJECT_READ, name, key, owner)


async def writable(caller: Caller, name: str, key: str, owner: str | None = None) -> Bucket:
    """The bucket of a key to be written, at once or by an upload: making, unmaking and resuming one are writing. Raises as
    `visible`."""
    return await _of_object(caller, Action.OBJECT_WRITE, name, key, owner)


async def deletable(caller: Caller, name: str, key: str, owner: str | None = None) -> Bucket:
    """The bucket of a key to be deleted. Raises as `visible`."""
    return await _of_object(caller, Action.OBJECT_DELETE, name, key, owner)


def require_deletable(caller: Caller, bucket: Bucket, key: str) -> None:
    """One of many keys to be deleted from a bucket that is `visible`. Raises AccessDenied."""
    caller.services.authorizer.require_object(caller.principal, Action.OBJECT_DELETE, bucket, key)


async def _of_object(caller: Caller, action: Action, name: str, key: str, owner: str | None) -> Bucket:
    found = await caller.services.catalog.bucket(name)
    try:
        bucket = caller.services.authorizer.require_object(caller.principal, action, found, key)
    except NoSuchBucket:
        raise NoSuchBucket(BucketName=name) from None
    return await _checked(caller, bucket, owner)


async def _checked(caller: Caller, bucket: Bucket, owner: str | None, anywhere: bool = False) -> Bucket:
    if owner is not None and owner != owner_id(bucket.tenant):
        raise AccessDenied()
    if bucket.region != caller.services.region and not anywhere:
        endpoint = (await caller.services.catalog.regions()).get(bucket.region) or None
        raise PermanentRedirect(Bucket=bucket.name, Endpoint=endpoint, Region=bucket.region)
    if not anywhere:
        caller.services.require_open()
    return bucket


def check_condition(caller: Caller, bucket: Bucket, key: str, condition: Condition) -> None:
    """If-Match on a write tells what is there, so it needs the right to read (S3 User Guide, "Conditional requests",
    "Permissions"). Raises AccessDenied."""
    if condition.if_match is not None:
        caller.services.authorizer.require_object(caller.principal, Action.OBJECT_READ, bucket, key)


async def find(caller: Caller, bucket: Bucket, key: str, *, content: bool, version: str | None) -> ObjectInfo:
    """The current object, fresh; with extents and parts where `content`. `version`: the version id that was asked for, if any.

    Raises NoSuchKey, or AccessDenied where the principal may not learn that the key is missing; NoSuchVersion."""
    engine = caller.services.engine
    try:
        info = await (engine.open(bucket, key) if content else engine.stat(bucket, key))
    except NoSuchKey:
        raise missing(caller, bucket, key) from None
    if version is not None and not (version == NULL_VERSION and info.is_null):
        raise NoSuchVersion(Key=key, VersionId=version)
    return info


def missing(caller: Caller, bucket: Bucket, key: str) -> AnvilError:
    error = caller.services.authorizer.missing_key_error(caller.principal, bucket)
    if isinstance(error, NoSuchKey):
        error.fields.setdefault("Key", key)
    return error


def refuse_version(key: str, version: str | None) -> None:
    """A write or delete of one version: only the current null version exists. Raises NoSuchVersion."""
    if version not in (None, NULL_VERSION):
        raise NoSuchVersion(Key=key, VersionId=version)
