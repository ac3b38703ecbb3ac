"""A short run of the fuzz target, always the same, so that it cannot rot; and inputs it has found."""

from __future__ import annotations

import runpy
from pathlib import Path

TARGET = Path(__file__).parents[2] / "fuzz" / "fuzz_s3_request.py"


def test_the_fuzz_target_runs() -> None:
    runpy.run_path(str(TARGET))["run_without_atheris"](2000, 20261123)
