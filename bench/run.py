"""Runs the benchmarks, checks their gates, and writes the report into bench/README.md.

Owns: the list of benchmarks and the form of the report. Each benchmark prints JSON lines (`name`, `value`, `unit`, perhaps `target`,
`at_most`, `ok`, `note`). Exit status 1 when a gate is missed. Run: make bench, or python -m bench.run [words a benchmark's name contains].
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent / "README.md"
MARK = "<!-- report: written by `make bench`, everything below is replaced -->"

BENCHES: tuple[tuple[str, ...], ...] = (
    ("bench.micro.codec",),
    ("bench.micro.digests",),
    ("bench.micro.sigv4",),
    ("bench.micro.metrics",),
    ("bench.micro.tokens",),
    ("bench.micro.segments",),
    ("bench.micro.metadata",),
    ("bench.macro.http_port",),
    ("bench.macro.client",),
    ("bench.macro.s3", "small"),
    ("bench.macro.s3", "large"),
    ("bench.macro.s3", "list"),
    ("bench.macro.s3", "memory"),
    ("bench.macro.s3", "http2"),
    ("bench.macro.s3", "tls"),
    ("bench.macro.grpc_calls",),
    ("bench.macro.peers",),
    ("bench.macro.cluster", "beside"),
    ("bench.macro.cluster", "rebuild"),
    ("bench.macro.cluster", "changes"),
)


def machine() -> str:
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release().split('-')[0]}, Python {platform.python_version()}, commit {commit}"


def main() -> int:
    words = sys.argv[1:]
    rows, failed = [], 0
    for bench in BENCHES:
        title = " ".join(bench)
        if words and not any(word in title for word in words):
            continue
        print(f"== {title}", flush=True)
        done = subprocess.run([sys.executable, "-m", *bench], stdout=subprocess.PIPE, text=True, check=False, timeout=1200)
        print(done.stdout, flush=True)
        if done.returncode != 0:
            failed += 1
            rows.append(f"| {title} | failed, exit status {done.returncode} | | |")
            continue
        for line in done.stdout.splitlines():
            if not line.startswith('{"'):
                continue
            item = json.loads(line)
            if "value" not in item:
                continue
            gate = ""
            if "target" in item:
                gate = f"{'at most' if item.get('at_most') else 'at least'} {item['target']:g}"
                gate += "" if item["ok"] else " **missed**"
                failed += not item["ok"]
            rows.append(f"| {item['name']} | {item['value']:,g} {item['unit']} | {gate} | {item.get('note', '')} |")
    if not words:
        head = README.read_text().split(MARK)[0] if README.exists() else "# Benchmarks\n\n"
        stamp = f"{datetime.date.today().isoformat()}, {machine()}"
        table = "\n".join(["| figure | measured | gate | note |", "|---|---|---|---|", *rows])
        README.write_text(f"{head}{MARK}\n\n{stamp}\n\n{table}\n")
    print(f"{failed} gates missed" if failed else "all gates hold")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
