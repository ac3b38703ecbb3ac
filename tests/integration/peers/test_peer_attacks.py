"""The cluster port, met by those who do not know the secret, or have overheard those who do."""

from __future__ import annotations

import asyncio
import logging
import os
from base64 import b64encode

import pytest

from anvil.base import instruments
from anvil.base.errors import SlowDown
from anvil.base.ids import random_id
from anvil.base.limits import GRPC_MESSAGE_BYTES_MAX, MIB, PEER_BATCH_OPS_MAX, PEER_REMOVAL_S
from anvil.peers import service
from anvil.peers.directory import Peers
from anvil.peers.documents import document, encode_plain, seal
from anvil.peers.proto import shards_pb2 as pb
from anvil.peers.sealing import Call, Keys, Kind
from anvil.peers.service import SERVICE, Removals
from tests.contract.memory_drive import MemoryDrive
from tests.contract.shard_samples import make_footer, make_frames, make_header
from tests.integration.net.net_harness import on_loop, until
from tests.support.h2client import Exchange, H2Client
from tests.support.peers import QUICK, SECRET, ServedNode, node_row, peers_of, served

HEAD = (("content-type", "application/grpc"), ("te", "trailers"))
METHODS = ("Ping", "Batch", "PutShard", "ReadShard", "Scan", "Partitions")
UNAUTHENTICATED, INVALID_ARGUMENT = "16", "3"


def framed(message: bytes) -> bytes:
    return b"\0" + len(message).to_bytes(4, "big") + message


def head(call: Call) -> tuple[tuple[str, str], ...]:
    return (*HEAD, ("anvil-call-bin", b64encode(call.head).decode().rstrip("=")))


async def client(node: ServedNode) -> H2Client:
    host, port = node.server.addresses[0]
    return await H2Client.connect(host, port)


def status(answer: Exchange) -> str:
    return str({**answer.headers, **answer.trailers}["grpc-status"])


def refused() -> float:
    return sum(child.value for child in instruments.PEER_REFUSED.children.values())


@on_loop
async def test_nobody_is_served_without_proof() -> None:
    drive = MemoryDrive(b"d" * 16)
    stranger = Keys(random_id(), "a guess at the secret of the cluster......")
    async with served([drive]) as node:
        before, asked = refused(), await client(node)
        for method in METHODS:
            path = f"/{SERVICE}/{method}"
            for fields in (HEAD, (*HEAD, ("anvil-call-bin", "AAAA")), head(stranger.call(path, node.node_id))):
                answer = await asked.ask("POST", path, fields, framed(b"\x0a\x00"))
                assert status(answer) == UNAUTHENTICATED
                assert answer.body == b""
        assert refused() == before + 3 * len(METHODS)
        assert drive.faults.calls == []
        asked.close()


@on_loop
async def test_a_flood_of_strangers_costs_no_memory_and_keeps_nobody_out() -> None:
    """A call is refused by its head: that it announces 4 MiB, and sends them, is of no interest."""
    drive = MemoryDrive(b"d" * 16)
    async with served([drive]) as node, peers_of([node]) as peers:
        remote = peers.drive(node.row_of(drive))
        before = refused()

        async def flood() -> None:
            asked = await client(node)
            for _ in range(50):
                stream = asked.begin("POST", f"/{SERVICE}/PutShard", HEAD, end=False)
                await asked.send(stream, b"\0" + GRPC_MESSAGE_BYTES_MAX.to_bytes(4, "big") + bytes(20_000), end=False)
                assert status(await asked.answer(stream)) == UNAUTHENTICATED
            asked.close()

        floods = [asyncio.ensure_future(flood()) for _ in range(10)]
        for _ in range(20):
            header = make_header(4096)
            async with asyncio.timeout(2):
                await remote.put(header, make_frames(header), make_footer())
        await asyncio.gather(*floods)
        assert refused() == before + 500
        assert node.buffers.used == 0


@on_loop
async def test_what_was_overheard_is_of_no_use_elsewhere() -> None:
    """A removal, byte for byte: to another node, as another method, altered, cut, with another's messages."""
    one, two = MemoryDrive(b"d" * 16), MemoryDrive(b"d" * 16)
    keys = Keys(random_id(), SECRET)
    header = make_header(4096)
    frames = make_frames(header)
    for drive in (one, two):
        await drive.put(header, frames, make_footer())
    path = f"/{SERVICE}/Batch"
    async with served([one]) as first, served([two]) as second:
        call = keys.call(path, first.node_id)
        op = pb.Op(kind=pb.Op.REMOVE, blob_id=header.blob.blob_id, index=0, superseded=True)
        request = pb.BatchRequest(drive_id=b"d" * 16, ops=[op])
        message = framed(seal(call.sealer, Kind.LAST, *document(request)))
        there = await client(second)
        assert status(await there.ask("POST", path, head(call), message)) == UNAUTHENTICATED
        here = await client(first)
        for method in METHODS:
            if method != "Batch":
                assert status(await here.ask("POST", f"/{SERVICE}/{method}", head(call), message)) == UNAUTHENTICATED
        for position in range(5, len(message), 7):
            altered = bytearray(message)
            altered[position] ^= 4
            assert status(await here.ask("POST", path, head(call), bytes(altered))) == UNAUTHENTICATED
        assert status(await here.ask("POST", path, head(keys.call(path, first.node_id)), message)) == UNAUTHENTICATED
        assert status(await here.ask("POST", path, head(call), message[:-1])) == INVALID_ARGUMENT
        assert one.shards and two.shards
        assert status(await here.ask("POST", path, head(call), message)) == "0"
        assert not one.shards and two.shards
        for asked in (here, there):
            asked.close()


