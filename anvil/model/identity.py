"""Tenants, apps, buckets and rights: the frozen rows of the global database as the rest of Anvil sees them."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from anvil.base.errors import InvalidArgument
from anvil.base.limits import RESOURCE_BYTES_MAX
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

    @classmethod
    def parse(cls, action: str, resource: str) -> Policy:
        """A right as somebody typed it. Raises InvalidArgument (`ArgumentName`: action or resource)."""
        if action not in frozenset(Action):
            text = f"{action[:64]!r} is not one of {', '.join(Action)}"
            raise InvalidArgument(text, ArgumentName="action", ArgumentValue=action[:64])
        try:
            size = len(resource.encode())
        except UnicodeEncodeError:  # typed in another encoding
            size = 0
        if not 0 < size <= RESOURCE_BYTES_MAX or "*" in resource[:-1] or "\0" in resource:
            shown = resource[:128]
            text = f"{shown!r} must be `*`, exact, or a prefix with one `*` at its end, of at most {RESOURCE_BYTES_MAX} bytes"
            raise InvalidArgument(text, ArgumentName="resource", ArgumentValue=shown)
        return cls(action, resource)


class Grant(msgspec.Struct, frozen=True):
    """A right and who has it. `app`: its access key."""

    app: str
    right: Policy


class BucketRights(msgspec.Struct, frozen=True):
    """The rights on a bucket and in it, of the apps of its tenant. `etag` names this state among all that the bucket has had."""

    public_read: bool
    grants: tuple[Grant, ...]
    etag: str


class Actor(msgspec.Struct, frozen=True):
    """Who changes rights, for the audit: the app, where it called from, and in which request."""

    tenant_id: int
    access_key: str
    source: str
    request_id: str


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
