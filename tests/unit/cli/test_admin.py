"""The commands, with administration in memory: what they print, with and without --json, and their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anvil.base.config import Config
from anvil.base.errors import (
    AccessDenied,
    AnvilError,
    Conflict,
    DatabaseUnavailable,
    InvalidSetting,
    NameTaken,
    NoSuchBucket,
    UnknownName,
)
from anvil.cli import doctor
from anvil.cli.admin import command
from anvil.cli.admin_ops import (
    AppRow,
    AuditEntry,
    DriveInfo,
    DriveShare,
    LayoutInfo,
    LayoutMove,
    LayoutPast,
    NewKeys,
    NodeChange,
    NodeInfo,
    RegionRow,
    TaskInfo,
    UsageRow,
)
from anvil.cli.admin_session import Session
from anvil.cli.exits import Exit, code_of
from anvil.model.identity import Policy, Tenant

URLS = {
    "ANVIL_GLOBAL_DATABASE_URL": "postgresql://h/g",
    "ANVIL_REGIONAL_DATABASE_URL": "postgresql://h/r",
    "ANVIL_DEV_MODE": "1",
}


class MemoryOps:
    """AdminOps over dictionaries."""

    def __init__(self) -> None:
        self.regions = {"us-east-1": "http://127.0.0.1:50051"}
        self.tenants = {"default": 1}
        self.apps: dict[str, NewKeys] = {}
        self.policies: list[tuple[str, Policy]] = []
        self.public: dict[str, bool] = {"b": False}
        self.drives = {
            "/mnt/a": DriveInfo("/mnt/a", "aa" * 16, "active", 1 << 40),
            "/mnt/b": DriveInfo("/mnt/b", "bb" * 16, "absent", 5),
        }
        self.urls: tuple[str, str] = ("", "")
        self.nodes = {"aa" * 16: "active", "ab" * 16: "down"}
        self.tasks = {7: "dead", 8: "pending"}

    @asynccontextmanager
    async def open(self, config: Config, global_url: str, regional_url: str) -> AsyncIterator[MemoryOps]:
        self.urls = (global_url, regional_url)
        yield self

    async def region_create(self, name: str, endpoint: str) -> None:
        self.regions[name] = endpoint

    async def region_list(self) -> Sequence[RegionRow]:
        return [RegionRow(name, endpoint, 1_700_000_000_000_000, name == "us-east-1") for name, endpoint in self.regions.items()]

    async def tenant_create(self, name: str) -> Tenant:
        if name in self.tenants:
            raise NameTaken(f"there is a tenant {name} already")
        self.tenants[name] = len(self.tenants) + 1
        return Tenant(self.tenants[name], name)

    async def tenant_list(self) -> Sequence[Tenant]:
        return [Tenant(number, name) for name, number in self.tenants.items()]

    async def app_create(self, tenant: str, name: str) -> NewKeys:
        if tenant not in self.tenants:
            raise UnknownName(f"there is no tenant {tenant}")
        self.apps[name] = NewKeys(tenant, name, f"AK{name}", "s3cr3t")
        return self.apps[name]

    async def app_list(self, tenant: str | None) -> Sequence[AppRow]:
        return [AppRow(one.tenant, one.app, one.access_key) for one in self.apps.values()]

    async def app_reset_secret(self, app: str, tenant: str | None) -> NewKeys:
        return self.apps[app]

    async def app_delete(self, app: str, tenant: str | None) -> None:
        del self.apps[app]

    async def policy_grant(self, app: str, tenant: str | None, policy: Policy) -> bool:
        known = (app, policy) in self.policies
        self.policies.append((app, policy))
        return not known

    async def policy_revoke(self, app: str, tenant: str | None, policy: Policy) -> bool:
        if (app, policy) not in self.policies:
            return False
        self.policies.remove((app, policy))
        return True

    async def policy_list(self, app: str, tenant: str | None) -> Sequence[Policy]:
        return [policy for name, policy in self.policies if name == app]

    async def bucket_set_public(self, name: str, allow: bool) -> None:
        if name not in self.public:
            raise NoSuchBucket
        self.public[name] = allow

    async def usage(self) -> Sequence[UsageRow]:
        return [UsageRow("default", "us-east-1", "b", 3, 4096, 1, 10)]

    async def drive_list(self) -> Sequence[DriveInfo]:
        return list(self.drives.values())

    async def drive_replace(self, path: str) -> DriveInfo:
        if path not in self.drives:
            raise UnknownName(f"no drive of this node belongs at {path!r}")
        if self.drives[path].state == "active":
            raise Conflict(f"the drive at {path!r} is there")
        gone = self.drives.pop(path)
        return DriveInfo(path, gone.drive, "gone", gone.capacity_bytes)

    async def node_list(self) -> Sequence[NodeInfo]:
        return [
            NodeInfo(node, f"n{node[:2]}", "", "h:7443", state, state == "active", 0, 1, 1 << 40, 0.5, True)
            for node, state in self.nodes.items()
        ]

    async def node_drain(self, name: str) -> NodeChange:
        [node] = [node for node in self.nodes if node.startswith(name)]
        if self.nodes[node] == "down":
            raise Conflict(f"{node} is down")
        before, self.nodes[node] = self.nodes[node], "draining"
        return NodeChange(node, "n", "draining", before != "draining")

    async def node_remove(self, name: str, force: bool) -> NodeChange:
        [node] = [node for node in self.nodes if node.startswith(name)]
        if self.nodes[node] == "active" and not force:
            raise Conflict(f"{node} is up: drain it first")
        self.nodes[node] = "removed"
        return NodeChange(node, "n", "removed", True)

    async def layout_show(self) -> LayoutInfo:
        drive = DriveShare("aa" * 16, "n", "bb" * 16, "/mnt/a", 1 << 40, 0.25)
        return LayoutInfo(3, "4+2", "node", 6, (drive,), LayoutMove(64, 16, 10, 3 << 30, 2, 3725.0))

    async def layout_history(self, limit: int) -> Sequence[LayoutPast]:
        return [LayoutPast(3, "current", 1_700_000_000_000_000, 1_700_000_000_000_000, 64, 16, 10, 3 << 30)][:limit]

    async def task_list(self, status: str | None, kind: str | None, limit: int) -> Sequence[TaskInfo]:
        found = [TaskInfo(n, "repair", s, {"slice": 1}, 10, 10, "", "no drive") for n, s in self.tasks.items()]
        return [one for one in found if status in (None, one.status) and kind in (None, one.type)][:limit]

    async def task_retry(self, number: int) -> None:
        if self.tasks.get(number) != "dead":
            raise Conflict(f"there is no dead task {number}")
        self.tasks[number] = "pending"

    async def task_cancel(self, number: int) -> None:
        del self.tasks[number]

    async def audit(self, since_us: int, who: str, action: str, resource: str, limit: int) -> Sequence[AuditEntry]:
        self.audit_asked = (since_us, who, action, resource, limit)
        return [AuditEntry(1_700_000_000_000_000, "operator", "anvil admin", "app:delete", "AK1", "ok", "")]


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch) -> MemoryOps:
    for name, value in URLS.items():
        monkeypatch.setenv(name, value)
    return MemoryOps()


def invoke(ops: MemoryOps, *arguments: str) -> tuple[int, str]:
    """As `anvil.cli.main` runs it: the exit code, and what was printed."""
    runner = CliRunner()
    result = runner.invoke(command, list(arguments), obj=Session(None, None, ops.open), standalone_mode=False)
    if isinstance(result.exception, AnvilError):
        return code_of(result.exception), result.exception.message
    if result.exception is not None:
        raise result.exception
    return result.return_value if isinstance(result.return_value, int) else 0, result.output


def as_json(ops: MemoryOps, *arguments: str) -> Any:
    code, output = invoke(ops, *arguments, "--json")
    assert code == 0
    return json.loads(output)


def test_every_command_of_the_issue_works_and_speaks_json(ops: MemoryOps) -> None:
    right = ("--app", "web", "--action", "object:read", "--resource", "b/*")
    assert as_json(ops, "region", "create", "eu-1") == {"region": "eu-1"}
    assert as_json(ops, "tenant", "create", "acme") == {"tenant": "acme", "id": 2}
    assert [row["tenant"] for row in as_json(ops, "tenant", "list")] == ["default", "acme"]
    made = as_json(ops, "app", "create", "--tenant", "acme", "--name", "web")
    assert made == {"tenant": "acme", "app": "web", "access_key": "AKweb", "secret": "s3cr3t"}
    assert "secret" not in as_json(ops, "app", "list")[0]
    assert as_json(ops, "policy", "grant", *right)["changed"] is True
    assert as_json(ops, "policy", "grant", *right)["changed"] is False
    assert as_json(ops, "policy", "list", "--app", "web")[0] == {"action": "object:read", "resource": "b/*"}
    assert as_json(ops, "policy", "revoke", *right)["changed"] is True
    assert as_json(ops, "app", "reset-secret", "--app", "web")["secret"] == "s3cr3t"
    assert as_json(ops, "bucket", "set-public", "b", "--allow", "true") == {"bucket": "b", "public": True}
    assert ops.public["b"] is True
    assert as_json(ops, "usage")[0]["bytes"] == 4096
    assert as_json(ops, "app", "delete", "--app", "web")["deleted"] is True
    assert as_json(ops, "app", "list") == []
    assert ops.urls == (URLS["ANVIL_GLOBAL_DATABASE_URL"], URLS["ANVIL_REGIONAL_DATABASE_URL"])


def test_people_get_tables_and_sentences(ops: MemoryOps) -> None:
    assert "no apps" in invoke(ops, "app", "list")[1]
    _, shown = invoke(ops, "app", "create", "--tenant", "default", "--name", "web")
    assert "AKweb" in shown
    assert "shown only now" in shown
    assert "4096" in invoke(ops, "usage")[1]


def test_regions_are_listed_and_made_known(ops: MemoryOps) -> None:
    assert "of the others" not in invoke(ops, "usage")[1], "there is no other region"
    assert as_json(ops, "region", "create", "eu-1", "--endpoint", "https://eu.example.com") == {"region": "eu-1"}
    assert as_json(ops, "region", "list") == [
        {"region": "us-east-1", "endpoint": "http://127.0.0.1:50051", "created_us": 1_700_000_000_000_000, "here": True},
        {"region": "eu-1", "endpoint": "https://eu.example.com", "created_us": 1_700_000_000_000_000, "here": False},
    ]
    shown = invoke(ops, "region", "list")[1]
    assert "https://eu.example.com" in shown and "2023-11-14 22:13:20" in shown
    as_json(ops, "region", "create", "mars-1", "--endpoint", "mars.example.com:8080")
    assert ops.regions["mars-1"] == "http://mars.example.com:8080"
    told = invoke(ops, "usage")[1]
    assert "ask a node of eu-1, mars-1 for the others" in told, "it shows this region's only, and says so"
    for wrong in (("Eu_1",), ("eu-2", "--endpoint", "ftp://x"), ("eu-2", "--endpoint", "https://x/path")):
        assert invoke(ops, "region", "create", *wrong)[0] == Exit.USAGE
    assert "eu-2" not in ops.regions


def test_drives_are_listed_and_given_up(ops: MemoryOps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [(row["path"], row["state"]) for row in as_json(ops, "drive", "list")] == [("/mnt/a", "active"), ("/mnt/b", "absent")]
    assert "absent" in invoke(ops, "drive", "list")[1]
    code, told = invoke(ops, "drive", "replace", "/mnt/b")
    assert (code, "--yes" in told, len(ops.drives)) == (Exit.USAGE, True, 2), "what it held is given up: not by accident"
    gone = as_json(ops, "drive", "replace", "/mnt/b", "--yes")
    assert gone == {"path": "/mnt/b", "drive": "bb" * 16, "state": "gone", "capacity_bytes": 5}
    assert list(ops.drives) == ["/mnt/a"]
    ops.drives[str(tmp_path / "disk")] = DriveInfo("", "cc" * 16, "other", 5)
    monkeypatch.chdir(tmp_path)
    code, told = invoke(ops, "drive", "replace", "disk", "--yes")
    assert (code, "restart the node" in told) == (0, True), "a relative path is the one it means here"
    ops.drives.clear()
    assert "no drives" in invoke(ops, "drive", "list")[1]


def test_nodes_are_listed_drained_and_removed(ops: MemoryOps) -> None:
    assert [(row["node"], row["state"], row["up"]) for row in as_json(ops, "node", "list")] == [
        ("aa" * 16, "active", True),
        ("ab" * 16, "down", False),
    ]
    assert "50.0%" in invoke(ops, "node", "list")[1]
    assert as_json(ops, "node", "drain", "aa") == {"node": "aa" * 16, "name": "n", "state": "draining", "changed": True}
    assert "was draining before" in invoke(ops, "node", "drain", "aa")[1]
    code, told = invoke(ops, "node", "remove", "ab")
    assert (code, "--yes" in told, ops.nodes["ab" * 16]) == (Exit.USAGE, True, "down"), "not by accident"
    assert as_json(ops, "node", "remove", "ab", "--yes")["state"] == "removed"
    ops.nodes["aa" * 16] = "active"
    assert invoke(ops, "node", "remove", "aa", "--yes")[0] == Exit.CONFLICT
    assert invoke(ops, "node", "remove", "aa", "--yes", "--force")[0] == 0


def test_a_layout_is_shown_with_how_far_it_is(ops: MemoryOps) -> None:
    shown = as_json(ops, "layout", "show")
    assert (shown["version"], shown["scheme"], shown["move"]["slices_done"]) == (3, "4+2", 16)
    text = " ".join(invoke(ops, "layout", "show")[1].split())
    assert "layout 3, 4+2 over 6 nodes: 16 of 64 parts are moved and verified (10 shards, 3.00 GiB)" in text
    assert "waiting for 2 writers that use an older one, about 1 h 2 min to go" in text
    assert as_json(ops, "layout", "history")[0]["slices"] == 64
    assert "2023-11-14 22:13:20" in invoke(ops, "layout", "history")[1]


def test_tasks_are_listed_tried_again_and_cancelled(ops: MemoryOps) -> None:
    assert [row["task"] for row in as_json(ops, "task", "list")] == [7, 8]
    assert [row["task"] for row in as_json(ops, "task", "list", "--status", "dead", "--type", "repair")] == [7]
    assert "no drive" in invoke(ops, "task", "list", "--limit", "1")[1]
    assert as_json(ops, "task", "retry", "7")["status"] == "pending"
    assert invoke(ops, "task", "retry", "7")[0] == Exit.CONFLICT
    assert as_json(ops, "task", "cancel", "8")["cancelled"] is True
    assert list(ops.tasks) == [7]


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("tenant", "create", "default"), Exit.CONFLICT, "already"),
        (("app", "create", "--tenant", "x", "--name", "n"), Exit.NOT_FOUND, "no tenant x"),
        (("drive", "replace", "/mnt/c", "--yes"), Exit.NOT_FOUND, "/mnt/c"),
        (("drive", "replace", "/mnt/a", "--yes"), Exit.CONFLICT, "is there"),
        (("bucket", "set-public", "none", "--allow", "false"), Exit.NOT_FOUND, "bucket"),
        (("policy", "grant", "--app", "a", "--action", "object:write", "--resource", "b*c*"), Exit.USAGE, "one `*` at its end"),
        (("policy", "grant", "--app", "a", "--action", "fly", "--resource", "*"), Exit.USAGE, "object:read"),
        (("policy", "revoke", "--app", "a", "--action", "*", "--resource", "*"), Exit.NOT_FOUND, "was not granted"),
    ],
)
def test_what_goes_wrong_is_one_sentence_and_a_code(ops: MemoryOps, arguments: tuple[str, ...], code: Exit, told: str) -> None:
    found, output = invoke(ops, *arguments)
    assert found == code
    assert told in output


def test_codes_follow_the_remedy() -> None:
    assert code_of(InvalidSetting("x")) == Exit.USAGE
    assert code_of(DatabaseUnavailable()) == Exit.UNAVAILABLE
    assert code_of(AccessDenied()) == Exit.DENIED
    assert code_of(AnvilError()) == Exit.FAILED


def anvil(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[3])
    return subprocess.run(
        [sys.executable, "-m", "anvil.cli.main", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=cwd,
        env={"PYTHONPATH": root, "PATH": "/usr/bin:/bin"},
    )


def test_without_a_running_node_it_says_how_to_start_one(tmp_path: Path) -> None:
    done = anvil("admin", "tenant", "list", cwd=tmp_path)
    assert done.returncode == Exit.UNAVAILABLE
    assert "no node runs on" in done.stderr
    assert "anvil server --data-dir" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_wrong_usage_is_code_2_and_help_names_the_commands(tmp_path: Path) -> None:
    assert anvil("admin", "tenant", "fly", cwd=tmp_path).returncode == Exit.USAGE
    assert anvil("fly", cwd=tmp_path).returncode == Exit.USAGE
    shown = anvil("--help", cwd=tmp_path).stdout
    for name in ("server", "config", "doctor", "admin", "version"):
        assert name in shown


def test_config_prints_the_reference_and_the_values(tmp_path: Path) -> None:
    assert "ANVIL_DATA_DIR" in anvil("config", cwd=tmp_path).stdout
    values = json.loads(anvil("config", "--effective", "--json", cwd=tmp_path).stdout)
    assert values["api"]["listen_addr"] == "127.0.0.1:50051"
    anvil("config", "--write", "reference.md", cwd=tmp_path)
    assert (tmp_path / "reference.md").read_text().startswith("# Configuration")


def test_small_commands_import_little(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[3])
    code = "import sys; sys.argv=['anvil','version']; from anvil.cli.main import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "print(sorted(name for name in ('rich', 'asyncpg', 'uvloop', 'asyncio', 'prometheus_client') if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, env={"PYTHONPATH": root}
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_doctor_looks_at_drives(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    found = doctor._drive(tmp_path / "disk", "disk")
    assert "fsync" in found.value
    assert found.state in ("ok", "warning", "problem")
    assert list((tmp_path / "disk").iterdir()) == [], "nothing is left behind"
    (tmp_path / "file").touch()
    assert "does not exist" in doctor._drive(tmp_path / "none", "none").value


def test_doctor_measures_in_reasonable_time(tmp_path: Path) -> None:
    began = time.monotonic()
    assert doctor._fsync_ms(tmp_path) > 0
    assert time.monotonic() - began < 10


def test_the_audit_is_listed(ops: MemoryOps) -> None:
    before = time.time()
    asked = ("audit", "--since", "2h", "--who", "operator", "--action", "app:delete", "--resource", "AK", "--limit", "5")
    [row] = as_json(ops, *asked)
    assert row["at_us"] == 1_700_000_000_000_000
    assert (row["who"], row["action"], row["resource"], row["result"]) == ("operator", "app:delete", "AK1", "ok")
    assert ops.audit_asked[1:] == ("operator", "app:delete", "AK", 5)
    assert ops.audit_asked[0] == pytest.approx((before - 7200) * 1e6, abs=60e6)
    assert "2023-11-14 22:13:20" in invoke(ops, "audit")[1]
    as_json(ops, "audit", "--since", "2026-01-31T12:00")
    assert ops.audit_asked[0] == 1_769_860_800_000_000
    code, told = invoke(ops, "audit", "--since", "yesterday")
    assert (code, "90m" in told) == (Exit.USAGE, True)
