"""The code of `codec.pyx`, said slowly: the definition that the native codec is tested against.

Owns: arithmetic in GF(2^8), the coding matrices, encode and decode by plain linear algebra. Invariant: uses nothing of ISA-L.
Source: Blömer et al., "An XOR-Based Erasure-Resilient Coding Scheme" (1995) for Cauchy matrices; the choice of x and y is ISA-L's
`gf_gen_cauchy1_matrix`. Not here: speed.
"""

from __future__ import annotations

from collections.abc import Sequence

POLYNOMIAL = 0x11D  # x^8 + x^4 + x^3 + x^2 + 1

Matrix = list[list[int]]


def multiply(a: int, b: int) -> int:
    """Product in GF(2^8): carry-less multiplication, reduced by the polynomial."""
    product = 0
    while b:
        if b & 1:
            product ^= a
        a <<= 1
        if a & 0x100:
            a ^= POLYNOMIAL
        b >>= 1
    return product


TIMES = [bytes(multiply(a, b) for b in range(256)) for a in range(256)]  # TIMES[a][b]; each row also a table for bytes.translate
INVERSE = [0, *(TIMES[a].index(1) for a in range(1, 256))]


def coding_matrix(k: int, m: int) -> Matrix:
    """(k+m) x k: identity, then 1 / (i xor j) in row i, column j. For k = 1 every row is (1): copies."""
    if k == 1:
        return [[1] for _ in range(1 + m)]
    identity = [[int(row == column) for column in range(k)] for row in range(k)]
    return identity + [[INVERSE[row ^ column] for column in range(k)] for row in range(k, k + m)]


def invert(matrix: Matrix) -> Matrix:
    """Inverse by Gauss-Jordan elimination. Raises ValueError if there is none."""
    n = len(matrix)
    work = [[*row, *(int(i == j) for j in range(n))] for i, row in enumerate(matrix)]
    for column in range(n):
        pivot = next((row for row in range(column, n) if work[row][column]), None)
        if pivot is None:
            raise ValueError("matrix is singular")
        work[column], work[pivot] = work[pivot], work[column]
        scale = INVERSE[work[column][column]]
        work[column] = [TIMES[scale][value] for value in work[column]]
        for row in range(n):
            factor = work[row][column]
            if row != column and factor:
                work[row] = [a ^ TIMES[factor][b] for a, b in zip(work[row], work[column], strict=True)]
    return [row[n:] for row in work]


def product(a: Matrix, b: Matrix) -> Matrix:
    columns = list(zip(*b, strict=True))
    return [[dot(row, column) for column in columns] for row in a]


def dot(a: Sequence[int], b: Sequence[int]) -> int:
    total = 0
    for x, y in zip(a, b, strict=True):
        total ^= TIMES[x][y]
    return total


def combine(row: Sequence[int], units: Sequence[bytes]) -> bytes:
    """The linear combination of units with the coefficients of one row."""
    length = len(units[0])
    total = 0
    for factor, unit in zip(row, units, strict=True):
        total ^= int.from_bytes(unit.translate(TIMES[factor]), "little")
    return total.to_bytes(length, "little")


def encode(k: int, m: int, data: Sequence[bytes]) -> list[bytes]:
    """The m parity units of k data units."""
    return [combine(row, data) for row in coding_matrix(k, m)[k:]]


def decode(k: int, m: int, units: Sequence[bytes | None], missing: Sequence[int]) -> list[bytes]:
    """The units of the indexes in `missing`, from the first k others that are there. Raises ValueError if they are fewer."""
    matrix = coding_matrix(k, m)
    used = [index for index, unit in enumerate(units) if unit is not None and index not in missing][:k]
    if len(used) < k:
        raise ValueError(f"fewer than {k} units are left to decode from")
    inverse = invert([matrix[index] for index in used])
    rows = product([matrix[index] for index in missing], inverse) if missing else []
    sources = [unit for index in used if (unit := units[index]) is not None]
    return [combine(row, sources) for row in rows]
