"""The paths that are counted, each from bytes in to bytes out, without a disk, a database or another process.

Owns: what is run. Invariants: the same input every time, nothing random, nothing that depends on the time of day but the header Date.
Not here: counting (`__main__`), what is too much (`bench/gates.toml`).
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path as FilePath

from anvil._ec import digest
from anvil._ec.codec import Codec
from anvil._ec.digest import DigestLanes, Digests
from anvil._ec.stripe import BlobKey, DecodeJob, EncodeJob
from anvil.api.operations.caller import Services
from anvil.api.s3.app import S3Api
from anvil.auth import sigv4
from anvil.auth.authenticate import Authenticator
from anvil.auth.authorize import Authorizer
from anvil.auth.presign import UNSIGNED_PAYLOAD, sign
from anvil.base.limits import (
    H2_CONNECTION_WINDOW_BYTES,
    H2_FREE_ACTIONS_MAX,
    H2_STREAMS_MAX,
    H2_STREAMS_SHOWN,
    H2_WINDOW_BYTES,
    HEADER_BYTES_MAX,
    HEADER_FIELDS_MAX,
)
from anvil.base.metrics import Registry
from anvil.base.owned import OwnedTasks
from anvil.ec.buffers import Buffers
from anvil.ec.codecs import codec_for
from anvil.ec.executor import JobRunner, NativeExecutor
from anvil.engine.context import Context, Placement
from anvil.engine.engine import Engine
from anvil.engine.session import WriterSession
from anvil.meta.coalesce import Coalescer, Operation, Query
from anvil.model.identity import Bucket
from anvil.model.layout import LayoutDrive, compute
from anvil.model.scheme import CHECKSUM_BYTES, Scheme, unit_len
from anvil.net.server import Server, serve
from anvil.node.payload import open_body
from anvil.shards.drive import LocalDrive
from anvil.shards.index import ShardIndex
from anvil.shards.nativeio import NativeJobs
from anvil.shards.settings import DriveSettings
from anvil.wire.awschunked import ChunkedDecoder
from anvil.wire.awschunked_reference import Signer, encode
from anvil.wire.http1 import parse_head
from anvil.wire.http2 import REQUEST, Session
from bench.micro.sigv4 import APP, NOW, Apps, heads
from tests.contract.memory_metadata import MemoryMetadata
from tests.support.engine import Bytes, Events, new_bucket, plain_spec
from tests.unit.api.fake_engine import FakeEngine
from tests.unit.api.fakes import FakeCatalog

K, M, STRIPE, SMALL = 4, 2, 1 << 20, 4096
MD5_START = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
Call = Callable[[], object]


@dataclass(frozen=True)
class Path:
    """`ready`: gives what is counted, `calls` times. `nbytes`: of data in each call; 0: the call itself is the measure."""

    name: str
    calls: int
    ready: Callable[[], AbstractContextManager[Call]]
    nbytes: int = 0


def plain(call: Call) -> Callable[[], AbstractContextManager[Call]]:
    return lambda: nullcontext(call)


def paths() -> Sequence[Path]:
    return [
        Path("yardstick", 2000, plain(yardstick)),
        Path("HTTP/1.1 request head", 100, plain(partial(parse_head, request_head()))),
        Path("HTTP/2 request and answer", 100, http2),
        Path("authenticate a signed GET", 100, authenticating(0)),
        Path("authenticate a presigned GET", 100, authenticating(1)),
        Path("aws-chunked, a signed chunk of 64 KiB", 10, chunked, 64 << 10),
        Path("S3 GET 4 KiB, from socket to socket", 50, lambda: requests("GET")),
        Path("S3 PUT 4 KiB, from socket to socket", 50, lambda: requests("PUT")),
        Path("engine GET 4 KiB, at hand", 50, lambda: engine(at_hand=True)),
        Path("engine GET 4 KiB, to be waited for", 50, lambda: engine(at_hand=False)),
        Path("64 calls through a coalescer", 20, coalescer),
        Path("count a request", 200, metrics),
        Path("seal and code a stripe, 4+2", 3, encoding, STRIPE),
        Path("verify and open a stripe, 4+2, two shards lost", 3, decoding, STRIPE),
        Path("CRC-64/NVME", 3, plain(partial(digest.crc64nvme, bytes(STRIPE))), STRIPE),
        Path("CRC-32C", 3, plain(partial(digest.crc32c, bytes(STRIPE))), STRIPE),
        Path("MD5, one stream", 3, plain(partial(Digests(["md5"]).update, bytes(STRIPE))), STRIPE),
        Path("MD5, eight streams in lanes", 3, lanes, 8 * (64 << 10)),
    ]


class _Thing:
    __slots__ = ("number", "others")

    def __init__(self, number: int) -> None:
        self.number = number
        self.others: dict[str, int] = {}

    def step(self, name: str) -> int:
        self.others[name] = self.number
        return len(self.others)


def yardstick() -> int:
    """What Python code mostly does: calls, attributes, dictionaries, small allocations, bytes and strings."""
    thing, total = _Thing(7), 0
    for name in ("alpha", "beta", "gamma"):
        total += thing.step(name)
    head, _, rest = b"name: value".partition(b": ")
    total += len(head.lower()) + len(rest.decode())
    return total + sum([total, *thing.others.values()])


def request_head() -> bytes:
    get, _ = heads()
    lines = b"".join(b"%s: %s\r\n" % field for field in get.headers)
    return b"GET %s HTTP/1.1\r\n%s\r\n" % (get.path, lines)


def authenticating(which: int) -> Callable[[], AbstractContextManager[Call]]:
    authenticator, head = Authenticator(Apps(), "us-east-1", (), lambda: NOW), heads()[which]

    def call() -> object:
        try:
            authenticator.authenticate(head).send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("authentication waited")

    return plain(call)


@contextmanager
def chunked() -> Iterator[Call]:
    date, scope, seed = "20261123T181000Z", "20261123/us-east-1/s3/aws4_request", "5" * 64
    key = sigv4.derive_key(APP.secret, b"20261123", b"us-east-1", b"s3")
    body = encode([bytes(64 << 10)], Signer(key, seed, date, scope))
    target = memoryview(bytearray(64 << 10))

    def call() -> None:
        decoder = ChunkedDecoder(64 << 10, signing_key=key, seed_signature=seed, amz_date=date, scope=scope)
        consumed, _ = decoder.decode(body, target)
        decoder.decode(memoryview(body)[consumed:], target[:0])
        assert decoder.finished

    yield call


# -- ports


@contextmanager
def requests(method: str) -> Iterator[Call]:
    """A whole request on a kept connection: the port, authentication, the API, an engine and a catalog in memory, and the answer. The
    client's `send` and `recv` are in it."""
    engine, catalog = FakeEngine(), FakeCatalog()
    engine.at_hand_bytes = SMALL
    catalog.add("bucket", APP.tenant)
    services = Services(engine=engine, catalog=catalog, authorizer=Authorizer(), rights=None, region="us-east-1")  # type: ignore[arg-type]
    api = S3Api(services, open_body, Authenticator(Apps(), "us-east-1", (), lambda: NOW))
    body = bytes(SMALL)
    url = "http://localhost:50051/bucket/some/prefix/2026/object-000123.bin"
    put, get = wire("PUT", url, body), wire("GET", url)
    loop = asyncio.new_event_loop()

    async def ask(client: socket.socket, request: bytes) -> None:
        await loop.sock_sendall(client, request)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await loop.sock_recv(client, 1 << 16)
        head, _, got = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
        while len(got) < length:
            got += await loop.sock_recv(client, 1 << 16)

    async def begin() -> tuple[Server, socket.socket]:
        server = await serve(api, [("127.0.0.1", 0)])
        client = socket.create_connection(server.addresses[0])
        client.setblocking(False)
        await ask(client, put)
        return server, client

    server, client = loop.run_until_complete(begin())
    try:
        yield lambda: loop.run_until_complete(ask(client, put if method == "PUT" else get))
    finally:
        client.close()
        loop.run_until_complete(server.close())
        loop.close()


