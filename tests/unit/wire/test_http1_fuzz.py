"""A short run of the fuzz target, so that it cannot rot."""

from __future__ import annotations

import runpy
from pathlib import Path


def test_the_fuzz_target_runs() -> None:
    target = Path(__file__).parents[2] / "fuzz" / "fuzz_http1.py"
    runpy.run_path(str(target))["run_hypothesis"](200)
