"""Operations on buckets."""

from __future__ import annotations

import hashlib

import pytest

from anvil.auth.types import Payload
from tests.unit.api.fakes import ACME, OTHER, World, app_of


def constraint(region: str) -> bytes:
    inner = f"<LocationConstraint>{region}</LocationConstraint>"
    return (
        f'<CreateBucketConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</CreateBucketConfiguration>'.encode()
    )


@pytest.mark.parametrize("body", [None, b"", constraint("us-east-1"), constraint("")])
def test_create(body: bytes | None) -> None:
    world = World()
    answer = world.ask("PUT", "/new-bucket", body)
    assert (answer.status, answer.headers["location"]) == (200, "/new-bucket")
    assert world.ask("HEAD", "/new-bucket").headers["x-amz-bucket-region"] == "us-east-1"


@pytest.mark.parametrize(
    ("target", "body", "status", "code"),
    [
        ("/new-bucket", constraint("eu-west-1"), 400, "IllegalLocationConstraintException"),
        ("/new-bucket", constraint("eu-west-7"), 400, "InvalidLocationConstraint"),
        ("/new-bucket", b"<CreateBucketConfiguration>", 400, "MalformedXML"),
        ("/new-bucket", b"<Delete/>", 400, "MalformedXML"),
        ("/new-bucket", b'<!DOCTYPE a [<!ENTITY b "c">]><CreateBucketConfiguration/>', 400, "MalformedXML"),
        ("/ready", None, 400, "InvalidBucketName"),
        ("/metrics", None, 400, "InvalidBucketName"),
        ("/xn--abc", None, 400, "InvalidBucketName"),
        ("/192.168.0.1", None, 400, "InvalidBucketName"),
        ("/bucket", None, 409, "BucketAlreadyOwnedByYou"),
        ("/foreign", None, 409, "BucketAlreadyExists"),
    ],
)
def test_create_refused(target: str, body: bytes | None, status: int, code: str) -> None:
    world = World()
    world.catalog.add("foreign", OTHER)
    before = set(world.catalog.rows)
    answer = world.ask("PUT", target, body)
    assert (answer.status, answer.code) == (status, code)
    assert set(world.catalog.rows) == before


def test_create_checks_its_document() -> None:
    world = World()
    world.payload(Payload.SHA256, payload_sha256=hashlib.sha256(b"something else").digest())
    assert world.ask("PUT", "/new-bucket", constraint("us-east-1")).code == "XAmzContentSHA256Mismatch"
    assert world.ask("PUT", "/new-bucket", b"x", content_length=2**20 + 1).code == "EntityTooLarge"
    assert "new-bucket" not in world.catalog.rows


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"x-amz-bucket-object-lock-enabled": "true"}, 501),
        ({"x-amz-bucket-object-lock-enabled": "false"}, 200),
        ({"x-amz-object-ownership": "BucketOwnerEnforced"}, 200),
        ({"x-amz-object-ownership": "ObjectWriter"}, 501),
        ({"x-amz-acl": "private"}, 200),
        ({"x-amz-acl": "public-read-write"}, 501),
    ],
)
def test_create_headers(headers: dict[str, str], status: int) -> None:
    assert World().ask("PUT", "/new-bucket", headers=headers).status == status


def test_create_needs_the_right() -> None:
    world = World()
    world.act_as(app_of(ACME, ("bucket:create", "team-*")))
    assert world.ask("PUT", "/team-a").status == 200
    assert world.ask("PUT", "/other-a").status == 403
    world.act_as(None)
    assert world.ask("PUT", "/team-b").status == 403


def test_head_and_location() -> None:
    world = World()
    head = world.ask("HEAD", "/bucket")
    assert (head.status, head.headers["x-amz-bucket-region"], bytes(head.sent)) == (200, "us-east-1", b"")
    location = world.ask("GET", "/bucket?location")
    assert location.xml.tag == "LocationConstraint" and location.xml.text is None
    assert world.ask("HEAD", "/missing").status == 404
    answer = world.ask("GET", "/missing")
    assert (answer.code, answer.text("BucketName")) == ("NoSuchBucket", "missing")


@pytest.mark.parametrize(
    ("policy", "status"),
    [("bucket:read", 200), ("object:list", 200), ("bucket:list", 403), ("object:read", 403)],
)
def test_head_needs_a_right(policy: str, status: int) -> None:
    world = World()
    world.act_as(app_of(ACME, (policy, "bucket")))
    assert world.ask("HEAD", "/bucket").status == status


def test_delete() -> None:
    world = World()
    world.catalog.nonempty.add("bucket")
    answer = world.ask("DELETE", "/bucket")
    assert (answer.status, answer.code, answer.text("BucketName")) == (409, "BucketNotEmpty", "bucket")
    world.catalog.nonempty.clear()
    assert world.ask("DELETE", "/bucket").status == 204
    assert world.ask("DELETE", "/bucket").code == "NoSuchBucket"


