"""A node in a process of its own that is frozen, killed, started again, or never says a word: what that costs those who ask it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from anvil.base.errors import DriveFailed, DriveStalled, Unavailable
from anvil.base.ids import random_id
from anvil.base.limits import MIB
from anvil.model.cluster import ClusterDrive
from anvil.peers.directory import Peers
from anvil.peers.remote import RemoteDrive
from tests.contract.shard_samples import make_footer, make_frames, make_header
from tests.contract.test_drive import payload, store
from tests.integration.net.net_harness import on_loop, until
from tests.support.peers import QUICK, SECRET, node_row

BUSY_S = 1.0
"""Allowed beside what is specified, since the machine may be busy."""


class Process:
    """One `tests.support.peer_server`."""

    def __init__(self, folder: Path, node_id: bytes | None = None) -> None:
        self.folder = folder
        self.node_id = node_id or random_id()
        self.port = 0
        self.drive_id = b""

    def start(self, port: int = 0) -> None:
        command = [sys.executable, "-m", "tests.support.peer_server", self.node_id.hex(), str(self.folder / "drive"), str(port)]
        self.running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.running.stdout is not None
        number, drive_id, _ = self.running.stdout.readline().split()
        self.port, self.drive_id = int(number), bytes.fromhex(drive_id)

    def signal(self, number: int) -> None:
        self.running.send_signal(number)

    def kill(self) -> None:
        self.running.kill()
        self.running.wait()
        assert self.running.stdout is not None
        self.running.stdout.close()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def drive(self) -> ClusterDrive:
        return ClusterDrive(self.drive_id, self.node_id, "data", 0)


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[tuple[Process, Peers, RemoteDrive]]:
    node = Process(folder)
    node.start()
    peers = Peers(random_id(), SECRET, times=QUICK)
    peers.update([node_row(node.node_id, node.address)])
    await peers.settled(5)
    try:
        yield node, peers, peers.drive(node.drive)
    finally:
        await peers.close()
        node.kill()


async def fails(work: Awaitable[Any], error: type[Exception], within_s: float) -> None:
    started = monotonic()
    with pytest.raises(error) as caught:
        await work
    assert type(caught.value) is error
    assert monotonic() - started < within_s


@on_loop
async def test_a_node_that_is_frozen_costs_its_bound_once(tmp_path: Path) -> None:
    async with process(tmp_path) as (node, peers, drive):
        header = make_header(200_000)
        await store(drive, header, make_frames(header))
        large = make_header(32 * MIB)
        shard = await drive.create(large)
        node.signal(signal.SIGSTOP)
        bound_s = QUICK.stalled_s + QUICK.ping_s + BUSY_S
        new = make_header(4096)

        async def write_on() -> None:
            while True:
                await shard.write(bytes(MIB))

        await asyncio.gather(
            fails(drive.put(new, make_frames(new), make_footer()), DriveStalled, bound_s),
            fails(drive.open(header.blob.blob_id, 0), DriveStalled, bound_s),
            fails(drive.remove(random_id(), 0), DriveStalled, bound_s),
            fails(drive.create(make_header(MIB)), DriveStalled, bound_s),
            fails(drive.partitions(), DriveStalled, bound_s),
            fails(anext(drive.scan()), DriveStalled, bound_s),
            fails(write_on(), DriveStalled, bound_s),
        )
        assert (drive.readable, drive.writable, peers.reachable(node.node_id)) == (False, False, False)
        started = monotonic()
        for _ in range(100):  # afterwards nothing
            with pytest.raises(DriveStalled):
                await drive.put(new, make_frames(new), make_footer())
            with pytest.raises(DriveStalled):
                await drive.create(make_header(MIB))
        assert monotonic() - started < 0.5
        with pytest.raises(DriveStalled):
            await shard.write(b"x")
        await shard.abort()
        assert drive.peer.streams == 0
        node.signal(signal.SIGCONT)
        await until(lambda: drive.readable and drive.writable)
        assert len(await payload(drive, header)) == header.blob.geometry.shard_bytes
        await store(drive, new, make_frames(new))
        await until(lambda: not list((tmp_path / "drive" / "tmp").iterdir()))


@on_loop
async def test_a_node_that_dies_is_known_at_once(tmp_path: Path) -> None:
    async with process(tmp_path) as (node, peers, drive):
        header = make_header(200_000)
        frames = make_frames(header)
        await store(drive, header, frames)
        shard = await drive.create(make_header(8 * MIB))
        await shard.write(bytes(MIB))
        port = node.port
        node.kill()
        await fails(drive.open(header.blob.blob_id, 0), DriveFailed, BUSY_S)
        await until(lambda: not peers.reachable(node.node_id))
        assert not drive.readable and not drive.writable
        await fails(drive.put(header, frames, make_footer()), DriveFailed, 0.1)
        with pytest.raises(Unavailable):
            for _ in range(7):
                await shard.write(bytes(MIB))
        node.start(port)  # back where it was
        await until(lambda: drive.readable)
        assert await payload(drive, header) == frames
        node.kill()
        await until(lambda: not drive.readable)
        node.start()  # back elsewhere
        assert node.port != port
        peers.update([node_row(node.node_id, node.address)])
        await until(lambda: drive.readable)
        assert peers.drive(node.drive) is drive
        assert await payload(drive, header) == frames


@on_loop
async def test_another_node_at_the_same_address_is_not_taken_for_it(tmp_path: Path) -> None:
    """What is signed for one node is refused by another: no answer of a stranger counts."""
    async with process(tmp_path) as (node, peers, drive):
        node.kill()
        other = Process(tmp_path / "other")
        other.start(node.port)
        try:
            await until(lambda: not peers.reachable(node.node_id))
            await asyncio.sleep(3 * QUICK.ping_s)
            assert not drive.readable
        finally:
            other.kill()
            node.start()


@on_loop
async def test_a_server_that_accepts_and_says_nothing() -> None:
    connections: list[asyncio.StreamWriter] = []

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        await reader.read()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    node_id = random_id()
    peers = Peers(random_id(), SECRET, times=QUICK)
    started = monotonic()
    peers.update([node_row(node_id, f"127.0.0.1:{port}")])
    await peers.settled(10)
    assert monotonic() - started < 2 * QUICK.stalled_s + BUSY_S
    drive = peers.drive(ClusterDrive(b"d" * 16, node_id, "data", 0))
    assert not drive.readable and not peers.reachable(node_id)
    await fails(drive.open(random_id(), 0), DriveFailed, 0.1)
    await peers.close()
    server.close()
    for writer in connections:
        writer.close()


@on_loop
async def test_nobody_listens() -> None:
    node_id = random_id()
    peers = Peers(random_id(), SECRET, times=QUICK)
    peers.update([node_row(node_id, "127.0.0.1:1"), node_row(random_id(), "")])
    started = monotonic()
    await peers.settled(10)
    assert monotonic() - started < BUSY_S
    drive = peers.drive(ClusterDrive(b"d" * 16, node_id, "data", 0))
    await fails(drive.open(random_id(), 0), DriveFailed, 0.1)
    await peers.close()


@on_loop
async def test_the_environment_s_proxy_is_not_asked(tmp_path: Path) -> None:
    os.environ["HTTP_PROXY"] = os.environ["GRPC_PROXY"] = "http://127.0.0.1:1"
    try:
        async with process(tmp_path) as (_, _, drive):
            assert drive.readable
    finally:
        del os.environ["HTTP_PROXY"], os.environ["GRPC_PROXY"]
