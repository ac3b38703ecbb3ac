"""Uploads that are aborted or slow, by the hundred: the worker's memory stays bounded, drives keep nothing of them, others are served."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

import psutil

from anvil.base.limits import BUFFER_POOL_BYTES_MAX, STRIPE_BYTES
from tests.integration.bad_input.conftest import World
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