@pytest.mark.parametrize(
    ("method", "target"), [("HEAD", "/west"), ("GET", "/west/key"), ("PUT", "/west/key"), ("GET", "/west?uploads")]
)
def test_buckets_of_other_regions(method: str, target: str) -> None:
    world = World()
    world.catalog.add("west", region="eu-west-1")
    answer = world.ask(method, target, b"" if method == "PUT" else None)
    assert (answer.status, answer.headers["x-amz-bucket-region"]) == (301, "eu-west-1")
    if method != "HEAD":
        assert (answer.code, answer.text("Endpoint")) == ("PermanentRedirect", "eu.example.com:8443")
        assert answer.text("Bucket") == "west"
    else:
        assert bytes(answer.sent) == b""


def test_a_redirect_speaks_as_it_was_spoken_to() -> None:
    world = World(base_domains=["us.example.com"])
    world.catalog.add("west", region="eu-west-1")
    world.catalog.add("red", region="mars-1")
    by_host = world.ask("GET", "/key", host="west.us.example.com")
    assert (by_host.status, by_host.text("Endpoint")) == (301, "west.eu.example.com:8443")
    by_path = world.ask("GET", "/west/key", host="us.example.com")
    assert (by_path.status, by_path.text("Endpoint")) == (301, "eu.example.com:8443")
    nowhere = world.ask("GET", "/red/key")
    assert (nowhere.status, nowhere.headers["x-amz-bucket-region"], nowhere.text("Endpoint")) == (301, "mars-1", None)


def test_who_signed_for_the_buckets_region_is_told_to_go_there() -> None:
    world = World()
    world.catalog.add("west", region="eu-west-1")
    world.catalog.add("theirs", OTHER, region="eu-west-1")
    world.authenticator.signed_for = "eu-west-1"
    answer = world.ask("GET", "/west/key")
    assert (answer.code, answer.text("Region"), answer.text("Endpoint")) == (
        "PermanentRedirect",
        "eu-west-1",
        "eu.example.com:8443",
    )
    for method, target in (("GET", "/bucket/key"), ("PUT", "/west-2"), ("GET", "/theirs/key"), ("GET", "/none")):
        answer = world.ask(method, target)
        assert (answer.status, answer.code, answer.text("Region")) == (400, "AuthorizationHeaderMalformed", "us-east-1")
    assert "west-2" not in world.catalog.rows


def test_every_region_knows_where_a_bucket_is() -> None:
    world = World()
    world.catalog.add("west", region="eu-west-1")
    assert world.ask("GET", "/west?location").xml.text == "eu-west-1"
    world.act_as(app_of(ACME, ("object:read", "west/*")))
    assert world.ask("GET", "/west?location").status == 403
    world.act_as(app_of(OTHER))
    assert world.ask("GET", "/west?location").status == 404


def test_a_bucket_is_deleted_in_its_region_only() -> None:
    world = World()
    world.catalog.add("west", region="eu-west-1")
    assert world.ask("DELETE", "/west").status == 301
    assert "west" in world.catalog.rows


def test_a_source_in_another_region_is_no_reason_to_go_there() -> None:
    world = World()
    world.catalog.add("west", region="eu-west-1")
    answer = world.ask("PUT", "/bucket/key", headers={"x-amz-copy-source": "/west/key"})
    assert (answer.status, answer.code) == (501, "NotImplemented")
    assert "eu-west-1" in (answer.text("Message") or "")


def test_no_redirect_tells_of_a_bucket_one_may_not_see() -> None:
    world = World()
    world.catalog.add("west", OTHER, region="eu-west-1")
    answer = world.ask("GET", "/west/key")
    assert answer.status == 404 and "x-amz-bucket-region" not in answer.headers


def test_configurations_that_are_known_without_being_stored() -> None:
    world = World()
    world.engine.store(world.bucket, "key", b"")
    versioning = world.ask("GET", "/bucket?versioning").xml
    assert versioning.tag == "VersioningConfiguration" and len(versioning) == 0
    for target in ("/bucket?acl", "/bucket/key?acl"):
        answer = world.ask("GET", target)
        assert answer.text("Owner/DisplayName") == "acme"
        assert answer.text("AccessControlList/Grant/Permission") == "FULL_CONTROL"
        assert answer.text("AccessControlList/Grant/Grantee/ID") == "000000000007"
    tagging = world.ask("GET", "/bucket/key?tagging")
    assert (tagging.status, tagging.texts("TagSet/Tag")) == (200, [])
    for target in ("/bucket/missing?acl", "/bucket/missing?tagging"):
        assert world.ask("GET", target).code == "NoSuchKey"


def test_virtual_host_style() -> None:
    world = World(base_domains=("s3.example.com",))
    world.engine.store(world.bucket, "key", b"data")
    assert world.ask("GET", "/key", host="bucket.s3.example.com").sent == b"data"
    assert world.ask("GET", "/", host="bucket.s3.example.com").texts("Contents/Key") == ["key"]
    assert world.ask("GET", "/bucket/key", host="s3.example.com").sent == b"data"
