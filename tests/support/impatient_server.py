"""`anvil server` whose workers have short time-outs: python -m tests.support.impatient_server."""

from __future__ import annotations

import sys

import msgspec

from anvil.base.config import load
from anvil.node.assemble import PARTS
from anvil.node.supervisor import run

if __name__ == "__main__":
    sys.exit(run(load(), msgspec.structs.replace(PARTS, worker="tests.support.impatient_worker")))
