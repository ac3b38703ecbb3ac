"""Short runs of the fuzz targets of gRPC and HTTP/2, so that they cannot rot; the long ones are in `tests/fuzz/`."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.support.examples import TIMES


@pytest.mark.parametrize("name", ["fuzz_grpc", "fuzz_http2"])
def test_the_fuzz_target_runs(name: str) -> None:
    target = Path(__file__).parents[2] / "fuzz" / f"{name}.py"
    runpy.run_path(str(target))["run_hypothesis"](100 * TIMES)
