"""The gate of the benchmarks: it fails when something is slower, and when something was not measured."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from bench import gate, run
from bench.gate import Counted, Figure, Measured, Verdict
from tests.support import needs

ROOT = Path(__file__).parents[2]
SLOWED = """
from anvil.wire import http1

parse_head = http1.parse_head


def slowed(data):
    parse_head(data)
    return parse_head(data)


http1.parse_head = slowed
"""


def counted(folder: Path | None = None) -> list[Figure]:
    """The head of a request, counted; with what is in `folder` run at the interpreter's start."""
    path = [str(ROOT)] if folder is None else [str(folder), str(ROOT)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    command = [sys.executable, "-m", "bench.counted", "request head"]
    return gate.figures_of(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env, cwd=ROOT).stdout)


def test_a_path_that_was_slowed_on_purpose_is_red(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs.program("valgrind")
    wanted = [one for one in gate.gates() if "request head" in one.figure]
    assert gate.tell(gate.judge(wanted, counted()))
    (tmp_path / "sitecustomize.py").write_text(SLOWED)
    assert not gate.tell(gate.judge(wanted, counted(tmp_path)))
    assert "MISSED  counted: HTTP/1.1 request head" in capsys.readouterr().out


COUNTED = Counted("a", expected=100, tolerance=0.05, reason="r")
LEAST, MOST = Measured("b", "bench.b", "r", at_least=2), Measured("c", "bench.c", "r", at_most=3)


@pytest.mark.parametrize(
    ("wanted", "value", "held"),
    [(COUNTED, 105, True), (COUNTED, 106, False), (LEAST, 2, True), (LEAST, 1.9, False), (MOST, 3, True), (MOST, 3.1, False)],
)
def test_verdicts(wanted: gate.Gate, value: float, held: bool) -> None:
    assert [one.held for one in gate.judge([wanted], [Figure(wanted.figure, value, "x")])] == [held]


def test_what_is_better_is_said() -> None:
    assert "better" in COUNTED.judge(94).remark and COUNTED.judge(94).held
    assert COUNTED.judge(96).remark == ""


def test_what_was_not_measured_has_failed() -> None:
    assert gate.judge([LEAST], []) == [Verdict(LEAST, None, False, "not measured")]
    assert gate.measure("bench.no_such_benchmark") == []


def test_a_gate_has_one_bound_and_known_fields(tmp_path: Path) -> None:
    path = tmp_path / "gates.toml"
    for text in ("", "at_least = 1\nat_most = 2", "at_least = 1\ntypo = true"):
        path.write_text(f'counted = []\n[[measured]]\nfigure = "f"\nrun = "r"\nreason = "r"\n{text}\n')
        with pytest.raises((ValueError, msgspec.ValidationError)):
            gate.gates(path)


def test_every_gate_is_of_a_benchmark_that_is_run() -> None:
    found = gate.gates()
    assert {one.run for one in found} <= set(run.BENCHES)
    assert len({one.figure for one in found}) == len(found)
    assert all(len(one.reason) > 5 for one in found)
