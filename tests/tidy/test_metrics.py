"""What is said about metrics outside of the code that counts them: docs/METRICS.md, the alert rules, the runbook, the dashboard.

`python -m tests.tidy.test_metrics write` writes the table anew.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from anvil.base import instruments  # noqa: F401 - declares them
from anvil.base.metrics import PREFIX, REGISTRY
from tests.support.prometheus import ALERTS, ALERTS_TESTS, DASHBOARD, alert_rules, panels

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "METRICS.md"
RUNBOOK = ROOT / "docs" / "RUNBOOK.md"
BEGIN, END = "<!-- metrics: written by `python -m tests.tidy.test_metrics write` -->\n", "<!-- end -->\n"
OF_PROMETHEUS = {"up"}
OF_PROCESSES = {
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_virtual_memory_bytes",
    "process_open_fds",
    "process_max_fds",
    "process_start_time_seconds",
}
# What every node reads from the same databases: adding it up over nodes counts it several times.
OF_DATABASES = {
    "anvil_shards_unhealthy",
    "anvil_tasks",
    "anvil_task_oldest_pending_age_seconds",
    "anvil_tenant_usage_bytes",
    "anvil_tenant_objects",
    "anvil_bucket_usage_bytes",
    "anvil_bucket_objects",
    "anvil_usage_last_update_timestamp_seconds",
    "anvil_backup_last_success_timestamp_seconds",
    "anvil_backup_hold_age_seconds",
}


def table() -> str:
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in REGISTRY.metrics.values():
        family = metric.family
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(rows) + "\n"


def known_names() -> set[str]:
    """Every name that a sample may have."""
    names = OF_PROMETHEUS | OF_PROCESSES
    for metric in REGISTRY.metrics.values():
        name = metric.family.name
        names |= {f"{name}_{part}" for part in ("bucket", "sum", "count")} if metric.family.kind == "histogram" else {name}
    return names


def metrics_in(expression: str) -> set[str]:
    """The metrics that an expression names: label values and the names of labels are taken away first."""
    bare = re.sub(r'"[^"]*"', '""', expression)
    bare = re.sub(r"\{[^}]*\}", "{}", bare)
    bare = re.sub(r"\b(by|on|without|ignoring|group_left|group_right) *\([^)]*\)", "", bare)
    return set(re.findall(r"\b(?:anvil_\w+|process_\w+|up)\b", bare))


def labels_in(expression: str) -> Iterator[tuple[str, str]]:
    """(metric, label) of every selector."""
    for name, inside in re.findall(r"\b((?:anvil|process)_\w+)\{([^}]*)\}", expression):
        for label in re.findall(r"(\w+) *(?:=~|!~|!=|=)", re.sub(r'"[^"]*"', '""', inside)):
            yield name, label


def expressions() -> list[tuple[str, str]]:
    """Where and what: of all rules and panels."""
    found = [(f"alert {rule['alert']}", rule["expr"]) for rule in alert_rules()]
    return found + [(f"panel {title}", expression) for title, expression in panels()]


def test_the_table_of_metrics_is_that_of_the_code() -> None:
    text = DOCUMENT.read_text()
    assert text.split(BEGIN)[1].split(END)[0] == table(), "run: python -m tests.tidy.test_metrics write"


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=lambda value: value if " " not in value else "")
def test_expressions_name_metrics_and_labels_that_exist(where: str, expression: str) -> None:
    names = metrics_in(expression)
    assert names, f"{where}: {expression} names no metric"
    assert names <= known_names(), f"{where} names {names - known_names()}"
    families = {metric.family.name: set(metric.family.labels) for metric in REGISTRY.metrics.values()}
    for name, label in labels_in(expression):
        family = name if name in families else re.sub(r"_(bucket|sum|count)$", "", name)
        allowed = families.get(family, set()) | {"job", "instance", "le"}
        assert label in allowed, f"{where}: {name} has no label {label}"


@pytest.mark.parametrize(("where", "expression"), expressions(), ids=lambda value: value if " " not in value else "")
def test_what_comes_from_the_databases_is_not_added_up_over_nodes(where: str, expression: str) -> None:
    for name in metrics_in(expression) & OF_DATABASES:
        before = re.findall(rf"(\w+)(?: *by *\([^)]*\))? *\( *{name}\b", expression)
        assert before, f"{where}: {name} is told by every node, so take its max()"
        assert set(before) == {"max"}, f"{where}: {name} is told by every node, so take its max(), not {before}"


def test_every_alert_says_what_it_is_and_where_to_read_on() -> None:
    names = [rule["alert"] for rule in alert_rules()]
    assert len(set(names)) == len(names)
    for rule in alert_rules():
        assert rule["labels"]["severity"] in ("critical", "warning", "info"), rule["alert"]
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}, rule["alert"]
        assert rule["annotations"]["runbook_url"] == f"docs/RUNBOOK.md#{rule['alert'].lower()}"


def test_every_alert_has_an_entry_in_the_runbook_and_no_entry_is_left_over() -> None:
    entries = re.split(r"^### ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
    assert {entry.split("\n", 1)[0] for entry in entries} == {rule["alert"] for rule in alert_rules()}
    for entry in entries:
        for part in ("**Means:**", "**Users see:**", "**First:**", "**Over:**"):
            assert part in entry, f"{entry.split()[0]} lacks {part}"


def test_every_alert_is_tested_firing_and_quiet() -> None:
    seen: dict[str, set[bool]] = {}
    for case in [case for file in ALERTS_TESTS for case in yaml.safe_load(file.read_text())["tests"]]:
        for expected in case["alert_rule_test"]:
            seen.setdefault(expected["alertname"], set()).add(bool(expected["exp_alerts"]))
    assert seen == {rule["alert"]: {True, False} for rule in alert_rules()}


def test_the_dashboard_can_be_imported_anywhere() -> None:
    board = json.loads(DASHBOARD.read_text())
    assert (board["uid"], board["title"]) == ("anvil", "Anvil")
    variables = {one["name"]: one for one in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert {"datasource", "job", "node"} == set(variables)
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} covers another panel"
        taken |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]
            used = set(re.findall(r"\$(\w+)", target["expr"]))
            assert used <= {"job", "node", "__rate_interval"}, panel["title"]


def test_every_metric_is_shown() -> None:
    """Of no metric an operator has to guess that it is there."""
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for _, expression in expressions() for name in metrics_in(expression)}
    assert {metric.family.name for metric in REGISTRY.metrics.values()} <= shown


def test_names_keep_the_conventions_of_prometheus() -> None:
    for metric in REGISTRY.metrics.values():
        family = metric.family
        assert family.name.startswith(PREFIX)
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert not re.search(r"_(ms|us|ns|millis|minutes|hours|kib|mib|kb|mb|percent)\b", family.name), family.name
        assert not {"key", "client", "peer_address", "request_id", "access_key"} & set(family.labels), family.name


if __name__ == "__main__" and sys.argv[1:] == ["write"]:
    head, rest = DOCUMENT.read_text().split(BEGIN)
    DOCUMENT.write_text(head + BEGIN + table() + END + rest.split(END, 1)[1])
    print(f"{DOCUMENT.relative_to(ROOT)} is written; the rules are in {ALERTS.relative_to(ROOT)}")
