"""`anvil object`: the commands. What they do with files and objects is in `transfers.py`; which paths mean what is in `paths.py`."""

from __future__ import annotations

import base64
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from anvil.base.errors import InvalidSetting
from anvil.cli import transfers
from anvil.cli.bucket import all_buckets
from anvil.cli.bucket import show as show_buckets
from anvil.cli.client import client_options, run, shown
from anvil.cli.exits import Exit
from anvil.cli.output import emit
from anvil.cli.paths import STREAM, is_remote, parse_object, parse_remote
from anvil.cli.progress import Meter
from anvil.client import AnvilClient, Attributes, Checksum, ObjectInfo

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Objects: s3://bucket/key. `-` is standard input or output."""


def transfer_options(function: Command) -> Command:
    for option in (
        click.option("-r", "--recursive", is_flag=True, help="A whole folder."),
        click.option("-q", "--quiet", is_flag=True, help="No progress, no lines for what went well."),
        client_options,
    ):
        function = option(function)
    return function


def attribute_options(function: Command) -> Command:
    metadata = click.option("--metadata", multiple=True, metavar="K=V", help="User metadata; may be repeated.")(function)
    return click.option("--content-type", metavar="T", help="Instead of what the name lets guess.")(metadata)


def _metadata(pairs: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise InvalidSetting(f"--metadata {pair!r} is not of the form name=value")
        found[name.lower()] = value
    return found


class Doing:
    """One command's outcome, and what is printed of it: one transfer as it is, several as what was done and what failed."""

    def __init__(self, recursive: bool, quiet: bool, as_json: bool) -> None:
        self._recursive = recursive
        self._quiet = quiet
        self._as_json = as_json
        self.outcome = transfers.Outcome(Meter(quiet), quiet, as_json)

    def report(self) -> int:
        outcome = self.outcome
        if self._as_json:
            emit({"done": outcome.done, "failed": outcome.failed} if self._recursive else outcome.done[0], True, "")
        elif self._recursive and not self._quiet:
            failed = f", {len(outcome.failed)} failed" if outcome.failed else ""
            click.echo(f"{outcome.objects} objects, {outcome.size} bytes{failed}", err=True)
        return outcome.exit_code


@command.command()
@click.argument("source")
@click.argument("target")
@attribute_options
@transfer_options
def put(
    source: str,
    target: str,
    content_type: str | None,
    metadata: tuple[str, ...],
    recursive: bool,
    quiet: bool,
    profile: str | None,
    as_json: bool,
) -> int:
    """Upload the file SOURCE to TARGET (s3://bucket/key; a key that is empty or ends in / gets the file's name). `-`: standard input.
    With -r the content of the folder SOURCE goes below TARGET."""
    where = parse_remote(target)
    choose = transfers.Chooser(content_type, _metadata(metadata))
    doing = Doing(recursive, quiet, as_json)
    if recursive:
        folder = Path(source)
        if not folder.is_dir():
            raise InvalidSetting(f"{shown(source)} is no folder")
        run(profile, lambda client: transfers.put_folder(client, folder, where, choose, doing.outcome))
    else:
        run(profile, lambda client: transfers.put_file(client, source, where, choose, doing.outcome))
    return doing.report()


@command.command()
@click.argument("source")
@click.argument("target", required=False)
@transfer_options
def get(source: str, target: str | None, recursive: bool, quiet: bool, profile: str | None, as_json: bool) -> int:
    """Download SOURCE (s3://bucket/key) to the file or into the folder TARGET. `-`, or no TARGET: standard output. With -r everything
    below SOURCE goes into the folder TARGET."""
    doing = Doing(recursive, quiet, as_json)
    if recursive:
        if target is None or target == STREAM:
            raise click.UsageError("-r needs a folder to download into")
        run(profile, lambda client: transfers.get_folder(client, parse_remote(source), Path(target), doing.outcome))
        return doing.report()
    if target is None or target == STREAM:
        if as_json:
            raise click.UsageError("--json and the object cannot both be written to standard output: name a file")
        if target is None and sys.stdout.isatty():
            raise click.UsageError("name a file to download to, or `-` to write to this terminal")
        run(profile, lambda client: transfers.get_stream(client, parse_object(source), doing.outcome.meter))
        return Exit.OK
    run(profile, lambda client: transfers.get_file(client, parse_object(source), target, doing.outcome))
    return doing.report()


@command.command()
@click.argument("path")
@transfer_options
def rm(path: str, recursive: bool, quiet: bool, profile: str | None, as_json: bool) -> int:
    """Delete an object (also where there is none). With -r everything below PATH: s3://bucket/folder/."""
    doing = Doing(recursive, quiet, as_json)
    if recursive:
        where = parse_remote(path)
        run(profile, lambda client: transfers.remove_folder(client, where, doing.outcome))
    else:
        where = parse_object(path)
        run(profile, lambda client: transfers.remove(client, where, doing.outcome))
    return doing.report()


@command.command()
@click.argument("source")
@click.argument("target")
@attribute_options
@transfer_options
def cp(
    source: str,
    target: str,
    content_type: str | None,
    metadata: tuple[str, ...],
    recursive: bool,
    quiet: bool,
    profile: str | None,
    as_json: bool,
) -> int:
    """Copy between s3://... paths (the server does it), or up or down where one of the two is local."""
    context = click.get_current_context()
    if not is_remote(source) and not is_remote(target):
        raise click.UsageError("at least one of the two must be s3://bucket/key")
    if not is_remote(source):
        return int(context.forward(put))
    if not is_remote(target):
        if content_type or metadata:
            raise click.UsageError("--content-type and --metadata are for objects")
        common = {"recursive": recursive, "quiet": quiet, "profile": profile, "as_json": as_json}
        return int(context.invoke(get, source=source, target=target, **common))
    choose = transfers.Chooser(content_type, _metadata(metadata))
    doing = Doing(recursive, quiet, as_json)
    if recursive:
        pair = (parse_remote(source), parse_remote(target))
        run(profile, lambda client: transfers.copy_folder(client, *pair, choose, doing.outcome))
    else:
        pair = (parse_object(source), parse_remote(target))
        run(profile, lambda client: transfers.copy_object(client, *pair, choose, doing.outcome))
    return doing.report()


@command.command()
@click.argument("path", required=False)
@click.option("-r", "--recursive", is_flag=True, help="All objects, not only those of one level.")
@client_options
def ls(path: str | None, recursive: bool, profile: str | None, as_json: bool) -> None:
    """List the objects whose keys begin with PATH (s3://bucket/prefix), up to the next /. Without PATH: the buckets."""
    if path is None:
        show_buckets(run(profile, all_buckets), as_json)
        return
    where = parse_remote(path)
    run(profile, lambda client: transfers.show_listing(client, where, recursive, as_json))


@command.command()
@click.argument("path")
@client_options
def head(path: str, profile: str | None, as_json: bool) -> None:
    """Show what is known of an object beside its bytes."""
    where = parse_object(path)

    async def work(client: AnvilClient) -> ObjectInfo:
        return await client.objects.head(where.bucket, where.key)

    info = run(profile, work)
    emit(info, as_json, "\n".join(f"{name:<20} {shown(value)}" for name, value in _facts(info)))


def _facts(info: ObjectInfo) -> list[tuple[str, str]]:
    facts = [
        ("key", info.key),
        ("size", str(info.size)),
        ("etag", info.etag),
        ("modified", f"{info.modified_at.astimezone():%Y-%m-%d %H:%M:%S %z}"),
        ("version", info.version_id),
    ]
    if info.part_count:
        facts.append(("parts", str(info.part_count)))
    if info.checksum is not None:
        facts.append(("checksum", checksum_text(info.checksum)))
    named = msgspec.structs.asdict(info.attributes)
    user: dict[str, str] = named.pop("user_metadata")
    facts += [(name.replace("_", "-"), value) for name, value in named.items() if value and name in Attributes.__struct_fields__]
    return facts + [(f"metadata {name}", value) for name, value in sorted(user.items())]


def checksum_text(checksum: Checksum) -> str:
    """As S3 writes it: base64."""
    parts = f"-{checksum.parts}" if checksum.type == "COMPOSITE" else ""
    return f"{checksum.algorithm.value} {base64.b64encode(checksum.value).decode()}{parts} ({checksum.type})"