def wire(method: str, url: str, body: bytes | None = None) -> bytes:
    payload = UNSIGNED_PAYLOAD if body is None else hashlib.sha256(body).hexdigest()
    headers = sign(method, url, None, payload, APP.access_key, APP.secret, "us-east-1", NOW)
    if body is not None:
        headers["content-length"] = str(len(body))
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} /{url.split('/', 3)[3]} HTTP/1.1\r\n{lines}\r\n".encode() + (body or b"")


@contextmanager
def http2() -> Iterator[Call]:
    """A stream of HTTP/2: its HEADERS received, an answer with 4 KiB sent. Fields are never indexed, so that every call is the same."""
    session = Session(
        streams_shown=H2_STREAMS_SHOWN,
        streams_max=H2_STREAMS_MAX,
        window=H2_WINDOW_BYTES,
        connection_window=H2_CONNECTION_WINDOW_BYTES,
        header_bytes_max=HEADER_BYTES_MAX,
        header_fields_max=HEADER_FIELDS_MAX,
        free_actions=H2_FREE_ACTIONS_MAX,
    )
    session.receive(preface())
    block = request_block()
    answer = [(b":status", b"200"), (b"content-length", b"4096"), (b"etag", b'"d41d8cd98f00b204e9800998ecf8427e"')]
    streams, body = count(1, 2), bytes(SMALL)

    def call() -> None:
        session.receive(frame(1, 0x5, next(streams), block))  # END_STREAM, END_HEADERS
        [(_, exchange)] = [event for event in session.take_events() if event[0] == REQUEST]
        session.respond(exchange, answer, True)
        session.push(exchange, body)
        session.end(exchange)
        sent = 0
        while session.queued:
            sent += session.collect(1 << 16)[1]
        session.take_events()
        session.forgive(1.0)
        session.receive(frame(8, 0, 0, SMALL.to_bytes(4, "big")))
        assert sent > SMALL

    yield call


