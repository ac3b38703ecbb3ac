"""XXH3, 64 bits, seeded, said slowly: what `xxh3.h` computes fast.

Source: the XXH3 specification (xxHash project, doc/xxhash_spec.md). Invariant: plain integers only, so that it depends on
neither the C library nor the processor. Not here: streaming, 128 bits, caller-made secrets.
"""

from __future__ import annotations

PRIME32_1, PRIME32_2, PRIME32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
PRIME64_1, PRIME64_2, PRIME64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
PRIME64_4, PRIME64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
PRIME_MX1, PRIME_MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25
MASK32, MASK64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
STRIPE, LANES = 64, 8

SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def read64(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def read32(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 4], "little")


def fold(a: int, b: int) -> int:
    """Low half xor high half of the 128-bit product."""
    product = a * b
    return (product & MASK64) ^ (product >> 64)


def swap64(value: int) -> int:
    return int.from_bytes(value.to_bytes(8, "little"), "big")


def rotate64(value: int, by: int) -> int:
    return (value << by | value >> (64 - by)) & MASK64


def avalanche(value: int) -> int:
    value = (value ^ value >> 37) * PRIME_MX1 & MASK64
    return value ^ value >> 32


def avalanche_xxh64(value: int) -> int:
    value = (value ^ value >> 33) * PRIME64_2 & MASK64
    value = (value ^ value >> 29) * PRIME64_3 & MASK64
    return value ^ value >> 32


def xxh3_64(data: bytes, seed: int = 0) -> int:
    """The 64-bit hash of `data`. Each range of lengths has a method of its own."""
    length = len(data)
    if length <= 16:
        return _up_to_16(data, length, seed)
    if length <= 128:
        return _up_to_128(data, length, seed)
    if length <= 240:
        return _up_to_240(data, length, seed)
    return _long(data, length, seed)


def _up_to_16(data: bytes, length: int, seed: int) -> int:
    if length > 8:
        low = read64(data, 0) ^ ((read64(SECRET, 24) ^ read64(SECRET, 32)) + seed & MASK64)
        high = read64(data, length - 8) ^ ((read64(SECRET, 40) ^ read64(SECRET, 48)) - seed & MASK64)
        return avalanche(length + swap64(low) + high + fold(low, high) & MASK64)
    if length >= 4:
        seed ^= int.from_bytes((seed & MASK32).to_bytes(4, "little"), "big") << 32
        both = read32(data, length - 4) + (read32(data, 0) << 32)
        value = both ^ ((read64(SECRET, 8) ^ read64(SECRET, 16)) - seed & MASK64)
        value ^= rotate64(value, 49) ^ rotate64(value, 24)
        value = value * PRIME_MX2 & MASK64
        value ^= (value >> 35) + length
        value = value * PRIME_MX2 & MASK64
        return value ^ value >> 28
    if length:
        combined = data[0] << 16 | data[length >> 1] << 24 | data[length - 1] | length << 8
        return avalanche_xxh64(combined ^ ((read32(SECRET, 0) ^ read32(SECRET, 4)) + seed & MASK64))
    return avalanche_xxh64(seed ^ read64(SECRET, 56) ^ read64(SECRET, 64))


def _mix16(data: bytes, at: int, secret_at: int, seed: int) -> int:
    low = read64(data, at) ^ (read64(SECRET, secret_at) + seed & MASK64)
    high = read64(data, at + 8) ^ (read64(SECRET, secret_at + 8) - seed & MASK64)
    return fold(low, high)


def _up_to_128(data: bytes, length: int, seed: int) -> int:
    total = length * PRIME64_1
    for i in reversed(range((length - 1) // 32 + 1)):
        total += _mix16(data, 16 * i, 32 * i, seed) + _mix16(data, length - 16 * (i + 1), 32 * i + 16, seed)
    return avalanche(total & MASK64)


def _up_to_240(data: bytes, length: int, seed: int) -> int:
    total = length * PRIME64_1
    for i in range(8):
        total += _mix16(data, 16 * i, 16 * i, seed)
    total = avalanche(total & MASK64)
    for i in range(8, length // 16):
        total += _mix16(data, 16 * i, 16 * (i - 8) + 3, seed)
    return avalanche(total + _mix16(data, length - 16, 136 - 17, seed) & MASK64)


def _seeded_secret(seed: int) -> bytes:
    words = [read64(SECRET, 8 * i) + (seed if i % 2 == 0 else -seed) & MASK64 for i in range(len(SECRET) // 8)]
    return b"".join(word.to_bytes(8, "little") for word in words)


def _accumulate(lanes: list[int], data: bytes, at: int, secret: bytes, secret_at: int) -> None:
    for i in range(LANES):
        value = read64(data, at + 8 * i)
        key = value ^ read64(secret, secret_at + 8 * i)
        lanes[i ^ 1] = lanes[i ^ 1] + value & MASK64
        lanes[i] = lanes[i] + (key & MASK32) * (key >> 32) & MASK64


def _merge(lanes: list[int], secret: bytes, secret_at: int, start: int) -> int:
    pairs = (
        fold(lanes[2 * i] ^ read64(secret, secret_at + 16 * i), lanes[2 * i + 1] ^ read64(secret, secret_at + 16 * i + 8))
        for i in range(4)
    )
    return avalanche(start + sum(pairs) & MASK64)


def _long(data: bytes, length: int, seed: int) -> int:
    secret = _seeded_secret(seed)
    lanes = [PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1]
    stripes_per_block = (len(secret) - STRIPE) // 8
    stripes = (length - 1) // STRIPE  # the last one, which may overlap its predecessor, is apart
    for stripe in range(stripes):
        within = stripe % stripes_per_block
        _accumulate(lanes, data, stripe * STRIPE, secret, within * 8)
        if within == stripes_per_block - 1:
            for i in range(LANES):
                key = read64(secret, len(secret) - STRIPE + 8 * i)
                lanes[i] = (lanes[i] ^ lanes[i] >> 47 ^ key) * PRIME32_1 & MASK64
    _accumulate(lanes, data, length - STRIPE, secret, len(secret) - STRIPE - 7)
    return _merge(lanes, secret, 11, length * PRIME64_1 & MASK64)
