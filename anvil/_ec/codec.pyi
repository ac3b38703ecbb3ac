from collections.abc import Sequence

from anvil.base.types import Buffer

class NotEnoughUnits(ValueError): ...

class Codec:
    """Reed-Solomon over GF(2^8), k data and m parity units of equal length, Cauchy matrix (ISA-L gf_gen_cauchy1_matrix)."""

    k: int
    m: int
    def __init__(self, k: int, m: int, matrix: int = 1) -> None: ...
    def encode(self, units: Buffer, unit: int) -> None:
        """`units`: writable, (k+m)*unit bytes; the first k*unit are data, the parity behind them is written."""
    def decode(self, units: Sequence[Buffer | None], missing: Sequence[int], out: Sequence[Buffer]) -> None:
        """Rebuild the units of the indexes in `missing` (data or parity) into `out` from any k that are not None."""

def isal_version() -> str: ...
def kernels() -> dict[str, str]:
    """Which instruction sets this machine offers and ISA-L will choose, for `anvil doctor`."""
