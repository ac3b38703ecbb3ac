"""The shipped alert rules and the dashboard, as promtool judges them."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.support.prometheus import ALERTS, ALERTS_TESTS, filled, panels, promtool


def test_the_rules_are_rules() -> None:
    checked = promtool("check", "rules", str(ALERTS))
    assert checked.returncode == 0, checked.stdout.decode()
    assert b"SUCCESS" in checked.stdout


def test_every_alert_fires_when_it_should_and_only_then() -> None:
    tested = promtool("test", "rules", *map(str, ALERTS_TESTS))
    assert tested.returncode == 0, tested.stdout.decode()
    assert tested.stdout.count(b"SUCCESS") == len(ALERTS_TESTS) == 2


def test_the_unit_tests_of_the_rules_can_fail(tmp_path: Path) -> None:
    """Each alert with a condition that is never met: every case in which it should fire says so."""
    broken = yaml.safe_load(ALERTS.read_text())
    names = [rule["alert"] for group in broken["groups"] for rule in group["rules"]]
    for group in broken["groups"]:
        for rule in group["rules"]:
            rule["expr"] = f"({rule['expr']}) and on () vector(1) < 0"
    (tmp_path / ALERTS.name).write_text(yaml.safe_dump(broken))
    for file in ALERTS_TESTS:
        (tmp_path / file.name).write_text(file.read_text())
    tested = promtool("test", "rules", *(str(tmp_path / file.name) for file in ALERTS_TESTS))
    assert tested.returncode != 0
    assert [name for name in names if f"alertname: {name}," not in tested.stdout.decode()] == []


def test_the_expressions_of_the_dashboard_are_expressions(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": filled(expression)} for number, (_, expression) in enumerate(panels())]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    checked = promtool("check", "rules", str(file))
    assert checked.returncode == 0, checked.stdout.decode()
    assert f"{len(rules)} rules found".encode() in checked.stdout
