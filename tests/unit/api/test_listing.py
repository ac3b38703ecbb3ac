"""ListObjects, ListObjectsV2, ListObjectVersions and ListBuckets: exact pages, exact markers."""

from __future__ import annotations

from base64 import urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.api.operations.listing import decode_token, encode_token
from anvil.base.errors import InvalidArgument
from anvil.model.records import Algorithm, Checksum
from tests.unit.api.fakes import ACME, OTHER, World, app_of

KEYS = ["a", "a/b", "a/b/c", "b", "b c+d", "photos/2023/x", "photos/2024/y", "z&<", "é"]


@pytest.fixture
def world() -> World:
    world = World()
    for key in KEYS:
        world.engine.store(world.bucket, key, b"12345")
    return world


def keys_and_prefixes(world: World, query: str) -> tuple[list[str], list[str]]:
    answer = world.ask("GET", f"/bucket?{query}")
    assert answer.status == 200
    return answer.texts("Contents/Key"), answer.texts("CommonPrefixes/Prefix")


@pytest.mark.parametrize(
    ("query", "keys", "prefixes"),
    [
        ("", KEYS, []),
        ("prefix=a", ["a", "a/b", "a/b/c"], []),
        ("delimiter=/", ["a", "b", "b c+d", "z&<", "é"], ["a/", "photos/"]),
        ("delimiter=/&prefix=photos/", [], ["photos/2023/", "photos/2024/"]),
        ("delimiter=/&prefix=photos", [], ["photos/"]),
        ("delimiter=2&prefix=photos/", [], ["photos/2"]),
        ("prefix=none", [], []),
        ("max-keys=0", [], []),
    ],
)
@pytest.mark.parametrize("version", ["", "list-type=2&"])
def test_pages(world: World, version: str, query: str, keys: list[str], prefixes: list[str]) -> None:
    assert keys_and_prefixes(world, version + query) == (keys, prefixes)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("delimiter", ["", "/", "%20"])
def test_v2_pages_join_to_the_whole(world: World, size: int, delimiter: str) -> None:
    whole = keys_and_prefixes(world, f"list-type=2&delimiter={delimiter}")
    found: tuple[list[str], list[str]] = ([], [])
    query = f"list-type=2&max-keys={size}&delimiter={delimiter}"
    token = ""
    while True:
        answer = world.ask("GET", f"/bucket?{query}{token}")
        keys, prefixes = answer.texts("Contents/Key"), answer.texts("CommonPrefixes/Prefix")
        assert answer.text("KeyCount") == str(len(keys) + len(prefixes)) and len(keys) + len(prefixes) <= size
        found[0].extend(keys)
        found[1].extend(prefixes)
        following = answer.text("NextContinuationToken")
        assert answer.text("IsTruncated") == ("true" if following else "false")
        if following is None:
            break
        token = f"&continuation-token={following}"
    assert found == whole


def test_v1_pages_join_to_the_whole(world: World) -> None:
    found, marker = [], ""
    while True:
        answer = world.ask("GET", f"/bucket?delimiter=/&max-keys=1&encoding-type=url&marker={marker}")
        found += answer.texts("Contents/Key") + answer.texts("CommonPrefixes/Prefix")
        if answer.text("IsTruncated") == "false":
            break
        marker = answer.text("NextMarker") or ""
        assert marker
    assert found == ["a", "a/", "b", "b%20c%2Bd", "photos/", "z%26%3C", "%C3%A9"]


def test_v1_without_delimiter_has_no_next_marker(world: World) -> None:
    answer = world.ask("GET", "/bucket?max-keys=2")
    assert answer.text("IsTruncated") == "true" and answer.text("NextMarker") is None
    assert world.ask("GET", "/bucket?max-keys=2&marker=a/b").texts("Contents/Key") == ["a/b/c", "b"]


def test_start_after_and_token(world: World) -> None:
    answer = world.ask("GET", "/bucket?list-type=2&start-after=b&max-keys=1")
    assert answer.texts("Contents/Key") == ["b c+d"] and answer.text("StartAfter") == "b"
    token = answer.text("NextContinuationToken")
    answer = world.ask("GET", f"/bucket?list-type=2&start-after=b&max-keys=1&continuation-token={token}")
    assert answer.texts("Contents/Key") == ["photos/2023/x"] and answer.text("ContinuationToken") == token


def test_entries(world: World) -> None:
    world.engine.store(world.bucket, "summed", b"x", checksum=Checksum(Algorithm.CRC32, bytes(4)))
    answer = world.ask("GET", "/bucket?list-type=2&prefix=summed")
    assert answer.text("Contents/ETag") == '"9dd4e461268c8034f5c8564e155c67a6"'
    assert answer.text("Contents/LastModified") == "2023-11-14T22:13:20.000Z"
    assert (answer.text("Contents/Size"), answer.text("Contents/StorageClass")) == ("1", "STANDARD")
    assert (answer.text("Contents/ChecksumAlgorithm"), answer.text("Contents/ChecksumType")) == ("CRC32", "FULL_OBJECT")
    assert answer.text("Contents/Owner/ID") is None
    answer = world.ask("GET", "/bucket?list-type=2&prefix=summed&fetch-owner=true")
    assert (answer.text("Contents/Owner/ID"), answer.text("Contents/Owner/DisplayName")) == ("000000000007", "acme")
    assert world.ask("GET", "/bucket?prefix=summed").text("Contents/Owner/DisplayName") == "acme"


