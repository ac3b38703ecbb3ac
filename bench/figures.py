"""The form in which every benchmark says what it measured: one JSON line per figure, which `bench.gate` reads.

Owns: that form. Not here: measuring, what is good enough (`bench/gates.toml`), the report.
"""

from __future__ import annotations

import json


def figure(name: str, value: float, unit: str, *, note: str = "") -> None:
    """Print a figure."""
    line: dict[str, object] = {"name": name, "value": round(value, 3), "unit": unit}
    if note:
        line["note"] = note
    print(json.dumps(line), flush=True)
