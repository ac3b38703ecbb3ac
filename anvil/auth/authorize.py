"""Who may do what: policies of apps, tenants' buckets, public buckets.

Owns: the decision. Invariant: nothing is allowed by default; a policy of one tenant's app never reaches another tenant's
bucket, however wide its resource; what somebody may not see answers as if it were not there. Not here: who asks
(`authenticate.py`), where policies come from (`Catalog`), how a refusal looks on the wire (`api/s3/errors.py`).

Resources are `bucket` for actions on buckets and for `object:list`, `bucket/key` for actions on objects. A policy names `*`,
one resource exactly, or a prefix with a trailing `*`; a `*` anywhere else is itself, since keys may contain it.

Decided:
- The anonymous get AccessDenied for a private bucket and the same for one that does not exist. S3 says NoSuchBucket for the
  latter and so tells anybody which names are taken; bucket names often name customers.
- `public_read` makes objects readable by those who know their keys: GetObject and HeadObject, for the anonymous, and for other
  tenants' apps too (signing a request must not take away what it has without a signature). It does not open listing: the flag
  is documented as publicly readable objects, and a listing would also publish every key nobody was ever given.
- Without the right to list, a missing key is AccessDenied, as in S3, so that nobody can probe for keys (CVE-2024-36107 did it
  with conditional headers). Handlers check rights before they look at a condition.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from anvil.base.errors import AccessDenied, AnvilError, NoSuchBucket, NoSuchKey
from anvil.base.limits import POLICY_SETS_MAX
from anvil.model.identity import Action, Bucket, Policy, Principal


class _Rule(msgspec.Struct, frozen=True):
    """Where one action is allowed."""

    exact: frozenset[str]
    prefixes: tuple[str, ...]  # "" allows everything

    def allows(self, resource: str) -> bool:
        return resource in self.exact or resource.startswith(self.prefixes)

    def covers(self, pattern: str) -> bool:
        """Whether everything is allowed that the resource of a policy names: of a prefix, all that begins with it."""
        if pattern.endswith("*"):
            return pattern[:-1].startswith(self.prefixes)
        return self.allows(pattern)


def _compile(policies: tuple[Policy, ...]) -> dict[str, _Rule]:
    """One rule per action; what is granted for every action (`*`) is part of each."""
    compiled = {}
    for action in Action:
        resources = [policy.resource for policy in policies if policy.action in (action, Action.ANY)]
        compiled[str(action)] = _Rule(
            exact=frozenset(text for text in resources if not text.endswith("*")),
            prefixes=tuple(sorted({text[:-1] for text in resources if text.endswith("*")})),
        )
    return compiled


def _denied(action: str, resource: str) -> AccessDenied:
    """Says what to ask for. The resource is what the request itself named."""
    return AccessDenied(RequiredAction=str(action), RequiredResource=resource)


def resource_of(bucket: str, key: str | None = None) -> str:
    """The resource string of a bucket, or of an object in it."""
    return bucket if key is None else f"{bucket}/{key}"


class Authorizer:
    """Answers questions about rights. Compiled policy sets are kept by the identity of the policies tuple, which the catalog
    replaces when a policy changes, so revoking takes effect with the row."""

    __slots__ = ("_compiled",)

    def __init__(self) -> None:
        # The tuple is kept beside its rules: while it is, nothing else can have its id.
        self._compiled: OrderedDict[int, tuple[tuple[Policy, ...], dict[str, _Rule]]] = OrderedDict()

    def _rules(self, policies: tuple[Policy, ...]) -> dict[str, _Rule]:
        identity = id(policies)
        entry = self._compiled.get(identity)
        if entry is None:
            entry = (policies, _compile(policies))
            self._compiled[identity] = entry
            if len(self._compiled) > POLICY_SETS_MAX:
                self._compiled.popitem(last=False)
        else:
            self._compiled.move_to_end(identity)
        return entry[1]

    def allowed(self, principal: Principal, action: Action, resource: str) -> bool:
        """Whether a policy of the principal's app allows it. Knows nothing of tenants: the bucket in `resource` must have come
        through `visible_bucket`, or be about to be created. For a bucket or an object that exists, use `require_bucket` and
        `require_object`, which do both."""
        app = principal.app
        return app is not None and self._rules(app.policies)[action].allows(resource)

    def require(self, principal: Principal, action: Action, resource: str) -> None:
        """Raises AccessDenied unless `allowed`."""
        if not self.allowed(principal, action, resource):
            raise _denied(action, resource)

    def covers(self, principal: Principal, action: str, pattern: str) -> bool:
        """Whether the principal's app itself holds all that a policy (`action`, `pattern`) would give: every resource the pattern names,
        for the action `*` under rules for `*`. Knows nothing of tenants: as `allowed`."""
        app = principal.app
        return app is not None and self._rules(app.policies)[action].covers(pattern)

    def require_covered(self, principal: Principal, action: str, pattern: str) -> None:
        """Raises AccessDenied unless `covers`."""
        if not self.covers(principal, action, pattern):
            raise _denied(action, pattern)

    def visible_bucket(self, principal: Principal, bucket: Bucket | None) -> Bucket:
        """The bucket, if the principal may know that it exists: it is the tenant's own, or public and the principal anonymous.

        Raises NoSuchBucket for the authenticated (missing, or another tenant's), AccessDenied for the anonymous (missing, or not
        public)."""
        if principal.app is None:
            if bucket is None or not bucket.public_read:
                raise AccessDenied()
            return bucket
        if bucket is None or bucket.tenant.tenant_id != principal.app.tenant.tenant_id:
            raise NoSuchBucket()
        return bucket

    def require_bucket(self, principal: Principal, action: Action, bucket: Bucket | None) -> Bucket:
        """The bucket, if it is visible and the action on it (or `object:list` in it) is allowed. Raises as `visible_bucket`, and
        AccessDenied."""
        bucket = self.visible_bucket(principal, bucket)
        self.require(principal, action, bucket.name)
        return bucket

    def require_object(self, principal: Principal, action: Action, bucket: Bucket | None, key: str) -> Bucket:
        """The bucket, if the action on that key is allowed by a policy, or is a read in a public bucket. Raises as
        `require_bucket`."""
        if bucket is not None and bucket.public_read and action is Action.OBJECT_READ:
            return bucket
        bucket = self.visible_bucket(principal, bucket)
        self.require(principal, action, resource_of(bucket.name, key))
        return bucket

    def missing_key_error(self, principal: Principal, bucket: Bucket) -> AnvilError:
        """What to raise when a key does not exist: NoSuchKey for who may list the bucket, AccessDenied for all others, also for
        those who may read (S3 API Reference, GetObject, "Permissions")."""
        own = principal.app is not None and principal.app.tenant.tenant_id == bucket.tenant.tenant_id
        if own and self.allowed(principal, Action.OBJECT_LIST, bucket.name):
            return NoSuchKey()
        return AccessDenied()
