"""Uploads that are aborted or slow, by the hundred: the worker's memory stays bounded, drives keep nothing of them, others are served."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from pathlib import Path

import psutil

from anvil.api.grpc.proto import object_pb2
from anvil.base.limits import BUFFER_POOL_BYTES_MAX, STRIPE_BYTES
from tests.integration.bad_input.conftest import World
from tests.integration.bad_input.test_grpc_calls import Caller
from tests.support.h2client import H2Client
from tests.support.node import wait_until
from tests.support.rawclient import Wire

MIB = 1 << 20
PROMISED_BYTES = 400 * MIB  # of a worker with 64 uploads (issue, "Shown by")
IN_FLIGHT = "anvil_api_requests_in_flight"
PIECE = bytes(range(256)) * 256  # 64 KiB


def worker_of(world: World) -> psutil.Process:
    return psutil.Process(world.node.worker_pids[0])


def stored(world: World) -> set[Path]:
    """Files of large shards and what is being written of them; smaller ones are appended to segments."""
    drives = world.node.data_dir / "drives"
    return {
        path for folder in drives.glob("*/*") if folder.name in ("tmp", "blobs") for path in folder.rglob("*") if path.is_file()
    }


def settled(world: World) -> bool:
    """No upload is being served. The scrape itself is none of the API's requests."""
    return world.node.metric(IN_FLIGHT) <= 1


def upload(world: World, name: str, size: int) -> bytes:
    return world.own.head("PUT", f"/attacked/{name}", unsigned=[("content-length", str(size))])


