"""Tenants, apps, buckets and rights: the frozen rows of the global database as the rest of Anvil sees them."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from anvil.model.records import BucketId


class Action(StrEnum):
    """What a policy row can allow. `*` allows everything."""

    BUCKET_CREATE = "bucket:create"
    BUCKET_DELETE = "bucket:delete"
    BUCKET_READ = "bucket:read"
    BUCKET_WRITE = "bucket:write"
    BUCKET_LIST = "bucket:list"
    OBJECT_READ = "object:read"
    OBJECT_WRITE = "object:write"
    OBJECT_DELETE = "object:delete"
    OBJECT_LIST = "object:list"
    POLICY_GRANT = "policy:grant"
    POLICY_REVOKE = "policy:revoke"
    ANY = "*"


class Policy(msgspec.Struct, frozen=True):
    """One right. `resource` is `*`, exact (`bucket` or `bucket/key`), or a prefix with a trailing `*`."""

    action: str
    resource: str


class Tenant(msgspec.Struct, frozen=True):
    tenant_id: int
    name: str


class App(msgspec.Struct, frozen=True):
    """An app and everything needed to authenticate and authorize it. Never logged: it holds the secret."""

    app_id: int
    tenant: Tenant
    name: str
    access_key: str
    secret: str
    secret_generation: int
    policies: tuple[Policy, ...]

    def __repr__(self) -> str:
        return f"App({self.access_key})"


class Principal(msgspec.Struct, frozen=True):
    """Who asks. `app` is None for the anonymous."""

    app: App | None

    @property
    def anonymous(self) -> bool:
        return self.app is None


ANONYMOUS = Principal(app=None)


class BucketState(StrEnum):
    CREATING = "creating"
    ACTIVE = "active"
    DELETING = "deleting"


class Bucket(msgspec.Struct, frozen=True):
    """A bucket row. `key` is the unwrapped 32-byte bucket key: never logged."""

    bucket_id: BucketId
    tenant: Tenant
    name: str
    region: str
    created_us: int
    state: BucketState
    public_read: bool
    key: bytes
    meta_shard: int = 0

    def __repr__(self) -> str:
        return f"Bucket({self.name}, {self.bucket_id})"