def preface() -> bytes:
    """What a client begins with: SETTINGS and WINDOW_UPDATE that open the windows wide."""
    window = (1 << 30).to_bytes(4, "big")
    return b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b"\0\x04" + window) + frame(8, 0, 0, window)


def request_block() -> bytes:
    get, _ = heads()
    fields = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", get.authority), (b":path", get.path), *get.headers]
    return b"".join(b"\x10" + text(name) + text(value) for name, value in fields if name not in (b"connection", b"host"))


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """RFC 9113, 4.1."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def text(value: bytes) -> bytes:
    """A string literal without Huffman coding (RFC 7541, 5.2)."""
    length = bytes((len(value),)) if len(value) < 127 else b"\x7f" + varint(len(value) - 127)
    return length + value


def varint(number: int) -> bytes:
    found = b""
    while number >= 128:
        found += bytes((number % 128 + 128,))
        number //= 128
    return found + bytes((number,))


# -- below the ports


@contextmanager
def engine(*, at_hand: bool) -> Iterator[Call]:
    """An object of a real drive: found in its index, read from its segment, verified, opened. Metadata is in memory."""
    loop = asyncio.new_event_loop()
    ShardIndex.__init__.__kwdefaults__["map_bytes"] = 64 << 20  # valgrind has no room for the real map

    async def begin(folder: str) -> tuple[Engine, Bucket, Callable[[], Awaitable[None]]]:
        native, lanes = NativeExecutor(loop, 1), JobRunner(loop, DigestLanes(1))
        metadata, bucket, owned = MemoryMetadata(), new_bucket(), OwnedTasks("counted")
        session = WriterSession(metadata, bytes(16), 0)
        drive = await LocalDrive.attach(
            FilePath(folder) / "drive",
            expected=None,
            create=True,
            executor=native,
            jobs=NativeJobs(),
            session=await session.open(),
            settings=DriveSettings(floor_bytes=0),
        )
        placement = Placement([compute([LayoutDrive(drive.drive_id, b"node", 1 << 40)], 1, 0)], {drive.drive_id: drive})
        await metadata.add_bucket(bucket.bucket_id)
        context = Context(
            metadata=metadata,
            placement=lambda: placement,
            scheme=lambda: Scheme(1, 0),
            native=native,
            lanes=lanes,
            buffers=Buffers(loop),
            codecs=codec_for,
            session=session,
            events=Events(),
            owned=owned,
            new_id=lambda: bytes(16),
            now_us=lambda: NOW * 1_000_000,
        )
        made = Engine(context)
        await made.put_object(bucket, "key", Bytes(bytes(SMALL)), plain_spec())

        async def end() -> None:
            await owned.close(10)
            await drive.close()
            await session.close()
            await lanes.close()
            await native.close()

        return made, bucket, end

    async def get(made: Engine, bucket: Bucket, *, at_hand: bool) -> None:
        info = await made.open(bucket, "key")
        if at_hand:
            body = made.at_hand(bucket, info, 0, SMALL)
            assert body is not None and len(body) == SMALL
        else:
            assert sum([len(view) async for view in made.read(bucket, info, 0, SMALL)]) == SMALL

    with tempfile.TemporaryDirectory() as folder:
        made, bucket, end = loop.run_until_complete(begin(folder))
        try:
            loop.run_until_complete(get(made, bucket, at_hand=False))  # opens the segment
            yield lambda: loop.run_until_complete(get(made, bucket, at_hand=at_hand))
        finally:
            loop.run_until_complete(end())
            loop.close()


class _Statement:
    async def fetch(self, *args: Sequence[int]) -> Sequence[int]:
        return args[0]


class _Link:
    """A database that answers at once."""

    incarnation = ""

    def __init__(self) -> None:
        self.lock = asyncio.Lock()

    async def statement(self, sql: str, deadline: float) -> _Statement:
        return _Statement()


@contextmanager
def coalescer() -> Iterator[Call]:
    """64 callers of one batch."""
    loop = asyncio.new_event_loop()
    operation: Operation[int, int] = Operation("double", Query("", lambda items: [items], lambda items, rows: list(items)))

    async def begin() -> Coalescer[int, int]:
        made: Coalescer[int, int] = Coalescer(_Link(), operation)  # type: ignore[arg-type]
        made.start()
        return made

    async def batch() -> None:
        await asyncio.gather(*(made.submit(number) for number in range(64)))

    made = loop.run_until_complete(begin())
    try:
        yield lambda: loop.run_until_complete(batch())
    finally:
        loop.run_until_complete(made.close())
        loop.close()


@contextmanager
def metrics() -> Iterator[Call]:
    registry = Registry()
    counter = registry.counter("calls_total", "Calls.", "kind", "status")
    histogram = registry.histogram("seconds", "Time.", "kind")

    def call() -> None:
        counter.labels("get", "200").inc()
        histogram.labels("get").observe(0.003)

    yield call


def coded() -> tuple[Codec, BlobKey, memoryview, memoryview]:
    frame_len = CHECKSUM_BYTES + unit_len(K, STRIPE)
    return Codec(K, M), BlobKey(bytes(32), bytes(16)), memoryview(bytearray(STRIPE)), memoryview(bytearray((K + M) * frame_len))


@contextmanager
def encoding() -> Iterator[Call]:
    codec, key, stripe, out = coded()
    yield lambda: EncodeJob(codec, key, 0, True, stripe, STRIPE, out).run()


@contextmanager
def decoding() -> Iterator[Call]:
    codec, key, stripe, out = coded()
    job = EncodeJob(codec, key, 0, True, stripe, STRIPE, out)
    job.run()
    frames = [None, None, *(job.frame(index) for index in range(2, K + M))]
    back = memoryview(bytearray(STRIPE))
    yield lambda: DecodeJob(codec, key, 0, True, STRIPE, frames, back).run()


@contextmanager
def lanes() -> Iterator[Call]:
    data = [bytes(64 << 10)] * 8
    kernel = "avx2" if "avx2" in digest.md5_kernels() else digest.md5_kernels()[0]
    yield lambda: digest.md5_advance(kernel, [MD5_START] * 8, data)
