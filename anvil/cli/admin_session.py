"""How a command of `anvil admin` gets at the databases, and what all of them share.

Owns: the group's options, the connection for one command. Not here: the commands (`admin.py`, `admin_cluster.py`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click
import msgspec

from anvil.base.config import load
from anvil.cli.admin_ops import AdminOps, Opener, database_urls, with_secrets
from anvil.cli.running import run_async

T = TypeVar("T")
Command = TypeVar("Command", bound=Callable[..., Any])


class Session(msgspec.Struct):
    """What the group's options say."""

    config_file: str | None
    data_dir: str | None
    opener: Opener | None = None  # tests put their own here

    def run(self, work: Callable[[AdminOps], Awaitable[T]]) -> T:
        """Connect, do the work, disconnect."""
        config = load(config_file=self.config_file, flags={"ANVIL_DATA_DIR": self.data_dir})
        urls = database_urls(config)
        opener = self.opener
        if opener is None:
            from anvil.node.assemble import open_admin

            opener = open_admin

        async def connected() -> T:
            async with opener(with_secrets(config), *urls) as ops:
                return await work(ops)

        return run_async(connected())


def as_json(function: Command) -> Command:
    """The option every command has."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)
