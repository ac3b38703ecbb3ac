"""`anvil admin`: tenants, apps, policies, buckets, usage and drives, straight in the databases.

Invariant: every command takes `--json`; what a command changed is in effect on all nodes within a second. Not here: nodes, layouts and
tasks (`admin_cluster.py`), backups (`admin_backup.py`), the SQL behind it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click
import msgspec

from anvil.base.config import load
from anvil.base.config_checks import check_public_address, check_region
from anvil.base.errors import InvalidArgument, InvalidSetting, Unavailable
from anvil.cli.admin_audit import audit
from anvil.cli.admin_backup import backup, recovery, restore
from anvil.cli.admin_cluster import layout, node, task, when
from anvil.cli.admin_ops import AdminOps, NewKeys, RegionRow, UsageRow
from anvil.cli.admin_salvage import rebuild, salvage
from anvil.cli.admin_session import Command, Session, as_json
from anvil.cli.output import emit, table
from anvil.cli.progress import Meter
from anvil.cli.running import run_async
from anvil.model.identity import Action, Policy
from anvil.model.layout import PARTITIONS

if TYPE_CHECKING:
    from anvil.node.checking import CheckState


def app_options(function: Command) -> Command:
    """How a command names an app."""
    named = click.option("--app", required=True, metavar="A", help="Access key or name of the app.")(function)
    return click.option("--tenant", metavar="T", help="Tenant of the app, where its name alone is not unique.")(named)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", "config_file", metavar="FILE", help="TOML file with settings.")
@click.option("--data-dir", metavar="DIR", help="Data directory of the node (./anvil-data).")
@click.pass_context
def command(context: click.Context, config_file: str | None, data_dir: str | None) -> None:
    """Tenants, apps, policies, buckets, usage, drives, nodes, layouts, tasks, the audit, backups and the way back."""
    if not isinstance(context.obj, Session):
        context.obj = Session(config_file, data_dir)


for group in (node, layout, task, audit, backup, restore, recovery, salvage):
    command.add_command(group)


@command.group()
def region() -> None:
    """Regions of the deployment."""


@region.command("create")
@click.argument("name")
@click.option("--endpoint", default="", metavar="URL", help="Where clients reach it. Its nodes tell their own at each start.")
@as_json
@click.pass_obj
def region_create(session: Session, name: str, endpoint: str, as_json: bool) -> None:
    """Make a region known, or change its endpoint. A node makes its own known when it starts."""
    check_region(name, "the region ")
    if endpoint:
        check_public_address(endpoint, "--endpoint ")
        endpoint = endpoint if "://" in endpoint else f"http://{endpoint}"
    session.run(lambda ops: ops.region_create(name, endpoint))
    emit({"region": name}, as_json, f"region {name} created")


@region.command("list")
@as_json
@click.pass_obj
def region_list(session: Session, as_json: bool) -> None:
    """List the regions with their endpoints: where clients that ask another one are sent."""
    found = [msgspec.structs.asdict(one) for one in session.run(lambda ops: ops.region_list())]
    if not as_json:
        for row in found:
            row["created"] = when(row.pop("created_us"))
            row["here"] = "here" if row["here"] else ""
    table(found, as_json, "no regions: a node makes its own known when it starts")


@command.group()
def tenant() -> None:
    """Tenants: owners of buckets and apps."""


@tenant.command("create")
@click.argument("name")
@as_json
@click.pass_obj
def tenant_create(session: Session, name: str, as_json: bool) -> None:
    """Create a tenant."""
    made = session.run(lambda ops: ops.tenant_create(name))
    emit({"tenant": made.name, "id": made.tenant_id}, as_json, f"tenant {made.name} created")


@tenant.command("list")
@as_json
@click.pass_obj
def tenant_list(session: Session, as_json: bool) -> None:
    """List the tenants."""
    found = session.run(lambda ops: ops.tenant_list())
    table([{"tenant": one.name, "id": one.tenant_id} for one in found], as_json, "no tenants")


@command.group()
def app() -> None:
    """Apps: key pairs of a tenant."""


def _show_keys(keys: NewKeys, as_json: bool) -> None:
    text = f"access key  {keys.access_key}\nsecret key  {keys.secret}\nThe secret is shown only now: keep it."
    emit(keys, as_json, text)


@app.command("create")
@click.option("--tenant", required=True, metavar="T", help="The tenant it belongs to.")
@click.option("--name", required=True, metavar="A", help="A name for people.")
@as_json
@click.pass_obj
def app_create(session: Session, tenant: str, name: str, as_json: bool) -> None:
    """Create an app and print its key pair, once. It may do nothing until policies are granted."""
    _show_keys(session.run(lambda ops: ops.app_create(tenant, name)), as_json)


@app.command("list")
@click.option("--tenant", metavar="T", help="Only this tenant's.")
@as_json
@click.pass_obj
def app_list(session: Session, tenant: str | None, as_json: bool) -> None:
    """List apps with their access keys."""
    found = session.run(lambda ops: ops.app_list(tenant))
    table([msgspec.structs.asdict(one) for one in found], as_json, "no apps")


@app.command("reset-secret")
@app_options
@as_json
@click.pass_obj
def app_reset_secret(session: Session, app: str, tenant: str | None, as_json: bool) -> None:
    """Give an app a new secret and print it, once. The old one stops working within a second."""
    _show_keys(session.run(lambda ops: ops.app_reset_secret(app, tenant)), as_json)


@app.command("delete")
@app_options
@as_json
@click.pass_obj
def app_delete(session: Session, app: str, tenant: str | None, as_json: bool) -> None:
    """Delete an app with its policies. What it stored stays: it belongs to the tenant."""
    session.run(lambda ops: ops.app_delete(app, tenant))
    emit({"app": app, "deleted": True}, as_json, f"app {app} deleted")


@command.group()
def policy() -> None:
    """Policies: what an app may do."""


def policy_options(function: Command) -> Command:
    """How a command names a right."""
    resource = click.option(
        "--resource", required=True, metavar="R", help="`*`, a bucket, bucket/key, or a prefix ending in `*` (my-bucket/*)."
    )(function)
    actions = ", ".join(Action)
    return app_options(click.option("--action", required=True, metavar="X", help=f"One of {actions}.")(resource))


def _policy(action: str, resource: str) -> Policy:
    try:
        return Policy.parse(action, resource)
    except InvalidArgument as error:
        raise InvalidSetting(f"--{error.fields['ArgumentName']} {error.message}") from None


@policy.command("grant")
@policy_options
@as_json
@click.pass_obj
def policy_grant(session: Session, app: str, tenant: str | None, action: str, resource: str, as_json: bool) -> None:
    """Allow an action on a resource."""
    right = _policy(action, resource)
    changed = session.run(lambda ops: ops.policy_grant(app, tenant, right))
    done = "granted" if changed else "was granted before"
    emit({"app": app, "action": action, "resource": resource, "changed": changed}, as_json, f"{action} on {resource}: {done}")


@policy.command("revoke")
@policy_options
@as_json
@click.pass_obj
def policy_revoke(session: Session, app: str, tenant: str | None, action: str, resource: str, as_json: bool) -> int:
    """Take a right back, named exactly as it was granted. In effect within a second. Exit code 4 when there was no such right."""
    right = _policy(action, resource)
    changed = session.run(lambda ops: ops.policy_revoke(app, tenant, right))
    done = "revoked" if changed else "was not granted: `anvil admin policy list` shows what is"
    emit({"app": app, "action": action, "resource": resource, "changed": changed}, as_json, f"{action} on {resource}: {done}")
    return 0 if changed else 4


@policy.command("list")
@app_options
@as_json
@click.pass_obj
def policy_list(session: Session, app: str, tenant: str | None, as_json: bool) -> None:
    """List what an app may do."""
    found = session.run(lambda ops: ops.policy_list(app, tenant))
    table([{"action": one.action, "resource": one.resource} for one in found], as_json, "no policies: the app may do nothing")


@command.group()
def bucket() -> None:
    """Buckets."""


@bucket.command("set-public")
@click.argument("name")
@click.option("--allow", required=True, type=click.BOOL, metavar="true|false", help="Whether anybody may read its objects.")
@as_json
@click.pass_obj
def bucket_set_public(session: Session, name: str, allow: bool, as_json: bool) -> None:
    """Let anybody read a bucket's objects, or no longer. In effect within a second."""
    session.run(lambda ops: ops.bucket_set_public(name, allow))
    emit({"bucket": name, "public": allow}, as_json, f"bucket {name} is {'public' if allow else 'private'}")


