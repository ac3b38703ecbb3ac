"""The erasure-coding scheme of a blob and the arithmetic of its stripes and units.

A blob of `size` plaintext bytes is cut into stripes of `stripe_bytes` (the last one may be shorter). Each stripe is sealed
(AES-256-GCM, `TAG_BYTES` more), padded with zeros to k units of equal length, and coded into k+m units. A unit on disk is
preceded by its checksum; both together are a *frame*. All frames of one index, in stripe order, are a *shard*.
Invariant: everything here follows from (scheme, stripe_bytes, size) alone, so a reader needs nothing else to find a byte.
"""

from __future__ import annotations

import msgspec

from anvil.base.limits import CODE_K_MAX, CODE_M_MAX, COPIES_BYTES_MAX, STRIPE_BYTES

TAG_BYTES = 16
CHECKSUM_BYTES = 8
UNIT_ALIGN = 64
CAUCHY = 1  # id of the coding matrix: ISA-L gf_gen_cauchy1_matrix


class Scheme(msgspec.Struct, frozen=True, order=True):
    """k data and m parity units, coded with `matrix`. k = 1 means m+1 copies (the code of one unit is the unit itself)."""

    k: int
    m: int
    matrix: int = CAUCHY

    @property
    def width(self) -> int:
        return self.k + self.m

    @property
    def quorum(self) -> int:
        """Durable shards a write needs before it may be acknowledged: k+1 where m >= 2, else k."""
        return self.k + 1 if self.m >= 2 else self.k

    def pack(self) -> int:
        """As one int32 for a database column or a record header: matrix << 16 | k << 8 | m."""
        return self.matrix << 16 | self.k << 8 | self.m

    @staticmethod
    def unpack(packed: int) -> Scheme:
        return Scheme(k=packed >> 8 & 0xFF, m=packed & 0xFF, matrix=packed >> 16)

    def __str__(self) -> str:
        return f"{self.k}+{self.m}"

    @staticmethod
    def parse(text: str) -> Scheme:
        """`"4+2"` -> Scheme(4, 2). Raises ValueError with a sentence that says what is allowed."""
        try:
            k, m = (int(part) for part in text.split("+"))
        except ValueError:
            raise ValueError(f"scheme {text!r} is not of the form k+m, such as 4+2") from None
        if not (1 <= k <= CODE_K_MAX and 0 <= m <= CODE_M_MAX):
            raise ValueError(f"scheme {text!r}: k must be 1 to {CODE_K_MAX} and m 0 to {CODE_M_MAX}")
        return Scheme(k, m)

    def copies(self) -> Scheme:
        """The scheme for small objects that survives as many losses: 1+m copies."""
        return Scheme(1, self.m, self.matrix)


def default_scheme(domains: int) -> Scheme:
    """The scheme for that many failure domains (nodes, or drives on a lone node), DESIGN.md "Data"."""
    if domains >= 6:
        return Scheme(4, 2)
    return {1: Scheme(1, 0), 2: Scheme(1, 1), 3: Scheme(2, 1)}.get(domains, Scheme(2, 2))


def scheme_for(size: int, scheme: Scheme) -> Scheme:
    """The scheme a blob of `size` bytes gets on a node configured with `scheme`."""
    return scheme.copies() if size <= COPIES_BYTES_MAX else scheme


class Geometry(msgspec.Struct, frozen=True):
    """Where the bytes of a blob are. All lengths in bytes."""

    scheme: Scheme
    size: int
    stripe_bytes: int = STRIPE_BYTES

    @property
    def stripes(self) -> int:
        return -(-self.size // self.stripe_bytes)

    def stripe_len(self, stripe: int) -> int:
        """Plaintext bytes of that stripe."""
        return min(self.stripe_bytes, self.size - stripe * self.stripe_bytes)

    def unit_len(self, stripe: int) -> int:
        """Bytes of each unit of that stripe, without its checksum."""
        return unit_len(self.scheme.k, self.stripe_len(stripe))

    def frame_len(self, stripe: int) -> int:
        return CHECKSUM_BYTES + self.unit_len(stripe)

    def frame_offset(self, stripe: int) -> int:
        """Offset of that stripe's frame from the start of a shard's payload (all frames before the last are equal)."""
        return stripe * (CHECKSUM_BYTES + unit_len(self.scheme.k, self.stripe_bytes))

    @property
    def shard_bytes(self) -> int:
        """Payload bytes of one shard: the sum of its frames."""
        if self.size == 0:
            return 0
        last = self.stripes - 1
        return self.frame_offset(last) + self.frame_len(last)


def unit_len(k: int, plain_len: int) -> int:
    """Unit length for a stripe of `plain_len` plaintext bytes: sealed length over k, rounded up to UNIT_ALIGN where k > 1."""
    sealed = plain_len + TAG_BYTES
    if k == 1:
        return sealed
    return -(-sealed // (k * UNIT_ALIGN)) * UNIT_ALIGN
