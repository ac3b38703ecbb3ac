"""The toy background process, as `python -m` runs it."""

from __future__ import annotations

import sys

from anvil.node import child
from anvil.node.background import run_background
from tests.support.toy_parts import build_background

if __name__ == "__main__":
    sys.exit(child.main(lambda process: run_background(process, build_background)))
