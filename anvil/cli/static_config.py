"""`anvil static-config`: saves a profile without asking or trying anything, for scripts. Not here: the wizard (`configure.py`)."""

from __future__ import annotations

from pathlib import Path

import click

from anvil.base.errors import InvalidSetting
from anvil.cli import profiles
from anvil.cli.client import secret_of
from anvil.cli.output import emit
from anvil.client.channel import parse_endpoint, read_ca


@click.command()
@click.option("--name", required=True, metavar="NAME", help="Name of the profile.")
@click.option("--host", required=True, metavar="ADDRESS", help="http://host[:port], https://host[:port], or host[:port].")
@click.option("--client-id", required=True, metavar="ID", help="Access key of the app.")
@click.option("--client-secret", required=True, metavar="SECRET", help="Its secret; `-` reads it from standard input.")
@click.option("--ca", metavar="FILE", help="PEM certificates to trust, where they are not the usual ones.")
@click.option("--default", is_flag=True, help="Use it where no profile is named. The first one is the default anyway.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
def command(name: str, host: str, client_id: str, client_secret: str, ca: str | None, default: bool, as_json: bool) -> None:
    """Save a profile, new or changed. Others can see a secret on the command line while the command runs: `-` avoids that."""
    endpoint = parse_endpoint(host)
    client_secret = secret_of(client_secret)
    if not client_id or not client_secret:
        raise InvalidSetting("client id and client secret must not be empty")
    if ca:
        read_ca(ca)
        ca = str(Path(ca).absolute())
    made = profiles.Profile(host, client_id, client_secret, ca or "")
    changed = profiles.load().with_profile(name, made, default)
    path = profiles.save(changed)
    facts = {"profile": name, "host": str(endpoint), "client_id": client_id, "default": changed.default == name}
    emit(facts, as_json, f"profile {name} saved in {path}" + (" (default)" if changed.default == name else ""))
