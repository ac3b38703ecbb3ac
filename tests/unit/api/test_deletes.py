"""DeleteObjects."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from xml.sax.saxutils import escape

import pytest

from anvil.base.errors import WriteQuorumLost
from tests.unit.api.fakes import ACME, FakeStream, World, app_of


def ask(world: World, document: bytes, **headers: str) -> FakeStream:
    stated = headers or {"content-md5": b64encode(hashlib.md5(document).digest()).decode()}
    return world.ask("POST", "/bucket?delete", document, headers={k.replace("_", "-"): v for k, v in stated.items()})


def document(*keys: str, quiet: bool = False, more: str = "") -> bytes:
    objects = "".join(f"<Object><Key>{escape(key)}</Key>{more}</Object>" for key in keys)
    return f"<Delete>{'<Quiet>true</Quiet>' if quiet else ''}{objects}</Delete>".encode()


@pytest.fixture
def world() -> World:
    world = World()
    for key in ("a", "b", "../x", "a&b"):
        world.engine.store(world.bucket, key, b"1")
    return world


def left(world: World) -> list[str]:
    return world.ask("GET", "/bucket").texts("Contents/Key")


def test_each_key_is_answered_in_order(world: World) -> None:
    answer = ask(world, document("b", "missing", "a&b"))
    assert answer.status == 200 and answer.texts("Deleted/Key") == ["b", "missing", "a&b"]
    assert left(world) == ["../x", "a"]


def test_quiet(world: World) -> None:
    answer = ask(world, document("a", "k" * 1025, quiet=True))
    assert answer.texts("Deleted") == [] and answer.texts("Error/Code") == ["KeyTooLongError"]
    assert "a" not in left(world)


def test_dots_are_text(world: World) -> None:
    other = world.catalog.add("other-bucket")
    world.engine.store(other, "x", b"1")
    assert ask(world, document("../x", "../other-bucket/x")).texts("Error") == []
    assert world.ask("HEAD", "/other-bucket/x").status == 200


def test_each_key_is_authorized(world: World) -> None:
    world.act_as(app_of(ACME, ("object:delete", "bucket/a"), ("object:list", "bucket")))
    answer = ask(world, document("a", "b"))
    assert answer.texts("Deleted/Key") == ["a"]
    assert (answer.text("Error/Key"), answer.text("Error/Code")) == ("b", "AccessDenied")
    assert "b" in left(world)


def test_versions_and_conditions(world: World) -> None:
    assert ask(world, document("a", more="<VersionId>null</VersionId>")).text("Deleted/VersionId") == "null"
    assert ask(world, document("b", more="<VersionId>abc</VersionId>")).text("Error/Code") == "NoSuchVersion"
    assert ask(world, document("b", more="<ETag>nope</ETag>")).text("Error/Code") == "PreconditionFailed"
    assert ask(world, document("b", more="<Size>1</Size>")).text("Error/Code") == "NotImplemented"
    assert "b" in left(world)
    etag = hashlib.md5(b"1").hexdigest()
    assert ask(world, document("b", more=f"<ETag>&quot;{etag}&quot;</ETag>")).texts("Deleted/Key") == ["b"]


def test_failures_are_told_key_by_key(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.engine.error = WriteQuorumLost()
    assert ask(world, document("a", "b")).texts("Error/Code") == ["SlowDown", "SlowDown"]
    world.engine.error = RuntimeError("secret")
    answer = ask(world, document("a"))
    assert answer.text("Error/Code") == "InternalError" and b"secret" not in answer.sent
    assert "secret" in caplog.text


def test_a_thousand_keys(world: World) -> None:
    answer = ask(world, document(*(f"key-{number}" for number in range(1000))))
    assert len(answer.texts("Deleted")) == 1000
    assert ask(world, document(*(f"key-{number}" for number in range(1001)))).code == "MalformedXML"


def test_integrity_is_required(world: World) -> None:
    body = document("a")
    assert ask(world, body, accept="x").code == "InvalidRequest"
    assert ask(world, body, content_md5=b64encode(bytes(16)).decode()).code == "BadDigest"
    assert ask(world, body, x_amz_checksum_sha256=b64encode(bytes(32)).decode()).code == "BadDigest"
    assert "a" in left(world)
    digest = b64encode(hashlib.sha256(body).digest()).decode()
    assert ask(world, body, x_amz_checksum_sha256=digest).texts("Deleted/Key") == ["a"]


def test_bad_documents(world: World) -> None:
    assert ask(world, b"").code == "MissingRequestBodyError"
    assert ask(world, b"<Delete>").code == "MalformedXML"
    assert world.ask("POST", "/bucket?delete", b"x", content_length=2**20 + 1).code == "EntityTooLarge"
