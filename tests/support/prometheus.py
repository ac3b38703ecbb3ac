"""A real Prometheus for tests, and what is shipped for it: alert rules, their tests, the dashboard.

    with Prometheus(tmp_path, {"anvil": ["127.0.0.1:50051"]}, {"anvil": token}) as prometheus:
        prometheus.wait_scraped(1)
        prometheus.query("anvil_db_up")

Owns: the process and its configuration. Invariants: nothing of it outlives the `with`; the rules it loads are the shipped ones. Not here:
nodes (`node.py`, `cluster.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import yaml

from tests.support.node import ROOT, free_port, wait_until

ALERTS = ROOT / "docker" / "prometheus" / "alerts.yml"
ALERTS_TESTS = tuple(sorted((ROOT / "docker" / "prometheus").glob("*_test.yml")))
DASHBOARD = ROOT / "docker" / "grafana" / "anvil.json"
SCRAPE_EVERY_S = 1
START_S = 60.0
# What a scrape is told of when samples are broken, doubled or out of order.
COMPLAINTS = (
    "prometheus_target_scrapes_sample_duplicate_timestamp_total",
    "prometheus_target_scrapes_sample_out_of_order_total",
    "prometheus_target_scrapes_sample_out_of_bounds_total",
    "prometheus_target_scrapes_exceeded_body_size_limit_total",
    "prometheus_rule_evaluation_failures_total",
)


def program(name: str) -> str:
    """The program, or the test is skipped; where everything has to be tested (ANVIL_STRICT), it fails."""
    path = shutil.which(name)
    if path is None:
        if os.environ.get("ANVIL_STRICT"):
            pytest.fail(f"{name} is not installed: tools/test-packages.sh does that on Debian")
        pytest.skip(f"{name} is not installed: tools/test-packages.sh does that on Debian")
    return path


def promtool(*arguments: str, text: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run promtool, with `text` at its standard input."""
    return subprocess.run(
        [program("promtool"), *arguments], input=text, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120, check=False
    )


def alert_rules() -> list[dict[str, Any]]:
    """The shipped ones."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[tuple[str, str]]:
    """Title and expression of everything the dashboard shows, as it stands there."""
    return [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in json.loads(DASHBOARD.read_text())["panels"]
        for target in panel.get("targets", ())
    ]


def filled(expression: str, rate_interval: str = "1m") -> str:
    """An expression of the dashboard as Grafana sends it when all jobs and nodes are chosen."""
    return expression.replace("$__rate_interval", rate_interval).replace("$job", ".*").replace("$node", ".*")


class Prometheus:
    """Scrapes `targets` (by job, host:port each) every second, those of jobs in `tokens` with that bearer token."""

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[str]], tokens: Mapping[str, str]) -> None:
        self._folder = folder / "prometheus"
        self._log = self._folder / "log"
        self._port = free_port()
        self._targets = sum(len(addresses) for addresses in targets.values())
        self._process: subprocess.Popen[bytes] | None = None
        self._config = {
            "global": {"scrape_interval": f"{SCRAPE_EVERY_S}s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
            "rule_files": [str(ALERTS)],
            "scrape_configs": [
                {
                    "job_name": job,
                    "static_configs": [{"targets": list(addresses)}],
                    **({"authorization": {"credentials": tokens[job]}} if job in tokens else {}),
                }
                for job, addresses in targets.items()
            ],
        }

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True)
        config = self._folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(self._config))
        command = [
            program("prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{self._port}",
            "--log.level=debug",
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self._folder)
        try:
            wait_until("Prometheus is ready", self._is_ready, START_S)
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (URLError, OSError):
            return False

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def api(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of the HTTP API. Raises AssertionError with the API's own words."""
        try:
            with urlopen(f"http://127.0.0.1:{self._port}/api/v1/{path}?{urlencode(parameters)}", timeout=20) as answer:
                told = json.load(answer)
        except HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from None
        assert told["status"] == "success", told
        assert not told.get("warnings"), told
        return told["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series that an expression has now."""
        result = self.api("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def targets(self) -> list[dict[str, Any]]:
        active: list[dict[str, Any]] = self.api("targets", state="active")["activeTargets"]
        return active

    def wait_scraped(self, times: int, deadline_s: float = 60.0) -> None:
        """Until every target was scraped so often, well or not."""
        count = "count_over_time(up[10m])"

        def scraped() -> bool:
            found = self.query(count)
            return len(found) == self._targets and all(value >= times for _, value in found)

        wait_until(f"every target was scraped {times} times", scraped, deadline_s)

    def complaints(self) -> dict[str, float]:
        """What Prometheus counts of broken, doubled and late samples and of failed rules; empty where all is well."""
        with urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {
            line.split(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
            for line in lines
            if line.startswith(COMPLAINTS) and float(line.rsplit(" ", 1)[1])
        }
