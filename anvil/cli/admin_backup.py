"""`anvil admin backup | restore | recovery`: repositories, the way back from one, and the end of recovery mode.

Invariant: every command takes `--json`; standard error gets the progress, and only where somebody looks; exit code 1 means that it ended
and that not all is well. Not here: the work (`node/jobs.py`, `node/restoring.py`, `node/repositories.py`, `node/recovering.py`).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from anvil.base import errors
from anvil.base.config import Config, load
from anvil.base.errors import AnvilError, InvalidSetting, Unavailable
from anvil.cli.admin_cluster import when
from anvil.cli.admin_ops import database_urls, with_secrets
from anvil.cli.admin_session import Session, as_json
from anvil.cli.output import emit, table
from anvil.cli.progress import Meter
from anvil.cli.running import run_async

if TYPE_CHECKING:
    from anvil.backup.repository import Manifest
    from anvil.node.jobs import JobState
    from anvil.node.recovering import RecoveryAdmin

T = TypeVar("T")
MIB = 1 << 20
HOLD_HOURS = 24.0


@click.group()
def backup() -> None:
    """Backups of everything, into a folder that is a repository."""


@click.group()
def restore() -> None:
    """The way back: first the metadata, while no node runs; then the data, by a node."""


@click.group()
def recovery() -> None:
    """Recovery mode, in which a region is after a restore: nothing is removed."""


def _path(repository: str) -> str:
    """Absolute, since another process opens it."""
    return os.path.abspath(repository)  # noqa: PTH100 - keeps symbolic links


def _config(session: Session) -> Config:
    return load(config_file=session.config_file, flags={"ANVIL_DATA_DIR": session.data_dir})


def _job(session: Session, quiet: bool, what: str, method: str, wanted: object) -> JobState:
    """A long job of the node, with a bar. Raises what ended it."""
    from anvil.node.admin import job

    meter, shown = Meter(quiet), not quiet and sys.stderr.isatty()
    phase, done = "", 0

    def look(state: JobState) -> None:
        nonlocal phase, done
        if state.phase != phase:
            phase, done = state.phase, 0
            if shown:
                meter.say(phase)
            meter.expect(state.total or None)
        meter.moved(state.done - done)
        done = state.done

    with meter(what):
        state = run_async(job(_config(session), method, wanted, look))
    if state.failed:
        kind = getattr(errors, state.error, Unavailable)
        raise kind(state.failed) if issubclass(kind, AnvilError) else Unavailable(state.failed)
    return state


# -- backup ---------------------------------------------------------------------------------------------------------------------


@backup.command("create")
@click.argument("repository", metavar="REPO")
@click.option("--new-key", is_flag=True, help="The master key was replaced since the last backup into this repository.")
@as_json
@click.pass_obj
def backup_create(session: Session, repository: str, new_key: bool, as_json: bool) -> int:
    """Back up the region into the folder REPO of this machine, by the node on this data directory. What earlier backups copied is not
    copied again. Exit code 1 when some objects could not be read: the backup has everything else, and says what it lacks."""
    from anvil.node.jobs import BackupWanted

    state = _job(session, as_json, "backup", "backup.ask", BackupWanted(_path(repository), new_key))
    manifest = state.manifest
    if manifest is None:
        raise Unavailable("the node does not say what came of the backup: look at `anvil admin backup list`")
    emit({"complete": manifest.complete, **msgspec.to_builtins(manifest)}, as_json, _made(manifest))
    return 0 if manifest.complete else 1


def _made(manifest: Manifest) -> str:
    lines = [
        f"snapshot {manifest.snapshot}: {manifest.counts['objects']} objects, {manifest.blobs} blobs of {_mib(manifest.blob_bytes)}, of "
        f"which {manifest.copied} of {_mib(manifest.copied_bytes)} were copied now"
    ]
    if manifest.unread:
        lines.append(f"INCOMPLETE: {manifest.unread} blobs could not be read")
    lines += [_unread(msgspec.to_builtins(one)) for one in manifest.examples]
    return "\n".join(lines)


def _unread(one: dict[str, Any]) -> str:
    where = f" of {one['key']!r} in bucket {one['bucket_id']}" if one["bucket_id"] else ""
    part = f", part {one['part']}" if one["part"] else ""
    return f"  blob {one['blob']}{where}{part}"


def _mib(size: int) -> str:
    return f"{size / MIB:,.1f} MiB"


@backup.command("list")
@click.argument("repository", metavar="REPO")
@as_json
def backup_list(repository: str, as_json: bool) -> int:
    """List the snapshots in REPO, oldest first. Exit code 1 when one of them is damaged."""
    from anvil.backup.repository import Repository

    good, bad = Repository(Path(_path(repository))).snapshots()
    rows: list[dict[str, Any]] = [
        {
            "snapshot": one.snapshot,
            "finished": one.finished_us if as_json else when(one.finished_us),
            "region": one.region,
            "objects": one.counts["objects"],
            "blobs": one.blobs,
            "bytes": one.blob_bytes,
            "copied": one.copied_bytes,
            "state": "complete" if one.complete else f"lacks {one.unread} blobs",
        }
        for one in good
    ]
    for name, why in bad.items():
        rows.append(
            dict.fromkeys(rows[0] if rows else ("snapshot", "state"), "") | {"snapshot": name, "state": f"DAMAGED: {why}"}
        )
    table(rows, as_json, "no snapshots")
    return 1 if bad else 0


@backup.command("verify")
@click.argument("repository", metavar="REPO")
@click.argument("snapshot", metavar="[SNAPSHOT]", default="")
@click.option("--deep", is_flag=True, help="Open every seal, too, with the master key of this configuration.")
@click.option("--set-aside", is_flag=True, help="Rename damaged packs, so that the next backup copies what they held again.")
@as_json
@click.pass_obj
def backup_verify(session: Session, repository: str, snapshot: str, deep: bool, set_aside: bool, as_json: bool) -> int:
    """Read every checksum in REPO, and look up everything that its snapshots (or one of them) name. Needs no node. Exit code 1 unless all
    of it can be restored."""
    from anvil.backup.repository import Repository
    from anvil.node.repositories import verify

    path, meter = Path(_path(repository)), Meter(as_json)
    with meter("verify"):
        meter.expect(sum(one.stat().st_size for one in (path / "packs").glob("*.pack")) if path.is_dir() else None)
        verdict = run_async(verify(path, snapshot, with_secrets(_config(session)) if deep else None, meter.moved))
    if set_aside and verdict.damaged:
        made = Repository(path)
        with made.writing():
            made.set_aside(verdict.damaged)
    found = msgspec.to_builtins(verdict)
    text = f"{verdict.snapshots} snapshots, {verdict.packs} packs, {verdict.blobs} blobs of {_mib(verdict.bytes)}: "
    text += "good" if verdict.good else "NOT good"
    if deep:
        text += f"; {verdict.opened} seals opened" + (f", {verdict.keyless} without a key" if verdict.keyless else "")
    if verdict.missing:
        text += f"\n{verdict.missing} blobs cannot be restored"
    emit({"good": verdict.good, **found}, as_json, "\n".join([text, *verdict.troubles]))
    return 0 if verdict.good else 1


@backup.command("forget")
@click.argument("repository", metavar="REPO")
@click.argument("snapshot")
@click.option("--yes", is_flag=True, help="Really forget it.")
@as_json
def backup_forget(repository: str, snapshot: str, yes: bool, as_json: bool) -> None:
    """Remove SNAPSHOT from REPO, and the packs of which no other snapshot needs anything."""
    from anvil.backup.repository import Repository

    made = Repository(Path(_path(repository)))
    made.folder(snapshot)
    if not yes:
        raise InvalidSetting(f"snapshot {snapshot} can then not be restored any more: repeat this with --yes")
    with made.writing():
        gone = made.forget(snapshot)
    emit({"snapshot": snapshot, "packs": gone}, as_json, f"snapshot {snapshot} is gone, and {len(gone)} packs with it")


@backup.command("cancel")
@as_json
@click.pass_obj
def backup_cancel(session: Session, as_json: bool) -> None:
    """Have the node give up the backup, or `restore data`, that it is doing. Removals are held no more. What was copied is used by the next
    backup."""
    from anvil.node.admin import cancel_job

    cancelled = run_async(cancel_job(_config(session)))
    emit({"cancelled": cancelled}, as_json, "cancelled" if cancelled else "the node does neither")


@backup.command("hold")
@click.option("--hours", type=click.FloatRange(0.01, 24 * 31), default=HOLD_HOURS, show_default=True, help="At most so long.")
@as_json
@click.pass_obj
def backup_hold(session: Session, hours: float, as_json: bool) -> None:
    """Have no node remove or rewrite anything on its drives, for a backup by other means. Returns once that is so."""
    _recover(session, lambda admin: admin.hold(hours * 3600))
    emit({"hours": hours}, as_json, f"held for {hours:g} hours, or until `anvil admin backup release`")


@backup.command("release")
@as_json
@click.pass_obj
def backup_release(session: Session, as_json: bool) -> None:
    """End `backup hold`."""
    held = _recover(session, lambda admin: admin.release())
    emit({"released": held}, as_json, "released" if held else "there was no hold of an operator")


# -- restore ---------------------------------------------------------------------------------------------------------------------


class _Mute(Meter):
    """For who reads a document."""

    def say(self, line: str) -> None:
        return


@restore.command("metadata")
@click.argument("repository", metavar="REPO")
@click.option("--snapshot", default="", metavar="ID", help="Which one (the newest).")
@click.option("--keep-nodes", is_flag=True, help="Only the databases were lost: nodes, drives and layouts are what they were.")
@click.option("--regional-only", is_flag=True, help="The global database is there, and stays as it is.")
@as_json
@click.pass_obj
def restore_metadata(
    session: Session, repository: str, snapshot: str, keep_nodes: bool, regional_only: bool, as_json: bool
) -> None:
    """Load the databases of a snapshot in REPO into empty ones, and begin recovery mode. No node may run. Start the nodes afterwards, then
    `anvil admin restore data REPO`."""
    from anvil.node.restoring import RestoreWanted, databases
    from anvil.node.restoring import restore_metadata as run

    wanted = RestoreWanted(_path(repository), snapshot, keep_nodes, regional_only)
    with (
        databases(_config(session)) as (config, global_url, regional_url),
        (_Mute if as_json else Meter)(as_json)("restoring") as meter,
    ):
        done = run_async(run(config, global_url, regional_url, wanted, meter))
    manifest, changes = done.manifest, done.changes
    lines = [
        f"snapshot {manifest.snapshot} of {when(manifest.finished_us)} is restored: {manifest.counts['objects']} objects. The region is in "
        "recovery mode: nothing is removed.",
        *([f"The backup lacked {manifest.unread} blobs."] if manifest.unread else []),
        *(
            [f"{changes.strangers} buckets with rows are not in the global database: deleted since the backup began."]
            if changes.strangers
            else []
        ),
        f"Next: start the nodes ({manifest.widest} drives or more), then `anvil admin restore data {repository}`, `anvil admin fsck`, and "
        "`anvil admin recovery end`.",
    ]
    emit(msgspec.to_builtins(done), as_json, "\n".join(lines))


@restore.command("data")
@click.argument("repository", metavar="REPO")
@click.option("--deep", is_flag=True, help="Read what is there, too, and replace what is damaged.")
@as_json
@click.pass_obj
def restore_data(session: Session, repository: str, deep: bool, as_json: bool) -> int:
    """Have the node write everything that the database names and the drives lack, out of the packs in REPO. What is there is left alone
    (but for damage that was met before, or is with --deep), so this may be repeated. Exit code 1 when something could not be brought
    back."""
    from anvil.node.jobs import RefillWanted

    report = _job(session, as_json, "restore", "refill.ask", RefillWanted(_path(repository), deep)).report
    if report is None:
        raise Unavailable("the node does not say what came of it: repeat this, which does only what is left")
    refilled = report.refilled
    lines = [
        f"{refilled.blobs} blobs of {_mib(refilled.bytes)}: {refilled.written} written ({refilled.shards} shards), {refilled.present} "
        "were there"
    ]
    for count, what in (
        (refilled.owing, "have fewer shards than they should: repaired once there are drives"),
        (refilled.waiting, "WAIT for drives: repeat this"),
        (refilled.absent, "are LOST: neither on the drives nor in a good pack"),
    ):
        if count:
            lines.append(f"{count} {what}")
    lines += [f"pack {name} cannot be used" for name in report.damaged]
    lines += [_unread(msgspec.to_builtins(one)) for one in report.examples]
    emit({"complete": report.complete, **msgspec.to_builtins(report)}, as_json, "\n".join(lines))
    return 0 if report.complete else 1


# -- recovery --------------------------------------------------------------------------------------------------------------------


def _recover(session: Session, work: Callable[[RecoveryAdmin], Awaitable[T]]) -> T:
    from anvil.node.recovering import open_recovery

    config = _config(session)
    urls = database_urls(config)

    async def connected() -> T:
        async with open_recovery(with_secrets(config), *urls) as admin:
            return await work(admin)

    return run_async(connected())


@recovery.command("status")
@as_json
@click.pass_obj
def recovery_status(session: Session, as_json: bool) -> None:
    """Whether the region is in recovery mode, what holds removals, and what the last fsck found."""
    state = _recover(session, lambda admin: admin.state())
    lines = [f"cluster epoch {state.epoch}"]
    if state.recovery is None:
        lines.append("not in recovery mode")
    else:
        lines.append(f"RECOVERY MODE since {when(state.recovery.since_us)} ({state.recovery.why}): nothing is removed")
        checked = state.checked
        if checked is None:
            lines.append("not checked since: `anvil admin fsck`")
        else:
            found = ", ".join(f"{count} {name}" for name, count in sorted(checked.found.items())) or "clean"
            lines.append(
                f"fsck of {when(checked.began_us)}: {found}" + (f"; away: {', '.join(checked.away)}" if checked.away else "")
            )
    for hold in state.holds:
        until = f"until {when(hold.until_us)}" if hold.until_us is not None else "until it is taken away"
        lines.append(f"removals are held by {hold.by or hold.name}, {until}")
    if state.last_backup_us:
        lines.append(
            f"last backup: {when(state.last_backup_us)} ({(time.time() - state.last_backup_us / 1e6) / 3600:.1f} hours ago)"
        )
    emit(msgspec.to_builtins(state), as_json, "\n".join(lines))


@recovery.command("begin")
@as_json
@click.pass_obj
def recovery_begin(session: Session, as_json: bool) -> None:
    """Begin recovery mode, for databases that were restored by other means, before any node is started on them. A node that runs meanwhile
    writes nothing more until it is started again."""
    begun = _recover(session, lambda admin: admin.begin())
    emit({"begun": begun}, as_json, "recovery mode: nothing is removed" if begun else "the region is in recovery mode already")


@recovery.command("end")
@click.option("--force", is_flag=True, help="Although not everything is there, or something would be removed.")
@as_json
@click.pass_obj
def recovery_end(session: Session, force: bool, as_json: bool) -> None:
    """End recovery mode. Takes a clean fsck since the restore. Nothing is removed for another ANVIL_GC_GRACE_S."""
    ended = _recover(session, lambda admin: admin.end(force))
    emit({"ended": ended}, as_json, "recovery mode is over" if ended else "the region was not in recovery mode")
