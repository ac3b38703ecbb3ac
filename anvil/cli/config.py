"""`anvil config`: the reference of all settings, or the values in effect."""

from __future__ import annotations

from pathlib import Path

import click

from anvil.base import config_reference
from anvil.base.config import load


@click.command()
@click.option("--config", "config_file", metavar="FILE", help="TOML file to read (with --effective).")
@click.option("--effective", is_flag=True, help="Print the values in effect, secrets redacted, instead of the reference.")
@click.option("--json", "as_json", is_flag=True, help="With --effective: print JSON.")
@click.option("--write", "target", metavar="FILE", help="Write the reference as Markdown to FILE.")
def command(config_file: str | None, effective: bool, as_json: bool, target: str | None) -> None:
    """Print the reference of all settings, or the values in effect."""
    if target:
        Path(target).write_text(config_reference.markdown(), encoding="utf-8")
    elif effective:
        from anvil.cli.output import emit

        values = config_reference.effective(load(config_file=config_file))
        lines = [f"{section}.{key} = {value!r}" for section, keys in values.items() for key, value in keys.items()]
        emit(values, as_json, "\n".join(lines))
    else:
        click.echo(config_reference.text())
