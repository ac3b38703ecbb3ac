"""`anvil admin audit`: who changed what, and when.

Invariant: it only reads; the table takes no change but appending. Not here: who writes to it (`meta/admin.py`, `meta/rights.py`,
`node/admin_cluster.py`).
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Final

import click
import msgspec

from anvil.base.errors import InvalidSetting
from anvil.base.limits import AUDIT_LISTED_MAX
from anvil.cli.admin_cluster import when
from anvil.cli.admin_session import Session, as_json
from anvil.cli.output import table

_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def moment_us(text: str, now_s: float) -> int:
    """`90m`, `24h`, `7d`: so long ago; or a time as in ISO 8601 (UTC unless it says otherwise). Raises InvalidSetting."""
    if past := re.fullmatch(r"(\d{1,6})([smhdw])", text):
        return int((now_s - int(past[1]) * _UNITS[past[2]]) * 1e6)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidSetting(f"{text!r} is no time: write 90m, 24h, 7d, or 2026-01-31T12:00") from None
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e6)


@click.command()
@click.option(
    "--since", default="30d", show_default=True, metavar="TIME", help="From then on: 90m, 24h, 7d, or as 2026-01-31T12:00 (UTC)."
)
@click.option("--who", default="", metavar="WHO", help="Only of `operator`, `node`, or this access key.")
@click.option("--action", default="", metavar="ACTION", help="Only these, such as policy:grant.")
@click.option("--resource", default="", metavar="TEXT", help="Only where the resource has TEXT in it.")
@click.option("--limit", type=click.IntRange(1, AUDIT_LISTED_MAX), default=100, show_default=True, help="How many.")
@as_json
@click.pass_obj
def audit(session: Session, since: str, who: str, action: str, resource: str, limit: int, as_json: bool) -> None:
    """List changes of tenants, apps, rights, buckets' visibility, nodes, drives and tasks, the newest first; refused ones too."""
    since_us = moment_us(since, time.time())
    rows = [msgspec.structs.asdict(one) for one in session.run(lambda ops: ops.audit(since_us, who, action, resource, limit))]
    if not as_json:
        rows = [
            {"time": when(row.pop("at_us")), **{name: value for name, value in row.items() if name != "request_id"}}
            for row in rows
        ]
    table(rows, as_json, "nothing was changed")
