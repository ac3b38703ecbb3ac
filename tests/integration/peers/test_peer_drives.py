"""Drives of another node, over real sockets: what is coalesced, what is bounded, whom a slow or failing drive concerns."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from anvil.base.errors import (
    AnvilError,
    BadRecord,
    DriveFailed,
    DriveStalled,
    SlowDown,
    StorageFull,
    Unavailable,
)
from anvil.base.ids import random_id
from anvil.base.limits import KIB, MIB, PEER_MESSAGE_BYTES, PEER_QUEUE_OPS_MAX, PEER_STREAMS_MAX, SEGMENT_SHARD_BYTES_MAX
from anvil.model.cluster import ClusterDrive, NodeState
from anvil.model.scheme import Scheme
from anvil.peers.directory import Peers
from anvil.peers.peer import PeerTimes
from anvil.peers.remote import RemoteDrive
from tests.contract.memory_drive import MemoryDrive
from tests.contract.shard_samples import make_footer, make_frames, make_header
from tests.contract.test_drive import local, payload, store
from tests.integration.net.net_harness import on_loop, until
from tests.support.peers import QUICK, SECRET, peers_of, served


class Gate:
    """A drive's `faults.delay`: the named operations wait until it is opened."""

    def __init__(self, *operations: str) -> None:
        self.operations = operations
        self.open = asyncio.Event()
        self.waiting = 0

    async def __call__(self, operation: str) -> None:
        if operation in self.operations:
            self.waiting += 1
            await self.open.wait()
            self.waiting -= 1


@on_loop
async def test_what_queues_up_goes_together() -> None:
    """One lone operation goes at once; what comes while it is under way shares the next messages."""
    drive = MemoryDrive(b"d" * 16)
    calls: Counter[str] = Counter()
    async with served([drive]) as node:
        peers = Peers(random_id(), SECRET, observe=lambda rpc, seconds, reason: calls.update([rpc + reason]))
        peers.update([node.row])
        await peers.settled(5)
        remote = peers.drive(node.row_of(drive))
        headers = [make_header(4096) for _ in range(500)]
        await asyncio.gather(*(remote.put(header, make_frames(header), make_footer()) for header in headers))
        assert calls["Batch"] <= 4, calls
        assert len(drive.shards) == 500
        await peers.close()


@on_loop
async def test_a_peer_that_is_needed_for_nothing_is_asked_seldom() -> None:
    drive, calls = MemoryDrive(b"d" * 16), Counter[str]()
    async with served([drive]) as node:
        times = PeerTimes(ping_s=0.01, idle_s=60.0)
        peers = Peers(random_id(), SECRET, observe=lambda rpc, seconds, reason: calls.update([rpc]), times=times)
        peers.update([node.row])
        await peers.settled(5)
        await asyncio.sleep(0.2)
        assert calls["Ping"] == 1
        drive.read_only = True
        await peers.drive(node.row_of(drive)).open(random_id(), 0)
        await until(lambda: calls["Ping"] >= 5)
        assert not peers.drive(node.row_of(drive)).writable, "what may be old by now is asked at once"
        await peers.close()


@on_loop
async def test_a_drive_that_hangs_holds_up_no_other() -> None:
    """Nor is its node taken for one that does not answer, as long as it answers anything."""
    hung, well = MemoryDrive(b"h" * 16), MemoryDrive(b"w" * 16)
    gate = hung.faults.delay = Gate("put", "open", "read", "remove", "create")
    async with served([hung, well]) as node, peers_of([node], times=QUICK) as peers:
        slow, quick = peers.drive(node.row_of(hung)), peers.drive(node.row_of(well))
        header = make_header(4096)
        waiting = [asyncio.ensure_future(slow.put(header, make_frames(header), make_footer())) for _ in range(8)]
        waiting += [asyncio.ensure_future(slow.open(header.blob.blob_id, 0)) for _ in range(8)]
        await until(lambda: gate.waiting >= 4)
        end = asyncio.get_running_loop().time() + 3 * QUICK.stalled_s
        while asyncio.get_running_loop().time() < end:
            other = make_header(5000)
            frames = make_frames(other)
            async with asyncio.timeout(QUICK.stalled_s):
                await store(quick, other, frames)
                assert await payload(quick, other) == frames
        assert peers.reachable(node.node_id) and slow.readable
        gate.open.set()
        await asyncio.gather(*waiting)


