"""S3 over HTTP/2 cleartext on a real node: the same operations, rights and errors as over HTTP/1.1, on one connection."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import uvloop

from anvil.auth.presign import UNSIGNED_PAYLOAD, sign
from anvil.base.limits import MIB
from tests.support.h2client import Exchange, H2Client
from tests.support.node import AnvilNode

BLOCK = random.Random(5).randbytes(10 * MIB + 123)


class S3OverHttp2:
    """Signed requests of one app on one connection."""

    def __init__(self, node: AnvilNode, client: H2Client) -> None:
        self._node = node
        self._client = client
        self._authority = urlsplit(node.endpoint).netloc

    async def ask(self, method: str, target: str, body: bytes | None = None, **more: str) -> Exchange:
        headers = {name.replace("_", "-"): value for name, value in more.items()}
        headers = sign(
            method,
            self._node.endpoint + target,
            headers,
            UNSIGNED_PAYLOAD,
            self._node.access_key,
            self._node.secret_key,
            self._node.region,
            time.time(),
        )
        headers.pop("host", None)
        if body is not None:
            headers["content-length"] = str(len(body))
        fields = [(name.lower(), value) for name, value in headers.items()]
        return await self._client.ask(method, target, fields, body, authority=self._authority)


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AnvilNode]:
    with AnvilNode(tmp_path / "data") as running:
        yield running


def test_the_operations_of_a_day(node: AnvilNode) -> None:
    async def main() -> None:
        host, port = urlsplit(node.endpoint).hostname, urlsplit(node.endpoint).port
        assert host is not None and port is not None
        client = await H2Client.connect(host, port, window=4 * MIB)
        s3 = S3OverHttp2(node, client)
        assert (await s3.ask("PUT", "/over-h2")).status == 200
        answers = await asyncio.gather(*(s3.ask("PUT", f"/over-h2/k{n}", BLOCK[: n * 1_400_000]) for n in range(8)))
        for number, answer in enumerate(answers):
            digest = hashlib.md5(BLOCK[: number * 1_400_000], usedforsecurity=False).hexdigest()
            assert answer.headers["etag"] == f'"{digest}"'
        answers = await asyncio.gather(*(s3.ask("GET", f"/over-h2/k{n}") for n in range(8)))
        assert [answer.body for answer in answers] == [BLOCK[: n * 1_400_000] for n in range(8)]
        part = await s3.ask("GET", "/over-h2/k3", range="bytes=1000000-2999999")
        assert (part.status, part.body) == (206, BLOCK[1_000_000:3_000_000])
        head = await s3.ask("HEAD", "/over-h2/k3")
        assert (head.status, head.headers["content-length"], head.body) == (200, "4200000", b"")
        listing = await s3.ask("GET", "/over-h2?list-type=2")
        assert bytes(listing.body).count(b"<Key>") == 8
        missing = await s3.ask("GET", "/over-h2/none")
        assert missing.status == 404
        assert b"<Code>NoSuchKey</Code>" in missing.body
        refused = await client.ask("GET", "/over-h2/k3", authority=urlsplit(node.endpoint).netloc)
        assert refused.status == 403
        assert (await s3.ask("DELETE", "/over-h2/k3")).status == 204
        assert node.s3().get_object(Bucket="over-h2", Key="k7")["Body"].read() == BLOCK[: 7 * 1_400_000]
        health = await client.ask("GET", "/ready", authority="proxy")
        assert health.status == 200
        client.close()

    uvloop.run(main())
