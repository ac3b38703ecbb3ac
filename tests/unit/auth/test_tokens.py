"""Access tokens: what is issued is believed for an hour, and nothing else ever is (RFC 8725)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
import random
from typing import Any

import jwt
import msgspec
import pytest

from anvil.auth import tokens as tokens_module
from anvil.auth.tokens import Tokens
from anvil.base.errors import AnvilError, DatabaseUnavailable, ExpiredToken, InvalidAccessKey, InvalidSetting, InvalidToken
from anvil.base.limits import ACCESS_TOKEN_BYTES_MAX, ACCESS_TOKENS_CACHED_MAX
from anvil.model.identity import App, Policy, Principal, Tenant

SECRET = "s3cr3t-of-the-node-" + "x" * 24
NOW = 1_700_000_000
APP = App(7, Tenant(1, "acme"), "web", "AKIDWEB", "the-apps-secret", 3, (Policy("object:read", "b/*"),))


class Catalog:
    """Apps by access key, as a worker's catalog has them."""

    def __init__(self, *apps: App) -> None:
        self.apps = {app.access_key: app for app in apps}
        self.asked: list[str] = []
        self.away = False

    async def app(self, access_key: str) -> App | None:
        if self.away:
            raise DatabaseUnavailable
        self.asked.append(access_key)
        return self.apps.get(access_key)


class World:
    def __init__(self, *apps: App, secret: str = SECRET) -> None:
        self.now = float(NOW)
        self.catalog = Catalog(*(apps or (APP,)))
        self.tokens = Tokens(secret, lambda: self.now, self.catalog)  # type: ignore[arg-type]

    def authenticate(self, authorization: str | None) -> Principal:
        return asyncio.run(self.tokens.authenticate(authorization))

    def bearer(self, token: str) -> Principal:
        return self.authenticate(f"Bearer {token}")

    def exchange(self, client_id: str, client_secret: str) -> App:
        return asyncio.run(self.tokens.exchange(client_id, client_secret))

    @property
    def key(self) -> bytes:
        return self.tokens._key


def claims(**changes: Any) -> dict[str, Any]:
    """What a token for APP says (None takes a claim away)."""
    said = {"iss": "anvil", "aud": "anvil.v1", "sub": "AKIDWEB", "app": 7, "gen": 3, "iat": NOW, "exp": NOW + 3600}
    return {name: value for name, value in (said | changes).items() if value is not None}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def made(key: bytes, header: dict[str, Any] | None = None, payload: Any = None, digest: str = "sha256") -> str:
    """A token by hand, with a right signature over any header and payload."""
    head = b64(json.dumps({"alg": "HS256", "typ": "JWT"} if header is None else header).encode())
    body = b64(json.dumps(claims() if payload is None else payload).encode())
    return f"{head}.{body}.{b64(hmac.digest(key, f'{head}.{body}'.encode(), digest))}"


# -- what is believed -------------------------------------------------------------------------------------------------


def test_an_issued_token_is_believed_for_an_hour() -> None:
    world = World()
    token, expires_s = world.tokens.issue(APP)
    assert expires_s == NOW + 3600
    assert world.bearer(token).app is APP
    world.now = NOW + 3599.9
    assert world.bearer(token).app is APP
    world.now = NOW + 3600
    with pytest.raises(ExpiredToken):
        world.bearer(token)


def test_what_it_says() -> None:
    token, _ = World().tokens.issue(APP)
    assert jwt.get_unverified_header(token) == {"alg": "HS256", "typ": "JWT"}
    assert jwt.decode(token, options={"verify_signature": False}) == claims()
    assert APP.secret not in token and len(token) < 500


def test_a_token_made_by_hand_is_the_same() -> None:
    """So the refusals below are for the one thing that is wrong with each."""
    world = World()
    assert world.bearer(made(world.key)).app is APP


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_has_any_case(scheme: str) -> None:
    world = World()
    assert world.authenticate(f"{scheme} {made(world.key)}").app is APP


def test_without_authorization_it_is_the_anonymous() -> None:
    world = World()
    assert world.authenticate(None).anonymous
    assert world.catalog.asked == []


def test_every_node_of_a_deployment_believes_it() -> None:
    token, _ = World().tokens.issue(APP)
    assert World().bearer(token).app is APP
    with pytest.raises(InvalidToken):
        World(secret=SECRET + "other").bearer(token)


# -- what is not ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization",
    ["", " ", "Bearer", "Bearer ", "Basic dTpw", "Token x", "AWS4-HMAC-SHA256 Credential=a", "Bearer a b", "Bearer\tx", "Bearer ..",
     "Bearer a.b.c", "Bearer a.b", "Bearer ü.ü.ü", "Bearer \ud800", "Bearer " + "a" * 100_000],
)  # fmt: skip
def test_other_authorizations(authorization: str) -> None:
    with pytest.raises(InvalidToken):
        World().authenticate(authorization)


def test_no_scheme_and_two_tokens() -> None:
    world = World()
    token = made(world.key)
    for authorization in (token, f"Bearer {token}, Bearer {token}", f"Bearer {token} {token}", f"Bearer Bearer {token}"):
        with pytest.raises(InvalidToken):
            world.authenticate(authorization)