@on_loop
async def test_patience_is_kept_on_both_sides() -> None:
    drive = MemoryDrive(b"d" * 16)
    gate = drive.faults.delay = Gate("open")
    async with served([drive]) as node, peers_of([node]) as peers:
        remote = peers.drive(node.row_of(drive))
        with pytest.raises(DriveStalled) as caught:
            async with asyncio.timeout(2):
                await remote.open(os.urandom(16), 0, 0.1)
        assert caught.value.fields["drive"] == remote.label
        await until(lambda: gate.waiting == 1)  # the drive itself was told how long, and gives up too
        gate.open.set()
        assert await remote.open(os.urandom(16), 0, 5.0) is None


@pytest.mark.parametrize(
    "error", [StorageFull(), DriveFailed(), DriveStalled(), SlowDown(), Unavailable("held"), BadRecord("bad")]
)
def test_errors_of_the_drive_are_raised_here(error: AnvilError) -> None:
    @on_loop
    async def check() -> None:
        drive = MemoryDrive(b"d" * 16)
        async with served([drive]) as node, peers_of([node]) as peers:
            remote = peers.drive(node.row_of(drive))
            small, large = make_header(4096), make_header(2 * MIB)
            for name in ("put", "open", "remove", "create"):
                setattr(drive.faults, name, error)
            with pytest.raises(type(error)) as caught:
                await remote.put(small, make_frames(small), make_footer())
            assert type(caught.value) is type(error)
            for work in (remote.open(os.urandom(16), 0), remote.remove(os.urandom(16), 0), remote.create(large)):
                with pytest.raises(type(error)):
                    await work
            drive.faults.create = None
            drive.faults.write = error
            shard = await remote.create(large)
            with pytest.raises(type(error)):
                for _ in range(100):  # what was sent is on its way: the answer comes with a later piece, or at the end
                    await shard.write(bytes(20_000))
                    await asyncio.sleep(0.01)
            with pytest.raises(type(error)):
                await shard.publish(make_footer()) if shard._left == 0 else await shard.write(b"x")
            await shard.abort()
            drive.faults.write, drive.faults.publish = None, error
            shard = await remote.create(large)
            await shard.write(make_frames(large))
            with pytest.raises(type(error)):
                await shard.publish(make_footer())
            assert drive.shards == {}
            assert remote.peer.streams == 0

    check()


@on_loop
async def test_a_drive_that_the_node_does_not_have() -> None:
    drive = MemoryDrive(b"d" * 16)
    async with served([drive]) as node, peers_of([node]) as peers:
        other = peers.drive(ClusterDrive(b"x" * 16, node.node_id, "other", 0))
        assert not other.readable and not other.writable and other.reason
        header = make_header(4096)
        works: list[Any] = [
            other.put(header, make_frames(header), make_footer()),
            other.open(header.blob.blob_id, 0),
            other.remove(header.blob.blob_id, 0),
            other.create(make_header(2 * MIB)),
            other.partitions(),
            anext(other.scan()),
        ]
        for work in works:
            with pytest.raises(DriveFailed):
                await work


@on_loop
async def test_the_state_of_a_drive_is_that_at_its_node() -> None:
    drive = MemoryDrive(b"d" * 16)
    async with served([drive]) as node, peers_of([node], times=QUICK) as peers:
        remote = peers.drive(node.row_of(drive))
        assert (remote.readable, remote.writable, remote.local) == (True, True, False)
        drive.read_only = True
        await until(lambda: not remote.writable)
        assert remote.readable
        drive.away = True
        await until(lambda: not remote.readable)
        drive.away = drive.read_only = False
        await until(lambda: remote.readable and remote.writable)


@on_loop
async def test_drives_and_nodes_are_known_as_long_as_they_are_there() -> None:
    one, two = MemoryDrive(b"1" * 16), MemoryDrive(b"2" * 16)
    async with served([one]) as first, served([two]) as second, peers_of([first, second]) as peers:
        drive = peers.drive(first.row_of(one))
        assert peers.drive(first.row_of(one)) is drive
        moved = ClusterDrive(two.drive_id, first.node_id, "was there", 0)
        carried = peers.drive(moved)
        assert not carried.readable
        assert peers.drive(second.row_of(two)) is carried and carried.readable
        assert set(peers.last_seen) == {first.node_id, second.node_id}
        removed = type(first.row)(first.node_id, "", "", first.address, NodeState.REMOVED)
        peers.update([removed, second.row])
        assert not peers.reachable(first.node_id) and peers.reachable(second.node_id)
        with pytest.raises(Unavailable):
            await drive.open(os.urandom(16), 0)


