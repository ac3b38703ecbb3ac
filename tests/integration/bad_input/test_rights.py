"""Every operation with the wrong credentials: another tenant, nobody, an app with one narrow right; and rights taken away."""

from __future__ import annotations

import base64
import hashlib
import time
from typing import NamedTuple

import pytest

from anvil.api.s3.routes import ROUTES
from tests.integration.bad_input.conftest import World
from tests.support.node import wait_until
from tests.support.rawclient import Answer, Client

UPLOAD = "0" * 32
DELETE = b"<Delete><Object><Key>kept</Key></Object></Delete>"
COMPLETE = b"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>x</ETag></Part></CompleteMultipartUpload>"
COPY = {"x-amz-copy-source": "/second/kept"}


class Attempt(NamedTuple):
    method: str
    target: str
    body: bytes = b""
    headers: dict[str, str] | None = None


ATTEMPTS = {
    "HeadBucket": Attempt("HEAD", "/attacked"),
    "DeleteBucket": Attempt("DELETE", "/attacked"),
    "GetBucketLocation": Attempt("GET", "/attacked?location"),
    "GetBucketVersioning": Attempt("GET", "/attacked?versioning"),
    "GetBucketAcl": Attempt("GET", "/attacked?acl"),
    "ListObjects": Attempt("GET", "/attacked"),
    "ListObjectsV2": Attempt("GET", "/attacked?list-type=2"),
    "ListObjectVersions": Attempt("GET", "/attacked?versions"),
    "ListMultipartUploads": Attempt("GET", "/attacked?uploads"),
    "DeleteObjects": Attempt(
        "POST", "/attacked?delete", DELETE, {"content-md5": base64.b64encode(hashlib.md5(DELETE).digest()).decode()}
    ),
    "PutObject": Attempt("PUT", "/attacked/kept", b"mine"),
    "CopyObject": Attempt("PUT", "/attacked/kept", b"", COPY),
    "GetObject": Attempt("GET", "/attacked/kept"),
    "HeadObject": Attempt("HEAD", "/attacked/kept"),
    "DeleteObject": Attempt("DELETE", "/attacked/kept"),
    "GetObjectAttributes": Attempt("GET", "/attacked/kept?attributes", b"", {"x-amz-object-attributes": "ETag"}),
    "GetObjectAcl": Attempt("GET", "/attacked/kept?acl"),
    "GetObjectTagging": Attempt("GET", "/attacked/kept?tagging"),
    "CreateMultipartUpload": Attempt("POST", "/attacked/kept?uploads"),
    "UploadPart": Attempt("PUT", f"/attacked/kept?uploadId={UPLOAD}&partNumber=1", b"mine"),
    "UploadPartCopy": Attempt("PUT", f"/attacked/kept?uploadId={UPLOAD}&partNumber=1", b"", COPY),
    "CompleteMultipartUpload": Attempt("POST", f"/attacked/kept?uploadId={UPLOAD}", COMPLETE),
    "AbortMultipartUpload": Attempt("DELETE", f"/attacked/kept?uploadId={UPLOAD}"),
    "ListParts": Attempt("GET", f"/attacked/kept?uploadId={UPLOAD}"),
}
ELSEWHERE = {"ListBuckets", "CreateBucket"}  # operations that name no existing bucket; tested on their own below


def ask(client: Client, attempt: Attempt) -> Answer:
    return client(attempt.method, attempt.target, attempt.body, attempt.headers)


def seen(answer: Answer, attempt: Attempt, status: int, code: str) -> None:
    """An answer to HEAD has no document to hold a code."""
    assert answer.face == (status, "" if attempt.method == "HEAD" else code)
    assert "x-amz-bucket-region" not in answer.headers, "not even the region is told"


def test_every_operation_is_here() -> None:
    assert {route.operation for route in ROUTES if route.handler is not None} == ATTEMPTS.keys() | ELSEWHERE


@pytest.mark.parametrize("operation", ATTEMPTS)
def test_another_tenants_bucket_does_not_exist(world: World, operation: str) -> None:
    attempt = ATTEMPTS[operation]
    seen(ask(world.other, attempt), attempt, 404, "NoSuchBucket")


