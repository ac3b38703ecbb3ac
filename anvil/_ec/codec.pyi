from collections.abc import Sequence
from typing import Self

from anvil.base.types import Buffer

class NotEnoughUnits(ValueError): ...

class Codec:
    """Reed-Solomon over GF(2^8), k data and m parity units of equal length, Cauchy matrix (ISA-L gf_gen_cauchy1_matrix)."""

    def __new__(cls, k: int, m: int, matrix: int = 1) -> Self: ...
    @property
    def k(self) -> int: ...
    @property
    def m(self) -> int: ...
    @property
    def matrix(self) -> bytes:
        """The (k+m) x k coding matrix, row after row; identity on top."""
    @property
    def cache(self) -> tuple[int, int]:
        """(hits, misses) of the cache of decode tables."""
    def encode(self, units: Buffer, unit: int) -> None:
        """`units`: writable, at least (k+m)*unit bytes; the first k*unit are data, the parity behind them is written."""
    def decode(self, units: Sequence[Buffer | None], missing: Sequence[int], out: Sequence[Buffer]) -> None:
        """Rebuild the units of the indexes in `missing` into `out`, from any k others that are not None."""

def isal_version() -> str: ...
def kernels() -> dict[str, str]:
    """Which instruction sets this machine offers and ISA-L will choose, for `anvil doctor`."""