@on_loop
async def test_a_shard_that_moved_is_found_again(tmp_path: Path) -> None:
    """A place names the shard: compaction, or a repair, may have put it elsewhere since."""
    async with local(tmp_path) as drive, served([drive]) as node, peers_of([node]) as peers:
        remote = peers.drive(node.row_of(drive))
        header = make_header(200_000)
        frames = make_frames(header)
        await remote.put(header, frames, make_footer())
        place = await remote.open(header.blob.blob_id, 0)
        assert place is not None
        await drive.remove(header.blob.blob_id, 0)
        view = memoryview(bytearray(len(frames)))
        assert await remote.read(place, 0, view) == 0
        with pytest.raises(BadRecord):
            await remote.verify(place)
        await drive.put(header, frames, make_footer())
        assert await remote.read(place, 0, view) == len(frames) and view == frames
        assert await remote.verify(place) == make_footer()


@on_loop
async def test_a_small_shard_comes_with_its_opening() -> None:
    drive = MemoryDrive(b"d" * 16)
    async with served([drive]) as node, peers_of([node]) as peers:
        remote = peers.drive(node.row_of(drive))
        headers = [make_header(60 * KIB) for _ in range(100)]
        for header in headers:
            await remote.put(header, make_frames(header), make_footer())
        places = await asyncio.gather(*(remote.open(header.blob.blob_id, 0) for header in headers))
        whole = drive.faults.calls.count("read")
        assert 0 < whole <= 100
        for header, place in zip(headers, places, strict=True):
            assert place is not None
            view = memoryview(bytearray(header.blob.geometry.shard_bytes))
            assert await remote.read(place, 0, view) == len(view)
            assert view == drive.shards[header.blob.blob_id, 0].payload


@on_loop
async def test_a_buffer_is_not_looked_at_after_the_call() -> None:
    """Whoever gave up may use it for something else."""
    drive = MemoryDrive(b"d" * 16)
    gate = drive.faults.delay = Gate("put", "read")
    async with served([drive]) as node, peers_of([node]) as peers:
        remote = peers.drive(node.row_of(drive))
        header = make_header(4096)
        frames = bytearray(make_frames(header))
        kept = bytes(frames)
        put = asyncio.ensure_future(remote.put(header, frames, make_footer()))
        await until(lambda: gate.waiting == 1)
        put.cancel()
        frames[:] = bytes(len(frames))
        gate.open.set()
        await until(lambda: bool(drive.shards))
        assert drive.shards[header.blob.blob_id, 0].payload == kept
        large = make_header(300_000)
        gate.open.clear()
        shard = await remote.create(large)
        content = make_frames(large)
        await shard.write(content)
        await shard.publish(make_footer())
        place = await remote.open(large.blob.blob_id, 0)
        assert place is not None
        view = memoryview(bytearray(len(content)))
        read = asyncio.ensure_future(remote.read(place, 0, view))
        await until(lambda: gate.waiting == 1)
        read.cancel()
        await asyncio.wait([read])
        gate.open.set()
        assert await payload(remote, large) == content
        assert view == bytes(len(content)), "nothing was put there"


@on_loop
async def test_a_queue_that_is_full_says_so() -> None:
    drive = MemoryDrive(b"d" * 16)
    gate = drive.faults.delay = Gate("open")
    async with served([drive]) as node, peers_of([node]) as peers:
        remote = peers.drive(node.row_of(drive))
        asked = [asyncio.ensure_future(remote.open(random_id(), 0)) for _ in range(PEER_QUEUE_OPS_MAX + 1024)]
        await until(lambda: any(one.done() for one in asked))
        refused = [one for one in asked if one.done()]
        assert all(isinstance(one.exception(), SlowDown) for one in refused)
        gate.open.set()
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert sum(answer is None for answer in answers) >= PEER_QUEUE_OPS_MAX


@on_loop
async def test_streams_are_counted() -> None:
    drive = MemoryDrive(b"d" * 16)
    async with served([drive]) as node, peers_of([node]) as peers:
        remote = peers.drive(node.row_of(drive))
        shards = await asyncio.gather(*(remote.create(make_header(MIB)) for _ in range(PEER_STREAMS_MAX)))
        with pytest.raises(SlowDown):
            await remote.create(make_header(MIB))
        header = make_header(4096)
        await remote.put(header, make_frames(header), make_footer())  # small ones go on
        assert await payload(remote, header)
        await asyncio.gather(*(shard.abort() for shard in shards))
        assert remote.peer.streams == 0
        await until(lambda: node.server.stats.requests_in_flight == 0)
        await (await remote.create(make_header(MIB))).abort()


