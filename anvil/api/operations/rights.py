"""Changes of rights, as a tenant's own apps ask for them.

Owns: who may change which right. Invariants: nobody gives what he has not (CVE-2025-62506 and its like): a right that is given, alone or
within a bucket's policy, is held by whoever gives it, all of it; what may be given or taken is judged before anything is changed, and
against the state that is then changed; another tenant's apps and buckets are not there; each change and each refusal is recorded. Not
here: the changes themselves (the Rights port), what a right means (`auth/authorize.py`).

Not asked for: that an app may be given rights only by a wider one. Whoever holds `policy:grant` and a right may give both on. Buckets of
other regions are served too: rights are in the global database, and caches everywhere follow it within a second.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from anvil.api.operations.caller import Caller
from anvil.base.errors import (
    AccessDenied,
    InvalidArgument,
    LimitExceeded,
    NoSuchBucket,
    OperationAborted,
    PreconditionFailed,
    Unavailable,
    UnknownName,
)
from anvil.base.limits import (
    APP_NAME_CHARS_MAX,
    BUCKET_NAME_CHARS_MAX,
    BUCKET_POLICY_BYTES_MAX,
    BUCKET_POLICY_GRANTS_MAX,
    POLICY_PUT_TRIES_MAX,
)
from anvil.model.identity import Action, Actor, App, Bucket, BucketRights, Grant, Policy

log = logging.getLogger(__name__)
_PUT: Final = "PutBucketPolicy"
_SINGLY: Final = "change single rights with GrantAccess and RevokeAccess."
_CHANGED: Final = "The bucket's policy changed since it was read."


async def grant(caller: Caller, app: str, action: str, resource: str) -> bool:
    """Give an app of the caller's tenant (access key or name) a right. False if it had it. Raises InvalidArgument, AccessDenied,
    UnknownName, LimitExceeded."""
    right = Policy.parse(action, resource)
    _check_name(app)
    required = ((Action.POLICY_GRANT, resource), (action, resource))
    by = await _allowed(caller, "GrantAccess", f"{app} {action} {resource}", required)
    return await caller.services.rights.grant(by, app, right)


async def revoke(caller: Caller, app: str, action: str, resource: str) -> bool:
    """Take a right back, named exactly as it was given. False if there was none. Raises InvalidArgument, AccessDenied, UnknownName."""
    right = Policy.parse(action, resource)
    _check_name(app)
    by = await _allowed(caller, "RevokeAccess", f"{app} {action} {resource}", ((Action.POLICY_REVOKE, resource),))
    return await caller.services.rights.revoke(by, app, right)


async def set_public(caller: Caller, bucket: str, allow: bool) -> bool:
    """Whether everybody may read the bucket's objects. False if it was so. Raises NoSuchBucket, AccessDenied."""
    await _visible(caller, bucket)
    inside = f"{bucket}/*"
    required = ((Action.POLICY_GRANT, inside), (Action.OBJECT_READ, inside)) if allow else ((Action.POLICY_REVOKE, inside),)
    by = await _allowed(caller, "SetPublicAccess", f"{bucket} {'public' if allow else 'private'}", required)
    return await caller.services.rights.set_public(by, bucket, allow)


async def bucket_policy(caller: Caller, bucket: str) -> BucketRights:
    """The rights on the bucket and in it. Raises NoSuchBucket, AccessDenied, LimitExceeded (too many to be shown)."""
    found = await _visible(caller, bucket)
    caller.services.authorizer.require_covered(caller.principal, Action.POLICY_GRANT, bucket)
    return await caller.services.rights.bucket_rights(found.tenant.tenant_id, bucket)


