"""The access token: fetched when first needed, kept until shortly before it expires, fetched again when the server refuses it.

Owns: the one token of a client, and that only one call at a time asks for it. Invariant: neither secret nor token is in any
representation or message. Not here: how the server is called (`calls.py`), where the CLI keeps tokens between commands
(`cli/profiles.py`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from anvil.base import limits
from anvil.client.types import Token


class TokenStore(Protocol):
    """Keeps the token beyond one client."""

    def load(self) -> Token | None: ...
    def save(self, token: Token | None) -> None:
        """None: forget it."""


class Credentials:
    """A key pair. Its secret is in no representation."""

    def __init__(self, client_id: str, client_secret: str) -> None:
        self.client_id = client_id
        self.client_secret = client_secret

    def __repr__(self) -> str:
        return f"Credentials({self.client_id!r})"


def token_of(value: str, expires_at_s: float, now_s: float) -> Token:
    """It is renewed CLIENT_TOKEN_MARGIN_S before it expires, but a short-lived one is used for nine tenths of its life."""
    margin_s = min(limits.CLIENT_TOKEN_MARGIN_S, (expires_at_s - now_s) / 10)
    return Token(value, expires_at_s - margin_s, expires_at_s)


class Tokens:
    """`fetch` asks the server. `now_s`: seconds since the epoch."""

    def __init__(
        self, fetch: Callable[[], Awaitable[Token]], store: TokenStore | None = None, now_s: Callable[[], float] = time.time
    ) -> None:
        self._fetch = fetch
        self._store = store
        self.now_s = now_s
        self._token: Token | None = None
        self._loaded = store is None
        self._lock = asyncio.Lock()

    async def get(self) -> Token:
        """One that is good for a while."""
        if self._is_good(self._token):
            assert self._token is not None
            return self._token
        async with self._lock:  # whoever waited finds the token of who went first
            if not self._loaded:
                assert self._store is not None
                self._token, self._loaded = self._store.load(), True
            if self._token is None or not self._is_good(self._token):
                self._token = await self._fetch()
                if self._store is not None:
                    self._store.save(self._token)
            return self._token

    def refused(self, token: Token) -> None:
        """The server did not accept it: the next `get` fetches another, unless that has happened already."""
        if self._token is not None and self._token.value == token.value:
            self._token = None
            if self._store is not None:
                self._store.save(None)

    def _is_good(self, token: Token | None) -> bool:
        return token is not None and self.now_s() < token.renew_at_s
