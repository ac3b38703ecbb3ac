"""`anvil admin node | layout | task`: who is in the region, what is moving, and what the queue holds.

Invariant: every command takes `--json`; what would lose data is refused by whoever carries it out, not here. Not here: the rules
(`node/losses.py`), the SQL behind it.
"""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec

from anvil.base.errors import InvalidSetting
from anvil.base.limits import LAYOUT_HISTORY_MAX, TASKS_LISTED_MAX
from anvil.cli.admin_ops import LayoutInfo, NodeInfo
from anvil.cli.admin_session import Session, as_json
from anvil.cli.output import emit, table
from anvil.model.task import TaskStatus

GIB = 1 << 30


@click.group()
def node() -> None:
    """Nodes of the region."""


@node.command("list")
@as_json
@click.pass_obj
def node_list(session: Session, as_json: bool) -> None:
    """List the nodes, how they are, and how much of the data is theirs."""
    found = session.run(lambda ops: ops.node_list())
    rows = [msgspec.structs.asdict(one) if as_json else _for_people(one) for one in found]
    table(rows, as_json, "no nodes")


def _for_people(one: NodeInfo) -> dict[str, Any]:
    return {
        "node": one.node[:8],
        "name": one.name,
        "state": "drained" if one.state == "draining" and not one.holds else one.state,
        "up": "yes" if one.up else "no",
        "zone": one.zone,
        "address": one.address,
        "drives": one.drives,
        "GiB": round(one.capacity_bytes / GIB),
        "share": f"{one.share:.1%}",
    }


@node.command("drain")
@click.argument("name", metavar="NODE")
@as_json
@click.pass_obj
def node_drain(session: Session, name: str, as_json: bool) -> None:
    """Have everything NODE holds moved to the others. It serves meanwhile. NODE is a name, an id, or the beginning of one."""
    change = session.run(lambda ops: ops.node_drain(name))
    text = (
        f"{change.name} ({change.node[:8]}) drains: `anvil admin layout show` tells how far it is. When `anvil admin node list` "
        f"calls it drained, `anvil admin node remove {change.node[:8]}` and stop it"
    )
    emit(change, as_json, text if change.changed else f"{change.name} ({change.node[:8]}) was draining before")


@node.command("remove")
@click.argument("name", metavar="NODE")
@click.option("--force", is_flag=True, help="Give up a node that is up as if it were dead.")
@click.option("--yes", is_flag=True, help="Really.")
@as_json
@click.pass_obj
def node_remove(session: Session, name: str, force: bool, yes: bool, as_json: bool) -> None:
    """Give NODE up: what it held is rebuilt from the others. Refused, always, where that could lose data."""
    if not yes:
        raise InvalidSetting(f"what {name} holds is given up and rebuilt from the others: repeat this with --yes")
    change = session.run(lambda ops: ops.node_remove(name, force))
    done = "is removed" if change.changed else "was removed before"
    emit(change, as_json, f"{change.name} ({change.node[:8]}) {done}; started again, it joins again")


@click.group()
def layout() -> None:
    """Layouts: which drives hold what."""


@layout.command("show")
@as_json
@click.pass_obj
def layout_show(session: Session, as_json: bool) -> None:
    """Show the layout in use, and how far the move to it is."""
    found = session.run(lambda ops: ops.layout_show())
    if as_json:
        emit(found, True, "")
        return
    click.echo(f"layout {found.version}, {found.scheme} over {found.domains} {found.domain}s: {_progress(found)}\n")
    rows = [
        {
            "node": one.node[:8],
            "name": one.name,
            "drive": one.label,
            "GiB": round(one.capacity_bytes / GIB),
            "share": f"{one.share:.1%}",
        }
        for one in found.drives
    ]
    table(rows, False, "no drives")


def _progress(found: LayoutInfo) -> str:
    move = found.move
    if move is None:
        return "in effect everywhere"
    text = f"{move.slices_done} of {move.slices} parts are moved and verified ({move.shards} shards, {move.bytes / GIB:.2f} GiB)"
    if move.writers_behind:
        text += f", waiting for {move.writers_behind} writers that use an older one"
    return text + ("" if move.eta_s is None else f", about {_duration(move.eta_s)} to go")


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds // 60) % 60
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds % 60)} s"


@layout.command("history")
@click.option("--limit", type=click.IntRange(1, LAYOUT_HISTORY_MAX), default=20, show_default=True, help="How many.")
@as_json
@click.pass_obj
def layout_history(session: Session, limit: int, as_json: bool) -> None:
    """List the layouts there were, the newest first."""
    found = session.run(lambda ops: ops.layout_history(limit))
    rows = [msgspec.structs.asdict(one) for one in found]
    if not as_json:
        rows = [
            {
                "version": row["version"],
                "state": row["state"],
                "since": when(row["since_us"]),
                "made": when(row["created_us"]),
                "parts": f"{row['slices_done']}/{row['slices']}",
                "shards": row["shards"],
                "GiB": f"{row['bytes'] / GIB:.2f}",
            }
            for row in rows
        ]
    table(rows, as_json, "no layouts")


def when(moment_us: int) -> str:
    """For people: a time of the databases."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(moment_us / 1e6))


@click.group()
def task() -> None:
    """Tasks in the queue of the deployment."""


@task.command("list")
@click.option("--status", type=click.Choice([str(status) for status in TaskStatus]), help="Only these.")
@click.option("--type", "kind", metavar="TYPE", help="Only of this type.")
@click.option("--limit", type=click.IntRange(1, TASKS_LISTED_MAX), default=100, show_default=True, help="How many.")
@as_json
@click.pass_obj
def task_list(session: Session, status: str | None, kind: str | None, limit: int, as_json: bool) -> None:
    """List tasks, the newest first."""
    found = session.run(lambda ops: ops.task_list(status, kind, limit))
    rows = [msgspec.structs.asdict(one) for one in found]
    if not as_json:
        rows = [
            {
                "task": row["task"],
                "type": row["type"],
                "status": row["status"],
                "attempt": f"{row['attempt']}/{row['max_attempts']}",
                "payload": msgspec.json.encode(row["payload"]).decode(),
                "error": row["error"],
            }
            for row in rows
        ]
    table(rows, as_json, "no tasks")


@task.command("retry")
@click.argument("number", metavar="TASK", type=int)
@as_json
@click.pass_obj
def task_retry(session: Session, number: int, as_json: bool) -> None:
    """Have a dead or cancelled task, or one that waits, tried now."""
    session.run(lambda ops: ops.task_retry(number))
    emit({"task": number, "status": "pending"}, as_json, f"task {number} is tried again")


@task.command("cancel")
@click.argument("number", metavar="TASK", type=int)
@as_json
@click.pass_obj
def task_cancel(session: Session, number: int, as_json: bool) -> None:
    """Give a task up. What is due is put into the queue again by the node that looks after that."""
    session.run(lambda ops: ops.task_cancel(number))
    emit({"task": number, "cancelled": True}, as_json, f"task {number} is cancelled")
