"""`anvil bucket`. Not here: objects (`object.py`)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import click

from anvil.cli.client import client_options, run
from anvil.cli.output import emit
from anvil.cli.several import side_by_side
from anvil.client import AnvilClient, Bucket, BucketNotEmpty


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Buckets."""


@command.command()
@click.argument("name")
@click.argument("region", default="")
@client_options
def create(name: str, region: str, profile: str | None, as_json: bool) -> None:
    """Create a bucket, in the server's region unless REGION says another."""
    made = run(profile, lambda client: client.buckets.create(name, region))
    emit(made, as_json, f"bucket {made.name} created in {made.region}")


@command.command()
@click.option("--prefix", default="", metavar="P", help="Only those whose names begin so.")
@client_options
def ls(prefix: str, profile: str | None, as_json: bool) -> None:
    """List the buckets."""
    show(run(profile, lambda client: all_buckets(client, prefix)), as_json)


async def all_buckets(client: AnvilClient, prefix: str = "") -> list[Bucket]:
    return [one async for one in client.buckets.list(prefix)]


def show(found: list[Bucket], as_json: bool) -> None:
    lines = [f"{one.created_at.astimezone():%Y-%m-%d %H:%M:%S}  {one.region:<12}  {one.name}" for one in found]
    emit(found, as_json, "\n".join(lines) or "no buckets")


@command.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="Delete all objects in it first. There is no way back.")
@client_options
def rm(name: str, force: bool, profile: str | None, as_json: bool) -> None:
    """Delete a bucket, which must be empty."""
    deleted = run(profile, lambda client: _remove(client, name, force))
    after = f" with {deleted} objects" if force else ""
    emit({"bucket": name, "deleted": True, "objects_deleted": deleted}, as_json, f"bucket {name} deleted{after}")


async def _remove(client: AnvilClient, name: str, force: bool) -> int:
    deleted = 0

    async def keys() -> AsyncIterator[str]:
        async for one in client.objects.list_keys(name):
            yield one.key

    async def delete(key: str) -> None:
        nonlocal deleted
        await client.objects.delete(name, key)
        deleted += 1

    if force:
        await side_by_side(keys(), delete)
    try:
        await client.buckets.delete(name)
    except BucketNotEmpty as error:
        hint = "an upload is not finished, or somebody writes" if force else "--force deletes what is in it, too"
        raise BucketNotEmpty(
            f"{error.message.rstrip('.')}: {hint}", code=error.code, status=error.status, request_id=error.request_id
        ) from None
    return deleted


@command.command("set-public")
@click.argument("bucket", required=False)
@click.option("--name", metavar="BUCKET", help="The same as the argument.")
@click.option("--allow", required=True, type=click.BOOL, metavar="true|false", help="Whether anybody may read its objects.")
@client_options
def set_public(bucket: str | None, name: str | None, allow: bool, profile: str | None, as_json: bool) -> None:
    """Let anybody read a bucket's objects, or no longer. In effect within a second."""
    if (bucket is None) is (name is None):
        raise click.UsageError("name one bucket")
    which = bucket or name or ""
    run(profile, lambda client: client.buckets.set_public(which, allow))
    emit({"bucket": which, "public": allow}, as_json, f"bucket {which} is {'public' if allow else 'private'}")