def test_the_algorithm_is_ours() -> None:
    """RFC 8725 section 2.1: `none`, another HMAC with the same key, an asymmetric name over our HMAC, other spellings."""
    world = World()
    head, body = b64(b'{"alg":"none","typ":"JWT"}'), b64(json.dumps(claims()).encode())
    wrong = [f"{head}.{body}.", f"{head}.{body}.{'A' * 43}", f"{head}.{body}"]
    for alg in (
        "none",
        "None",
        "",
        "RS256",
        "ES256",
        "PS256",
        "EdDSA",
        "HS384",
        "HS512",
        "hs256",
        "HS256 ",
        None,
        5,
        ["HS256"],
        {},
    ):
        wrong += [made(world.key, {"alg": alg, "typ": "JWT"}, digest=digest) for digest in ("sha256", "sha384", "sha512")]
        wrong += [made(SECRET.encode(), {"alg": alg, "typ": "JWT"}), made(b"", {"alg": alg, "typ": "JWT"})]
    wrong += [jwt.encode(claims(), world.key * 4, "HS512"), jwt.encode(claims(), None, "none")]
    for token in wrong:
        with pytest.raises(InvalidToken):
            world.bearer(token)


@pytest.mark.parametrize(
    "more",
    [
        {"kid": "../../etc/passwd"},
        {"kid": 1},
        {"jku": "https://attacker.example/keys"},
        {"jwk": {"kty": "oct", "k": "AA"}},
        {"x5u": "https://attacker.example/cert"},
        {"crit": ["b64"], "b64": False},
        {"crit": ["exp"]},
        {"b64": True},
        {"zip": "DEF"},
        {"cty": "JWT"},
        {"typ": "at+jwt"},
        {"typ": None},
    ],
)
def test_no_header_but_ours(more: dict[str, Any]) -> None:
    world = World()
    with pytest.raises(InvalidToken):
        world.bearer(made(world.key, {"alg": "HS256", "typ": "JWT"} | more))


@pytest.mark.parametrize("header", [{}, {"alg": "HS256"}, {"typ": "JWT"}, [], "HS256", 5, [[]]])
def test_odd_headers(header: Any) -> None:
    world = World()
    with pytest.raises(InvalidToken):
        world.bearer(made(world.key, header))


@pytest.mark.parametrize(
    "changes",
    [
        *({name: None} for name in claims()),
        {"iss": "other"}, {"iss": ["anvil"]}, {"iss": "anvi"}, {"aud": "other"}, {"aud": ["anvil.v1"]}, {"aud": "anvil"},
        {"sub": 5}, {"sub": ["AKIDWEB"]}, {"app": "7"}, {"app": 7.0}, {"app": True}, {"gen": "3"}, {"gen": 3.5},
        {"iat": str(NOW)}, {"exp": str(NOW + 60)}, {"exp": 1e300}, {"exp": NOW + 3601}, {"exp": 2**70}, {"exp": NOW}, {"exp": NOW - 1},
        {"nbf": NOW}, {"scope": "object:read"}, {"jti": "x"}, {"admin": True},
    ],
)  # fmt: skip
def test_the_claims_are_exactly_ours(changes: dict[str, Any]) -> None:
    """A claim that is missing, of another type or unknown is not passed over, though the signature is right."""
    world = World()
    with pytest.raises(InvalidToken):
        world.bearer(made(world.key, payload=claims(**changes)))


@pytest.mark.parametrize("payload", [[], "x", 5, {}, [claims()]])
def test_odd_payloads(payload: Any) -> None:
    world = World()
    with pytest.raises(InvalidToken):
        world.bearer(made(world.key, payload=payload))


def test_a_token_of_the_future() -> None:
    """Clocks of nodes differ by up to a minute; more is not valid yet."""
    world = World()
    assert world.bearer(made(world.key, payload=claims(iat=NOW + 60, exp=NOW + 3660))).app is APP
    with pytest.raises(InvalidToken):
        world.bearer(made(world.key, payload=claims(iat=NOW + 61, exp=NOW + 3661)))


def test_truncated_altered_and_padded() -> None:
    world = World()
    token, _ = world.tokens.issue(APP)
    head, body, signature = token.split(".")
    wrong = [token[:cut] for cut in range(len(token))]
    wrong += [token + extra for extra in ("=", "A", ".", "\n", "\0", "é", ".x")]
    wrong += [
        f"{head}=.{body}.{signature}",
        f"{head}.{body}\n.{signature}",
        f"{head}. {body}.{signature}",
        f".{body}.{signature}",
    ]
    wrong += [f"{head}.{b64(json.dumps(claims(sub='AKIDROOT')).encode())}.{signature}", f"{head}.{body}.{'A' * 43}"]
    rng = random.Random(1)
    for _ in range(300):  # any character but the last, whose lowest bits are none of the signature's
        at = rng.randrange(len(token) - 1)
        wrong.append(token[:at] + rng.choice([c for c in "ABZaz059-_. ;" if c != token[at]]) + token[at + 1 :])
    for bad in wrong:
        with pytest.raises(InvalidToken):
            world.bearer(bad)