@on_loop
async def test_a_removal_that_comes_late_or_to_who_must_not_is_refused() -> None:
    """What was a second copy when it was sent may be the only one."""
    drive, keys, path = MemoryDrive(b"d" * 16), Keys(random_id(), SECRET), f"/{SERVICE}/Batch"
    header = make_header(4096)
    await drive.put(header, make_frames(header), make_footer())
    now, leased, held = [1000.0], [True], [False]
    removals = Removals(lambda: leased[0], lambda: held[0])
    async with served([drive], removals=removals, now_s=lambda: now[0]) as node:
        asked = await client(node)

        def removal(superseded: bool = False) -> tuple[Call, bytes]:
            call = keys.call(path, node.node_id)
            op = pb.Op(kind=pb.Op.REMOVE, blob_id=header.blob.blob_id, index=0, superseded=superseded)
            return call, framed(seal(call.sealer, Kind.LAST, *document(pb.BatchRequest(drive_id=b"d" * 16, ops=[op]))))

        ping = keys.call(f"/{SERVICE}/Ping", node.node_id)
        message = framed(seal(ping.sealer, Kind.LAST, *document(pb.PingRequest())))
        assert status(await asked.ask("POST", f"/{SERVICE}/Ping", head(ping), message)) == "0"
        call, message = removal()
        now[0] += PEER_REMOVAL_S + 1
        assert status(await asked.ask("POST", path, head(call), message)) == "0"
        assert drive.shards, "too long on its way"
        now[0] = 1000.0
        leased[0] = False
        call, message = removal(superseded=True)
        assert status(await asked.ask("POST", path, head(call), message)) == "0"
        assert drive.shards, "the lease is over"
        leased[0], held[0] = True, True
        call, message = removal()
        assert status(await asked.ask("POST", path, head(call), message)) == "0"
        assert drive.shards, "removals are held"
        call, message = removal(superseded=True)
        assert status(await asked.ask("POST", path, head(call), message)) == "0"
        assert not drive.shards, "what has a successor is not"
        asked.close()


@on_loop
async def test_a_large_shard_that_is_cut_off_is_not_published() -> None:
    drive = MemoryDrive(b"d" * 16)
    keys = Keys(random_id(), SECRET)
    path = f"/{SERVICE}/PutShard"
    header = make_header(2 * MIB)
    frames = make_frames(header)

    def messages(call: Call) -> list[bytes]:
        begin = pb.PutShardRequest(drive_id=drive.drive_id, header=encode_plain(header))
        pieces = [frames[start : start + MIB] for start in range(0, len(frames), MIB)]
        sealed = [seal(call.sealer, Kind.DOCUMENT, *document(begin))]
        sealed += [seal(call.sealer, Kind.FRAMES, piece) for piece in pieces]
        sealed.append(seal(call.sealer, Kind.LAST, *document(pb.Footer(footer=encode_plain(make_footer())))))
        return [framed(one) for one in sealed]

    async with served([drive]) as node:
        asked = await client(node)
        for left_out in range(5):
            call = keys.call(path, node.node_id)
            sent = messages(call)
            assert len(sent) == 5
            del sent[left_out]
            answer = await asked.ask("POST", path, head(call), b"".join(sent))
            assert status(answer) != "0"
        call = keys.call(path, node.node_id)
        first, second, third, *rest = messages(call)
        assert status(await asked.ask("POST", path, head(call), b"".join((first, third, second, *rest)))) == UNAUTHENTICATED
        assert drive.shards == {}
        call = keys.call(path, node.node_id)
        assert status(await asked.ask("POST", path, head(call), b"".join(messages(call)))) == "0"
        assert drive.shards[header.blob.blob_id, 0].payload == frames
        await until(lambda: node.buffers.used == 0)
        asked.close()


