"""Checksums and digests against their references, zlib and hashlib: every kernel, every split, odd sizes, zero."""

from __future__ import annotations

import hashlib
import random
import threading
import zlib
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anvil._ec import digest
from anvil._ec import digest_reference as reference

ALL = ("md5", "sha1", "sha256", "crc32", "crc32c", "crc64nvme")
CRC_FUNCTIONS: dict[str, Callable[..., int]] = {"crc32": digest.crc32, "crc32c": digest.crc32c, "crc64nvme": digest.crc64nvme}
CHECK = b"123456789"  # the input of the "check" values in the catalogue of parametrised CRC algorithms
CRC_CHECKS = {"crc32": 0xCBF43926, "crc32c": 0xE3069283, "crc64nvme": 0xAE8B14860A799888}
# Around every boundary of the kernels: a block, a lane of a register, the strides of the folding loops, a slice.
SIZES = (
    0,
    1,
    7,
    8,
    15,
    16,
    31,
    32,
    33,
    55,
    56,
    63,
    64,
    65,
    119,
    127,
    128,
    129,
    255,
    256,
    271,
    272,
    273,
    511,
    512,
    513,
    1023,
    1024,
    1025,
)


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def expected(data: bytes) -> dict[str, bytes]:
    return {
        "md5": hashlib.md5(data).digest(),
        "sha1": hashlib.sha1(data).digest(),
        "sha256": hashlib.sha256(data).digest(),
        "crc32": zlib.crc32(data).to_bytes(4, "big"),
        "crc32c": reference.CRC32C.tabled(data).to_bytes(4, "big"),
        "crc64nvme": reference.CRC64NVME.tabled(data).to_bytes(8, "big"),
    }


def all_digests(*pieces: bytes) -> dict[str, bytes]:
    digests = digest.Digests(ALL)
    for piece in pieces:
        digests.update(piece)
    return digests.results()


@pytest.fixture
def restored_kernels() -> Iterator[None]:
    md5, crc64 = digest.md5_kernel(), digest.crc64_kernel()
    yield
    digest.set_md5_kernel(md5)
    digest.set_crc64_kernel(crc64)


# -- the references themselves ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", CRC_CHECKS)
def test_reference_crcs_have_their_check_values(algorithm: str) -> None:
    assert reference.CRCS[algorithm].bitwise(CHECK) == CRC_CHECKS[algorithm]
    assert reference.CRCS[algorithm].tabled(CHECK) == CRC_CHECKS[algorithm]


@pytest.mark.parametrize(
    ("text", "digest_hex"),  # RFC 1321, A.5
    [
        (b"", "d41d8cd98f00b204e9800998ecf8427e"),
        (b"abc", "900150983cd24fb0d6963f7d28e17f72"),
        (b"1234567890" * 8, "57edf4a22be3c955ac49da2e2107b67a"),
    ],
)
def test_reference_md5_has_the_values_of_its_rfc(text: bytes, digest_hex: str) -> None:
    assert reference.md5(text).hex() == digest_hex


@pytest.mark.parametrize("size", SIZES)
def test_reference_md5_is_hashlibs(size: int) -> None:
    assert reference.md5(noise(size)) == hashlib.md5(noise(size)).digest()


# -- one stream ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", CRC_CHECKS)
def test_crcs_have_their_check_values(algorithm: str) -> None:
    assert CRC_FUNCTIONS[algorithm](CHECK) == CRC_CHECKS[algorithm]
    assert CRC_FUNCTIONS[algorithm](b"") == 0


@pytest.mark.parametrize("size", [*SIZES, 4095, 4096, 16 * 1024 - 1, 16 * 1024, 16 * 1024 + 65])
def test_every_size(size: int) -> None:
    assert all_digests(noise(size)) == expected(noise(size))


@pytest.mark.parametrize("size", [1, 64, 65, 129, 200])
def test_every_split(size: int) -> None:
    data = noise(size)
    want = expected(data)
    for cut in range(size + 1):
        assert all_digests(data[:cut], data[cut:]) == want, f"split at {cut}"


@given(st.lists(st.binary(max_size=300), max_size=12))
def test_any_pieces(pieces: list[bytes]) -> None:
    assert all_digests(*pieces) == expected(b"".join(pieces))


def test_results_do_not_end_the_stream() -> None:
    digests = digest.Digests(ALL)
    data = noise(300)
    for at in range(0, 300, 37):
        digests.update(data[at : at + 37])
        assert digests.results() == expected(data[: at + 37])


def test_only_what_was_asked_for_in_that_order() -> None:
    digests = digest.Digests(["crc32", "md5"])
    digests.update(bytearray(b"x"))
    digests.update(memoryview(b"yz"))
    assert list(digests.results()) == ["crc32", "md5"]
    assert digest.Digests([]).results() == {}
    with pytest.raises(ValueError, match="sha512"):
        digest.Digests(["sha512"])