@pytest.mark.parametrize("operation", ATTEMPTS)
def test_the_anonymous_are_denied(world: World, operation: str) -> None:
    attempt = ATTEMPTS[operation]
    seen(ask(world.nobody, attempt), attempt, 403, "AccessDenied")
    missing = attempt._replace(target=attempt.target.replace("attacked", "no-such-bucket"))
    seen(ask(world.nobody, missing), missing, 403, "AccessDenied")


@pytest.mark.parametrize("operation", ATTEMPTS)
def test_an_app_with_one_narrow_right(world: World, operation: str) -> None:
    """`object:read` on `attacked/public/*`: reads there and nothing else anywhere."""
    attempt = ATTEMPTS[operation]
    answer = ask(world.reader, attempt)
    if operation == "DeleteObjects":
        # A right is asked for each key; the answer is 200 with one error per key.
        assert answer.status == 200 and b"<Key>kept</Key><Code>AccessDenied</Code>" in answer.body
    else:
        seen(answer, attempt, 403, "AccessDenied")
    inside = attempt._replace(target=attempt.target.replace("attacked/kept", "attacked/public/kept"))
    if inside != attempt:
        reads = operation in ("GetObject", "HeadObject", "GetObjectAttributes", "GetObjectAcl", "GetObjectTagging")
        assert ask(world.reader, inside).status == (200 if reads else 403)


@pytest.mark.parametrize(
    "key",
    [
        "public",
        "publi",
        "publicity",
        "PUBLIC/kept",
        "./public/kept",
        "/public/kept",
        "x/../public/kept",
        "%2Fpublic/kept",
        "public%2fkept",
    ],
)
def test_a_prefix_is_compared_as_it_stands(world: World, key: str) -> None:
    expected = (200, "") if key == "public%2fkept" else (403, "AccessDenied")
    assert world.reader("GET", f"/attacked/{key}").face == expected


def test_dots_below_a_prefix_lead_nowhere(world: World) -> None:
    for key in ("public/../kept", "public/%2e%2e/kept", "public/..%2fkept"):
        assert world.reader("GET", f"/attacked/{key}").face == (403, "AccessDenied"), "a key of that name is not there"


def test_buckets_of_others_are_not_listed_and_cannot_be_made_again(world: World) -> None:
    assert b"attacked" not in world.other("GET", "/").body
    assert world.nobody("GET", "/?x-id=ListBuckets").face == (200, ""), "liveness: `/` without credentials says OK and no more"
    assert world.nobody("GET", "/?x-id=ListBuckets").body == b"OK\n"
    assert b"<Bucket>" not in world.reader("GET", "/").body
    assert world.other("PUT", "/attacked").face == (409, "BucketAlreadyExists")
    for client in (world.reader, world.nobody):
        assert client("PUT", "/a-new-bucket").face == (403, "AccessDenied")


@pytest.mark.parametrize("condition", ["if-match", "if-none-match", "if-modified-since", "if-unmodified-since"])
def test_cve_2024_36107_conditions_do_not_tell_what_exists(world: World, condition: str) -> None:
    """Whoever may not read learns nothing from a condition, on a key that exists or on one that does not; nor may a writer."""
    value = {"if-match": '"x"', "if-none-match": "*"}.get(condition, "Thu, 01 Jan 1970 00:00:00 GMT")
    for client, face in (
        (world.reader, (403, "AccessDenied")),
        (world.nobody, (403, "AccessDenied")),
        (world.other, (404, "NoSuchBucket")),
    ):
        for key in ("kept", "missing"):
            assert client("GET", f"/attacked/{key}", headers={condition: value}).face == face
            assert client("DELETE", f"/attacked/{key}", headers={condition: value}).face == face
    writer = world.app("default", f"writer-{condition}", ("object:write", "attacked/*"))
    wait_until("the app is known", lambda: writer("PUT", "/attacked/written", b"x").status == 200)
    if condition == "if-match":
        for key in ("kept", "missing"):
            assert writer("PUT", f"/attacked/{key}", b"x", {condition: value}).face == (403, "AccessDenied")


def test_a_missing_key_is_denied_to_who_may_not_list(world: World) -> None:
    assert world.reader("GET", "/attacked/public/missing").face == (403, "AccessDenied")
    assert world.reader("HEAD", "/attacked/public/missing").status == 403