@on_loop
async def test_requests_beyond_all_bounds() -> None:
    """Also one who knows the secret gets no more than what is allowed."""
    drive = MemoryDrive(b"d" * 16)
    keys = Keys(random_id(), SECRET)
    path = f"/{SERVICE}/Batch"
    async with served([drive]) as node:
        asked = await client(node)

        async def answer_to(request: pb.BatchRequest, *data: bytes) -> Exchange:
            call = keys.call(path, node.node_id)
            return await asked.ask("POST", path, head(call), framed(seal(call.sealer, Kind.LAST, *document(request, *data))))

        read = pb.Op(kind=pb.Op.READ, blob_id=bytes(16), length=300_000)
        huge = pb.Op(kind=pb.Op.READ, blob_id=bytes(16), length=1 << 30)
        look = pb.Op(kind=pb.Op.OPEN, blob_id=bytes(16))
        put = pb.Op(kind=pb.Op.PUT, length=100)
        for ops, data in (([read] * 20, b""), ([huge], b""), ([look] * (PEER_BATCH_OPS_MAX + 1), b""), ([put], b"short")):
            answer = await answer_to(pb.BatchRequest(drive_id=drive.drive_id, ops=ops), data)
            assert status(answer) == "0" and b"InvalidRequest" in answer.body
        odd = [
            pb.Op(kind=pb.Op.OPEN, blob_id=b"short", index=1),
            pb.Op(kind=99, blob_id=bytes(16)),
            pb.Op(kind=pb.Op.PUT, header=b"garbage", footer=b"garbage"),
            look,
        ]
        answer = await answer_to(pb.BatchRequest(drive_id=drive.drive_id, ops=odd))
        assert status(answer) == "0"
        call = keys.call(path, node.node_id)
        message = b"\0" + (GRPC_MESSAGE_BYTES_MAX + 1).to_bytes(4, "big")
        assert status(await asked.ask("POST", path, head(call), message)) == INVALID_ARGUMENT
        call = keys.call(path, node.node_id)
        garbage = framed(seal(call.sealer, Kind.LAST, b"\xff\xff\xff\xff", os.urandom(100)))
        assert status(await asked.ask("POST", path, head(call), garbage)) == INVALID_ARGUMENT
        assert "put" not in drive.faults.calls
        asked.close()


@on_loop
async def test_a_node_that_fell_silent_has_its_shard_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """No connection of a machine that lost its power says that it is over."""
    monkeypatch.setattr(service, "PEER_LOST_S", 0.3)
    drive = MemoryDrive(b"d" * 16)
    keys = Keys(random_id(), SECRET)
    path = f"/{SERVICE}/PutShard"
    async with served([drive]) as node, peers_of([node], times=QUICK) as peers:
        live = await peers.drive(node.row_of(drive)).create(make_header(2 * MIB))  # this one's node is heard of, and goes on
        asked = await client(node)
        call = keys.call(path, node.node_id)
        begin = pb.PutShardRequest(drive_id=drive.drive_id, header=encode_plain(make_header(2 * MIB)))
        stream = asked.begin("POST", path, head(call), end=False)
        await asked.send(stream, framed(seal(call.sealer, Kind.DOCUMENT, *document(begin))), end=False)
        answer = await asked.answer(stream)
        assert answer.reset is not None
        await asyncio.sleep(0.5)
        await live.write(bytes(MIB))
        await live.abort()
        asked.close()


@on_loop
async def test_a_node_that_asks_too_much_is_told_so_and_still_sees_how_the_drives_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "PEER_CALLS_PER_NODE_MAX", 2)
    drive = MemoryDrive(b"d" * 16)
    async with served([drive]) as node, peers_of([node], times=QUICK) as peers:
        remote = peers.drive(node.row_of(drive))
        held = [await remote.create(make_header(2 * MIB)) for _ in range(2)]
        with pytest.raises(SlowDown):
            await remote.create(make_header(2 * MIB))
        with pytest.raises(SlowDown):
            await remote.open(random_id(), 0)
        seen = peers.last_seen[node.node_id]
        await until(lambda: peers.last_seen[node.node_id] > seen + 2 * QUICK.ping_s)
        assert remote.readable and remote.writable
        await held[0].abort()
        await until(lambda: node.server.stats.requests_in_flight == 1)
        assert await remote.open(random_id(), 0) is None
        await held[1].abort()


@on_loop
async def test_only_the_service_is_there() -> None:
    async with served([]) as node:
        asked = await client(node)
        answer = await asked.ask("POST", "/anvil.v1.ObjectService/GetObject", HEAD, framed(b""))
        assert status(answer) == "12"
        answer = await asked.ask("GET", "/", ())
        assert answer.status == 404
        asked.close()


def test_nothing_is_said_of_the_secret(caplog: pytest.LogCaptureFixture) -> None:
    @on_loop
    async def check() -> None:
        other = "another secret, of another cluster, or a typing error"
        async with served([MemoryDrive(b"d" * 16)]) as node:
            peers = Peers(random_id(), other)
            peers.update([node_row(node.node_id, node.address)])
            await peers.settled(5)
            assert not peers.reachable(node.node_id)
            await peers.close()
        assert "another cluster secret, or its clock differs" in caplog.text
        assert SECRET not in caplog.text and other not in caplog.text

    with caplog.at_level(logging.DEBUG):
        check()
