"""Addresses, tokens, errors, retries."""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import threading
import time
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from anvil.base import errors as base
from anvil.base.errors import InvalidSetting
from anvil.cli.exits import Exit, code_of
from anvil.client import (
    AnvilClient,
    BadCredentials,
    BucketAlreadyOwnedByYou,
    BucketNotEmpty,
    BucketPolicy,
    ClientError,
    DeadlineExceeded,
    Grant,
    Invalid,
    NoSuchBucket,
    NotAnvil,
    PermissionMissing,
    PreconditionFailed,
    ServerUnavailable,
    Token,
    TokenRejected,
    Unreachable,
)
from anvil.client import errors as client_errors
from anvil.client.channel import Endpoint, parse_endpoint
from anvil.client.errors import CLASSES
from tests.support.fake_grpc import FakeServer, Refused
from tests.support.ports import free_port
from tests.unit.client.conftest import Run


@pytest.mark.parametrize(
    ("address", "tls", "meant"),
    [
        ("localhost", None, Endpoint("localhost", 50051, False, True)),
        ("127.0.0.1:9000", None, Endpoint("127.0.0.1", 9000, False, True)),
        ("[::1]:9000", None, Endpoint("::1", 9000, False, True)),
        ("127.0.0.1:9000", True, Endpoint("127.0.0.1", 9000, True, True)),
        ("s3.example.com", None, Endpoint("s3.example.com", 443, True, False)),
        ("s3.example.com:50051", None, Endpoint("s3.example.com", 50051, True, False)),
        ("s3.example.com", False, Endpoint("s3.example.com", 50051, False, False)),
        ("https://s3.example.com/", None, Endpoint("s3.example.com", 443, True, False)),
        ("http://s3.example.com", None, Endpoint("s3.example.com", 80, False, False)),
        ("http://10.0.0.7:50051", False, Endpoint("10.0.0.7", 50051, False, False)),
    ],
)
def test_addresses(address: str, tls: bool | None, meant: Endpoint) -> None:
    assert parse_endpoint(address, tls) == meant


@pytest.mark.parametrize(
    "address", ["", "ftp://h", "http://h/path", "h:99999", "h:x", "https://user:pass@h", "h?x=1", "a b", "https://"]
)
def test_addresses_that_are_none(address: str) -> None:
    with pytest.raises(InvalidSetting):
        parse_endpoint(address)


def test_an_address_and_tls_that_contradict_each_other() -> None:
    with pytest.raises(InvalidSetting, match="contradict"):
        parse_endpoint("http://h", True)


# -- tokens ----------------------------------------------------------------------------------------------------------------


def test_one_token_serves_all_calls(server: FakeServer, run: Run[None]) -> None:
    async def work(client: AnvilClient) -> None:
        await asyncio.gather(*(client.buckets.head("b") for _ in range(20)))

    run(work)
    assert server.calls == {"GetAccessToken": 1, "HeadBucket": 20}


@pytest.mark.parametrize("reason", ["ExpiredToken", "InvalidToken"])
def test_a_refused_token_is_renewed_once(server: FakeServer, run: Run[None], reason: str) -> None:
    async def work(client: AnvilClient) -> None:
        await client.buckets.head("b")
        server.faults.fail["HeadBucket"] = [Refused(reason)]
        await client.buckets.head("b")
        server.faults.fail["HeadBucket"] = [Refused(reason), Refused(reason)]
        with pytest.raises(TokenRejected) as caught:
            await client.buckets.head("b")
        assert caught.value.code == reason

    run(work)
    assert server.calls["GetAccessToken"] == 3
    assert server.calls["HeadBucket"] == 5


def test_a_token_is_renewed_before_it_expires(server: FakeServer, run: Run[None]) -> None:
    """Of a token of 100 s, ten are left as margin: at 91 s it is renewed, at 89 s it is not."""
    server.token_s = 100.0
    now = [time.time()]

    async def work(client: AnvilClient) -> None:
        tokens = client.auth._calls.tokens
        tokens.now_s = lambda: now[0]
        first = await client.auth.get_token()
        now[0] += 89
        assert (await client.auth.get_token()).value == first.value
        now[0] += 2
        assert (await client.auth.get_token()).value != first.value

    run(work)


def test_a_token_store_is_asked_first_and_told_of_refusals(server: FakeServer) -> None:
    kept: list[Token | None] = []

    class Store:
        def load(self) -> Token | None:
            return kept[-1] if kept else None

        def save(self, token: Token | None) -> None:
            kept.append(token)

    async def once() -> None:
        async with AnvilClient(server.host, *server.keys, token_store=Store()) as client:
            await client.buckets.head("b")

    asyncio.run(once())
    asyncio.run(once())
    assert server.calls["GetAccessToken"] == 1
    server.tokens.clear()
    asyncio.run(once())
    assert server.calls["GetAccessToken"] == 2
    assert kept[1] is None


