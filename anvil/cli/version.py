"""`anvil version`."""

from __future__ import annotations

import click

from anvil.base.version import COMMIT, VERSION


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Print the version."""
    from anvil.cli.output import emit

    emit({"version": VERSION, "commit": COMMIT}, as_json, f"anvil {VERSION}" + (f" ({COMMIT})" if COMMIT else ""))
