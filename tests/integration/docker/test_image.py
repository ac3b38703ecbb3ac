"""The image, built and run for real: what `make docker-verify` does, as a test.

Slow: it makes a base of Debian's packages, compiles, and starts the node three times.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("apt-get") is None, reason="needs root, on Debian")
def test_the_image_builds_and_runs() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "docker_verify.py"], capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\nAgain: make docker-verify"
    assert done.stdout.splitlines()[-1].startswith("docker-verify: all "), done.stdout
