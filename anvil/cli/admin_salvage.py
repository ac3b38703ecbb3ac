"""`anvil admin salvage`, and `anvil admin fsck --rebuild-metadata`: a region whose database was lost, from its drives.

Invariants: every command takes `--json`; nothing becomes visible without being named. Not here: what is uncertain (`tasks/salvage.py`).
"""

from __future__ import annotations

from typing import Any

import click
import msgspec

from anvil.base.config import load
from anvil.base.errors import InvalidSetting, Unavailable
from anvil.base.limits import SALVAGE_LISTED_MAX
from anvil.cli.admin_cluster import when
from anvil.cli.admin_ops import RecoveryInfo
from anvil.cli.admin_session import Session, as_json
from anvil.cli.output import emit, table
from anvil.cli.running import run_async
from anvil.model.dump import Rebuilt
from anvil.model.layout import PARTITIONS


@click.group()
def salvage() -> None:
    """A region whose database was lost: what came back from the drives, and what is uncertain."""


@salvage.command("dump")
@as_json
@click.pass_obj
def salvage_dump(session: Session, as_json: bool) -> None:
    """Dump the region's metadata to its drives now, as it is done every ANVIL_METADATA_DUMP_S."""
    from anvil.node.admin import node_channel
    from anvil.node.admin_salvage import dump

    config = load(config_file=session.config_file, flags={"ANVIL_DATA_DIR": session.data_dir})

    async def ask() -> Any:
        async with node_channel(config) as channel:
            return await dump(channel)

    state = run_async(ask())
    if state.failed:
        raise Unavailable(f"the dump was not taken: {state.failed}")
    done = state.report
    text = f"{done.dump} of {when(done.taken_us)}: {done.rows} rows in {done.bytes} bytes; {done.pruned} older ones go"
    emit(done, as_json, text)


@salvage.command("show")
@as_json
@click.pass_obj
def salvage_show(session: Session, as_json: bool) -> None:
    """Say whether the region is in recovery, what it was rebuilt from, and what waits."""
    shown = session.run(lambda ops: ops.salvage_show())
    emit(shown, as_json, _shown(shown))


def _shown(one: RecoveryInfo) -> str:
    if not one.recovery:
        return "not in recovery"
    lines = [f"in recovery since {when(one.since_us)}: {one.why}"]
    lines.append("closed: no object is served" if one.closed else "open; nothing is removed from the drives")
    if one.dump is None:
        lines.append("not rebuilt yet: `anvil admin fsck --rebuild-metadata`")
    elif one.dump:
        lines.append(f"rebuilt from the dump of {when(one.dump_us)} ({one.dump_rows} rows)")
    else:
        lines.append("rebuilt without a dump: there was none")
    lines.append(f"{one.waiting} uncertain objects and parts wait to be accepted or rejected")
    return "\n".join(lines)


@salvage.command("list")
@click.option("--bucket", metavar="B", help="Only this bucket's.")
@click.option("--limit", default=SALVAGE_LISTED_MAX, type=click.IntRange(1, SALVAGE_LISTED_MAX), help="At most so many.")
@as_json
@click.pass_obj
def salvage_list(session: Session, bucket: str | None, limit: int, as_json: bool) -> None:
    """List what the drives hold and the dump does not name: written after it, and deleted since or not."""
    found = [msgspec.structs.asdict(one) for one in session.run(lambda ops: ops.salvage_list(bucket, limit))]
    if not as_json:
        for row in found:
            row["written"] = when(row.pop("modified_us"))
            replaced = row.pop("replaces_us")
            row["replaces"] = when(replaced) if replaced else ""
            row["obstacle"] = row.pop("obstacle")
            del row["etag"], row["blob"]
    table(found, as_json, "nothing is uncertain")


def _scope(bucket: str | None, key: str | None, everything: bool) -> tuple[str | None, str | None]:
    """What a command names. Raises InvalidSetting."""
    if everything and key is None:
        return bucket, None
    if everything or key is None or bucket is None:
        raise InvalidSetting("name --bucket B and a KEY, or --all, or --all of one --bucket")
    return bucket, key