def test_an_update_in_progress_refuses_another() -> None:
    digests = digest.Digests(["md5"])
    data = bytes(32 << 20)
    refused = 0
    thread = threading.Thread(target=digests.update, args=(data,))
    thread.start()
    while thread.is_alive():
        try:
            digests.results()
        except RuntimeError:
            refused += 1
    thread.join()
    assert refused > 0
    assert digests.results()["md5"] == hashlib.md5(data).digest()


# -- kernels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", digest.crc64_kernels())
@pytest.mark.usefixtures("restored_kernels")
def test_every_crc64_kernel(kernel: str) -> None:
    digest.set_crc64_kernel(kernel)
    assert digest.crc64_kernel() == kernel
    data = noise(3000)
    for size in {*SIZES, *range(1500, 1560), 2048, 2999}:
        for start in (0, 1):
            part = data[start : start + size]
            assert digest.crc64nvme(part) == reference.CRC64NVME.tabled(part), f"{size} bytes from {start}"
    for cut in range(0, 3000, 61):
        assert digest.crc64nvme(data[cut:], digest.crc64nvme(data[:cut])) == reference.CRC64NVME.tabled(data)


@pytest.mark.parametrize("kernel", digest.md5_kernels())
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_every_md5_kernel_and_number_of_streams(kernel: str, blocks: int) -> None:
    lanes = {"avx512": 16, "avx512vl": 8, "avx2": 8, "scalar": 1}[kernel]
    for streams in range(1, lanes + 1):
        data = [noise(64 * blocks, seed) for seed in range(streams)]
        states = [tuple(random.Random(seed).getrandbits(32) for _ in range(4)) for seed in range(streams)]
        want = [reference.md5_blocks((s[0], s[1], s[2], s[3]), d) for s, d in zip(states, data, strict=True)]
        assert digest.md5_advance(kernel, states, data) == want


def test_md5_kernels_at_any_alignment() -> None:
    for kernel in digest.md5_kernels():
        room = noise(64 * 3 + 64)
        for shift in range(64):
            data = memoryview(room)[shift : shift + 192]
            assert digest.md5_advance(kernel, [reference.MD5_START], [data]) == [
                reference.md5_blocks(reference.MD5_START, bytes(data))
            ]


def test_unknown_kernels_are_refused() -> None:
    for call in (digest.set_md5_kernel, digest.set_crc64_kernel):
        with pytest.raises(ValueError, match="neon"):
            call("neon")
    with pytest.raises(ValueError, match="neon"):
        digest.md5_advance("neon", [reference.MD5_START], [bytes(64)])
    with pytest.raises(ValueError, match="1 to 1 streams"):
        digest.md5_advance("scalar", [reference.MD5_START] * 2, [bytes(64)] * 2)
    with pytest.raises(ValueError, match="whole blocks"):
        digest.md5_advance("scalar", [reference.MD5_START], [bytes(65)])


# -- combination --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", CRC_CHECKS)
@settings(max_examples=60)
@given(first=st.binary(max_size=200), second=st.binary(max_size=200))
def test_crc_combine(algorithm: str, first: bytes, second: bytes) -> None:
    crc = CRC_FUNCTIONS[algorithm]
    combined = digest.crc_combine(algorithm, crc(first), crc(second), len(second))
    assert combined == crc(first + second)
    assert combined == reference.CRCS[algorithm].combine(crc(first), crc(second), len(second))


@pytest.mark.parametrize("algorithm", CRC_CHECKS)
def test_crc_combine_of_whole_parts(algorithm: str) -> None:
    crc = CRC_FUNCTIONS[algorithm]
    parts = [noise(size, size) for size in (5 << 20, 5 << 20, 12345)]
    whole = 0
    for part in parts:
        whole = digest.crc_combine(algorithm, whole, crc(part), len(part))
    assert whole == crc(b"".join(parts))


@pytest.mark.parametrize("algorithm", CRC_CHECKS)
def test_crc_combine_of_more_than_fits_in_memory(algorithm: str) -> None:
    """Moving on by n and then by m zero bytes is moving on by n + m, up to the largest object (5 TiB) and beyond."""
    first, far, near = 0x12345678, 5 << 40, 77
    in_two = digest.crc_combine(algorithm, digest.crc_combine(algorithm, first, 0, far), 0, near)
    assert in_two == digest.crc_combine(algorithm, first, 0, far + near)


def test_crc_combine_refuses_what_makes_no_sense() -> None:
    for arguments in [("md5", 0, 0, 0), ("crc32", 1 << 32, 0, 0), ("crc32c", 0, 1 << 32, 0), ("crc64nvme", 0, 0, 1 << 61)]:
        with pytest.raises(ValueError):
            digest.crc_combine(*arguments)
    with pytest.raises(OverflowError):
        digest.crc_combine("crc32", 0, 0, -1)


@pytest.mark.parametrize("algorithm", CRC_CHECKS)
def test_crc_continues_from_a_value(algorithm: str) -> None:
    crc, data = CRC_FUNCTIONS[algorithm], noise(9000)
    for cut in (0, 1, 100, 4096, 8999, 9000):
        assert crc(data[cut:], crc(data[:cut])) == crc(data) == reference.CRCS[algorithm].tabled(data)
