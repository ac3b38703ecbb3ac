"""The version of Anvil, and its commit where that is known: in a checkout, and in an image.

Invariant: cheap (no package metadata is read) and never fails. The version here and in pyproject.toml are equal: a test compares.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

VERSION: Final = "0.1.0"


def _commit() -> str:
    """The first 12 digits of the checked-out commit, or of what the build of an image wrote down; else nothing."""
    try:
        written = Path(__file__).with_name("REVISION")
        if written.exists():
            return written.read_text().strip()[:12]
        git = Path(__file__).parents[2] / ".git"
        if git.is_file():
            git = Path(git.read_text().removeprefix("gitdir:").strip())
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head[:12]
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").exists() else git
        return (common / head[5:]).read_text().strip()[:12]
    except OSError:
        return ""


COMMIT: Final = _commit()
