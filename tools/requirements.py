"""Prints the requirements of pyproject.toml for pip: those of the build and of running, and with arguments those of these extras.
`--only build` and `--only run` print those alone.

Not here: exact versions, which are in requirements.lock and used as constraints.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

document = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
sources = {"build": document["build-system"]["requires"], "run": document["project"]["dependencies"]}
match sys.argv[1:]:
    case ["--only", ("build" | "run") as which]:
        wanted = list(sources[which])
    case extras:
        wanted = [*sources["build"], *sources["run"]]
        for extra in extras:
            wanted += document["project"]["optional-dependencies"][extra]
print("\n".join(wanted))
