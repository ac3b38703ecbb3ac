"""The storm of storm.py, for a minute."""

from __future__ import annotations

from pathlib import Path

from tests.cluster.storm import storm


def test_a_minute_of_storm(tmp_path: Path, seed: int) -> None:
    found = storm(tmp_path, seed, 60)
    assert sum(found["answered"].values()) > 100, found