def test_wrong_credentials(server: FakeServer) -> None:
    async def work(client_id: str, secret: str) -> ClientError:
        async with AnvilClient(server.host, client_id, secret) as client:
            with pytest.raises(BadCredentials) as caught:
                await client.buckets.head("b")
            return caught.value

    wrong = asyncio.run(work(server.keys[0], "not-the-secret"))
    assert wrong.code == "SignatureDoesNotMatch"
    assert "AKOWNER" in wrong.message and "not-the-secret" not in repr(wrong) + wrong.message
    assert asyncio.run(work("AKNOBODY", "x")).code == "InvalidAccessKeyId"
    assert server.calls["HeadBucket"] == 0


def test_secrets_are_in_no_representation() -> None:
    client = AnvilClient("localhost", "AK", "top-secret")
    assert "top-secret" not in repr(client) + repr(client._credentials) + str(vars(client))
    assert "bearer" not in repr(Token("bearer", 0, 0)) + str(Token("bearer", 0, 0))


# -- errors ----------------------------------------------------------------------------------------------------------------


def test_errors_carry_what_the_server_said(server: FakeServer, run: Run[None]) -> None:
    async def work(client: AnvilClient) -> None:
        with pytest.raises(NoSuchBucket) as caught:
            await client.buckets.head("nowhere")
        error = caught.value
        assert (error.code, error.status, error.request_id) == ("NoSuchBucket", "NOT_FOUND", "0123456789ABCDEF")
        assert error.metadata["BucketName"] == "nowhere"
        assert error.message == "The specified bucket does not exist."

    run(work)


def test_a_missing_right_names_action_and_resource(server: FakeServer, run: Run[None]) -> None:
    server.rights.clear()

    async def work(client: AnvilClient) -> None:
        with pytest.raises(PermissionMissing) as caught:
            await client.objects.put("b", "key", b"x")
        assert (caught.value.action, caught.value.resource) == ("object:write", "b/key")
        assert caught.value.message == "not allowed: object:write on b/key (app AKOWNER)"

    run(work)


def test_early_refusals_of_uploads_are_never_lost(server: FakeServer, run: Run[None]) -> None:
    """grpcio's own `write` reports some of them as INTERNAL."""
    server.rights.clear()

    async def work(client: AnvilClient) -> None:
        for _ in range(150):
            with pytest.raises(PermissionMissing):
                await client.objects.put("b", "key", bytes(3 << 20))

    run(work)


def test_nobody_listens() -> None:
    port = free_port()

    async def work() -> ClientError:
        async with AnvilClient(f"127.0.0.1:{port}", "a", "b") as client:
            with pytest.raises(Unreachable) as caught:
                await client.buckets.head("b")
            return caught.value

    assert asyncio.run(work()).message == f"cannot reach http://127.0.0.1:{port}: connection refused"


def test_a_server_without_these_services() -> None:
    from concurrent.futures import ThreadPoolExecutor

    bare = grpc.server(ThreadPoolExecutor(1))
    port = bare.add_insecure_port("127.0.0.1:0")
    bare.start()

    async def work() -> None:
        async with AnvilClient(f"127.0.0.1:{port}", "a", "b") as client:
            with pytest.raises(NotAnvil, match="no such gRPC service"):
                await client.buckets.head("b")

    try:
        asyncio.run(work())
    finally:
        bare.stop(None).wait(5)


def test_a_deadline(server: FakeServer, run: Run[None]) -> None:
    """Every unary call has one; shortened here."""
    answered = threading.Event()
    server.faults.before = lambda method: answered.wait(20) and None if method == "HeadBucket" else None

    async def work(client: AnvilClient) -> None:
        from anvil.api.grpc.proto import bucket_pb2
        from anvil.client.types import Ask

        request = bucket_pb2.HeadBucketRequest(bucket="b")
        ask = Ask("bucket:read", "b", repeatable=False, timeout_s=0.2)
        with pytest.raises(DeadlineExceeded, match="bucket:read on b"):
            await client.auth._calls.unary("BucketService/HeadBucket", request, bucket_pb2.HeadBucketResponse, ask)
        answered.set()

    run(work)