async def put_bucket_policy(caller: Caller, bucket: str, public_read: bool, grants: Sequence[Grant], if_match: str) -> str:
    """Replace what `bucket_policy` shows; returns the new etag. `grants` name apps by access key or name. `if_match`: the etag that must
    be there, unless all is as wanted already; empty: any.

    Raises NoSuchBucket, InvalidArgument, LimitExceeded, UnknownName, AccessDenied, PreconditionFailed, and OperationAborted when others
    kept changing it meanwhile."""
    await _visible(caller, bucket)
    # Before anything about the tenant's apps is told.
    both = tuple((action, what) for action in (Action.POLICY_GRANT, Action.POLICY_REVOKE) for what in (bucket, f"{bucket}/*"))
    by = await _allowed(caller, _PUT, bucket, both)
    _check_grants(bucket, grants)
    rights = caller.services.rights
    keys = await rights.resolve(by.tenant_id, [grant.app for grant in grants])
    # Each once, in one order: what is asked for twice is given once.
    wanted = tuple(sorted({Grant(key, grant.right) for key, grant in zip(keys, grants, strict=True)}, key=_order))
    for _ in range(POLICY_PUT_TRIES_MAX):
        present = await rights.bucket_rights(by.tenant_id, bucket)
        if present.public_read == public_read and set(present.grants) == set(wanted):
            return present.etag
        if if_match and if_match != present.etag:
            raise PreconditionFailed(_CHANGED, Condition="if_match")
        await _check_added(caller, bucket, present, public_read, wanted)
        try:
            # Only onto the state that was judged: a right that somebody takes away meanwhile must not come back as one that was there.
            return await rights.put_bucket_rights(by, bucket, BucketRights(public_read, wanted, present.etag))
        except PreconditionFailed:
            if if_match:
                raise
    raise OperationAborted(_CHANGED)


def _order(grant: Grant) -> tuple[str, str, str]:
    return grant.app, grant.right.action, grant.right.resource


def check_count(grants: int) -> None:
    """How many grants a policy may be put with. Raises LimitExceeded."""
    if grants > BUCKET_POLICY_GRANTS_MAX:
        raise LimitExceeded(f"A bucket's policy is put with at most {BUCKET_POLICY_GRANTS_MAX} grants: {_SINGLY}")


def _check_grants(bucket: str, grants: Sequence[Grant]) -> None:
    """How many and how large, and that each is a right inside the bucket. Raises LimitExceeded, InvalidArgument."""
    check_count(len(grants))
    if sum(len("".join(_order(grant)).encode()) for grant in grants) > BUCKET_POLICY_BYTES_MAX:
        raise LimitExceeded(f"A bucket's policy is put with at most {BUCKET_POLICY_BYTES_MAX} bytes: {_SINGLY}")
    for grant in grants:
        _check_name(grant.app)
        resource = Policy.parse(grant.right.action, grant.right.resource).resource
        if resource != bucket and not resource.startswith(f"{bucket}/"):
            text = f"{resource[:128]!r} is not {bucket!r}, and not inside it"
            raise InvalidArgument(text, ArgumentName="resource", ArgumentValue=resource[:128])


def _check_name(app: str) -> None:
    """What no app can be named must not reach the database. Raises UnknownName."""
    if not 0 < len(app) <= APP_NAME_CHARS_MAX or "\0" in app:
        raise UnknownName("There is no app of that name in this tenant.")


async def _check_added(caller: Caller, bucket: str, present: BucketRights, public_read: bool, wanted: Sequence[Grant]) -> None:
    """Every right that is added is the caller's own. Raises AccessDenied."""
    there = set(present.grants)
    required = [(grant.right.action, grant.right.resource) for grant in wanted if grant not in there]
    if public_read and not present.public_read:
        required.append((Action.OBJECT_READ, f"{bucket}/*"))
    await _allowed(caller, _PUT, bucket, required)


async def _visible(caller: Caller, bucket: str) -> Bucket:
    """Raises NoSuchBucket (another tenant's, or none), AccessDenied (the anonymous)."""
    services = caller.services
    if len(bucket) > BUCKET_NAME_CHARS_MAX or "\0" in bucket:
        raise NoSuchBucket(BucketName=bucket[:BUCKET_NAME_CHARS_MAX])
    try:
        return services.authorizer.visible_bucket(caller.principal, await services.catalog.bucket(bucket))
    except NoSuchBucket:
        raise NoSuchBucket(BucketName=bucket) from None


async def _allowed(caller: Caller, operation: str, resource: str, required: Sequence[tuple[str, str]]) -> Actor:
    """The caller, if it holds every (action, pattern); else the refusal is recorded. Raises AccessDenied."""
    app = caller.principal.app
    if app is None:
        raise AccessDenied()  # not recorded: anybody could fill the audit; the access log has it
    by = _actor(caller, app)
    try:
        for action, pattern in required:
            caller.services.authorizer.require_covered(caller.principal, action, pattern)
    except AccessDenied:
        try:
            await caller.services.rights.refused(by, operation, resource)
        except Unavailable:
            log.warning("a refusal could not be recorded", extra={"access_key": by.access_key, "operation": operation})
        raise
    return by


def _actor(caller: Caller, app: App) -> Actor:
    return Actor(app.tenant.tenant_id, app.access_key, caller.peer, caller.request_id)
