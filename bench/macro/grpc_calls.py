"""gRPC: unary calls beside a bare grpc.aio server, and GetObject and PutObject of 10 MiB beside S3 over HTTP/1.1.

h2load is the client of all. Every ratio is taken within one run, its two sides in turn, medians of ROUNDS.
Run: python -m bench.macro.grpc_calls.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from anvil.api.grpc.proto import auth_pb2, auth_pb2_grpc, object_pb2
from anvil.auth.presign import presign
from bench.figures import figure
from bench.macro.h2load import h2load, is_there
from bench.macro.s3 import MIB, ROUNDS, node
from tests.support.node import AnvilNode

HEAD = ("-H", "content-type: application/grpc", "-H", "te: trailers")
PAYLOAD = 64
CHUNK = MIB


def message(payload: bytes) -> bytes:
    return b"\0" + len(payload).to_bytes(4, "big") + payload


@contextmanager
def echo_server(kind: str) -> Iterator[str]:
    """The URL of the echo method of one server process."""
    command = [sys.executable, "-m", "bench.macro.grpc_server", kind]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/anvil.bench.Echo/Echo"
        finally:
            process.terminate()


def unary(folder: Path) -> None:
    """Calls per second with messages of PAYLOAD bytes, one server process each."""
    body = folder / "unary"
    body.write_bytes(message(bytes(PAYLOAD)))
    with echo_server("anvil") as ours, echo_server("grpcio") as bare:
        for connections in (1, 16):
            options = ("-c", str(connections), "-m", "16", "-d", str(body), *HEAD)
            turns = [(h2load("-n", "40000", *options, ours), h2load("-n", "8000", *options, bare)) for _ in range(ROUNDS)]
            name = f"gRPC unary, {connections} x 16 calls in flight"
            figure(f"{name}", statistics.median(one for one, _ in turns), "calls/s")
            figure(f"{name}, bare grpc.aio", statistics.median(two for _, two in turns), "calls/s")
            figure(f"{name}, beside grpc.aio", statistics.median(one / two for one, two in turns), "ratio")


def token(running: AnvilNode) -> str:
    with grpc.insecure_channel(running.endpoint.removeprefix("http://")) as channel:
        keys = auth_pb2.GetAccessTokenRequest(client_id=running.access_key, client_secret=running.secret_key)
        return str(auth_pb2_grpc.AuthServiceStub(channel).GetAccessToken(keys).access_token)


def objects(folder: Path) -> None:
    """10 MiB down and up."""
    data = os.urandom(10 * MIB)
    big, get, put = folder / "big", folder / "get", folder / "put"
    big.write_bytes(data)
    get.write_bytes(message(object_pb2.GetObjectRequest(bucket="bench", key="ten").SerializeToString()))
    header = object_pb2.PutObjectHeader(bucket="bench", key="put", size=len(data))
    chunks = [object_pb2.PutObjectRequest(chunk=data[at : at + CHUNK]) for at in range(0, len(data), CHUNK)]
    put.write_bytes(b"".join(message(one.SerializeToString()) for one in (object_pb2.PutObjectRequest(header=header), *chunks)))
    with node() as running:
        running.s3().upload_file(str(big), "bench", "ten")
        call = (*HEAD, "-H", f"authorization: Bearer {token(running)}")

        def url(method: str, key: str) -> str:
            target = f"{running.endpoint}/bench/{key}"
            return presign(method, target, running.access_key, running.secret_key, running.region, 3600, time.time())

        service = f"{running.endpoint}/anvil.v1.ObjectService"
        loads = {
            "GetObject 10 MiB, 1 connection": (
                ("-n", "60", "-c", "1", *call, "-d", str(get), f"{service}/GetObject"),
                ("--h1", "-n", "60", "-c", "1", url("GET", "ten")),
            ),
            "GetObject 10 MiB, 4 at a time": (
                ("-n", "120", "-c", "4", *call, "-d", str(get), f"{service}/GetObject"),
                ("--h1", "-n", "120", "-c", "4", url("GET", "ten")),
            ),
            "PutObject 10 MiB, 4 at a time": (
                ("-n", "40", "-c", "4", *call, "-d", str(put), f"{service}/PutObject"),
                ("--h1", "-n", "40", "-c", "4", "-d", str(big), "-H", ":method: PUT", url("PUT", "put")),
            ),
        }
        for name, (ours, s3) in loads.items():
            turns = [(h2load(*ours), h2load(*s3)) for _ in range(ROUNDS)]
            figure(f"{name}, gRPC", statistics.median(one for one, _ in turns), "requests/s")
            figure(f"{name}, S3 over HTTP/1.1", statistics.median(two for _, two in turns), "requests/s")
            figure(f"{name}, gRPC beside S3", statistics.median(one / two for one, two in turns), "ratio")


if __name__ == "__main__":
    if is_there():
        with tempfile.TemporaryDirectory() as name:
            unary(Path(name))
            objects(Path(name))
