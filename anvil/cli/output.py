"""What commands print: JSON for scripts, tables for people.

Invariant: with `--json` standard output is exactly one JSON value. Not here: errors (`cli/exits.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import msgspec


def emit(value: Any, as_json: bool, text: str) -> None:
    """Print `value` as JSON, or `text`."""
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode() if as_json else text)


def table(rows: Sequence[dict[str, Any]], as_json: bool, empty: str) -> None:
    """Print rows that share their keys, or the sentence `empty` when there are none."""
    if as_json:
        emit(rows, True, "")
    elif not rows:
        click.echo(empty)
    else:
        from rich.console import Console
        from rich.table import Table

        shown = Table(box=None, pad_edge=False, header_style="bold")
        for name in rows[0]:
            shown.add_column(name, justify="right" if isinstance(rows[0][name], int) else "left", overflow="fold")
        for row in rows:
            shown.add_row(*(str(value) for value in row.values()))
        Console().print(shown)
