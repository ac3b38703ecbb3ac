"""Frames sealed while they are written and opened while they are read, against the jobs on whole frames and the reference."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from anvil._ec import stripe_reference as reference
from anvil._ec.codec import Codec
from anvil._ec.fileio import ReadInto, WriteFrom
from anvil._ec.pieces import PIECE_BYTES, Sink, Source
from anvil._ec.pool import Pool
from anvil._ec.stripe import (
    BlobKey,
    DecodeJob,
    EncodeJob,
    NotEnoughUnits,
    OpenFrame,
    SealBroken,
    SealFrame,
    checksum_kernels,
    seal_kernels,
    use_checksum_kernel,
    use_seal_kernel,
)

BUCKET_KEY = bytes(range(32))
BLOB = bytes(range(100, 116))
KEY = BlobKey(BUCKET_KEY, BLOB)
LENGTHS = [
    *(1, 15, 16, 17, 63, 64, 65, 239, 240, 241, 4096, 65_536),
    *(PIECE_BYTES + more for more in (-17, -16, -1, 0, 1, 15, 16, 17, 64)),
    *(2 * PIECE_BYTES + more for more in (-1, 0, 1, 16)),
    *(3 * PIECE_BYTES + 12_345, 1 << 20),
]


def plaintext(length: int) -> bytes:
    return random.Random(length).randbytes(length)


def whole_frame(plain: bytes, stripe: int = 7, last: bool = True) -> bytes:
    job = EncodeJob(Codec(1, 0), KEY, stripe, last, plain, len(plain), bytearray(len(plain) + 24))
    job.run()
    return bytes(job.frame(0))


def drawn(source: Source) -> bytes:
    room = bytearray(b"\xee" * source.length)
    covered = 0
    for at, piece in source.pieces():
        room[at : at + len(piece)] = piece
        covered += len(piece)
    source.check()
    assert covered == source.length, "every byte once"
    return bytes(room)


def fed(sink: Sink, data: bytes) -> int:
    """Bytes that the sink took."""
    at = 0
    while wants := sink.wants:
        if at + wants > len(data):
            break
        sink.feed(data[at : at + wants])
        at += wants
    return at


@pytest.fixture(params=[(seal, checksum) for seal in sorted(seal_kernels()) for checksum in checksum_kernels()], ids="-".join)
def kernels(request: pytest.FixtureRequest) -> Iterator[None]:
    use_seal_kernel(request.param[0])
    use_checksum_kernel(request.param[1])
    yield
    use_seal_kernel(seal_kernels()[-1])
    use_checksum_kernel(checksum_kernels()[-1])


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    number = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield number
    os.close(number)


def test_a_frame_sealed_in_pieces_is_the_whole_frame(kernels: None) -> None:
    for length in LENGTHS:
        plain = plaintext(length)
        frame = whole_frame(plain, stripe=length, last=length % 2 == 0)
        assert drawn(SealFrame(KEY, length, length % 2 == 0, plain + b"more", length)) == frame, length
        out = bytearray(b"\xee" * (length + 3))
        sink = OpenFrame(KEY, length, length % 2 == 0, length, out)
        assert fed(sink, frame + b"more") == len(frame)
        sink.check()
        assert out == plain + b"\xee" * 3, length


@pytest.mark.parametrize("length", [1, 240, 5000])
def test_the_reference_agrees(length: int) -> None:
    plain = plaintext(length)
    place = reference.Place(BUCKET_KEY, BLOB, 7, True)
    assert [drawn(SealFrame(KEY, 7, True, plain, length))] == reference.encode(1, 0, place, plain)


@pytest.mark.parametrize("length", [1, 5000, PIECE_BYTES, PIECE_BYTES + 1, 2 * PIECE_BYTES + 77])
def test_every_kind_of_flip_is_caught(length: int) -> None:
    frame = bytearray(whole_frame(plaintext(length)))
    places = {8, 8 + length // 2, 8 + length - 1, 8 + length, len(frame) - 1, min(8 + PIECE_BYTES, len(frame) - 1)}
    for at in places:
        frame[at] ^= 0x20
        out = bytearray(b"\xee" * length)
        sink = OpenFrame(KEY, 7, True, length, out)
        fed(sink, bytes(frame))
        with pytest.raises(SealBroken):
            sink.check()
        assert out == bytes(length), "nobody sees what was not authenticated"
        frame[at] ^= 0x20
    for at in (0, 7):  # the checksum is for those who have no key
        frame[at] ^= 0x20
        out = bytearray(length)
        sink = OpenFrame(KEY, 7, True, length, out)
        fed(sink, bytes(frame))
        sink.check()
        assert out == plaintext(length)
        with pytest.raises(NotEnoughUnits):
            DecodeJob(Codec(1, 0), KEY, 7, True, length, [bytes(frame)], bytearray(length)).run()
        frame[at] ^= 0x20


def test_a_frame_of_another_place_is_caught() -> None:
    length = PIECE_BYTES + 99
    frame = whole_frame(plaintext(length))
    broken: list[Callable[[bytearray], OpenFrame]] = [
        lambda out: OpenFrame(KEY, 8, True, length, out),
        lambda out: OpenFrame(BlobKey(BUCKET_KEY, bytes(16)), 7, True, length, out),
        lambda out: OpenFrame(KEY, 7, False, length, out),
        lambda out: OpenFrame(BlobKey(bytes(32), BLOB), 7, True, length, out),
    ]
    for make in broken:
        out = bytearray(b"\xee" * length)
        sink = make(out)
        fed(sink, frame)
        with pytest.raises(SealBroken):
            sink.check()
        assert out == bytes(length)


def test_through_a_file(fd: int) -> None:
    plain = plaintext(5 * PIECE_BYTES + 4321)
    WriteFrom(fd, 100, SealFrame(KEY, 3, False, plain, len(plain)), b"header").run()
    assert os.pread(fd, 2 * len(plain), 0) == bytes(100) + b"header" + whole_frame(plain, 3, False)
    out = bytearray(len(plain))
    sink = OpenFrame(KEY, 3, False, len(plain), out)
    job = ReadInto(fd, 106, sink)
    job.run()
    sink.check()
    assert (job.count, sink.wants, bytes(out)) == (len(plain) + 24, 0, plain)


@pytest.mark.parametrize("keep", [0, 7, 8, PIECE_BYTES, PIECE_BYTES + 8, 3 * PIECE_BYTES + 20])
def test_a_file_that_ends_early(fd: int, keep: int) -> None:
    plain = plaintext(3 * PIECE_BYTES)
    WriteFrom(fd, 0, SealFrame(KEY, 0, True, plain, len(plain))).run()
    os.ftruncate(fd, keep)
    sink = OpenFrame(KEY, 0, True, len(plain), bytearray(len(plain)))
    job = ReadInto(fd, 0, sink)
    job.run()
    assert job.count == keep
    assert sink.wants
    with pytest.raises(RuntimeError, match="not run"):
        sink.check()


def test_errors_of_the_file(fd: int, tmp_path: Path) -> None:
    plain = plaintext(1000)
    with open(tmp_path / "file", "rb") as readonly:
        source = SealFrame(KEY, 0, True, plain, 1000)
        with pytest.raises(OSError, match="Bad file descriptor") as caught:
            WriteFrom(readonly.fileno(), 0, source).run()
        assert caught.value.errno == errno.EBADF
    read_end, write_end = os.pipe()
    try:
        with pytest.raises(OSError, match="seek"):
            ReadInto(read_end, 0, OpenFrame(KEY, 0, True, 1000, bytearray(1000))).run()
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_frame_is_sealed_once(fd: int) -> None:
    """A second one under the same nonce would give both away."""
    source = SealFrame(KEY, 0, True, b"x" * 100, 100)
    source.pieces()
    with pytest.raises(RuntimeError, match="drawn from"):
        source.pieces()
    with pytest.raises(RuntimeError, match="drawn from"):
        WriteFrom(fd, 0, source)
    sink = OpenFrame(KEY, 0, True, 100, bytearray(100))
    ReadInto(fd, 0, sink)
    with pytest.raises(RuntimeError, match="another source"):
        ReadInto(fd, 0, sink)


def test_base_classes_are_of_no_use_alone(fd: int) -> None:
    with pytest.raises(RuntimeError):
        WriteFrom(fd, 0, Source())
    with pytest.raises(RuntimeError):
        ReadInto(fd, 0, Sink())
    with pytest.raises(RuntimeError):
        Source().pieces()
    assert Sink().wants == 0


def test_a_sink_is_fed_what_it_wants() -> None:
    sink = OpenFrame(KEY, 0, True, 100, bytearray(100))
    for data in (b"", b"x", bytes(125)):
        with pytest.raises(ValueError, match="are wanted"):
            sink.feed(data)
    sink.feed(bytes(124))
    with pytest.raises(ValueError, match="0 are wanted"):
        sink.feed(b"")


@pytest.mark.parametrize(("stripe", "length"), [(-1, 10), (1 << 32, 10), (0, 0), (0, -1), (0, 101), (0, (1 << 30) + 1)])
def test_bad_arguments(stripe: int, length: int) -> None:
    with pytest.raises(ValueError, match=r"range|text"):
        SealFrame(KEY, stripe, True, bytes(100), length)
    with pytest.raises(ValueError, match=r"range|text"):
        OpenFrame(KEY, stripe, True, length, bytearray(100))
    with pytest.raises(BufferError):
        OpenFrame(KEY, 0, True, 100, bytes(100))


def test_buffers_stay_pinned(fd: int) -> None:
    plain = bytearray(1000)
    job = WriteFrom(fd, 0, SealFrame(KEY, 0, True, plain, 1000))
    with pytest.raises(BufferError):
        plain.clear()
    job.run()
    del job
    plain.clear()


def test_given_up_half_way() -> None:
    """Dropped in the middle of a frame: the key's state goes with it (what a sanitizer would see)."""
    frame = whole_frame(plaintext(3 * PIECE_BYTES))
    for _ in range(50):
        sink = OpenFrame(KEY, 7, True, 3 * PIECE_BYTES, bytearray(3 * PIECE_BYTES))
        sink.feed(frame[: sink.wants])
        assert sink.wants
        del sink


def test_many_at_once_on_threads(tmp_path: Path) -> None:
    plains = [plaintext(PIECE_BYTES * 2 + n) for n in range(40)]
    with open(tmp_path / "many", "w+b") as file:
        step = 4 * PIECE_BYTES
        pool = Pool(4)
        for n, plain in enumerate(plains):
            pool.submit(WriteFrom(file.fileno(), n * step, SealFrame(KEY, n, True, plain, len(plain))))
        for job in pool.close():
            job.check()
        outs = [bytearray(len(plain)) for plain in plains]
        sinks = [OpenFrame(KEY, n, True, len(out), out) for n, out in enumerate(outs)]
        pool = Pool(4)
        for n, sink in enumerate(sinks):
            pool.submit(ReadInto(file.fileno(), n * step, sink))
        for job in pool.close():
            job.check()
    for sink, out, plain in zip(sinks, outs, plains, strict=True):
        sink.check()
        assert out == plain