@pytest.mark.parametrize("operation", ["CopyObject", "UploadPartCopy"])
def test_sources_of_copies_are_authorized(world: World, operation: str) -> None:
    """UploadPartCopy without a check of its source was shipped by a peer. The source is read as a GET by the same app would."""
    writer = world.app("default", operation, ("object:write", "attacked/*"), ("object:read", "attacked/public/*"))
    wait_until("the app is known", lambda: writer("GET", "/attacked/public/kept").status == 200)
    target = "/attacked/copied"
    if operation == "UploadPartCopy":
        made = writer("POST", f"{target}?uploads").body
        upload = made.partition(b"<UploadId>")[2].partition(b"<")[0].decode()
        target += f"?uploadId={upload}&partNumber=1"

    def copy(source: str) -> tuple[int, str]:
        return writer("PUT", target, headers={"x-amz-copy-source": source}).face

    assert world.other("PUT", "/rivals-own").status in (200, 409)
    assert world.other("PUT", "/rivals-own/secret", b"secret").status == 200
    assert copy("/attacked/public/kept") == (200, "")
    for source in ("/attacked/kept", "attacked%2Fkept", "/attacked/public/../kept", "/second/kept", "/attacked/missing"):
        assert copy(source) == (403, "AccessDenied"), source
    for source in ("/rivals-own/secret", "/rivals-own/missing", "/no-such-bucket/x"):
        assert copy(source) == (404, "NoSuchBucket"), source
    assert world.own("DELETE", "/attacked/copied").status == 204


def within_a_second(change: float) -> None:
    """CATALOG_FRESH_S: a cached row is used for at most a second after the change was committed; some slack for a busy machine."""
    assert time.monotonic() - change < 3.0


def test_a_new_secret_ends_the_old_one(world: World) -> None:
    """Everything signed with the old one, recorded requests and presigned URLs included."""
    app = world.app("default", "reset", ("*", "*"))
    wait_until("the app is known", lambda: app("GET", "/attacked/kept").status == 200)
    url, signed = app.presigned("GET", "/attacked/kept"), app.headers("GET", "/attacked/kept")
    nobody = world.nobody
    assert nobody("GET", url).body == b"old"
    world.admin("app", "reset-secret", "--app", app.access_key)
    change = time.monotonic()
    wait_until("the old secret is refused", lambda: app("GET", "/attacked/kept").status == 403, 3)
    within_a_second(change)
    assert app("GET", "/attacked/kept").code == "SignatureDoesNotMatch"
    assert nobody("GET", url).code == "SignatureDoesNotMatch"
    assert nobody("GET", "/attacked/kept", headers=signed).code == "SignatureDoesNotMatch"


def test_a_revoked_right_and_a_deleted_app(world: World) -> None:
    app = world.app("default", "revoked", ("object:read", "attacked/*"))
    wait_until("the app is known", lambda: app("GET", "/attacked/kept").status == 200)
    world.admin("policy", "revoke", "--app", app.access_key, "--action", "object:read", "--resource", "attacked/*")
    change = time.monotonic()
    wait_until("the right is gone", lambda: app("GET", "/attacked/kept").face == (403, "AccessDenied"), 3)
    within_a_second(change)
    world.admin("app", "delete", "--app", app.access_key)
    wait_until("the app is gone", lambda: app("GET", "/attacked/kept").face == (403, "InvalidAccessKeyId"), 3)


def test_a_bucket_made_public_and_private_again(world: World) -> None:
    assert world.own("PUT", "/shown").status == 200
    assert world.own("PUT", "/shown/page", b"page").status == 200
    world.admin("bucket", "set-public", "shown", "--allow", "true")
    wait_until("it is public", lambda: world.nobody("GET", "/shown/page").body == b"page", 3)
    assert world.other("GET", "/shown/page").body == b"page"
    # Reading what one knows is all there is.
    assert world.nobody("GET", "/shown/missing").face == (403, "AccessDenied")
    assert world.nobody("GET", "/shown").face == (403, "AccessDenied")
    assert world.nobody("GET", "/shown/page?response-content-type=text/html").face == (400, "InvalidRequest")
    assert world.nobody("PUT", "/shown/page", b"x").face == (403, "AccessDenied")
    assert world.other("PUT", "/shown/page", b"x").face == (404, "NoSuchBucket")
    assert world.other("GET", "/shown").face == (404, "NoSuchBucket")
    world.admin("bucket", "set-public", "shown", "--allow", "false")
    wait_until("it is private", lambda: world.nobody("GET", "/shown/page").face == (403, "AccessDenied"), 3)
