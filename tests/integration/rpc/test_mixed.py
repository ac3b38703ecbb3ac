"""S3 and gRPC at once on one HTTP/2 connection of a real node, as a proxy sends them."""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import grpc

from anvil.api.grpc.proto import auth_pb2, auth_pb2_grpc, object_pb2
from anvil.auth.presign import presign
from tests.integration.net.net_harness import on_loop
from tests.support.h2client import H2Client
from tests.support.node import AnvilNode

MIB = 1 << 20
SEED = 20261124


def message(payload: Any) -> bytes:
    raw = payload.SerializeToString()
    return b"\0" + len(raw).to_bytes(4, "big") + raw


def messages(body: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(body):
        assert body[at] == 0
        end = at + 5 + int.from_bytes(body[at + 1 : at + 5], "big")
        found.append(bytes(body[at + 5 : end]))
        at = end
    return found


class Mixed:
    """One connection, used for everything."""

    def __init__(self, node: AnvilNode, client: H2Client, token: str) -> None:
        self.node, self.client = node, client
        self.authority = node.endpoint.removeprefix("http://")
        self.head = (("content-type", "application/grpc"), ("te", "trailers"), ("authorization", f"Bearer {token}"))

    async def s3_put(self, key: str, data: bytes) -> str:
        url = presign(
            "PUT", f"{self.node.endpoint}/mixed/{key}", self.node.access_key, self.node.secret_key, "us-east-1", 600, time.time()
        )
        path = url.removeprefix(self.node.endpoint)
        answer = await self.client.ask("PUT", path, (("content-length", str(len(data))),), data, authority=self.authority)
        assert answer.status == 200, bytes(answer.body)
        return answer.headers["etag"].strip('"')

    async def call(self, method: str, body: bytes) -> list[bytes]:
        path = f"/anvil.v1.ObjectService/{method}"
        answer = await self.client.ask("POST", path, self.head, body, authority=self.authority)
        status = answer.trailers.get("grpc-status", answer.headers.get("grpc-status"))
        assert (answer.status, status) == (200, "0"), (answer.headers, answer.trailers)
        return messages(bytes(answer.body))

    async def grpc_put(self, key: str, data: bytes, chunk: int) -> str:
        header = object_pb2.PutObjectHeader(bucket="mixed", key=key, size=len(data))
        parts = [object_pb2.PutObjectRequest(header=header)]
        parts += [object_pb2.PutObjectRequest(chunk=data[at : at + chunk]) for at in range(0, len(data), chunk)]
        (answer,) = await self.call("PutObject", b"".join(map(message, parts)))
        return str(object_pb2.PutObjectResponse.FromString(answer).etag)

    async def grpc_get(self, key: str) -> bytes:
        first, *chunks = await self.call("GetObject", message(object_pb2.GetObjectRequest(bucket="mixed", key=key)))
        head = object_pb2.GetObjectResponse.FromString(first).head
        data = b"".join(object_pb2.GetObjectResponse.FromString(chunk).chunk for chunk in chunks)
        assert head.length == len(data)
        return data


def test_s3_uploads_and_grpc_streams_on_one_connection(tmp_path: Path) -> None:
    rng = random.Random(SEED)
    with AnvilNode(tmp_path / "data", env={"ANVIL_WORKERS": "1"}) as node:
        s3 = node.s3()
        s3.create_bucket(Bucket="mixed")
        stored = {f"there-{n}": rng.randbytes(rng.randrange(1, 6 * MIB)) for n in range(4)}
        for key, data in stored.items():
            s3.put_object(Bucket="mixed", Key=key, Body=data)
        uploads = {f"s3-{n}": rng.randbytes(rng.randrange(5 * MIB, 9 * MIB)) for n in range(8)}
        puts = {f"grpc-{n}": rng.randbytes(rng.randrange(1, 9 * MIB)) for n in range(4)}
        chunks = dict(zip(puts, (1000, 65_536, MIB, 3 * MIB), strict=True))
        host, port = node.endpoint.removeprefix("http://").split(":")
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            keys = auth_pb2.GetAccessTokenRequest(client_id=node.access_key, client_secret=node.secret_key)
            token = auth_pb2_grpc.AuthServiceStub(channel).GetAccessToken(keys).access_token

        @on_loop
        async def run() -> None:
            client = await H2Client.connect(host, int(port), window=MIB)
            mixed = Mixed(node, client, token)
            work: dict[str, Awaitable[Any]] = {key: mixed.s3_put(key, data) for key, data in uploads.items()}
            work |= {key: mixed.grpc_put(key, data, chunks[key]) for key, data in puts.items()}
            work |= {key: mixed.grpc_get(key) for key in stored}
            async with asyncio.timeout(60):
                results = dict(zip(work, await asyncio.gather(*work.values()), strict=True))
            for key, data in (uploads | puts).items():
                assert results[key] == hashlib.md5(data).hexdigest(), f"{key}, seed {SEED}"
            for key, data in stored.items():
                assert results[key] == data, f"{key}, seed {SEED}"
            # What either API stored, the other one reads.
            for key, data in uploads.items():
                assert await mixed.grpc_get(key) == data
            assert client.goaway is None
            client.close()

        run()
        for key, data in puts.items():
            assert s3.get_object(Bucket="mixed", Key=key)["Body"].read() == data
