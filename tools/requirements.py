"""Prints the requirements of pyproject.toml for pip: those of the build and of running, and with arguments those of these extras.

Not here: exact versions, which are in requirements.lock and used as constraints.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

document = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
wanted = [*document["build-system"]["requires"], *document["project"]["dependencies"]]
for extra in sys.argv[1:]:
    wanted += document["project"]["optional-dependencies"][extra]
print("\n".join(wanted))
