"""What `anvil admin` asks of the databases, as a Protocol, and the rows it gets back.

Owns: the contract between the commands and their implementation (`node/assemble.py: open_admin`). Invariant: a secret is in
a `NewKeys` and nowhere else. Not here: SQL, printing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol

import msgspec

from anvil.base.config import Config
from anvil.base.errors import Unavailable
from anvil.model.identity import Policy, Tenant
from anvil.node.datadir import DataDirectory, running_node


class NewKeys(msgspec.Struct, frozen=True):
    """A key pair that was just made: the only time its secret is shown."""

    tenant: str
    app: str
    access_key: str
    secret: str

    def __repr__(self) -> str:
        return f"NewKeys({self.access_key})"


class AppRow(msgspec.Struct, frozen=True):
    tenant: str
    app: str
    access_key: str


class UsageRow(msgspec.Struct, frozen=True):
    """Of one bucket. `upload_*`: parts of uploads in progress."""

    tenant: str
    bucket: str
    objects: int
    bytes: int
    upload_parts: int
    upload_bytes: int


class DriveInfo(msgspec.Struct, frozen=True):
    """`state`: active, absent (not there now), other (another drive in its place), gone (given up)."""

    path: str
    drive: str
    state: str
    capacity_bytes: int


class AdminOps(Protocol):
    """Every call raises DatabaseUnavailable; those that name something UnknownName, those that make something NameTaken.

    `app`: an access key, or a name that is unique in `tenant` (or, without one, in the deployment; else InvalidArgument).
    """

    async def region_create(self, name: str) -> None: ...
    async def tenant_create(self, name: str) -> Tenant: ...
    async def tenant_list(self) -> Sequence[Tenant]: ...
    async def app_create(self, tenant: str, name: str) -> NewKeys: ...
    async def app_list(self, tenant: str | None) -> Sequence[AppRow]: ...
    async def app_reset_secret(self, app: str, tenant: str | None) -> NewKeys: ...
    async def app_delete(self, app: str, tenant: str | None) -> None: ...
    async def policy_grant(self, app: str, tenant: str | None, policy: Policy) -> bool:
        """False if it was granted before."""
        ...

    async def policy_revoke(self, app: str, tenant: str | None, policy: Policy) -> bool:
        """False if there was no such row."""
        ...

    async def policy_list(self, app: str, tenant: str | None) -> Sequence[Policy]: ...
    async def bucket_set_public(self, name: str, allow: bool) -> None: ...
    async def usage(self) -> Sequence[UsageRow]: ...
    async def drive_list(self) -> Sequence[DriveInfo]:
        """Of the node on this data directory."""
        ...

    async def drive_replace(self, path: str) -> DriveInfo:
        """Give the drive that belongs at that folder up for good. Raises UnknownName, Conflict while it is there."""
        ...


class Opener(Protocol):
    """Connects to the databases."""

    def __call__(self, config: Config, global_url: str, regional_url: str) -> AbstractAsyncContextManager[AdminOps]: ...


def database_urls(config: Config) -> tuple[str, str]:
    """The URLs of the configuration, or of the embedded PostgreSQL of the node that runs on the data directory. Raises
    Unavailable.
    """
    if not config.database.embedded:
        return config.database.global_url, config.database.regional_url
    running = running_node(config.node.data_path)
    if running is None:
        raise Unavailable(
            f"no node runs on {config.node.data_dir!r}, and the embedded PostgreSQL runs only with it: start it with "
            f"`anvil server --data-dir {config.node.data_dir}`, or name its folder with --data-dir"
        )
    return running.global_url, running.regional_url


def with_secrets(config: Config) -> Config:
    """The configuration with the secrets of the data directory, where it has them."""
    path = Path(config.node.data_dir)
    return DataDirectory(path).with_secrets(config) if (path / "secrets").exists() else config
