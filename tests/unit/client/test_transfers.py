"""Objects up and down: parts, ranges, streams, and what breaks or is damaged on the way."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import random
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anvil.api.grpc.proto import object_pb2
from anvil.base import limits
from anvil.client import (
    AnvilClient,
    Attributes,
    BadDigest,
    ByteRange,
    Checksum,
    InvalidRange,
    NoSuchKey,
    NoSuchUpload,
    ObjectSummary,
    PreconditionFailed,
    Prefix,
    ServerUnavailable,
    SourceChanged,
    TransferDamaged,
    TransferOptions,
    WriteConditions,
    open_source,
)
from anvil.client.upload import part_bytes_of, stream_part_bytes
from anvil.client.wire import chunk_message, read_message
from tests.support.fake_grpc import FakeServer, Refused
from tests.unit.client.conftest import KIB, SMALL, Run

SEED = 20_240_611
DATA = random.Random(SEED).randbytes(500 * KIB)  # eight parts of 64 KiB, the last one smaller
ETAG = hashlib.md5(b"".join(hashlib.md5(DATA[at : at + 64 * KIB]).digest() for at in range(0, len(DATA), 64 * KIB))).hexdigest()


async def stream(data: bytes, piece: int = 10_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), piece):
        yield data[at : at + piece]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# -- the wire --------------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=70_000))
def test_chunks_are_the_messages_that_protobuf_makes(chunk: bytes) -> None:
    assert chunk_message(chunk) == object_pb2.PutObjectRequest(chunk=chunk).SerializeToString()
    assert object_pb2.UploadPartRequest.FromString(chunk_message(memoryview(chunk))).chunk == chunk
    read = read_message(object_pb2.GetObjectResponse(chunk=chunk).SerializeToString())
    assert isinstance(read, memoryview) and read == chunk


def test_other_messages_are_parsed() -> None:
    head = object_pb2.GetObjectResponse(head=object_pb2.GetObjectHead(length=7))
    assert read_message(head.SerializeToString()) == head
    twice = chunk_message(b"one") + chunk_message(b"two")  # the last of a oneof counts
    assert read_message(twice) == b"two"
    with pytest.raises(Exception, match=r"(?i)pars"):
        read_message(b"\x12\xff\xff\xff\xff\xff\xff")


# -- up --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100 * KIB - 1, 100 * KIB, 128 * KIB, 500 * KIB])
@pytest.mark.parametrize("kind", ["bytes", "path", "file", "memory file", "stream", "sized stream", "pipe"])
def test_every_source_of_every_size(server: FakeServer, run: Run[None], tmp_path: Path, kind: str, size: int) -> None:
    data = DATA[:size]
    (tmp_path / "f").write_bytes(b"skipped" + data if kind == "file" else data)

    async def work(client: AnvilClient) -> None:
        told: list[int] = []
        known = size if kind == "sized stream" else None
        with (tmp_path / "f").open("rb") as file:
            if kind == "file":
                file.seek(7)
            source = {
                "bytes": lambda: data,
                "path": lambda: tmp_path / "f",
                "file": lambda: file,
                "memory file": lambda: io.BytesIO(data),
                "stream": lambda: stream(data),
                "sized stream": lambda: stream(data),
                "pipe": lambda: piped(data),
            }[kind]()
            done = await client.objects.upload("b", "k", source, size=known, progress=told.append)
        assert done.size == sum(told) == size
        assert done.checksum is not None
        if size == len(DATA):
            assert done.etag == f"{ETAG}-8"

    run(work)
    assert server.objects["b", "k"].data == data
    assert server.uploads == {}


def piped(data: bytes) -> io.BufferedReader:
    reader, writer = os.pipe()

    def feed() -> None:
        with os.fdopen(writer, "wb") as sink:
            sink.write(data)

    threading.Thread(target=feed, daemon=True).start()
    return os.fdopen(reader, "rb")


def test_put_is_one_call_where_the_size_is_known(server: FakeServer, run: Run[None]) -> None:
    async def work(client: AnvilClient) -> None:
        attributes = Attributes(content_type="text/plain", cache_control="no-cache", user_metadata={"who": "me"})
        done = await client.objects.put("b", "k", DATA, attributes=attributes)
        assert done.etag == hashlib.md5(DATA).hexdigest()
        info = await client.objects.head("b", "k")
        assert (info.size, info.attributes, info.part_count) == (len(DATA), attributes, 0)
        with pytest.raises(PreconditionFailed):
            await client.objects.put("b", "k", b"", conditions=WriteConditions(if_none_match=("*",)))
        await client.objects.put("b", "k", b"new", conditions=WriteConditions(if_match=(done.etag,)))
        with pytest.raises(PreconditionFailed):
            await client.objects.upload("b", "k", DATA, conditions=WriteConditions(if_match=(done.etag,)))

    run(work)
    assert server.objects["b", "k"].data == b"new"
    assert server.uploads == {}


def test_a_damaged_byte_on_the_way_up_is_noticed_and_sent_again(server: FakeServer, run: Run[None]) -> None:
    async def work(client: AnvilClient) -> None:
        server.faults.flip_up = [12_345]
        await client.objects.put("b", "once", DATA)
        server.faults.flip_up = [1, 2]
        await client.objects.upload("b", "parts", DATA)
        server.faults.flip_up_always = True
        with pytest.raises(BadDigest):
            await client.objects.put("b", "ever", DATA)
        with pytest.raises(BadDigest):
            await client.objects.upload("b", "ever", DATA)

    run(work)
    assert server.objects["b", "once"].data == server.objects["b", "parts"].data == DATA
    assert ("b", "ever") not in server.objects
    assert server.uploads == {}


def test_an_answer_with_another_checksum_is_not_believed(server: FakeServer, run: Run[None]) -> None:
    server._checksum = lambda data: object_pb2.Checksum(  # type: ignore[method-assign]
        algorithm=object_pb2.CHECKSUM_ALGORITHM_CRC64NVME, value=bytes(8), type=object_pb2.CHECKSUM_TYPE_FULL_OBJECT
    )

    async def work(client: AnvilClient) -> None:
        with pytest.raises(TransferDamaged):
            await client.objects.put("b", "k", DATA)
        with pytest.raises(TransferDamaged, match="part"):
            await client.objects.upload("b", "k", DATA)

    run(work)
    assert server.uploads == {}


def test_broken_parts_are_sent_again_and_progress_tells_so(server: FakeServer, run: Run[None]) -> None:
    told: list[int] = []

    async def work(client: AnvilClient) -> None:
        server.faults.fail["UploadPart"] = [Refused("SlowDown")] * 3
        await client.objects.upload("b", "k", stream(DATA), progress=told.append)

    run(work)
    assert server.objects["b", "k"].data == DATA
    assert server.calls["UploadPart"] == 8 + 3
    assert sum(told) == len(DATA)


def test_an_upload_that_fails_is_aborted(server: FakeServer, run: Run[None]) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield DATA[: 300 * KIB]
        raise RuntimeError("the source broke")

    async def work(client: AnvilClient) -> None:
        server.faults.fail["UploadPart"] = [Refused("SlowDown")] * 100
        with pytest.raises(ServerUnavailable):
            await client.objects.upload("b", "k", DATA)
        server.faults.fail.clear()
        with pytest.raises(RuntimeError, match="the source broke"):
            await client.objects.upload("b", "k", broken())

    run(work)
    assert server.calls["AbortMultipartUpload"] == 2
    assert server.uploads == {} and server.objects == {}


def test_a_cancelled_upload_is_aborted(server: FakeServer, run: Run[None]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def before(method: str) -> None:
        if method == "UploadPart":
            begun.set()
            go_on.wait(20)

    server.faults.before = before

    async def work(client: AnvilClient) -> None:
        task = asyncio.create_task(client.objects.upload("b", "k", DATA))
        await asyncio.to_thread(begun.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()

    run(work)
    assert server.calls["AbortMultipartUpload"] == 1
    assert server.uploads == {}


def test_a_source_that_is_not_as_long_as_it_said(server: FakeServer, run: Run[None], tmp_path: Path) -> None:
    async def work(client: AnvilClient) -> None:
        for wrong in (len(DATA) - 1, len(DATA) + 1, 10):
            with pytest.raises(SourceChanged):
                await client.objects.upload("b", "k", stream(DATA), size=wrong)
            with pytest.raises(SourceChanged):
                await client.objects.upload("b", "k", DATA, size=wrong)
        path = tmp_path / "f"
        path.write_bytes(DATA)
        with path.open("r+b") as file:
            source = open_source(path, None)
            file.truncate(100)
            with pytest.raises(SourceChanged, match="shorter"):
                await client.objects.multipart.upload_part(
                    "b",
                    "k",
                    await client.objects.multipart.initiate("b", "k"),
                    1,
                    source,  # type: ignore[arg-type]  # a file's
                )
            source.close()
        with pytest.raises(IsADirectoryError):
            await client.objects.upload("b", "k", tmp_path)
        with pytest.raises(FileNotFoundError):
            await client.objects.upload("b", "k", tmp_path / "absent")

    run(work)
    assert server.objects == {}


def test_the_memory_of_a_stream_is_bounded(server: FakeServer, run: Run[None]) -> None:
    """No more is taken from the source than fits: two parts of 64 KiB in 128 KiB, until the server has taken one."""
    taken, stopped, go_on = [0], threading.Event(), threading.Event()

    def before(method: str) -> None:
        if method == "UploadPart":
            if server.calls["UploadPart"] == 2:
                stopped.set()
            go_on.wait(20)

    server.faults.before = before

    async def source() -> AsyncIterator[bytes]:
        for at in range(0, len(DATA), KIB):
            taken[0] += KIB
            yield DATA[at : at + KIB]

    async def work(client: AnvilClient) -> None:
        task = asyncio.create_task(client.objects.upload("b", "k", source()))
        await asyncio.to_thread(stopped.wait, 20)
        for _ in range(100):
            await asyncio.sleep(0)  # whoever could go on has done so
        assert taken[0] <= 128 * KIB
        go_on.set()
        await task

    run(work)
    assert server.objects["b", "k"].data == DATA


@given(st.integers(1, limits.OBJECT_BYTES_MAX))
def test_ten_thousand_parts_suffice(size: int) -> None:
    part = part_bytes_of(size, limits.CLIENT_PART_BYTES)
    assert -(-size // part) <= limits.PART_NUMBER_MAX
    assert limits.PART_BYTES_MIN <= part <= limits.PUT_BYTES_MAX


def test_ten_thousand_parts_of_a_stream_hold_the_largest_object() -> None:
    sizes = [stream_part_bytes(number, limits.CLIENT_PART_BYTES) for number in range(1, limits.PART_NUMBER_MAX + 1)]
    assert sizes == sorted(sizes) and sizes[0] == limits.CLIENT_PART_BYTES
    assert sizes[-1] <= limits.PUT_BYTES_MAX and sum(sizes) >= limits.OBJECT_BYTES_MAX


def test_multipart_by_hand(server: FakeServer, run: Run[None]) -> None:
    server.page = 2

    async def work(client: AnvilClient) -> None:
        parts = client.objects.multipart
        upload = await parts.initiate("b", "k", Attributes(content_type="image/png"))
        source = open_source(DATA, None)
        sent = [
            await parts.upload_part("b", "k", upload, number, source, (number - 1) * 100 * KIB, 100 * KIB)  # type: ignore[arg-type]
            for number in range(1, 6)
        ]
        listed = [one async for one in parts.list_parts("b", "k", upload)]
        assert [(one.number, one.size, one.etag) for one in listed] == [(one.number, one.size, one.etag) for one in sent]
        with pytest.raises(BadDigest):
            await parts.complete("b", "k", upload, sent, checksum=Checksum(SMALL_CRC, bytes(8)))
        done = await parts.complete("b", "k", upload, sent)
        assert done.etag.endswith("-5")
        with pytest.raises(NoSuchUpload):
            await parts.abort("b", "k", upload)
        assert (await client.objects.head("b", "k")).attributes.content_type == "image/png"

    from anvil.client import ChecksumAlgorithm

    SMALL_CRC = ChecksumAlgorithm.CRC64NVME
    run(work)
    assert server.objects["b", "k"].data == DATA


# -- down ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 100 * KIB - 1, 100 * KIB, 500 * KIB])
@pytest.mark.parametrize("parts", [0, 3])
def test_downloads(server: FakeServer, run: Run[None], tmp_path: Path, size: int, parts: int) -> None:
    server.store("b", "k", DATA[:size]).parts = parts

    async def work(client: AnvilClient) -> None:
        told: list[int] = []
        done = await client.objects.download("b", "k", tmp_path / "f", progress=told.append)
        assert (done.size, done.verified, sum(told)) == (size, True, size)
        sink = io.BytesIO()
        assert (await client.objects.download("b", "k", sink)).verified
        assert sink.getvalue() == DATA[:size]
        async with await client.objects.get("b", "k") as body:
            assert (body.start, body.length, body.info.size) == (0, size, size)
            assert await body.read() == DATA[:size] and body.verified

    run(work)
    assert (tmp_path / "f").read_bytes() == DATA[:size]
    assert names_in(tmp_path) == ["f"]
    assert server.calls["GetObject"] == (3 if size < 100 * KIB else 3 + -(-size // (64 * KIB)))


def test_ranges(server: FakeServer, run: Run[None]) -> None:
    server.store("b", "k", b"0123456789")

    async def work(client: AnvilClient) -> None:
        async def read(offset: int, length: int | None = None) -> bytes:
            async with await client.objects.get("b", "k", range=ByteRange(offset, length)) as body:
                return await body.read()

        assert await read(3) == b"3456789"
        assert await read(3, 2) == b"34"
        assert await read(-2) == b"89"
        assert await read(8, 100) == b"89"
        with pytest.raises(InvalidRange):
            await read(10)
        with pytest.raises(NoSuchKey):
            await client.objects.get("b", "absent")

    run(work)


@pytest.mark.parametrize("algorithm", ["crc32", "crc32c", "crc64nvme", "sha1", "sha256"])
def test_a_damaged_byte_on_the_way_down_is_noticed(server: FakeServer, run: Run[None], tmp_path: Path, algorithm: str) -> None:
    from awscrt import checksums

    crcs = {"crc32": (checksums.crc32, 4), "crc32c": (checksums.crc32c, 4), "crc64nvme": (checksums.crc64nvme, 8)}
    if algorithm in crcs:
        function, width = crcs[algorithm]
        value = int(function(DATA)).to_bytes(width, "big")
    else:
        value = hashlib.new(algorithm, DATA).digest()
    number = getattr(object_pb2, f"CHECKSUM_ALGORITHM_{algorithm.upper()}")
    stored = server.store("b", "k", DATA)
    stored.checksum = object_pb2.Checksum(algorithm=number, value=value, type=object_pb2.CHECKSUM_TYPE_FULL_OBJECT)

    async def work(client: AnvilClient) -> None:
        assert (await client.objects.download("b", "k", tmp_path / "good")).verified
        server.faults.flip_down_always = True
        (tmp_path / "f").write_text("as it was")
        with pytest.raises(TransferDamaged, match=algorithm):
            await client.objects.download("b", "k", tmp_path / "f")
        with pytest.raises(TransferDamaged):
            await client.objects.download("b", "k", io.BytesIO())
        with pytest.raises(TransferDamaged):
            await (await client.objects.get("b", "k")).read()

    run(work)
    assert (tmp_path / "f").read_text() == "as it was"
    assert names_in(tmp_path) == ["f", "good"]


def test_what_has_no_checksum_of_the_whole_is_not_called_verified(server: FakeServer, run: Run[None], tmp_path: Path) -> None:
    stored = server.store("b", "k", DATA)
    stored.checksum.type, stored.checksum.parts = object_pb2.CHECKSUM_TYPE_COMPOSITE, 3

    async def work(client: AnvilClient) -> None:
        assert not (await client.objects.download("b", "k", tmp_path / "f")).verified
        body = await client.objects.get("b", "k")
        assert await body.read() == DATA and not body.verified

    run(work)
    assert (tmp_path / "f").read_bytes() == DATA


def test_downloads_that_break_go_on_where_they_broke(server: FakeServer, run: Run[None], tmp_path: Path) -> None:
    server.store("b", "k", DATA)

    async def work(client: AnvilClient) -> None:
        server.faults.break_down_after = [10_000, 1, 0]
        assert (await client.objects.download("b", "k", tmp_path / "f")).verified
        server.faults.break_down_after = [400_000, 50_000, 7]
        sink = io.BytesIO()
        await client.objects.download("b", "k", sink)
        assert sink.getvalue() == DATA
        server.faults.break_down_after = [0] * 50
        with pytest.raises(ServerUnavailable):
            await client.objects.download("b", "k", tmp_path / "g")

    run(work)
    assert (tmp_path / "f").read_bytes() == DATA
    assert names_in(tmp_path) == ["f"]


def test_an_object_that_is_overwritten_meanwhile_is_noticed(server: FakeServer, run: Run[None], tmp_path: Path) -> None:
    server.store("b", "k", DATA)

    def before(method: str) -> None:
        if method == "GetObject" and server.calls["GetObject"] == 3:
            server.store("b", "k", bytes(len(DATA)))

    server.faults.before = before

    async def work(client: AnvilClient) -> None:
        with pytest.raises(PreconditionFailed, match="overwritten while it was downloaded"):
            await client.objects.download("b", "k", tmp_path / "f")

    run(work)
    assert names_in(tmp_path) == []


def test_targets_that_are_no_plain_files(server: FakeServer, run: Run[None], tmp_path: Path) -> None:
    server.store("b", "k", DATA)
    (tmp_path / "real").write_text("old")
    (tmp_path / "real").chmod(0o640)
    (tmp_path / "link").symlink_to("real")

    async def work(client: AnvilClient) -> None:
        await client.objects.download("b", "k", tmp_path / "link")
        await client.objects.download("b", "k", "/dev/null")
        with pytest.raises(IsADirectoryError):
            await client.objects.download("b", "k", tmp_path)

    run(work)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_bytes() == DATA
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o640
    assert Path("/dev/null").is_char_device()


# -- the rest --------------------------------------------------------------------------------------------------------------


def test_listing(server: FakeServer, run: Run[None]) -> None:
    keys = ["a", "a/1", "a/2", "b", "b/", "c/d/e", "z", "é"]
    for key in keys:
        server.store("b", key, key.encode())

    async def work(client: AnvilClient) -> None:
        for page in (0, 1, 3):
            found = [one async for one in client.objects.list("b", page_size=page)]
            assert [one.key for one in found if isinstance(one, ObjectSummary)] == keys
            found = [one async for one in client.objects.list("b", delimiter="/", page_size=page)]
            names = [one.prefix if isinstance(one, Prefix) else one.key for one in found]
            assert names == ["a", "a/", "b", "b/", "c/", "z", "é"]
        assert [one async for one in client.objects.list("b", "a/", start_after="a/1")] == [
            one async for one in client.objects.list("b", "a/2")
        ]
        one = (await client.objects.list_page("b", "z")).objects[0]
        assert (one.key, one.size, one.etag) == ("z", 1, hashlib.md5(b"z").hexdigest())
        assert one.modified_at.tzinfo is UTC and abs((datetime.now(UTC) - one.modified_at).total_seconds()) < 60

    run(work)


def test_delete_and_copy(server: FakeServer, run: Run[None]) -> None:
    server.store("b", "k", DATA, content_type="image/png")

    async def work(client: AnvilClient) -> None:
        done = await client.objects.copy("b", "k", "b", "kept")
        assert done.etag == hashlib.md5(DATA).hexdigest()
        await client.objects.copy("b", "k", "b", "new", attributes=Attributes(content_type="text/plain"))
        assert (await client.objects.head("b", "kept")).attributes.content_type == "image/png"
        assert (await client.objects.head("b", "new")).attributes.content_type == "text/plain"
        with pytest.raises(PreconditionFailed):
            await client.objects.delete("b", "k", if_match=("other",))
        await client.objects.delete("b", "k")
        await client.objects.delete("b", "k")

    run(work)
    assert sorted(key for _, key in server.objects) == ["kept", "new"]


def test_a_copy_too_large_for_one_call_goes_by_parts(server: FakeServer, run: Run[None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PUT_BYTES_MAX", 200 * KIB)
    server.store("b", "k", DATA, content_type="image/png")

    async def work(client: AnvilClient) -> None:
        moved: list[int] = []
        done = await client.objects.copy_large("b", "k", "b", "copy", progress=moved.append)
        assert done.etag.endswith("-3") and sum(moved) == len(DATA)

    run(work)
    assert server.objects["b", "copy"].data == DATA
    assert server.objects["b", "copy"].attributes.content_type == "image/png"
    assert server.calls["UploadPartCopy"] == 3


def test_the_default_options_agree_with_the_server() -> None:
    assert TransferOptions().part_bytes >= limits.PART_BYTES_MIN
    assert SMALL.part_bytes == 64 * KIB
