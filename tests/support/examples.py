"""How many examples Hypothesis tries where each of them is expensive: few in every run, and ANVIL_TEST_EXAMPLES times as many by hand.

    ANVIL_TEST_EXAMPLES=20 make test ARGS="tests/unit/model tests/unit/wire"

Examples are random in each run, so what few do not meet today they may meet tomorrow; a failure prints its example.
"""

from __future__ import annotations

import os

from hypothesis import settings

TIMES = int(os.environ.get("ANVIL_TEST_EXAMPLES") or 1)


def examples(few: int) -> settings:
    """For a test; without a deadline for one example."""
    return settings(max_examples=few * TIMES, deadline=None)
