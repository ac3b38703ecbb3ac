"""Runs all benchmarks, judges them by `bench/gates.toml`, and writes `bench/results/<version>.json` and the report in bench/README.md.

Owns: the list of benchmarks and the form of the report. Exit status 1 when a gate is missed or a benchmark failed.
Run: make bench, or python -m bench.run [words a benchmark's name contains], which then writes nothing.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from anvil.base.version import VERSION
from bench.gate import COUNTED, Figure, Verdict, gates, judge, measure, tell

README = Path(__file__).with_name("README.md")
RESULTS = Path(__file__).with_name("results")
MARK = "<!-- report: written by `make bench`, everything below is replaced -->"

BENCHES = (
    COUNTED,
    "bench.micro.codec",
    "bench.micro.digests",
    "bench.micro.sigv4",
    "bench.micro.wire",
    "bench.micro.metrics",
    "bench.micro.tokens",
    "bench.micro.segments",
    "bench.micro.metadata",
    "bench.macro.http_port",
    "bench.macro.client",
    "bench.macro.s3 small",
    "bench.macro.s3 large",
    "bench.macro.processor",
    "bench.macro.s3 list",
    "bench.macro.s3 memory",
    "bench.macro.s3 http2",
    "bench.macro.s3 tls",
    "bench.macro.grpc_calls",
    "bench.macro.peers",
    "bench.macro.cluster beside",
    "bench.macro.cluster rebuild",
    "bench.macro.cluster changes",
)


class Result(msgspec.Struct, frozen=True):
    """What `bench/results/<version>.json` holds."""

    version: str
    date: str
    machine: str
    figures: Mapping[str, Sequence[Figure]]
    missed: Sequence[str]


def machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, commit {commit}"


def table(found: Mapping[str, Sequence[Figure]], verdicts: Sequence[Verdict]) -> str:
    by_figure = {verdict.gate.figure: verdict for verdict in verdicts}
    rows = ["| figure | measured | gate | note |", "|---|---|---|---|"]
    for bench, figures in found.items():
        if not figures:
            rows.append(f"| {bench} | failed | | |")
        for one in figures:
            verdict = by_figure.get(one.name)
            gate = "" if verdict is None else verdict.gate.text + ("" if verdict.held else " **missed**")
            rows.append(f"| {one.name} | {one.value:,g} {one.unit} | {gate} | {one.note} |")
    return "\n".join(rows)


def write(result: Result, verdicts: Sequence[Verdict]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result.version}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1) + b"\n")
    head = README.read_text().split(MARK)[0]
    README.write_text(f"{head}{MARK}\n\n{result.date}, {result.machine}\n\n{table(result.figures, verdicts)}\n")


def main() -> int:
    words = sys.argv[1:]
    found: dict[str, list[Figure]] = {}
    for bench in BENCHES:
        if words and not any(word in bench for word in words):
            continue
        print(f"== {bench}", flush=True)
        found[bench] = measure(bench)
        for one in found[bench]:
            print(f"{one.name}: {one.value:g} {one.unit}  {one.note}".rstrip(), flush=True)
    verdicts = judge([gate for gate in gates() if gate.run in found], [one for figures in found.values() for one in figures])
    held = tell(verdicts) and all(found.values())
    if not words:
        missed = [verdict.gate.figure for verdict in verdicts if not verdict.held]
        write(Result(VERSION, datetime.date.today().isoformat(), machine(), found, missed), verdicts)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
