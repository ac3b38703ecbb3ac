"""`anvil auth`: access tokens, and rights of other apps of one's tenant. Not here: `anvil admin policy`, which needs no rights."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from anvil.base.errors import InvalidSetting
from anvil.cli.client import client_options, run, secret_of
from anvil.cli.exits import Exit
from anvil.cli.output import emit
from anvil.model.identity import Action


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Access tokens, and rights of other apps."""


@command.command("get-token")
@click.option("--client-id", metavar="ID", help="Instead of the profile's, with its secret.")
@click.option("--client-secret", metavar="SECRET", help="`-` reads it from standard input.")
@client_options
def get_token(client_id: str | None, client_secret: str | None, profile: str | None, as_json: bool) -> None:
    """Print an access token, for other gRPC clients. Whoever has it can do what the app can until it expires."""
    if (client_id is None) is not (client_secret is None):
        raise click.UsageError("--client-id and --client-secret belong together")
    keys = (client_id, secret_of(client_secret)) if client_id is not None and client_secret is not None else None
    token = run(profile, lambda client: client.auth.get_token(), keys)
    expires = datetime.fromtimestamp(token.expires_at_s, UTC)
    emit({"access_token": token.value, "expires_at": expires}, as_json, token.value)


def _check(action: str, resource: str) -> None:
    if action not in set(Action):
        raise InvalidSetting(f"{action!r} is not one of {', '.join(Action)}")
    if not resource or "*" in resource[:-1]:
        raise InvalidSetting(f"the resource {resource!r} must be `*`, exact, or a prefix with one `*` at its end")


@command.command()
@click.argument("app")
@click.argument("action")
@click.argument("resource")
@client_options
def grant(app: str, action: str, resource: str, profile: str | None, as_json: bool) -> None:
    """Give APP (access key or name) the right to ACTION on RESOURCE: `*`, a bucket, bucket/key, or a prefix ending in `*`. You need
    policy:grant there, and the right itself."""
    _check(action, resource)
    changed = run(profile, lambda client: client.auth.grant(app, action, resource))
    done = "granted" if changed else "was granted before"
    emit({"app": app, "action": action, "resource": resource, "changed": changed}, as_json, f"{action} on {resource}: {done}")


@command.command()
@click.argument("app")
@click.argument("action")
@click.argument("resource")
@client_options
def revoke(app: str, action: str, resource: str, profile: str | None, as_json: bool) -> int:
    """Take a right of APP back, named exactly as it was granted. Exit code 4 when there was no such right."""
    _check(action, resource)
    changed = run(profile, lambda client: client.auth.revoke(app, action, resource))
    done = "revoked" if changed else "was not granted"
    emit({"app": app, "action": action, "resource": resource, "changed": changed}, as_json, f"{action} on {resource}: {done}")
    return Exit.OK if changed else Exit.NOT_FOUND