def test_oversize_is_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()

    def unread(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("parsed")

    monkeypatch.setattr(jwt, "decode_complete", unread)
    with pytest.raises(InvalidToken):
        world.bearer(made(world.key, payload=claims(sub="A" * ACCESS_TOKEN_BYTES_MAX)))


# -- the app decides --------------------------------------------------------------------------------------------------


def test_rights_are_those_of_the_row_at_each_call() -> None:
    world = World()
    token, _ = world.tokens.issue(APP)
    assert world.bearer(token).app is APP
    revoked = msgspec.structs.replace(APP, policies=())
    world.catalog.apps["AKIDWEB"] = revoked
    assert world.bearer(token).app is revoked


@pytest.mark.parametrize("change", [{"secret_generation": 4}, {"secret_generation": 2}, {"app_id": 8}])
def test_a_reset_secret_and_a_new_app_of_that_key_end_it(change: dict[str, int]) -> None:
    world = World()
    token, _ = world.tokens.issue(APP)
    assert world.bearer(token).app is APP
    world.catalog.apps["AKIDWEB"] = msgspec.structs.replace(APP, **change)
    with pytest.raises(InvalidToken):
        world.bearer(token)


def test_a_deleted_app_ends_it_and_an_absent_database_does_not() -> None:
    world = World()
    token, _ = world.tokens.issue(APP)
    del world.catalog.apps["AKIDWEB"]
    with pytest.raises(InvalidToken):
        world.bearer(token)
    world.catalog.away = True
    with pytest.raises(DatabaseUnavailable):
        world.bearer(token)


# -- the memory of verified tokens ------------------------------------------------------------------------------------


def test_a_verified_token_is_not_verified_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    token, _ = world.tokens.issue(APP)
    world.bearer(token)
    calls: list[str] = []
    real = jwt.decode_complete

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(args[0])
        return real(*args, **kwargs)

    monkeypatch.setattr(jwt, "decode_complete", counted)
    for _ in range(5):
        assert world.bearer(token).app is APP
    assert calls == []
    world.now = NOW + 4000
    with pytest.raises(ExpiredToken):
        world.bearer(token)
    assert calls == []


def test_refused_tokens_are_not_remembered_and_the_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ACCESS_TOKENS_CACHED_MAX <= 10_000
    monkeypatch.setattr(tokens_module, "ACCESS_TOKENS_CACHED_MAX", 3)
    world = World()
    with pytest.raises(InvalidToken):
        world.bearer(made(b"x" * 32))
    assert len(world.tokens._verified) == 0
    used = made(world.key)
    for second in range(10):
        world.bearer(used)
        world.bearer(made(world.key, payload=claims(exp=NOW + 60 + second)))
    assert len(world.tokens._verified) == 3
    assert hashlib.sha256(used.encode()).digest() in world.tokens._verified, "what is in use stays"


def test_no_secret_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    token, _ = world.tokens.issue(APP)
    with caplog.at_level(logging.DEBUG):
        world.bearer(token)
        shown = [repr(world.tokens), repr(world.tokens._verified)]
        for wrong in (token + "x", made(b"x" * 32), "Basic " + token):
            with pytest.raises(AnvilError) as caught:
                world.authenticate(wrong if " " in wrong else f"Bearer {wrong}")
            shown += [str(caught.value), repr(caught.value.fields), str(caught.value.__cause__)]
    shown.append(caplog.text)
    for secret in (token, token.split(".")[2], token.split(".")[1], SECRET, APP.secret, world.key.hex()):
        assert not any(secret in text for text in shown)


# -- key pair for token -----------------------------------------------------------------------------------------------


def test_exchange() -> None:
    assert World().exchange("AKIDWEB", "the-apps-secret") is APP


def test_unknown_id_and_wrong_secret_are_one_error() -> None:
    world = World()
    seen = set()
    for client_id, client_secret in (
        ("AKIDWEB", ""), ("AKIDWEB", "the-apps-secre"), ("AKIDWEB", "the-apps-secret "), ("AKIDWEB", "THE-APPS-SECRET"),
        ("AKIDWEB", "\ud800"), ("AKIDWEB", "é" * 10), ("AKIDNOBODY", "the-apps-secret"), ("AKIDNOBODY", ""), ("", ""),
        ("AKIDNOBODY", world.key.decode("latin-1")), ("AK\0", "x"), ("ü", "x"), ("A" * 100_000, "x"), ("\ud800", "x"),
    ):  # fmt: skip
        with pytest.raises(InvalidAccessKey) as caught:
            world.exchange(client_id, client_secret)
        seen.add((caught.value.message, tuple(caught.value.fields)))
    assert len(seen) == 1
    assert set(world.catalog.asked) == {"AKIDWEB", "AKIDNOBODY"}, "what cannot be an access key is not looked up"


def test_a_server_without_a_secret_issues_nothing() -> None:
    with pytest.raises(InvalidSetting):
        World(secret="")