@on_loop
async def test_a_slow_drive_slows_its_writer_down() -> None:
    """What was sent and not written is bounded by windows and one message, however much there is to send."""
    drive = MemoryDrive(b"d" * 16)
    async with served([drive]) as node, peers_of([node]) as peers:
        remote = peers.drive(node.row_of(drive))
        header = make_header(64 * MIB, scheme=Scheme(1, 0))
        frames = make_frames(header)
        gate = drive.faults.delay = Gate("write")
        shard = await remote.create(header)
        sent = 0

        async def write() -> None:
            nonlocal sent
            for start in range(0, len(frames), MIB):
                await shard.write(frames[start : start + MIB])
                sent += MIB

        writing = asyncio.ensure_future(write())
        await until(lambda: gate.waiting == 1)
        quiet = 0
        while quiet < 20:  # until nothing moves any more
            before = sent
            await asyncio.sleep(0.02)
            quiet = quiet + 1 if sent == before else 0
        assert sent < 16 * MIB
        assert node.buffers.used < 4 * PEER_MESSAGE_BYTES
        gate.open.set()
        await writing
        await shard.publish(make_footer())
        assert drive.shards[header.blob.blob_id, 0].payload == frames
        await until(lambda: node.buffers.used == 0)


@on_loop
async def test_many_large_shards_at_once(tmp_path: Path) -> None:
    async with local(tmp_path) as drive, served([drive]) as node, peers_of([node]) as peers:
        remote = peers.drive(node.row_of(drive))
        headers = [make_header(2 * MIB + number, scheme=Scheme(2, 1)) for number in range(100)]
        contents = [make_frames(header) for header in headers]
        most = 0

        async def watch() -> None:
            nonlocal most
            while True:
                most = max(most, node.buffers.used)
                await asyncio.sleep(0.001)

        watching = asyncio.ensure_future(watch())
        await asyncio.gather(*(store(remote, h, c, SEGMENT_SHARD_BYTES_MAX) for h, c in zip(headers, contents, strict=True)))
        watching.cancel()
        assert most <= 100 * 3 * (SEGMENT_SHARD_BYTES_MAX + 32 * KIB)
        for header, frames in zip(headers, contents, strict=True):
            assert await payload(remote, header) == frames
        assert {place.header.blob.blob_id async for place in remote.scan()} == {header.blob.blob_id for header in headers}
        await until(lambda: node.buffers.used == 0)


@on_loop
async def test_a_writer_that_goes_away_leaves_nothing(tmp_path: Path) -> None:
    async with local(tmp_path) as drive, served([drive]) as node:
        async with peers_of([node]) as peers:
            remote: RemoteDrive = peers.drive(node.row_of(drive))
            header = make_header(8 * MIB)
            shard = await remote.create(header)
            await shard.write(make_frames(header)[: 2 * MIB])
            begun = list((tmp_path / "drive" / "tmp").iterdir())
            assert len(begun) == 1
        await until(lambda: not list((tmp_path / "drive" / "tmp").iterdir()))
        await until(lambda: node.buffers.used == 0 and node.server.stats.requests_in_flight == 0)
        with pytest.raises(Unavailable):
            await shard.write(b"x")


@on_loop
async def test_large_scans_come_in_pieces() -> None:
    drive = MemoryDrive(b"d" * 16)
    async with served([drive]) as node, peers_of([node]) as peers:
        remote = peers.drive(node.row_of(drive))
        headers = [make_header(100, blob_id=bytes((n >> 8, n & 255)) * 8) for n in range(1000)]
        for header in headers:
            await drive.put(header, make_frames(header), make_footer())
        drive.damage_header(headers[7].blob.blob_id, 0)
        found = [place async for place in remote.scan()]
        assert [place.header.blob.blob_id for place in found] == [header.blob.blob_id for header in headers]
        assert [number for number, place in enumerate(found) if place.damaged] == [7]
        assert await remote.partitions() == await drive.partitions()
        assert len([place async for place in remote.scan((0,))]) == 16
        walk = remote.scan()
        await anext(walk)
        await walk.aclose()
        assert remote.peer.streams == 0
        await until(lambda: node.server.stats.requests_in_flight == 0)