@salvage.command("accept")
@click.argument("key", required=False)
@click.option("--bucket", metavar="B", help="The bucket of KEY, or the only one of --all.")
@click.option("--all", "everything", is_flag=True, help="All that is listed.")
@click.option("--dump", is_flag=True, help="Serve the region as the dump has it. What was deleted after the dump is there again.")
@as_json
@click.pass_obj
def salvage_accept(session: Session, key: str | None, bucket: str | None, everything: bool, dump: bool, as_json: bool) -> int:
    """Make the dump visible (--dump), or uncertain objects: of several under a key the latest, in place of the dump's. Exit code 1 when
    something could not be accepted."""
    if dump:
        if key is not None or bucket is not None or everything:
            raise InvalidSetting("--dump stands alone: uncertain objects are accepted afterwards")
        shown = session.run(lambda ops: ops.salvage_open())
        of = (
            f"as of {when(shown.dump_us)}; what was deleted after that is there again"
            if shown.dump
            else "empty: there was no dump"
        )
        emit(shown, as_json, f"the region serves again, {of}. {shown.waiting} uncertain objects and parts wait")
        return 0
    where = _scope(bucket, key, everything)
    done = session.run(lambda ops: ops.salvage_accept(*where))
    lines = [f"{done.accepted} accepted, {done.older} older than what is there now"]
    lines += [f"{count} not accepted: {obstacle}" for obstacle, count in done.refused.items()]
    emit(done, as_json, "\n".join(lines))
    return 1 if done.refused or not done.accepted else 0


@salvage.command("reject")
@click.argument("key", required=False)
@click.option("--bucket", metavar="B", help="The bucket of KEY, or the only one of --all.")
@click.option("--all", "everything", is_flag=True, help="All that is listed.")
@click.option("--yes", is_flag=True, help="Really.")
@as_json
@click.pass_obj
def salvage_reject(session: Session, key: str | None, bucket: str | None, everything: bool, yes: bool, as_json: bool) -> None:
    """Give uncertain objects up. Their data goes after the end of recovery."""
    where = _scope(bucket, key, everything)
    if not yes:
        raise InvalidSetting("what is rejected is removed from the drives after the end of recovery: repeat this with --yes")
    count = session.run(lambda ops: ops.salvage_reject(*where))
    emit({"rejected": count}, as_json, f"{count} rejected")


@salvage.command("end")
@as_json
@click.pass_obj
def salvage_end(session: Session, as_json: bool) -> None:
    """End recovery, once nothing waits: from now on, after ANVIL_GC_GRACE_S, what no row names is removed from the drives."""
    session.run(lambda ops: ops.salvage_end())
    emit({"recovery": False}, as_json, "recovery is over")


# -- the rebuild -----------------------------------------------------------------------------------------------------------


def rebuild(session: Session, older: bool, as_json: bool) -> int:
    """`anvil admin fsck --rebuild-metadata`. Returns the exit code: 1 when a drive was away or a dump had to be passed over."""
    from anvil.node.admin import node_channel
    from anvil.node.admin_salvage import rebuild

    config = load(config_file=session.config_file, flags={"ANVIL_DATA_DIR": session.data_dir})
    told = ""

    def watch(report: Rebuilt) -> None:
        nonlocal told
        line = _progress(report)
        if line != told and not as_json:
            click.echo(line, err=True)
        told = line

    async def ask() -> Any:
        async with node_channel(config) as channel:
            return await rebuild(channel, older, watch)

    state = run_async(ask())
    if state.failed:
        raise Unavailable(f"the metadata were not rebuilt: {state.failed}")
    emit(state.report, as_json, _rebuilt(state.report))
    return 1 if state.report.away or state.report.passed_over else 0


def _progress(report: Rebuilt) -> str:
    match report.stage:
        case "load":
            return f"loading the dump of {when(report.taken_us)}: {report.rows} rows"
        case "compare":
            share = report.partitions * 100 // PARTITIONS
            return f"comparing the drives: {share} %, {report.shards} shards, {report.uncertain} uncertain"
        case _:
            return "looking for a dump"


def _rebuilt(report: Rebuilt) -> str:
    lines = [f"passed over: {reason}" for reason in report.passed_over]
    if report.dump:
        lines.append(f"loaded the dump of {when(report.taken_us)}: {report.rows} rows. What was deleted after it is in them")
        if report.with_global:
            lines.append(
                "with tenants, apps, rights and buckets, since the global database was an empty one, too: restart the nodes"
            )
    else:
        lines.append("there is no dump: all that was found is uncertain")
    lines.append(
        f"{report.shards} shards of {report.owned} objects and parts; {report.garbage} more were deleted before the dump"
    )
    lines.append(f"{report.uncertain} are uncertain: written after the dump, and perhaps deleted; `anvil admin salvage list`")
    for count, text in (
        (report.unreadable, "of these have too few shards to be read"),
        (report.older, "deleted before the dump or never committed: left out"),
        (report.bucketless, "of buckets that are gone: left out"),
        (report.nameless, "with no readable header or footer: left out"),
        (report.buckets_added, "buckets are newer than the dump"),
        (report.buckets_unknown, "buckets of the dump are gone: what they held cannot be reached"),
    ):
        if count:
            lines.append(f"{count} {text}")
    if report.away:
        lines.append(f"not looked at: {', '.join(report.away)}. Run this again when they are back")
    lines.append("The region serves nothing until `anvil admin salvage accept --dump`")
    return "\n".join(lines)
