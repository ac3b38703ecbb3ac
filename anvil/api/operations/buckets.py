"""Create, delete and list buckets.

Owns: the rules of each. Invariant: a bucket is created for the caller's tenant, in this node's region, and in no other.
"""

from __future__ import annotations

from anvil.api.operations import access
from anvil.api.operations.caller import Caller
from anvil.api.operations.names import check_new_bucket_name
from anvil.base.errors import (
    AccessDenied,
    BucketAlreadyExists,
    BucketAlreadyOwnedByYou,
    BucketNotEmpty,
    IllegalLocationConstraint,
    InvalidLocationConstraint,
)
from anvil.model.identity import Action, Bucket, Tenant


def own_tenant(caller: Caller) -> Tenant:
    """Whose buckets are created and listed. Raises AccessDenied for the anonymous."""
    app = caller.principal.app
    if app is None:
        raise AccessDenied()
    return app.tenant


def creator(caller: Caller, name: str) -> Tenant:
    """The tenant for which the caller may create a bucket of that name. Raises AccessDenied."""
    tenant = own_tenant(caller)
    caller.services.authorizer.require(caller.principal, Action.BUCKET_CREATE, name)
    return tenant


async def create(caller: Caller, tenant: Tenant, name: str, region: str) -> Bucket:
    """`tenant`: from `creator`. `region`: "" for the node's. A repeated creation is BucketAlreadyOwnedByYou everywhere (S3's
    us-east-1 would answer 200). Raises InvalidBucketName, IllegalLocationConstraint (another region), InvalidLocationConstraint
    (no region), BucketAlreadyExists, TooManyBuckets."""
    services = caller.services
    check_new_bucket_name(name)
    if region not in ("", services.region):
        if region not in await services.catalog.regions():
            raise InvalidLocationConstraint(LocationConstraint=region)
        raise IllegalLocationConstraint(
            f"The {region} location constraint is incompatible for the region specific endpoint this request was sent to."
        )
    services.require_open()
    try:
        return await services.catalog.create_bucket(tenant.tenant_id, name, services.region)
    except (BucketAlreadyExists, BucketAlreadyOwnedByYou) as error:
        error.fields.setdefault("BucketName", name)
        raise


async def delete(caller: Caller, name: str, owner: str | None = None) -> None:
    """Raises BucketNotEmpty, and as `access.removable`."""
    bucket = await access.removable(caller, name, owner)
    try:
        await caller.services.catalog.delete_bucket(bucket)
    except BucketNotEmpty as error:
        error.fields.setdefault("BucketName", bucket.name)
        raise


async def page(
    caller: Caller, tenant: Tenant, *, prefix: str, after: str, limit: int, region: str = ""
) -> tuple[list[Bucket], bool]:
    """Up to `limit` of the tenant's buckets behind `after` for which `bucket:list` is granted, by name, and whether there are
    more. `tenant`: from `own_tenant`. `region`: "" for all."""
    allowed = caller.services.authorizer.allowed
    visible = [
        bucket
        for bucket in await caller.services.catalog.buckets(tenant.tenant_id)
        if bucket.name > after
        and bucket.name.startswith(prefix)
        and region in ("", bucket.region)
        and allowed(caller.principal, Action.BUCKET_LIST, bucket.name)
    ]
    visible.sort(key=lambda bucket: bucket.name)
    return visible[:limit], len(visible) > limit
