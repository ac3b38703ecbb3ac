"""`AnvilClient`: one server, one app, one connection. Composition of the client's parts; what they do is theirs."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import grpc

from anvil.client.auth import Auth
from anvil.client.buckets import Buckets
from anvil.client.calls import Calls
from anvil.client.channel import open_channel, parse_endpoint, read_ca
from anvil.client.objects import Objects
from anvil.client.tokens import Credentials, TokenStore
from anvil.client.types import TransferOptions

__all__ = ["AnvilClient"]


class AnvilClient:
    """An asynchronous client of one Anvil server.

        async with AnvilClient("localhost:50051", "AK...", "secret") as client:
            await client.objects.upload("bucket", "key", b"bytes")

    `host`: `https://host[:443]` and `http://host[:80]` say it all; without a scheme the connection is TLS (port 443), but plaintext (port
    50051) to this machine's own addresses; `tls` decides otherwise. `ca`: PEM certificates, or the path of a file with them, to trust
    instead of the usual authorities. `token_store`: keeps the access token beyond this client. Safe to use from many tasks of one loop.

    Raises InvalidSetting for an address or certificates that cannot be used, and ClientError from calls."""

    def __init__(
        self,
        host: str,
        client_id: str,
        client_secret: str,
        *,
        tls: bool | None = None,
        ca: str | Path | bytes | None = None,
        transfer: TransferOptions | None = None,
        token_store: TokenStore | None = None,
    ) -> None:
        self.endpoint = parse_endpoint(host, tls)
        self._ca = read_ca(ca)
        self._credentials = Credentials(client_id, client_secret)
        self._transfer = transfer or TransferOptions()
        self._token_store = token_store
        self._channel: grpc.aio.Channel | None = None
        self.auth: Auth
        self.buckets: Buckets
        self.objects: Objects

    def __repr__(self) -> str:
        return f"AnvilClient({str(self.endpoint)!r}, {self._credentials.client_id!r})"

    async def __aenter__(self) -> Self:
        """Does not connect yet: the first call does."""
        self._channel = open_channel(self.endpoint, self._ca)
        calls = Calls(self._channel, self.endpoint, self._credentials, self._token_store, self._transfer.attempts)
        self.auth = Auth(calls)
        self.buckets = Buckets(calls)
        self.objects = Objects(calls, self._transfer)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Ends the connection; calls under way are cancelled."""
        if self._channel is not None:
            await self._channel.close(None)
            self._channel = None
