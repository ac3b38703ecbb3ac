"""Exit codes of every `anvil` command, and the one place that turns an error into a line and a code.

Invariant: an expected error is one line on standard error, never a stack. Not here: the errors (`base/errors.py`).
"""

from __future__ import annotations

from enum import IntEnum

from anvil.base.errors import AnvilError, Conflict, Denied, InvalidSetting, NotFound, Unavailable


class Exit(IntEnum):
    """What a script can tell apart."""

    OK = 0
    FAILED = 1  # something unexpected
    USAGE = 2  # a wrong option, setting or value
    UNAVAILABLE = 3  # a database or the node is not reachable, or the data directory is in use
    NOT_FOUND = 4
    CONFLICT = 5
    DENIED = 6


def code_of(error: AnvilError) -> Exit:
    """The exit code for an error, by its remedy."""
    if isinstance(error, InvalidSetting):
        return Exit.USAGE
    for kind, code in (
        (NotFound, Exit.NOT_FOUND),
        (Conflict, Exit.CONFLICT),
        (Denied, Exit.DENIED),
        (Unavailable, Exit.UNAVAILABLE),
    ):
        if isinstance(error, kind):
            return code
    return Exit.FAILED