def test_200_aborted_uploads_of_megabytes_leave_nothing(world: World) -> None:
    worker, before = worker_of(world), stored(world)
    heads = [upload(world, f"aborted-{index}", 8 * MIB) for index in range(200)]

    def abort(wave: list[bytes]) -> None:
        with contextlib.ExitStack() as stack:
            for head in wave:
                wire = stack.enter_context(Wire(world.node.port))
                wire.socket.settimeout(0.5)
                with contextlib.suppress(OSError):
                    wire.socket.sendall(head + PIECE * 36)

    def wave() -> None:
        threads = [threading.Thread(target=abort, args=(heads[start::20],)) for start in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for _ in range(2):
        wave()
        wait_until("no upload is left", lambda: settled(world))
        assert worker.memory_info().rss < PROMISED_BYTES, "no wave adds to the one before"
    wait_until("nothing is left of them on the drives", lambda: stored(world) <= before)
    assert world.own("GET", "/attacked/aborted-0").face == (404, "NoSuchKey")
    assert world.own("GET", "/attacked/kept").body == b"old"


def test_200_uploads_aborted_on_http2_connections_leave_nothing(world: World) -> None:
    """S3 and gRPC mixed on each, as a proxy sends them; it resets the stream of a client that went away."""
    worker, before, in_all = worker_of(world), stored(world), 200
    caller = Caller(world)
    token = caller.head(world.own)
    caller.close()

    def given_up() -> list[float]:
        """Over S3, over gRPC."""
        return [world.node.metric("anvil_api_requests_total", operation="PutObject", code=code) for code in ("499", "1")]

    async def begin(client: H2Client, number: int) -> None:
        name = f"given-up-{number}"
        if number % 2:
            header = object_pb2.PutObjectHeader(bucket="attacked", key=name, size=8 * MIB)
            message = object_pb2.PutObjectRequest(header=header).SerializeToString()
            chunk = object_pb2.PutObjectRequest(chunk=PIECE * 9).SerializeToString()
            data = b"".join(b"\0" + len(one).to_bytes(4, "big") + one for one in (message, *[chunk] * 4))
            target, headers = "/anvil.v1.ObjectService/PutObject", {"content-type": "application/grpc", **dict(token)}
        else:
            data, target = PIECE * 36, f"/attacked/{name}"
            headers = {**world.own.headers("PUT", target), "content-length": str(8 * MIB)}
        headers.pop("host", None)
        fields = [(field.lower(), value) for field, value in headers.items()]
        stream = client.begin("POST" if number % 2 else "PUT", target, fields, authority=world.own.host, end=False)
        await client.send(stream, data, end=False)
        client.cancel(stream)

    async def wave() -> None:
        clients = [await H2Client.connect("127.0.0.1", world.node.port) for _ in range(4)]
        try:
            for start in range(0, in_all, 40):
                await asyncio.gather(*(begin(clients[number % 4], number) for number in range(start, start + 40)))
            for client in clients:
                assert (await client.ask("GET", "/ready", authority=world.own.host)).status == 200, "the connection is as it was"
        finally:
            for client in clients:
                client.close()

    counts = given_up()
    for _ in range(2):
        asyncio.run(wave())
        wait_until("no upload is left", lambda: settled(world))
        assert worker.memory_info().rss < PROMISED_BYTES, "no wave adds to the one before"
    assert [after - count for after, count in zip(given_up(), counts, strict=True)] == [in_all, in_all], "none was refused before"
    wait_until("nothing is left of them on the drives", lambda: stored(world) <= before)
    for number in (0, 1):
        assert world.own("GET", f"/attacked/given-up-{number}").face == (404, "NoSuchKey")


def test_64_slow_uploads_fit_into_the_memory_that_is_promised(world: World) -> None:
    """Each has sent two megabytes of 64 and goes on at a trickle. A worker stays under 400 MiB (issue, "Shown by")."""
    worker = worker_of(world)
    with contextlib.ExitStack() as stack:
        wires = [stack.enter_context(Wire(world.node.port)) for _ in range(64)]
        for index, wire in enumerate(wires):
            wire.socket.settimeout(10)
            wire.send(upload(world, f"slow-{index}", 64 * MIB))
        for _ in range(8):
            for wire in wires:
                wire.send(PIECE * 4)
        assert worker.memory_info().rss < PROMISED_BYTES
        assert world.own("GET", "/attacked/kept").body == b"old", "others are served"
        assert world.own("PUT", "/attacked/meanwhile", b"x").status == 200
    wait_until("no upload is left", lambda: settled(world))


def test_slow_uploads_do_not_keep_others_out(world: World) -> None:
    """More of them than a worker has stripe buffers: whoever needs one waits until the slow have been told to come back later."""
    large = PIECE * 32
    assert world.own("PUT", "/attacked/large", large).status == 200
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(Wire(world.node.port)) for _ in range(BUFFER_POOL_BYTES_MAX // STRIPE_BYTES + 26)]
        for index, wire in enumerate(slow):
            wire.send(upload(world, f"idle-{index}", 64 * MIB) + b"x" * 1000)
        assert world.own("PUT", "/attacked/large", large).status == 200
        assert slow[0].answer().code in ("SlowDown", "RequestTimeout")
        assert world.own("GET", "/attacked/large").body == large


def test_readers_that_do_not_read_do_not_keep_others_out(world: World) -> None:
    """They are cut, or leave, and their buffers are free at once: not when the garbage collector happens by."""
    large = PIECE * 128
    assert world.own("PUT", "/attacked/unread", large).status == 200
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            wire = stack.enter_context(Wire(world.node.port))
            wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            wire.send(world.own.head("GET", "/attacked/unread"))
        wait_until("there is room again", lambda: world.own("PUT", "/attacked/meanwhile", large).status == 200, 45)
        assert world.own("GET", "/attacked/unread").body == large
    assert world.own("GET", "/attacked/unread").body == large


def test_http2_streams_without_a_window_do_not_keep_others_out(world: World) -> None:
    """Answers that the client lets nothing be sent of, hundreds on a few connections: their buffers are wanted by others."""
    worker, large = worker_of(world), PIECE * 128
    assert world.own("PUT", "/attacked/windowless", large).status == 200
    target = world.own.presigned("GET", "/attacked/windowless")

    def served() -> bool:
        return world.own("GET", "/attacked/windowless").body == large

    async def main() -> None:
        clients = [await H2Client.connect("127.0.0.1", world.node.port, window=0) for _ in range(8)]
        try:
            begun = [(client, client.begin("GET", target, authority=world.own.host)) for client in clients for _ in range(32)]
            await asyncio.to_thread(wait_until, "there is room again", served)
            assert worker.memory_info().rss < PROMISED_BYTES
            assert any(client.exchanges[stream].reset is not None for client, stream in begun), "some had to make it"
            assert not any(client.exchanges[stream].body for client, stream in begun)
        finally:
            for client in clients:
                client.close()

    asyncio.run(main())
    wait_until("no answer is left", lambda: settled(world))
