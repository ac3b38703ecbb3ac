"""`anvil server` whose workers have short time-outs: python -m tests.support.impatient_server."""

from __future__ import annotations

import sys

import msgspec

from anvil.base.config import load
from anvil.node.program import PARTS
from anvil.node.supervisor import run
from tests.support.impatient_worker import run_impatiently

if __name__ == "__main__":
    sys.exit(run(load(), msgspec.structs.replace(PARTS, worker=run_impatiently)))
