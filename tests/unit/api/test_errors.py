"""Errors: every class has its place in the table, and answers say what S3's say and nothing else."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest

from anvil.api.s3.errors import TABLE, classify
from anvil.base import errors
from anvil.base.errors import AnvilError
from anvil.base.limits import DRAIN_BODY_BYTES_MAX, READ_BYTES
from anvil.net.stream import RequestHead
from tests.unit.api.fakes import ACME, FakeStream, World, app_of, head_of


def subclasses(cls: type[AnvilError]) -> Iterator[type[AnvilError]]:
    yield cls
    for child in cls.__subclasses__():
        yield from subclasses(child)


OURS = [cls for cls in subclasses(AnvilError) if cls.__module__ == errors.__name__]


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_every_error_has_a_face(cls: type[AnvilError]) -> None:
    assert cls in TABLE, f"{cls.__name__} is not in the table"
    face = TABLE[cls]
    remedy = next(base for base in (errors.Unavailable, errors.Corrupt, AnvilError) if issubclass(cls, base))
    if remedy is AnvilError and cls is not AnvilError:
        assert 300 <= face.status <= 416 or cls is errors.NotSupported
    else:
        assert face.status >= 500


@pytest.mark.parametrize(
    ("error", "code", "status"),
    [
        (errors.NoSuchBucket, "NoSuchBucket", 404),
        (errors.BucketAlreadyOwnedByYou, "BucketAlreadyOwnedByYou", 409),
        (errors.SignatureMismatch, "SignatureDoesNotMatch", 403),
        (errors.RequestTimeSkewed, "RequestTimeTooSkewed", 403),
        (errors.InvalidAccessKey, "InvalidAccessKeyId", 403),
        (errors.ContentSHA256Mismatch, "XAmzContentSHA256Mismatch", 400),
        (errors.PreconditionFailed, "PreconditionFailed", 412),
        (errors.NotModified, "NotModified", 304),
        (errors.InvalidRange, "InvalidRange", 416),
        (errors.MissingContentLength, "MissingContentLength", 411),
        (errors.NotSupported, "NotImplemented", 501),
        (errors.SlowDown, "SlowDown", 503),
        (errors.StorageFull, "InternalError", 507),
        (errors.DataLost, "InternalError", 500),
        (errors.InvalidLocationConstraint, "InvalidLocationConstraint", 400),
        (errors.PermanentRedirect, "PermanentRedirect", 301),
        (errors.KeyTooLong, "KeyTooLongError", 400),
    ],
)
def test_documented_codes(error: type[AnvilError], code: str, status: int) -> None:
    assert classify(error())[:2] == (code, status)


def test_unknown_subclasses_look_like_their_parents() -> None:
    class Odd(errors.NoSuchKey):
        pass

    assert classify(Odd()).code == "NoSuchKey"
    assert classify(ValueError()).status == 500


def test_document() -> None:
    world = World(host_id="node-1")
    answer = world.ask("GET", "/bucket/a%26%3C")
    assert answer.status == 404 and answer.headers["content-type"] == "application/xml"
    assert [element.tag for element in answer.xml] == ["Code", "Message", "Key", "Resource", "RequestId", "HostId"]
    assert answer.text("Key") == "a&<"
    assert answer.text("Resource") == "/bucket/a%26%3C"
    assert answer.text("RequestId") == answer.headers["x-amz-request-id"]
    assert answer.text("HostId") == answer.headers["x-amz-id-2"]


def test_refusals_of_the_port_look_the_same() -> None:
    class Refusal:
        code, message = "RequestHeaderSectionTooLarge", "a < b"

    headers, body = World(host_id="node-1").api.refusal(Refusal())
    root = ElementTree.fromstring(body)
    assert (root.findtext("Code"), root.findtext("Message")) == (Refusal.code, Refusal.message)
    assert dict(headers)[b"x-amz-request-id"].decode() == root.findtext("RequestId")


def test_head_has_no_body() -> None:
    answer = World().ask("HEAD", "/bucket/missing")
    assert (answer.status, bytes(answer.sent)) == (404, b"")


def test_unexpected_errors_tell_nothing(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.engine.error = RuntimeError("secret path /var/lib/anvil")
    with caplog.at_level(logging.ERROR):
        answer = world.ask("GET", "/bucket/key")
    assert (answer.status, answer.code) == (500, "InternalError")
    assert b"secret" not in answer.sent and b"Traceback" not in answer.sent
    assert answer.headers["x-amz-request-id"] in caplog.text and "secret path" in caplog.text


def test_only_listed_fields_are_shown() -> None:
    world = World()
    world.engine.error = errors.WriteQuorumLost(drive="/mnt/drive3")
    answer = world.ask("PUT", "/bucket/key", b"x")
    assert (answer.status, answer.code) == (503, "SlowDown")
    assert b"drive3" not in answer.sent and answer.headers["retry-after"] == "1"


def test_an_error_after_the_start_cuts_the_connection() -> None:
    world = World()
    world.engine.store(world.bucket, "key", b"0123456789")
    world.engine.read_fails_after = 5
    world.engine.error_of_reads = errors.DataLost()
    answer = world.ask("GET", "/bucket/key")
    assert answer.aborted and answer.status == 200 and bytes(answer.sent) == b"01234"
    assert world.finished[-1].error_code == "InternalError"
    assert world.engine.closed_readers == 1


def test_an_error_before_the_first_byte_is_a_document() -> None:
    world = World()
    world.engine.store(world.bucket, "key", b"0123456789")
    world.engine.read_fails_after = 0
    world.engine.error_of_reads = errors.ReadQuorumLost()
    answer = world.ask("GET", "/bucket/key")
    assert (answer.status, answer.code, answer.aborted) == (503, "SlowDown", False)


@pytest.mark.parametrize(
    ("method", "target", "allow"),
    [
        ("POST", "/bucket/key", "DELETE, GET, HEAD, PUT"),
        ("PATCH", "/bucket/key", "DELETE, GET, HEAD, PUT"),
        ("DELETE", "/bucket?versioning", "GET, PUT"),
        ("DELETE", "/bucket?location", "GET"),
        ("POST", "/", "GET"),
    ],
)
def test_405_says_what_is_allowed(method: str, target: str, allow: str) -> None:
    world = World()
    answer = world.ask(method, target)
    assert (answer.status, answer.code) == (405, "MethodNotAllowed")
    if target != "/":
        assert set(allow.split(", ")) <= set(answer.headers["allow"].split(", "))
    assert "bucket" in world.catalog.rows


def test_a_client_that_leaves_is_counted_and_cancelled() -> None:
    world = World()

    async def scenario() -> None:
        world.engine.gate = asyncio.Event()
        world.engine.store(world.bucket, "key", b"x")
        stream = FakeStream(head_of("PUT", "/bucket/copy", headers={"x-amz-copy-source": "bucket/key"}))
        task = asyncio.ensure_future(world.api(stream))
        while not task.done() and not world.engine.at_the_gate:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(scenario())
    assert world.finished[-1].status == 499 and world.engine.copies == []


def test_a_broken_pipe_is_no_internal_error(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    world.engine.store(world.bucket, "key", b"0123456789")

    class Broken(FakeStream):
        async def write(self, data: bytes | bytearray | memoryview) -> None:
            raise ConnectionResetError

    stream = Broken(head_of("GET", "/bucket/key"))
    with caplog.at_level(logging.ERROR):
        asyncio.run(world.api(stream))
    assert stream.aborted and not caplog.records and world.finished[-1].error_code == ""


def test_observers_are_told() -> None:
    world = World()
    world.ask("PUT", "/bucket/key", b"hello")
    world.ask("GET", "/bucket/none")
    put, get = world.finished
    assert (put.operation, put.status, put.error_code, put.access_key) == ("PutObject", 200, "", "AKIDACME")
    assert put.received_bytes == 5 and put.ttfb_s is not None and put.seconds >= put.ttfb_s
    assert (get.operation, get.status, get.error_code) == ("GetObject", 404, "NoSuchKey")


def test_refused_credentials_are_answered_before_anything_else() -> None:
    world = World()

    async def refuse(head: RequestHead) -> None:
        raise errors.SignatureMismatch(AWSAccessKeyId="AKID", StringToSign="AWS4...")

    world.authenticator.authenticate = refuse  # type: ignore[assignment, method-assign]
    answer = world.ask("GET", "/bucket?policy&policy")
    assert (answer.status, answer.code, answer.text("AWSAccessKeyId")) == (403, "SignatureDoesNotMatch", "AKID")
    assert world.finished[-1].operation == "other"


def test_liveness_and_mounted_paths() -> None:
    async def ready(stream: FakeStream) -> None:
        await stream.respond(503, [(b"content-type", b"application/json")], b"{}")

    world = World(admin_paths={b"/ready": ready, b"/metrics": ready}, base_domains=("example.com",))
    world.act_as(None)
    assert world.ask("GET", "/").sent == b"OK\n"
    assert world.ask("HEAD", "/").status == 200
    assert world.ask("GET", "/ready").status == 503
    assert world.ask("GET", "/ready?maintenance=true").status == 503
    assert world.ask("PUT", "/ready").status == 403
    assert world.ask("GET", "/ready", host="bucket.example.com").code == "AccessDenied"
    world.act_as(app_of(ACME))
    assert world.ask("GET", "/", headers={"authorization": "AWS4"}).text("Owner/DisplayName") == "acme"
    assert world.ask("GET", "/?X-Amz-Signature=x").text("Owner/DisplayName") == "acme"
    assert world.ask("GET", "/ready", headers={"authorization": "AWS4"}).code == "NoSuchBucket"


@pytest.mark.parametrize(
    ("headers", "length", "taken"),
    [
        ({"x-forwarded-for": "192.0.2.1"}, DRAIN_BODY_BYTES_MAX, DRAIN_BODY_BYTES_MAX),
        ({"x-forwarded-for": "192.0.2.1"}, DRAIN_BODY_BYTES_MAX + 1, 0),
        ({}, 1000, 0),
    ],
)
def test_a_refusal_through_a_proxy_waits_for_a_body_of_bounded_size(headers: dict[str, str], length: int, taken: int) -> None:
    """Otherwise Caddy cuts the client's connection before the client has read why."""
    stream = World().ask("PUT", "/missing/key", bytes(length), headers=headers)
    assert (stream.status, stream.received_bytes) == (404, taken)


def test_a_refusal_through_a_proxy_takes_a_bounded_part_of_a_body_of_unknown_length() -> None:
    body = bytes(2 * DRAIN_BODY_BYTES_MAX)
    stream = World().ask("PUT", "/missing/key", body, headers={"x-forwarded-for": "192.0.2.1"}, chunked=True)
    assert stream.status in (404, 411)
    assert DRAIN_BODY_BYTES_MAX < stream.received_bytes <= DRAIN_BODY_BYTES_MAX + READ_BYTES
