"""The way from a request to a bucket it may use: look-up, visibility, rights, owner, region, in this order.

Owns: that order. Invariant: nothing about a bucket (not even its region) is told to who may not see it, and no condition or
key is looked at before the right to it was established. The decisions are the `Authorizer`'s.
"""

from __future__ import annotations

from anvil.api.s3.call import Call, owner_id
from anvil.base.errors import AccessDenied, AnvilError, NoSuchBucket, NoSuchKey, NoSuchVersion, PermanentRedirect
from anvil.engine.types import ObjectInfo
from anvil.model.identity import Action, Bucket
from anvil.model.records import Condition


async def bucket_for(call: Call, *actions: Action) -> Bucket:
    """The bucket of the request, for who holds any of `actions` on it; without actions, for who may know that it exists (the
    caller then asks for a right on each key). Raises NoSuchBucket, AccessDenied, PermanentRedirect."""
    name = call.request.bucket
    authorizer = call.services.authorizer
    found = await call.services.catalog.bucket(name)
    try:
        bucket = authorizer.visible_bucket(call.principal, found)
    except NoSuchBucket:
        raise NoSuchBucket(BucketName=name) from None
    if actions and not any(authorizer.allowed(call.principal, action, name) for action in actions):
        raise AccessDenied()
    return _checked(call, bucket, b"x-amz-expected-bucket-owner")


async def object_bucket(call: Call, action: Action) -> Bucket:
    """The bucket of the request, for who holds `action` on its key. Raises as `bucket_for`."""
    return await _object_bucket(call, action, call.request.bucket, call.request.key, b"x-amz-expected-bucket-owner")


async def source_bucket(call: Call, bucket: str, key: str) -> Bucket:
    """The bucket a copy reads from: seen and authorized exactly as a GET of that key would be. Raises as `bucket_for`."""
    return await _object_bucket(call, Action.OBJECT_READ, bucket, key, b"x-amz-source-expected-bucket-owner")


async def _object_bucket(call: Call, action: Action, name: str, key: str, owner_header: bytes) -> Bucket:
    found = await call.services.catalog.bucket(name)
    try:
        bucket = call.services.authorizer.require_object(call.principal, action, found, key)
    except NoSuchBucket:
        raise NoSuchBucket(BucketName=name) from None
    return _checked(call, bucket, owner_header)


def _checked(call: Call, bucket: Bucket, owner_header: bytes) -> Bucket:
    expected = call.request.headers.get(owner_header)
    if expected is not None and expected.decode("latin-1") != owner_id(bucket.tenant):
        raise AccessDenied()
    if bucket.region != call.services.region:
        endpoint = call.services.endpoints.get(bucket.region)
        raise PermanentRedirect(Bucket=bucket.name, Endpoint=endpoint, Region=bucket.region)
    return bucket


def check_condition(call: Call, bucket: Bucket, key: str, condition: Condition) -> None:
    """If-Match on a write tells what is there, so it needs the right to read (S3 User Guide, "Conditional requests",
    "Permissions"). Raises AccessDenied."""
    if condition.if_match is not None:
        call.services.authorizer.require_object(call.principal, Action.OBJECT_READ, bucket, key)


async def find(call: Call, bucket: Bucket, key: str, *, content: bool, version: str | None) -> ObjectInfo:
    """The current object, fresh; with extents and parts where `content`. `version`: what `versionId` named, if anything.

    Raises NoSuchKey, or AccessDenied where the principal may not learn that the key is missing; NoSuchVersion."""
    engine = call.services.engine
    try:
        info = await (engine.open(bucket, key) if content else engine.stat(bucket, key))
    except NoSuchKey:
        raise missing(call, bucket, key) from None
    if version is not None and not (version == "null" and info.is_null):
        raise NoSuchVersion(Key=key, VersionId=version)
    return info


def missing(call: Call, bucket: Bucket, key: str) -> AnvilError:
    error = call.services.authorizer.missing_key_error(call.principal, bucket)
    if isinstance(error, NoSuchKey):
        error.fields.setdefault("Key", key)
    return error
