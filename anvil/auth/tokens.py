"""Access tokens: JWTs that stand for an app's key pair for an hour, as gRPC clients send them.

Owns: what a token says and when it is believed. Invariants: a principal other than the anonymous comes out only after the token's
HMAC-SHA256 under the node's secret was verified, within its time, and only while the app has the secret generation that the token
names; the algorithm and the whole header are this server's choice, never the token's; no token and no secret reaches a message, a
field of an error, a log line or a repr. Not here: rights. A token carries none: they come from the app's row at every call, so that
revoking does not wait for an hour. Sources: RFC 7519, RFC 8725 (what goes wrong with JWTs: sections 2.1, 3.1, 3.8, 3.11).

One token costs some 35 us to verify, and a client sends the same one with every call: what was verified is remembered, by the
digest of the token.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from hmac import digest as hmac_digest
from typing import Any, Final

import jwt
import msgspec

from anvil.base.errors import ExpiredToken, InvalidAccessKey, InvalidSetting, InvalidToken
from anvil.base.limits import (
    ACCESS_KEY_CHARS_MAX,
    ACCESS_TOKEN_BYTES_MAX,
    ACCESS_TOKEN_S,
    ACCESS_TOKEN_SKEW_S,
    ACCESS_TOKENS_CACHED_MAX,
)
from anvil.engine.ports import Catalog
from anvil.model.identity import ANONYMOUS, App, Principal

ALGORITHM: Final = "HS256"
ISSUER: Final = "anvil"
AUDIENCE: Final = "anvil.v1"
_HEADER: Final = {"alg": ALGORITHM, "typ": "JWT"}
# Header, claims, 32 bytes of HMAC. Lenient base64 decoders skip what does not belong there: one token would have many spellings.
_COMPACT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]{43}")
# Time is judged by our own clock; what must be there, and nothing beside it, is said by _Claims.
_OPTIONS: Final[Any] = {"verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_jti": False, "verify_sub": False}
_KEY_LABEL: Final = b"anvil access token v1"
_WRONG_PAIR: Final = "The client id or the client secret is wrong: they are the app's access key and secret key."


class _Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that a token says. A claim that this server does not know might narrow the token, so it is not ignored."""

    iss: str
    aud: str
    sub: str  # access key
    app: int
    gen: int  # secret generation
    iat: int
    exp: int


class Tokens:
    """Issues and verifies. `secret`: `config.security.jwt_secret`, the same on all nodes of a deployment; `clock` gives Unix seconds."""

    __slots__ = ("_catalog", "_clock", "_key", "_verified")

    def __init__(self, secret: str, clock: Callable[[], float], catalog: Catalog) -> None:
        if not secret:
            raise InvalidSetting("ANVIL_JWT_SECRET is not set: make one with `openssl rand -hex 32`")
        # A key of its own for this use, of the hash's length whatever the secret's (RFC 7518 section 3.2).
        self._key = hmac_digest(secret.encode(), _KEY_LABEL, "sha256")
        self._clock = clock
        self._catalog = catalog
        self._verified: OrderedDict[bytes, _Claims] = OrderedDict()

    def issue(self, app: App) -> tuple[str, int]:
        """A token for the app's present secret, and the Unix second at which it ends."""
        now = int(self._clock())
        claims = _Claims(ISSUER, AUDIENCE, app.access_key, app.app_id, app.secret_generation, now, now + ACCESS_TOKEN_S)
        return jwt.encode(msgspec.structs.asdict(claims), self._key, ALGORITHM), claims.exp

    async def authenticate(self, authorization: str | None) -> Principal:
        """Who the metadata value `authorization` (`Bearer TOKEN`) stands for; the anonymous without one. Costs one look-up.

        Raises InvalidToken, ExpiredToken, DatabaseUnavailable."""
        if authorization is None:
            return ANONYMOUS
        if len(authorization) > ACCESS_TOKEN_BYTES_MAX or not authorization.isascii():
            raise InvalidToken()
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise InvalidToken("The authorization must be of the form: Bearer TOKEN.")
        claims = self._claims(token.strip(" "))
        now = self._clock()
        if now >= claims.exp:
            raise ExpiredToken()
        if claims.iat > now + ACCESS_TOKEN_SKEW_S:
            raise InvalidToken("The provided token is not valid yet: the clocks of the servers differ.")
        app = await self._catalog.app(claims.sub)
        if app is None or app.app_id != claims.app or app.secret_generation != claims.gen:
            raise InvalidToken("The provided token is void: the app was deleted, or has another secret since.")
        return Principal(app)

    async def exchange(self, client_id: str, client_secret: str) -> App:
        """The app whose key pair this is. Raises InvalidAccessKey, the same for an id that does not exist as for a wrong secret;
        DatabaseUnavailable.

        The comparison takes the same time for both. The look-up does not: one that is not cached asks the database. That an access key
        exists is no secret (S3 tells it in every refusal); that a secret begins right would be one."""
        app = None
        if 0 < len(client_id) <= ACCESS_KEY_CHARS_MAX and client_id.isascii() and client_id.isprintable():
            app = await self._catalog.app(client_id)
        given = sha256(client_secret.encode("utf-8", "surrogatepass")).digest()
        right = sha256(app.secret.encode() if app is not None else self._key).digest()
        if not compare_digest(given, right) or app is None:
            raise InvalidAccessKey(_WRONG_PAIR)
        return app

    def _claims(self, token: str) -> _Claims:
        """What a token of ours says, whatever the time. Raises InvalidToken."""
        name = sha256(token.encode()).digest()
        claims = self._verified.get(name)
        if claims is not None:
            self._verified.move_to_end(name)
            return claims
        claims = self._verify(token)
        self._verified[name] = claims
        if len(self._verified) > ACCESS_TOKENS_CACHED_MAX:
            self._verified.popitem(last=False)
        return claims

    def _verify(self, token: str) -> _Claims:
        if _COMPACT.fullmatch(token) is None:
            raise InvalidToken()
        try:
            found = jwt.decode_complete(
                token, self._key, algorithms=[ALGORITHM], audience=AUDIENCE, issuer=ISSUER, options=_OPTIONS
            )
            claims = msgspec.convert(found["payload"], _Claims)
        except (jwt.PyJWTError, ValueError, TypeError, RecursionError):  # msgspec.ValidationError is a ValueError
            raise InvalidToken() from None  # what was wrong would quote the token
        if found["header"] != _HEADER or not 0 < claims.exp - claims.iat <= ACCESS_TOKEN_S:
            raise InvalidToken()
        return claims