@pytest.mark.parametrize(
    "query",
    [
        "max-keys=-1",
        "max-keys=x",
        "max-keys=99999999999",
        "encoding-type=base64",
        "list-type=2&continuation-token=abc",
        "list-type=2&continuation-token=",
        f"list-type=2&continuation-token={encode_token(chr(0))}",
        "list-type=3",
        "list-type=2&fetch-owner=maybe",
        "versions&version-id-marker=null",
        "prefix=" + "a" * 1025,
    ],
)
def test_bad_parameters(world: World, query: str) -> None:
    answer = world.ask("GET", f"/bucket?{query}")
    assert (answer.status, answer.code) == (400, "InvalidArgument")


def test_max_keys_is_capped(world: World) -> None:
    assert world.ask("GET", "/bucket?max-keys=5000").text("MaxKeys") == "1000"
    answer = world.ask("GET", "/bucket?list-type=2&max-keys=0")
    assert (answer.text("MaxKeys"), answer.text("KeyCount"), answer.text("IsTruncated")) == ("0", "0", "false")


def test_keys_that_xml_cannot_hold(world: World) -> None:
    world.engine.store(world.bucket, "ctl/\x01\r", b"")
    assert b"<Key>ctl/&#x1;&#xD;</Key>" in world.ask("GET", "/bucket?prefix=ctl").sent
    assert world.ask("GET", "/bucket?prefix=ctl&encoding-type=url").texts("Contents/Key") == ["ctl/%01%0D"]


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30))
def test_tokens_round_trip(after: str) -> None:
    assert decode_token(encode_token(after)) == after


@given(st.text(max_size=30))
def test_other_tokens_are_refused(token: str) -> None:
    try:
        after = decode_token(token)
    except InvalidArgument:
        return
    assert encode_token(after) == token


def test_a_mangled_token_is_refused() -> None:
    token = encode_token("photos/")
    forged = urlsafe_b64encode(b"\x01" + bytes(4) + b"photos/").decode().rstrip("=")
    for bad in (token[:-1], token + "A", token.swapcase(), forged):
        with pytest.raises(InvalidArgument):
            decode_token(bad)


def test_versions_of_an_unversioned_bucket(world: World) -> None:
    answer = world.ask("GET", "/bucket?versions&max-keys=2&key-marker=a&version-id-marker=null")
    assert answer.texts("Version/Key") == ["a/b", "a/b/c"]
    assert answer.texts("Version/VersionId") == ["null", "null"] and answer.texts("Version/IsLatest") == ["true", "true"]
    assert (answer.text("NextKeyMarker"), answer.text("NextVersionIdMarker")) == ("a/b/c", "null")


def test_listing_needs_the_right_to_it(world: World) -> None:
    world.act_as(app_of(ACME, ("object:read", "*")))
    assert world.ask("GET", "/bucket").code == "AccessDenied"
    world.act_as(app_of(ACME, ("object:list", "bucket")))
    assert world.ask("GET", "/bucket").status == 200
    world.act_as(None)
    world.catalog.add("public", public=True)
    assert world.ask("GET", "/public").code == "AccessDenied"


# -- ListBuckets -----------------------------------------------------------------------------------------------------------

SIGNED = {"authorization": "AWS4-HMAC-SHA256 ..."}


def buckets(world: World, query: str = "") -> list[str]:
    answer = world.ask("GET", f"/?{query}", headers=SIGNED)
    assert answer.status == 200
    return answer.texts("Buckets/Bucket/Name")


def test_list_buckets() -> None:
    world = World()
    for name in ("alpha", "beta", "gamma"):
        world.catalog.add(name)
    world.catalog.add("west", region="eu-west-1")
    world.catalog.add("foreign", OTHER)
    assert buckets(world) == ["alpha", "beta", "bucket", "gamma", "west"]
    assert buckets(world, "prefix=b") == ["beta", "bucket"]
    assert buckets(world, "bucket-region=eu-west-1") == ["west"]
    answer = world.ask("GET", "/?max-buckets=2", headers=SIGNED)
    assert answer.texts("Buckets/Bucket/Name") == ["alpha", "beta"]
    assert answer.text("Buckets/Bucket/CreationDate") == "2023-11-14T22:13:20.000Z"
    token = answer.text("ContinuationToken")
    assert buckets(world, f"max-buckets=3&continuation-token={token}") == ["bucket", "gamma", "west"]
    world.act_as(app_of(ACME, ("bucket:list", "be*")))
    assert buckets(world) == ["beta"]
    assert world.ask("GET", "/?max-buckets=0", headers=SIGNED).status == 400
    world.act_as(None)
    assert world.ask("GET", "/", headers=SIGNED).status == 403
