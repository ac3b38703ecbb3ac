"""The form in which every benchmark says what it measured: one JSON line per figure, which `bench.run` collects.

Owns: that form. Not here: measuring, the report.
"""

from __future__ import annotations

import json


def figure(name: str, value: float, unit: str, *, target: float | None = None, at_most: bool = False, note: str = "") -> None:
    """Print a figure; with `target`, the gate that it has to reach (or, `at_most`, not to exceed)."""
    line: dict[str, object] = {"name": name, "value": round(value, 3), "unit": unit}
    if target is not None:
        line |= {"target": target, "at_most": at_most, "ok": value <= target if at_most else value >= target}
    if note:
        line["note"] = note
    print(json.dumps(line), flush=True)
