"""The node's own addresses on the public port: `/ready`, `/ready/cluster` and `/metrics`; everything else goes to the API.

Owns: who may read the metrics (a bearer token, or without one only direct requests from this machine), and the answers'
form. Invariants: these never touch a database or a disk; no answer may be cached by anybody. A request addressed to a
bucket by host name is the API's, whatever its path. Not here: the checks (`node/health.py`), the numbers
(`node/exposition.py`), `/` (the API's).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable

import msgspec

from anvil.auth.hosts import Hosts
from anvil.base.config import Config
from anvil.base.errors import Unavailable
from anvil.net.stream import Handler, RequestHead, Stream
from anvil.node.exposition import CONTENT_TYPE
from anvil.node.health import HealthSnapshot, Readiness

RESERVED = frozenset({b"/ready", b"/ready/cluster", b"/metrics"})
NO_STORE = (b"cache-control", b"no-store")
JSON = (b"content-type", b"application/json")
# Headers that a proxy on this machine leaves: the request then comes from somewhere else.
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via")


class NodeEndpoints:
    """A handler in front of the API's.

    `readiness`: this worker's answer now. `health`: the last snapshot. `scrape`: the text of the metrics, gzip or not.
    """

    def __init__(
        self,
        api: Handler,
        config: Config,
        readiness: Callable[[], Readiness],
        health: Callable[[], HealthSnapshot | None],
        scrape: Callable[[bool], Awaitable[bytes]],
    ) -> None:
        self._api = api
        self._token = config.metrics.token.encode()
        self._hosts = Hosts(config.api.bucket_hosts)
        self._readiness = readiness
        self._health = health
        self._scrape = scrape

    async def __call__(self, stream: Stream) -> None:
        head = stream.head
        if head.path not in RESERVED or self._names_bucket(head):
            await self._api(stream)
        elif head.method not in ("GET", "HEAD"):
            await self._answer(stream, 405, b"", (b"allow", b"GET, HEAD"))
        elif head.path == b"/metrics":
            await self._metrics(stream)
        elif head.path == b"/ready":
            readiness = self._readiness()
            await self._answer(stream, 200 if readiness.status == "ready" else 503, msgspec.json.encode(readiness), JSON)
        else:
            await self._cluster(stream)

    def _names_bucket(self, head: RequestHead) -> bool:
        return self._hosts.virtual_bucket(head.authority) is not None

    async def _cluster(self, stream: Stream) -> None:
        """503 without a write quorum. With `?maintenance=true` 412 where stopping this node would lose it: always, on a
        lone node.
        """
        snapshot = self._health()
        up = snapshot is not None and self._readiness().status in ("ready", "draining")
        standing = snapshot.standing if snapshot is not None else None
        quorum = up and standing is not None and standing.write_quorum
        maintenance = b"maintenance=true" in stream.head.query.split(b"&")
        spare = standing is not None and standing.without_this
        status = 503 if not quorum else 412 if maintenance and not spare else 200
        body = {"write_quorum": quorum, "nodes": standing.nodes if standing is not None else 0}
        await self._answer(stream, status, msgspec.json.encode(body), JSON)

    async def _metrics(self, stream: Stream) -> None:
        head = stream.head
        if not self._may_scrape(head):
            challenge = ((b"www-authenticate", b"Bearer"),) if self._token else ()
            text = (
                b"send the bearer token of ANVIL_METRICS_TOKEN\n"
                if self._token
                else b"set ANVIL_METRICS_TOKEN to read this from elsewhere\n"
            )
            await self._answer(stream, 401 if self._token else 403, text, (b"content-type", b"text/plain"), *challenge)
            return
        compressed = b"gzip" in (head.header(b"accept-encoding") or b"")
        try:
            text = await self._scrape(compressed)
        except Unavailable as error:
            await self._answer(stream, 503, error.message.encode() + b"\n", (b"content-type", b"text/plain"))
            return
        encoding = ((b"content-encoding", b"gzip"),) if compressed else ()
        await self._answer(stream, 200, text, (b"content-type", CONTENT_TYPE.encode()), (b"vary", b"accept-encoding"), *encoding)

    def _may_scrape(self, head: RequestHead) -> bool:
        if self._token:
            given = head.header(b"authorization") or b""
            return given[:7].lower() == b"bearer " and hmac.compare_digest(given[7:].strip(), self._token)
        try:
            direct = ipaddress.ip_address(head.peer.partition("%")[0]).is_loopback
        except ValueError:
            direct = False
        return direct and all(head.header(name) is None for name in _FORWARDED)

    async def _answer(self, stream: Stream, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        if stream.head.method == "HEAD":
            await stream.respond(status, [*headers, NO_STORE, (b"content-length", str(len(body)).encode())])
        else:
            await stream.respond(status, [*headers, NO_STORE], body)
