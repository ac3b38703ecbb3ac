"""What a test needs of the machine beside what `make dev` is sure to bring.

Invariant: where ANVIL_STRICT=1 is set (`.ci/run`), a program that is missing fails the test. Elsewhere the test is skipped, and says why.
"""

from __future__ import annotations

import os
import shutil

import pytest


def program(name: str) -> str:
    """The path of a program. Debian keeps some where an ordinary user's PATH does not reach."""
    path = find(name)
    if path is None:
        missing(f"{name} is not installed")
    return path


def find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin")


def missing(what: str) -> None:
    """Ends the test."""
    if os.environ.get("ANVIL_STRICT") == "1":
        pytest.fail(f"{what}, and ANVIL_STRICT=1 wants every test to run", pytrace=False)
    pytest.skip(what)