def test_idempotent_calls_are_repeated_others_are_not(server: FakeServer, run: Run[None]) -> None:
    async def work(client: AnvilClient) -> None:
        server.faults.fail["HeadBucket"] = [Refused("SlowDown")] * 3
        assert (await client.buckets.head("b")).name == "b"
        assert server.calls["HeadBucket"] == 4
        server.faults.fail["HeadBucket"] = [Refused("SlowDown")] * 4
        with pytest.raises(ServerUnavailable):
            await client.buckets.head("b")
        server.faults.fail["CreateBucket"] = [Refused("SlowDown")]
        with pytest.raises(ServerUnavailable):
            await client.buckets.create("new")
        assert server.calls["CreateBucket"] == 1

    run(work)


def test_every_error_of_the_client_has_an_exit_code() -> None:
    """By its remedy, like the server's own."""
    expected = {
        "NoSuchKey": Exit.NOT_FOUND,
        "BucketNotEmpty": Exit.CONFLICT,
        "AccessDenied": Exit.DENIED,
        "ExpiredToken": Exit.DENIED,
        "SignatureDoesNotMatch": Exit.DENIED,
    }
    assert {code: code_of(CLASSES[code]("x")) for code in expected} == expected
    assert code_of(Unreachable("x")) is Exit.UNAVAILABLE
    for name in client_errors.__all__:
        cls = getattr(client_errors, name)
        assert issubclass(cls, base.AnvilError) and cls("said").message == "said"


# -- buckets and rights ----------------------------------------------------------------------------------------------------


def test_buckets(server: FakeServer, run: Run[None]) -> None:
    async def work(client: AnvilClient) -> None:
        for name in ("x3", "x1", "x2"):
            made = await client.buckets.create(name)
            assert (made.name, made.region) == (name, "us-east-1")
        with pytest.raises(BucketAlreadyOwnedByYou):
            await client.buckets.create("x1")
        assert [one.name async for one in client.buckets.list(page_size=2)] == ["b", "x1", "x2", "x3"]
        assert [one.name async for one in client.buckets.list("x")] == ["x1", "x2", "x3"]
        await client.objects.put("x1", "k", b"")
        with pytest.raises(BucketNotEmpty):
            await client.buckets.delete("x1")
        await client.buckets.delete("x2")
        await client.buckets.set_public("x1", True)
        assert server.public == {"x1"}
        await client.buckets.set_public("x1", False)
        assert server.public == set()

    run(work)
    assert server.calls["ListBuckets"] == 3


def test_rights(server: FakeServer, run: Run[None]) -> None:
    async def work(client: AnvilClient) -> None:
        assert await client.auth.grant("AKOTHER", "object:read", "b/*") is True
        assert await client.auth.grant("AKOTHER", "object:read", "b/*") is False
        stored = await client.buckets.get_policy("b")
        assert stored.policy == BucketPolicy(False, (Grant("AKOTHER", "object:read", "b/*"),))
        assert await client.auth.revoke("AKOTHER", "object:read", "b/*") is True
        assert await client.auth.revoke("AKOTHER", "object:read", "b/*") is False
        with pytest.raises(PreconditionFailed):
            await client.buckets.put_policy("b", BucketPolicy(True), if_match=stored.etag)
        etag = await client.buckets.put_policy("b", BucketPolicy(True))
        assert await client.buckets.get_policy("b") == await client.buckets.get_policy("b")
        assert (await client.buckets.get_policy("b")).etag == etag
        assert server.public == {"b"}

    run(work)


# -- TLS -------------------------------------------------------------------------------------------------------------------


def certificate() -> tuple[bytes, bytes]:
    """A key and a self-signed certificate for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return pem, made.public_bytes(serialization.Encoding.PEM)


def test_tls(tmp_path: Path) -> None:
    key, pem = certificate()
    (tmp_path / "ca.pem").write_bytes(pem)
    with FakeServer(credentials=grpc.ssl_server_credentials([(key, pem)])) as server:
        server.buckets["b"] = 0.0

        async def head(ca: Path | None) -> str:
            async with AnvilClient(f"https://{server.host}", *server.keys, ca=ca) as client:
                return (await client.buckets.head("b")).name

        assert asyncio.run(head(tmp_path / "ca.pem")) == "b"
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            asyncio.run(head(None))
    with pytest.raises(InvalidSetting, match="cannot be read"):
        AnvilClient("h", "a", "b", ca=tmp_path / "absent.pem")
    (tmp_path / "no.pem").write_text("nothing")
    with pytest.raises(InvalidSetting, match="holds no PEM"):
        AnvilClient("h", "a", "b", ca=tmp_path / "no.pem")


def test_options_that_cannot_be() -> None:
    from anvil.client import TransferOptions

    with pytest.raises(ValueError, match="parallel"):
        TransferOptions(parallel=0)
    assert issubclass(Invalid, base.Invalid)
