"""The toy worker process, as `python -m` runs it."""

from __future__ import annotations

import sys

from anvil.node import child
from anvil.node.worker import run_worker
from tests.support.toy_parts import build_worker

if __name__ == "__main__":
    sys.exit(child.main(lambda process: run_worker(process, build_worker)))
