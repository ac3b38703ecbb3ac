"""A short deterministic run of the fuzz target of the aws-chunked decoder; the long one is `tests/fuzz/fuzz_awschunked.py`."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

TARGET = Path(__file__).parents[2] / "fuzz" / "fuzz_awschunked.py"


@pytest.fixture(scope="module")
def fuzz() -> dict[str, Any]:
    return runpy.run_path(str(TARGET))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_generated_bodies_decode_as_in_the_reference(fuzz: dict[str, Any], seed: int) -> None:
    fuzz["run_without_atheris"](700, seed)
