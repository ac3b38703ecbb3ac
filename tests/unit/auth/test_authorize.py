"""Rights: policies, tenants, public buckets, and what a refusal must not tell."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.auth.authorize import Authorizer, resource_of
from anvil.base import limits
from anvil.base.errors import AccessDenied, NoSuchBucket, NoSuchKey
from anvil.model.identity import ANONYMOUS, Action, App, Bucket, BucketState, Policy, Principal, Tenant

MINE, THEIRS = Tenant(1, "mine"), Tenant(2, "theirs")


def app(*policies: tuple[str, str], tenant: Tenant = MINE) -> Principal:
    rows = tuple(Policy(action, resource) for action, resource in policies)
    return Principal(App(7, tenant, "app", "AK", "secret", 1, rows))


def bucket(name: str = "photos", tenant: Tenant = MINE, public: bool = False) -> Bucket:
    return Bucket(1, tenant, name, "us-east-1", 0, BucketState.ACTIVE, public, bytes(32))


@pytest.mark.parametrize(
    ("policy", "action", "resource", "allowed"),
    [
        (("*", "*"), Action.OBJECT_READ, "photos/a", True),
        (("*", "*"), Action.POLICY_GRANT, "anything", True),
        (("object:read", "*"), Action.OBJECT_READ, "photos/a", True),
        (("object:read", "*"), Action.OBJECT_WRITE, "photos/a", False),
        (("object:read", "photos/a"), Action.OBJECT_READ, "photos/a", True),
        (("object:read", "photos/a"), Action.OBJECT_READ, "photos/ab", False),
        (("object:read", "photos/*"), Action.OBJECT_READ, "photos/a/b", True),
        (("object:read", "photos/*"), Action.OBJECT_READ, "photos2/a", False),
        (("object:read", "photos/*"), Action.OBJECT_READ, "photo", False),
        (("object:read", "photos/2024-*"), Action.OBJECT_READ, "photos/2024-05", True),
        (("object:read", "photos/2024-*"), Action.OBJECT_READ, "photos/2025-05", False),
        (("object:read", "photos/a*b"), Action.OBJECT_READ, "photos/aXb", False),  # only a trailing star is special
        (("object:read", "photos/a*b"), Action.OBJECT_READ, "photos/a*b", True),
        (("*", "photos/*"), Action.OBJECT_DELETE, "photos/a", True),
        (("*", "photos/*"), Action.BUCKET_DELETE, "photos", False),  # the bucket is not among its objects
        (("object:list", "photos"), Action.OBJECT_LIST, "photos", True),
        (("object:list", "photos/*"), Action.OBJECT_LIST, "photos", False),
        (("object:list", "photos*"), Action.OBJECT_LIST, "photos", True),
        (("bucket:create", "mine-*"), Action.BUCKET_CREATE, "mine-1", True),
        (("bucket:create", "mine-*"), Action.BUCKET_CREATE, "yours-1", False),
        (("object:*", "*"), Action.OBJECT_READ, "photos/a", False),  # no such action: grants nothing
        (("", ""), Action.OBJECT_READ, "", False),
    ],
)
def test_policies(policy: tuple[str, str], action: Action, resource: str, allowed: bool) -> None:
    authorizer, principal = Authorizer(), app(policy)
    assert authorizer.allowed(principal, action, resource) is allowed
    if allowed:
        authorizer.require(principal, action, resource)
    else:
        with pytest.raises(AccessDenied):
            authorizer.require(principal, action, resource)


def test_nothing_is_allowed_by_default() -> None:
    for action in Action:
        assert not Authorizer().allowed(app(), action, "photos")
        assert not Authorizer().allowed(ANONYMOUS, action, "photos")


def test_several_policies_add_up() -> None:
    principal = app(("object:read", "photos/a"), ("object:read", "docs/*"), ("*", "own/*"))
    authorizer = Authorizer()
    allowed = [authorizer.allowed(principal, Action.OBJECT_READ, text) for text in ("photos/a", "docs/x", "own/y", "photos/b")]
    assert allowed == [True, True, True, False]


def test_revoking_takes_effect_with_the_row() -> None:
    """CVE-2025-62506 and its like: rights live in policy rows, and a replaced tuple replaces them whole."""
    authorizer = Authorizer()
    assert authorizer.allowed(app(("object:read", "*")), Action.OBJECT_READ, "photos/a")
    assert not authorizer.allowed(app(("object:read", "docs/*")), Action.OBJECT_READ, "photos/a")


def test_compiled_sets_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.auth.authorize.POLICY_SETS_MAX", 3)
    authorizer = Authorizer()
    principals = [app(("object:read", f"b{n}/*")) for n in range(9)]
    for _ in range(2):
        for n, principal in enumerate(principals):
            assert authorizer.allowed(principal, Action.OBJECT_READ, f"b{n}/k")
            assert not authorizer.allowed(principal, Action.OBJECT_READ, f"b{n + 1}/k")
    assert len(authorizer._compiled) == 3
    assert limits.POLICY_SETS_MAX > 3


def test_another_tenants_bucket_does_not_exist() -> None:
    authorizer, root = Authorizer(), app(("*", "*"))
    own, foreign = bucket(), bucket(tenant=THEIRS)
    assert authorizer.visible_bucket(root, own) is own
    for other in (foreign, bucket(tenant=THEIRS, public=True), None):
        with pytest.raises(NoSuchBucket):
            authorizer.visible_bucket(root, other)
    for action in (Action.BUCKET_READ, Action.BUCKET_DELETE, Action.OBJECT_LIST):
        with pytest.raises(NoSuchBucket):
            authorizer.require_bucket(root, action, foreign)
    for action in (Action.OBJECT_READ, Action.OBJECT_WRITE, Action.OBJECT_DELETE):
        with pytest.raises(NoSuchBucket):
            authorizer.require_object(root, action, foreign, "k")


def test_the_anonymous_cannot_tell_a_private_bucket_from_none() -> None:
    authorizer = Authorizer()
    answers = []
    for target in (bucket(), None):
        with pytest.raises(AccessDenied) as refused:
            authorizer.visible_bucket(ANONYMOUS, target)
        answers.append((refused.value.message, refused.value.fields))
        with pytest.raises(AccessDenied):
            authorizer.require_object(ANONYMOUS, Action.OBJECT_READ, target, "k")
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "principal", [ANONYMOUS, app(("*", "*"), tenant=THEIRS), app()], ids=["anonymous", "other tenant", "own"]
)
def test_public_buckets_are_readable_and_no_more(principal: Principal) -> None:
    authorizer, public = Authorizer(), bucket(public=True)
    assert authorizer.require_object(principal, Action.OBJECT_READ, public, "k") is public
    for action in (Action.OBJECT_WRITE, Action.OBJECT_DELETE):
        with pytest.raises((AccessDenied, NoSuchBucket)):
            authorizer.require_object(principal, action, public, "k")
    for action in (Action.OBJECT_LIST, Action.BUCKET_READ, Action.BUCKET_WRITE, Action.BUCKET_DELETE):
        with pytest.raises((AccessDenied, NoSuchBucket)):
            authorizer.require_bucket(principal, action, public)


def test_rights_in_the_own_tenant() -> None:
    authorizer, own = Authorizer(), bucket()
    principal = app(("object:read", "photos/in/*"), ("bucket:read", "photos"))
    assert authorizer.require_bucket(principal, Action.BUCKET_READ, own) is own
    assert authorizer.require_object(principal, Action.OBJECT_READ, own, "in/a") is own
    with pytest.raises(AccessDenied):
        authorizer.require_object(principal, Action.OBJECT_READ, own, "out/a")
    with pytest.raises(AccessDenied):
        authorizer.require_bucket(principal, Action.BUCKET_WRITE, own)


def test_a_key_named_like_a_pattern_widens_nothing() -> None:
    authorizer = Authorizer()
    with pytest.raises(AccessDenied):
        authorizer.require_object(app(("object:read", "photos/a")), Action.OBJECT_READ, bucket(), "*")
    with pytest.raises(AccessDenied):  # CVE-2026-54917, CVE-2026-58372: nothing is normalized
        authorizer.require_object(app(("object:read", "docs/*")), Action.OBJECT_READ, bucket(), "../docs/a")


def test_cve_2024_36107_a_missing_key_is_only_told_to_who_may_list() -> None:
    authorizer, public = Authorizer(), bucket(public=True)
    lister = app(("object:list", "photos"))
    assert isinstance(authorizer.missing_key_error(lister, public), NoSuchKey)
    for principal in (ANONYMOUS, app(("object:read", "*"), ("object:write", "*")), app(("*", "*"), tenant=THEIRS)):
        assert isinstance(authorizer.missing_key_error(principal, public), AccessDenied)


def test_resources() -> None:
    assert resource_of("b") == "b"
    assert resource_of("b", "a/../c") == "b/a/../c"
    assert resource_of("b", "") == "b/"


def test_nothing_prints_a_secret() -> None:
    principal = app(("*", "*"))
    assert "secret" not in repr(principal)


@pytest.mark.parametrize(
    ("policy", "action", "pattern", "covered"),
    [
        (("*", "*"), "*", "*", True),
        (("*", "*"), "object:read", "photos/*", True),
        (("object:read", "*"), "*", "*", False),  # not every action
        (("object:read", "*"), "object:read", "*", True),
        (("object:read", "photos/*"), "object:read", "*", False),
        (("object:read", "photos/*"), "object:read", "photos/*", True),
        (("object:read", "photos/*"), "object:read", "photos/2024/*", True),
        (("object:read", "photos/*"), "object:read", "photos/a", True),
        (("object:read", "photos/*"), "object:read", "photos*", False),  # photos-private/x begins so too
        (("object:read", "photos/*"), "object:read", "photos", False),
        (("object:read", "photos*"), "object:read", "photos/*", True),
        (("object:read", "photos/a"), "object:read", "photos/a", True),
        (("object:read", "photos/a"), "object:read", "photos/a*", False),
        (("object:read", "photos/a"), "object:read", "photos/*", False),
        (("object:read", "photos/2*"), "object:read", "photos/*", False),
        (("object:read", "photos/*"), "object:write", "photos/*", False),
        (("*", "photos/*"), "policy:grant", "photos/x*", True),
        (("*", "photos/*"), "*", "photos/x*", True),
    ],
)
def test_covers(policy: tuple[str, str], action: str, pattern: str, covered: bool) -> None:
    authorizer, principal = Authorizer(), app(policy)
    assert authorizer.covers(principal, action, pattern) is covered
    if covered:
        authorizer.require_covered(principal, action, pattern)
    else:
        with pytest.raises(AccessDenied) as caught:
            authorizer.require_covered(principal, action, pattern)
        assert caught.value.fields == {"RequiredAction": action, "RequiredResource": pattern}


def test_many_rights_for_single_actions_are_not_the_right_to_all() -> None:
    """An action of a later release would be among them."""
    principal = app(*((str(action), "*") for action in Action if action is not Action.ANY))
    assert not Authorizer().covers(principal, "*", "b/*")


def test_the_anonymous_and_the_new_cover_nothing() -> None:
    assert not Authorizer().covers(ANONYMOUS, "object:read", "photos/*")
    assert not Authorizer().covers(app(), "object:read", "*")


@given(
    held=st.lists(st.text("ab/*", min_size=1, max_size=5), max_size=4),
    pattern=st.text("ab/*", min_size=1, max_size=5),
    tail=st.text("ab/*", max_size=4),
)
def test_what_is_covered_is_allowed_to_the_last_resource(held: list[str], pattern: str, tail: str) -> None:
    """Nothing can be reached through a right that was given, that its giver could not reach."""
    authorizer = Authorizer()
    giver, taker = app(*(("object:read", resource) for resource in held)), app(("object:read", pattern))
    resource = pattern[:-1] + tail if pattern.endswith("*") else pattern
    assert authorizer.allowed(taker, Action.OBJECT_READ, resource)
    if authorizer.covers(giver, "object:read", pattern):
        assert authorizer.allowed(giver, Action.OBJECT_READ, resource)
