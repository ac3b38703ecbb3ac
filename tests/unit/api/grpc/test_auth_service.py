"""AuthService and the policies of buckets: nobody gives what he has not, and nothing of another tenant is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import pytest

from anvil.api.grpc.proto import auth_pb2, bucket_pb2
from anvil.api.grpc.services.auth import AuthService
from anvil.api.grpc.services.policy import get_bucket_policy, put_bucket_policy
from anvil.auth.authorize import Authorizer
from anvil.auth.tokens import Tokens
from anvil.base.errors import (
    AccessDenied,
    AnvilError,
    DatabaseUnavailable,
    InvalidAccessKey,
    InvalidArgument,
    LimitExceeded,
    NoSuchBucket,
    OperationAborted,
    PreconditionFailed,
    UnknownName,
)
from anvil.base.limits import APP_NAME_CHARS_MAX, BUCKET_POLICY_GRANTS_MAX, POLICY_PUT_TRIES_MAX, RESOURCE_BYTES_MAX
from anvil.model.identity import ANONYMOUS, Actor, App, Bucket, BucketRights, BucketState, Grant, Policy, Principal, Tenant

ACME, RIVAL = Tenant(1, "acme"), Tenant(2, "rival")
NOW = 1_700_000_000
T = TypeVar("T")


class FakeCatalog:
    def __init__(self) -> None:
        self.rows = {
            name: Bucket(number, tenant, name, "us-east-1", 0, BucketState.ACTIVE, False, bytes(32))
            for number, (name, tenant) in enumerate((("photos", ACME), ("photos2", ACME), ("theirs", RIVAL)), 1)
        }
        self.apps: dict[str, App] = {}
        self.asked: list[str] = []

    async def bucket(self, name: str) -> Bucket | None:
        self.asked.append(name)
        return self.rows.get(name)

    async def app(self, access_key: str) -> App | None:
        return self.apps.get(access_key)


class FakeRights:
    """The port in memory: apps by name, rights by access key. `before_put`: what others do between reading and writing."""

    def __init__(self, catalog: FakeCatalog) -> None:
        self.catalog = catalog
        self.apps = {(1, "boss"): "AKBOSS", (1, "web"): "AKWEB", (2, "spy"): "AKSPY"}
        self.held: set[tuple[str, Policy]] = set()
        self.changes: list[tuple[Any, ...]] = []
        self.refusals: list[tuple[Actor, str, str]] = []
        self.before_put: Callable[[], None] = lambda: None
        self.away = False

    async def resolve(self, tenant_id: int, apps: Sequence[str]) -> Sequence[str]:
        found = []
        for named in apps:
            keys = [key for (tenant, name), key in self.apps.items() if tenant == tenant_id and named in (name, key)]
            if not keys:
                raise UnknownName()
            found.append(keys[0])
        return found

    async def grant(self, by: Actor, app: str, right: Policy) -> bool:
        (key,) = await self.resolve(by.tenant_id, [app])
        self.changes.append(("grant", by, key, right))
        new = (key, right) not in self.held
        self.held.add((key, right))
        return new

    async def revoke(self, by: Actor, app: str, right: Policy) -> bool:
        (key,) = await self.resolve(by.tenant_id, [app])
        self.changes.append(("revoke", by, key, right))
        there = (key, right) in self.held
        self.held.discard((key, right))
        return there

    async def set_public(self, by: Actor, bucket: str, allow: bool) -> bool:
        self.changes.append(("set_public", by, bucket, allow))
        before = self.catalog.rows[bucket]
        self.catalog.rows[bucket] = msgspec.structs.replace(before, public_read=allow)
        return before.public_read != allow

    async def bucket_rights(self, tenant_id: int, bucket: str) -> BucketRights:
        found = sorted((entry for entry in self.held if entry[1].resource.split("/")[0] == bucket), key=repr)
        public = self.catalog.rows[bucket].public_read
        return BucketRights(public, tuple(Grant(key, right) for key, right in found), f"{public} {hash(tuple(found))}")

    async def put_bucket_rights(self, by: Actor, bucket: str, wanted: BucketRights) -> str:
        self.before_put()
        if (await self.bucket_rights(by.tenant_id, bucket)).etag != wanted.etag:
            raise PreconditionFailed()
        self.changes.append(("put", by, bucket, wanted))
        self.held = {entry for entry in self.held if entry[1].resource.split("/")[0] != bucket}
        self.held |= {(grant.app, grant.right) for grant in wanted.grants}
        self.catalog.rows[bucket] = msgspec.structs.replace(self.catalog.rows[bucket], public_read=wanted.public_read)
        return (await self.bucket_rights(by.tenant_id, bucket)).etag

    async def refused(self, by: Actor, action: str, resource: str) -> None:
        if self.away:
            raise DatabaseUnavailable()
        self.refusals.append((by, action, resource))


@dataclass
class Services:
    catalog: Any
    authorizer: Authorizer
    rights: Any


@dataclass
class Caller:
    services: Services
    principal: Principal
    request_id: str = "req-1"
    peer: str = "192.0.2.1:4000"


@dataclass
class Context:
    caller: Caller


@dataclass
class World:
    """An app AKBOSS of acme with the rights given, calling."""

    policies: tuple[tuple[str, str], ...] = ()
    catalog: FakeCatalog = field(default_factory=FakeCatalog)

    def __post_init__(self) -> None:
        self.rights = FakeRights(self.catalog)
        app = App(7, ACME, "boss", "AKBOSS", "the-secret", 1, tuple(Policy(*policy) for policy in self.policies))
        self.catalog.apps["AKBOSS"] = app
        self.caller = Caller(Services(self.catalog, Authorizer(), self.rights), Principal(app))
        self.service = AuthService(Tokens("x" * 32, lambda: NOW, self.catalog))  # type: ignore[arg-type]
        self.by = Actor(1, "AKBOSS", "192.0.2.1:4000", "req-1")

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(call)

    def grant(self, action: str, resource: str, app: str = "web") -> bool:
        request = auth_pb2.GrantAccessRequest(app=app, action=action, resource=resource)
        return self.run(self.service.GrantAccess(request, Context(self.caller))).changed

    def revoke(self, action: str, resource: str, app: str = "web") -> bool:
        request = auth_pb2.RevokeAccessRequest(app=app, action=action, resource=resource)
        return self.run(self.service.RevokeAccess(request, Context(self.caller))).changed

    def set_public(self, bucket: str, allow: bool) -> None:
        request = auth_pb2.SetPublicAccessRequest(bucket=bucket, allow=allow)
        self.run(self.service.SetPublicAccess(request, Context(self.caller)))

    def get(self, bucket: str = "photos") -> bucket_pb2.GetBucketPolicyResponse:
        return self.run(get_bucket_policy(self.caller, bucket_pb2.GetBucketPolicyRequest(bucket=bucket)))

    def put(self, *grants: tuple[str, str, str], public: bool = False, if_match: str = "", bucket: str = "photos") -> str:
        policy = bucket_pb2.BucketPolicy(
            public_read=public, grants=[bucket_pb2.Grant(app=app, action=action, resource=what) for app, action, what in grants]
        )
        request = bucket_pb2.PutBucketPolicyRequest(bucket=bucket, policy=policy, if_match=if_match)
        return self.run(put_bucket_policy(self.caller, request)).etag


ALL = (("*", "*"),)
MANAGER = tuple((f"policy:{verb}", what) for verb in ("grant", "revoke") for what in ("photos", "photos/*"))


def test_a_token_for_a_key_pair() -> None:
    world = World(ALL)
    context = Context(Caller(world.caller.services, ANONYMOUS))
    request = auth_pb2.GetAccessTokenRequest(client_id="AKBOSS", client_secret="the-secret")
    answer = world.run(world.service.GetAccessToken(request, context))
    assert answer.expires_at.ToSeconds() == NOW + 3600
    found = world.run(world.service._tokens.authenticate(f"Bearer {answer.access_token}"))
    assert found.app is world.caller.principal.app
    for client_id, client_secret in (("AKBOSS", "wrong"), ("AKNOBODY", "the-secret"), ("", "")):
        request = auth_pb2.GetAccessTokenRequest(client_id=client_id, client_secret=client_secret)
        with pytest.raises(InvalidAccessKey):
            world.run(world.service.GetAccessToken(request, context))


def test_grant_and_revoke() -> None:
    world = World((("policy:grant", "photos/*"), ("policy:revoke", "photos/*"), ("object:read", "photos/*")))
    right = Policy("object:read", "photos/2024/*")
    assert world.grant("object:read", "photos/2024/*") is True
    assert world.grant("object:read", "photos/2024/*", app="AKWEB") is False
    assert world.revoke("object:read", "photos/2024/*") is True
    assert world.revoke("object:read", "photos/2024/*") is False
    assert world.rights.changes == [
        (name, world.by, "AKWEB", right) for name in ("grant", "grant", "revoke", "revoke")
    ]  # fmt: skip
    assert world.rights.refusals == []


@pytest.mark.parametrize(
    ("policies", "action", "resource"),
    [
        ((("policy:grant", "*"),), "object:read", "photos/*"),  # may grant, has nothing to give
        ((("object:read", "*"),), "object:read", "photos/*"),  # has it, may not grant
        ((("policy:grant", "photos/*"), ("object:read", "photos/*")), "object:read", "photos*"),
        ((("policy:grant", "photos/*"), ("object:read", "photos/*")), "object:read", "*"),
        ((("policy:grant", "photos/*"), ("object:read", "*")), "object:read", "photos2/a"),
        ((("policy:grant", "*"), ("object:read", "photos/*")), "object:read", "photos2/a"),
        ((("policy:grant", "*"), ("object:read", "*")), "object:write", "photos/a"),
        ((("policy:grant", "*"), ("object:read", "*")), "*", "photos/a"),
        ((("policy:grant", "*"), ("object:read", "*")), "policy:revoke", "photos/a"),
        ((("policy:grant", "photos/a"), ("*", "photos/a")), "object:read", "photos/a*"),
        ((("policy:revoke", "*"), ("object:read", "*")), "object:read", "photos/*"),
        ((), "object:read", "photos/*"),
        (tuple((f"{kind}", "*") for kind in ("policy:grant", "policy:revoke", "object:read", "bucket:create")), "*", "*"),
    ],
)
def test_nobody_gives_what_he_has_not(policies: tuple[tuple[str, str], ...], action: str, resource: str) -> None:
    world = World(policies)
    for app in ("web", "boss", "AKBOSS", "nobody"):  # nor to himself; who there is stays untold
        with pytest.raises(AccessDenied):
            world.grant(action, resource, app=app)
    assert (world.rights.changes, world.rights.held) == ([], set())
    assert world.rights.refusals[0] == (world.by, "GrantAccess", f"web {action} {resource}")


@pytest.mark.parametrize(
    ("held", "action", "resource"),
    [
        (("object:read", "photos/a*"), "object:read", "photos/*"),
        (("object:read", "photos/a"), "object:read", "photos/a*"),
        (("object:read", "photos/*"), "object:write", "photos/a"),
        (("object:read", "photos/*"), "*", "photos/a"),
        (("object:read", "photos/*"), "bucket:list", "photos"),
        (("object:read", "*"), "bucket:delete", "photos"),
    ],
)
def test_nor_does_he_through_a_policy(held: tuple[str, str], action: str, resource: str) -> None:
    world = World((*MANAGER, held))
    with pytest.raises(AccessDenied):
        world.put(("web", action, resource))
    assert (world.rights.changes, world.rights.held) == ([], set())


def test_a_refusal_says_what_is_missing() -> None:
    world = World((("policy:grant", "photos/*"),))
    with pytest.raises(AccessDenied) as caught:
        world.grant("object:read", "photos/a")
    assert caught.value.fields == {"RequiredAction": "object:read", "RequiredResource": "photos/a"}


@pytest.mark.parametrize("policies", [(), (("policy:grant", "*"), ("object:read", "*")), (("policy:revoke", "photos/a"),)])
def test_revoking_needs_its_right_on_all_of_it(policies: tuple[tuple[str, str], ...]) -> None:
    world = World(policies)
    world.rights.held.add(("AKWEB", Policy("object:read", "photos/*")))
    with pytest.raises(AccessDenied):
        world.revoke("object:read", "photos/*")
    assert len(world.rights.held) == 1
    assert world.rights.refusals == [(world.by, "RevokeAccess", "web object:read photos/*")]


def test_who_may_revoke_need_not_have_the_right() -> None:
    world = World((("policy:revoke", "photos/*"),))
    world.rights.held.add(("AKWEB", Policy("*", "photos/*")))
    assert world.revoke("*", "photos/*") is True


@pytest.mark.parametrize(
    ("action", "resource"),
    [
        ("", "*"), ("object:*", "*"), ("object:steal", "*"), ("OBJECT:READ", "*"), ("*\0", "*"), ("x" * 10_000, "*"),
        ("object:read", ""), ("object:read", "a*b"), ("object:read", "**"), ("object:read", "*/x"), ("object:read", "a\0"),
        ("object:read", "b/" + "k" * RESOURCE_BYTES_MAX), ("object:read", "b/" + "é" * 600),
    ],
)  # fmt: skip
def test_what_is_no_right(action: str, resource: str) -> None:
    world = World(ALL)
    for call in (world.grant, world.revoke):
        with pytest.raises(InvalidArgument) as caught:
            call(action, resource)
        assert len(caught.value.message) < 500
    with pytest.raises(InvalidArgument):
        world.put(("web", action, resource))
    assert world.rights.changes == []


@pytest.mark.parametrize("app", ["", "nobody", "spy", "AKSPY", "we\0b", "w" * (APP_NAME_CHARS_MAX + 1)])
def test_unknown_apps(app: str) -> None:
    world = World(ALL)
    for call in (world.grant, world.revoke):
        with pytest.raises(UnknownName):
            call("object:read", "photos/*", app=app)
    with pytest.raises(UnknownName):
        world.put((app, "object:read", "photos/*"))
    assert world.rights.changes == []


def test_the_anonymous_change_nothing_and_fill_no_audit() -> None:
    world = World(ALL)
    world.catalog.rows["photos"] = msgspec.structs.replace(world.catalog.rows["photos"], public_read=True)
    world.caller.principal = ANONYMOUS
    calls: list[Callable[[], object]] = [
        lambda: world.grant("object:read", "photos/*"),
        lambda: world.revoke("object:read", "photos/*"),
        lambda: world.set_public("photos", False),
        lambda: world.set_public("photos2", True),
        lambda: world.set_public("none", True),
        world.get,
        world.put,
    ]
    for call in calls:
        with pytest.raises(AccessDenied):
            call()
    assert (world.rights.changes, world.rights.refusals) == ([], [])


def test_a_refusal_that_cannot_be_recorded_is_still_one(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.rights.away = True
    with pytest.raises(AccessDenied):
        world.grant("object:read", "photos/*")
    assert "could not be recorded" in caplog.text


# -- public buckets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policies", "may_allow", "may_end"),
    [
        (ALL, True, True),
        ((("policy:grant", "photos/*"), ("object:read", "photos/*")), True, False),
        ((("policy:grant", "photos/*"),), False, False),
        ((("object:read", "photos/*"),), False, False),
        ((("policy:revoke", "photos/*"),), False, True),
        ((("policy:grant", "photos/a*"), ("object:read", "*"), ("policy:revoke", "photos")), False, False),
    ],
)
def test_who_makes_a_bucket_public(policies: tuple[tuple[str, str], ...], may_allow: bool, may_end: bool) -> None:
    world = World(policies)
    for allow, may in ((True, may_allow), (False, may_end)):
        world.rights.changes.clear()
        world.rights.refusals.clear()
        if may:
            world.set_public("photos", allow)
            assert world.rights.changes == [("set_public", world.by, "photos", allow)]
        else:
            with pytest.raises(AccessDenied):
                world.set_public("photos", allow)
            assert world.rights.changes == []
            assert world.rights.refusals == [(world.by, "SetPublicAccess", f"photos {'public' if allow else 'private'}")]


@pytest.mark.parametrize("bucket", ["theirs", "none", "", "pho\0tos", "p" * 64, "p" * 1_000_000])
def test_buckets_that_are_not_there(bucket: str) -> None:
    world = World(ALL)
    calls: list[Callable[[], object]] = [
        lambda: world.set_public(bucket, True),
        lambda: world.get(bucket),
        lambda: world.put(bucket=bucket),
    ]
    for call in calls:
        with pytest.raises(NoSuchBucket):
            call()
    assert world.rights.changes == []
    assert not any("\0" in name or len(name) > 63 for name in world.catalog.asked)


# -- policies of buckets ----------------------------------------------------------------------------------------------


def test_get_and_put_a_policy() -> None:
    world = World(ALL)
    world.rights.held = {("AKWEB", Policy("object:read", "photos/*")), ("AKWEB", Policy("object:read", "photos2/*"))}
    before = world.get()
    assert [(grant.app, grant.action, grant.resource) for grant in before.policy.grants] == [("AKWEB", "object:read", "photos/*")]
    assert before.policy.public_read is False
    grants = [("web", "object:write", "photos/a"), ("AKBOSS", "bucket:list", "photos"), ("AKWEB", "object:write", "photos/a")]
    etag = world.put(*grants, public=True, if_match=before.etag)
    after = world.get()
    assert (after.etag, after.policy.public_read) == (etag, True)
    assert {(grant.app, grant.action, grant.resource) for grant in after.policy.grants} == {
        ("AKBOSS", "bucket:list", "photos"), ("AKWEB", "object:write", "photos/a"),
    }  # fmt: skip
    assert ("AKWEB", Policy("object:read", "photos2/*")) in world.rights.held
    with pytest.raises(PreconditionFailed):
        world.put(if_match=before.etag)
    assert world.put(*grants, public=True, if_match=before.etag) == etag, "it is so already"
    assert len(world.rights.changes) == 1


def test_a_missing_policy_is_not_an_empty_one() -> None:
    world = World(ALL)
    with pytest.raises(InvalidArgument):
        world.run(put_bucket_policy(world.caller, bucket_pb2.PutBucketPolicyRequest(bucket="photos")))


@pytest.mark.parametrize("missing", MANAGER)
def test_putting_a_policy_needs_both_rights_on_both(missing: tuple[str, str]) -> None:
    world = World(tuple(right for right in MANAGER if right != missing))
    world.rights.held.add(("AKWEB", Policy("object:read", "photos/*")))
    with pytest.raises(AccessDenied):
        world.put()
    with pytest.raises(AccessDenied):
        world.put(("nobody", "object:read", "photos/*"))  # who there is stays untold
    assert world.rights.refusals == [(world.by, "PutBucketPolicy", "photos")] * 2
    assert len(world.rights.held) == 1
    if missing == ("policy:grant", "photos"):
        with pytest.raises(AccessDenied):
            world.get()
    else:
        assert world.get().etag


def test_what_was_there_may_stay_and_what_comes_must_be_held() -> None:
    world = World((*MANAGER, ("object:read", "photos/*")))
    there = ("AKWEB", "object:write", "photos/*")
    world.rights.held.add(("AKWEB", Policy(*there[1:])))
    world.put(there, ("boss", "object:read", "photos/x"))
    for wrong in (("boss", "object:write", "photos/*"), ("web", "object:write", "photos/a"), ("web", "*", "photos/*")):
        with pytest.raises(AccessDenied):
            world.put(there, wrong)
    world.put(there, public=True)
    poor = World(MANAGER)
    with pytest.raises(AccessDenied):
        poor.put(public=True)
    assert poor.catalog.rows["photos"].public_read is False


def test_a_right_that_is_revoked_meanwhile_does_not_come_back() -> None:
    """Judged as one that was there, it would be given by somebody who has it not."""
    world = World((*MANAGER, ("object:read", "photos/*")))
    there = ("AKWEB", Policy("object:write", "photos/*"))
    world.rights.held.add(there)
    world.rights.before_put = lambda: world.rights.held.discard(there)
    with pytest.raises(AccessDenied):
        world.put(("AKWEB", "object:write", "photos/*"), ("boss", "object:read", "photos/x"))
    assert world.rights.held == set()


def test_one_who_is_overtaken_tries_again_a_few_times() -> None:
    world = World(ALL)
    left = [2]

    def meddle() -> None:
        if left[0]:
            left[0] -= 1
            world.rights.held.add(("AKWEB", Policy("object:read", f"photos/{left[0]}")))

    world.rights.before_put = meddle
    world.put(("boss", "object:read", "photos/x"))
    assert world.rights.held == {("AKBOSS", Policy("object:read", "photos/x"))}
    left[0] = POLICY_PUT_TRIES_MAX
    with pytest.raises(OperationAborted):
        world.put()
    world.rights.held, left[0] = {("AKWEB", Policy("object:read", "photos/9"))}, 1
    with pytest.raises(PreconditionFailed):
        world.put(if_match=world.get().etag)


@pytest.mark.parametrize("resource", ["*", "photos*", "photos2/*", "photos2", "phot*", "p", "other/photos/*"])
def test_grants_lie_inside_the_bucket(resource: str) -> None:
    world = World(ALL)
    with pytest.raises(InvalidArgument):
        world.put(("web", "object:read", resource))
    assert world.rights.changes == []


@pytest.mark.parametrize(
    "grants",
    [
        [("web", "object:read", f"photos/{n}") for n in range(BUCKET_POLICY_GRANTS_MAX + 1)],
        [("web", "*", "photos")] * (BUCKET_POLICY_GRANTS_MAX + 1),
        [("web", "object:read", f"photos/{n}" + "k" * 1000) for n in range(21)],
        [("web", "object:read", f"photos/{n}" + "é" * 500) for n in range(21)],
    ],
    ids=["many", "the same", "long", "bytes"],
)
def test_a_policy_is_bounded(grants: list[tuple[str, str, str]]) -> None:
    world = World(ALL)
    with pytest.raises(LimitExceeded):
        world.put(*grants)
    assert world.rights.changes == []


def test_grants_are_counted_before_they_are_looked_at() -> None:
    """A message of 4 MiB holds two million empty ones, and making something of them takes seconds: for nobody, also not the anonymous."""
    world = World(ALL)
    world.caller.principal = ANONYMOUS
    with pytest.raises(LimitExceeded):
        world.put(*[("", "", "")] * (BUCKET_POLICY_GRANTS_MAX + 1))


def test_all_errors_are_ours() -> None:
    """What the host gets from these methods it can turn into a status."""
    world = World()
    with pytest.raises(AnvilError):
        world.put(("web", "fly", "photos"))