@command.group()
def drive() -> None:
    """Drives of the node on this data directory."""


@drive.command("list")
@as_json
@click.pass_obj
def drive_list(session: Session, as_json: bool) -> None:
    """List the drives, and whether each is there."""
    found = session.run(lambda ops: ops.drive_list())
    table([msgspec.structs.asdict(one) for one in found], as_json, "no drives")


@drive.command("replace")
@click.argument("path")
@click.option("--yes", is_flag=True, help="Really give up what the old drive held.")
@as_json
@click.pass_obj
def drive_replace(session: Session, path: str, yes: bool, as_json: bool) -> None:
    """Give the dead drive of the folder PATH up. At the next start the folder, empty by then, becomes a new drive, and what the old
    one held is rebuilt onto it from the others."""
    path = os.path.abspath(path)  # noqa: PTH100 - keeps symbolic links, as ANVIL_DRIVES does
    if not yes:
        raise InvalidSetting(f"what the drive at {path!r} held is given up and rebuilt from the others: repeat this with --yes")
    gone = session.run(lambda ops: ops.drive_replace(path))
    emit(gone, as_json, f"drive {gone.drive} is given up: mount an empty disk at {path}, and restart the node")


@command.command()
@click.option("--shallow", is_flag=True, help="Look for missing and abandoned shards only, without reading their content.")
@click.option("--no-wait", is_flag=True, help="Only begin.")
@as_json
@click.pass_obj
def scrub(session: Session, shallow: bool, no_wait: bool, as_json: bool) -> None:
    """Have the node read all its shards now. What is missing or damaged is repaired afterwards."""
    from anvil.node.assemble import survey

    config = load(config_file=session.config_file, flags={"ANVIL_DATA_DIR": session.data_dir})
    meter, left = Meter(as_json, "partitions"), -1

    def look(state: Any) -> None:  # a SurveyState
        nonlocal left
        if left < 0:
            meter.expect(state.left)
        else:
            meter.moved(max(left - state.left, 0))
        left = state.left

    with meter("scrub"):
        state = run_async(survey(config, not shallow, not no_wait, look))
    found = state.findings
    removed = f"{found.orphans} abandoned and {found.superseded} superseded ones removed"
    text = f"{found.shards} shards: {found.missing} missing, {found.corrupt} damaged, {removed}"
    emit({"over": state.over, **msgspec.structs.asdict(found)}, as_json, "begun" if no_wait else text)


