"""`anvil server` with toy parts: python -m tests.support.toy_server."""

from __future__ import annotations

import sys

from anvil.base.config import load
from anvil.node.supervisor import run
from tests.support.toy_parts import PARTS

if __name__ == "__main__":
    sys.exit(run(load(), PARTS))
