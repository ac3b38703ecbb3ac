"""`anvil configure`: asks for a profile, tries it, saves it. Not here: the same without questions (`static_config.py`)."""

from __future__ import annotations

import click

from anvil.base.errors import AnvilError
from anvil.cli import profiles
from anvil.cli.client import explain
from anvil.cli.running import run_async
from anvil.client import AnvilClient, ClientError
from anvil.client.channel import parse_endpoint

USUAL_HOST = "http://127.0.0.1:50051"


@click.command()
@click.option("--profile", envvar="ANVIL_PROFILE", metavar="NAME", help="Profile to make or change.")
def command(profile: str | None) -> None:
    """Ask for server and key pair, try them, and save them as a profile."""
    known = profiles.load()
    name = profile or click.prompt("Name of the profile", default=known.default or profiles.FIRST)
    old = known.profiles.get(name)
    host = click.prompt("Server", default=old.host if old else USUAL_HOST)
    endpoint = parse_endpoint(host)
    if not endpoint.tls and not endpoint.local:
        click.echo("This connection is not encrypted: the secret and all data can be read on the way.", err=True)
    client_id = click.prompt("Client id (access key)", default=old.client_id if old else None)
    kept = old is not None and old.client_id == client_id
    secret = click.prompt(
        "Client secret" + (" (empty: as before)" if kept else ""),
        hide_input=True,
        default="" if kept else None,
        show_default=False,
    )
    if kept and not secret and old is not None:
        secret = old.client_secret
    ca = (
        click.prompt("CA certificates file", default=old.ca if old else "", show_default=bool(old and old.ca))
        if endpoint.tls
        else ""
    )
    made = profiles.Profile(host, client_id, secret, ca)
    default = not known.default or known.default == name or click.confirm("Use it by default?", default=False)
    changed = known.with_profile(name, made, default)
    try:
        run_async(_try(made))
    except AnvilError as error:
        click.echo(explain(error, name, client_id) if isinstance(error, ClientError) else error.message, err=True)
        if not click.confirm("Save it all the same?", default=False):
            raise click.Abort from None
    path = profiles.save(changed)
    click.echo(f"profile {name} saved in {path}")


async def _try(profile: profiles.Profile) -> None:
    async with AnvilClient(profile.host, profile.client_id, profile.client_secret, ca=profile.ca or None) as client:
        await client.auth.get_token()
