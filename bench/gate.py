"""Judges figures by `bench/gates.toml`, and is the short form of that: `make bench-gate`, under three minutes.

Owns: reading the gates, the verdicts and how they are told. Invariant: a gate whose figure is missing has failed, so that nothing is passed
by not being measured. Not here: measuring (the benchmarks), the full form and its report (`bench/run.py`).
Run: python -m bench.gate. Exit status 1 when a gate is missed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

GATES = Path(__file__).with_name("gates.toml")
COUNTED = "bench.counted"
TIMEOUT_S = 1200


class Figure(msgspec.Struct, frozen=True):
    """One line of a benchmark."""

    name: str
    value: float
    unit: str
    note: str = ""


class Counted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See gates.toml."""

    figure: str
    expected: float
    tolerance: float
    reason: str
    run: str = COUNTED
    short: bool = True

    @property
    def text(self) -> str:
        return f"{self.expected:g} + {self.tolerance:.0%}"

    def judge(self, value: float) -> Verdict:
        if value > self.expected * (1 + self.tolerance):
            return Verdict(self, value, False, f"{value / self.expected - 1:+.1%}")
        if value < self.expected * (1 - self.tolerance):
            return Verdict(self, value, True, f"{value / self.expected - 1:+.1%}: better than gates.toml expects, write it there")
        return Verdict(self, value, True)


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See gates.toml."""

    figure: str
    run: str
    reason: str
    at_least: float | None = None
    at_most: float | None = None
    short: bool = False

    def __post_init__(self) -> None:
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"{self.figure}: either at_least or at_most")

    @property
    def text(self) -> str:
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"

    def judge(self, value: float) -> Verdict:
        held = value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0)
        return Verdict(self, value, held)


Gate = Counted | Measured


class Verdict(msgspec.Struct, frozen=True):
    """`value` None: it was not measured."""

    gate: Gate
    value: float | None
    held: bool
    remark: str = ""


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    counted: tuple[Counted, ...]
    measured: tuple[Measured, ...]


def gates(path: Path = GATES) -> Sequence[Gate]:
    """Raises msgspec.ValidationError for a file that is not as it says at its top."""
    found = msgspec.convert(tomllib.loads(path.read_text()), _File)
    return (*found.counted, *found.measured)


def figures_of(output: str) -> list[Figure]:
    """Those among the lines that a benchmark printed."""
    lines = [line for line in output.splitlines() if line.startswith('{"')]
    return [msgspec.convert(item, Figure) for item in map(json.loads, lines) if "value" in item and "unit" in item]


def measure(run: str) -> list[Figure]:
    """Run a benchmark (a module and its arguments). None of its figures count if it fails: it says so on standard error."""
    done = subprocess.run([sys.executable, "-m", *run.split()], stdout=subprocess.PIPE, text=True, check=False, timeout=TIMEOUT_S)
    if done.returncode != 0:
        print(f"{run} failed, exit status {done.returncode}", file=sys.stderr)
        return []
    return figures_of(done.stdout)


def judge(wanted: Iterable[Gate], found: Iterable[Figure]) -> list[Verdict]:
    values = {figure.name: figure.value for figure in found}
    return [
        gate.judge(values[gate.figure]) if gate.figure in values else Verdict(gate, None, False, "not measured")
        for gate in wanted
    ]


def tell(verdicts: Sequence[Verdict]) -> bool:
    """Print them, the missed ones last and with their reasons. Whether all held."""
    for verdict in sorted(verdicts, key=lambda verdict: not verdict.held):
        value = "-" if verdict.value is None else f"{verdict.value:g}"
        print(
            f"{'ok    ' if verdict.held else 'MISSED'}  {verdict.gate.figure}: {value} ({verdict.gate.text}) {verdict.remark}".rstrip()
        )
        if not verdict.held:
            print(f"        {verdict.gate.reason}")
    missed = sum(not verdict.held for verdict in verdicts)
    print(f"{missed} of {len(verdicts)} gates missed" if missed else f"all {len(verdicts)} gates hold", flush=True)
    return not missed


def main() -> int:
    wanted = [gate for gate in gates() if gate.short]
    runs = dict.fromkeys(gate.run for gate in wanted)
    return 0 if tell(judge(wanted, [figure for run in runs for figure in measure(run)])) else 1


if __name__ == "__main__":
    sys.exit(main())