@command.command()
@click.option("--deep", is_flag=True, help="Read and check the content of every shard, too.")
@click.option(
    "--repair", is_flag=True, help="Act on what is found: orphans go, what is missing or damaged is repaired afterwards."
)
@click.option("--yes", is_flag=True, help="Really repair.")
@click.option(
    "--rebuild-metadata", is_flag=True, help="Fill the empty database of a region that lost its own, from what the drives hold."
)
@click.option("--older", is_flag=True, help="With it: take an older dump where the newest cannot be read now.")
@as_json
@click.pass_obj
def fsck(session: Session, deep: bool, repair: bool, yes: bool, rebuild_metadata: bool, older: bool, as_json: bool) -> int:
    """Compare what the database names with what all drives hold. Exit code 1 unless everything is there and nothing is left over."""
    if rebuild_metadata:
        return rebuild(session, older, as_json)
    from anvil.node.assemble import fsck
    from anvil.node.checking import Wanted

    if repair and not yes:
        raise InvalidSetting("--repair removes shards that nobody owns: repeat this with --yes")
    config = load(config_file=session.config_file, flags={"ANVIL_DATA_DIR": session.data_dir})
    meter, done = Meter(as_json, "partitions"), 0

    def look(state: CheckState) -> None:
        nonlocal done
        meter.moved(state.report.partitions - done)
        done = state.report.partitions

    with meter("fsck"):
        meter.expect(PARTITIONS)
        state = run_async(fsck(config, Wanted(deep, repair), look))
    if state.failed:
        raise Unavailable(f"the check could not be ended: {state.failed}")
    found = msgspec.to_builtins(state.report)
    emit({"clean": state.clean, **found}, as_json, _fsck_text(state.clean, found))
    return 0 if state.clean else 1


def _fsck_text(clean: bool, found: dict[str, Any]) -> str:
    lines = [f"{found['shards']} shards of {found['blobs']} blobs, {found['rows']} rows: {'clean' if clean else 'NOT clean'}"]
    names = [
        name for name, value in found.items() if isinstance(value, int) and name not in ("shards", "blobs", "rows", "partitions")
    ]
    lines += [f"{name:12}{found[name]}" for name in names if found[name]]
    if found["away"]:
        lines.append(f"not looked at: {', '.join(found['away'])}")
    for one in found["examples"]:
        where = f" of {one['key']!r} in bucket {one['bucket_id']}" if one["bucket_id"] else ""
        lines.append(f"{one['kind']}: blob {one['blob']}{where}" + (f": {one['detail']}" if one["detail"] else ""))
    return "\n".join(lines)


@command.command()
@as_json
@click.pass_obj
def usage(session: Session, as_json: bool) -> None:
    """Exact usage by bucket, of this region. Those of another one are known to its own database: ask there."""
    found, regions = session.run(_usage)
    table([msgspec.structs.asdict(one) for one in found], as_json, "no buckets")
    others = [one.region for one in regions if not one.here]
    if others and not as_json:
        click.echo(f"This region's buckets only; ask a node of {', '.join(others)} for the others.", err=True)


async def _usage(ops: AdminOps) -> tuple[Sequence[UsageRow], Sequence[RegionRow]]:
    return await ops.usage(), await ops.region_list()
