"""`anvil admin restore metadata`: both databases out of a snapshot, while no node runs.

Owns: the order, and what is refused before anything is changed: a damaged snapshot, another master key or region, a newer Anvil, databases
that are not empty. Invariant: whatever interrupts it, no node starts on what it leaves, but for the finished result, which is in recovery
mode. Not here: the data itself (`refilling.py`), what recovery mode means (`meta/recovery.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import msgspec

from anvil.backup.repository import BLOBS, GLOBAL, REGIONAL, Manifest, Repository
from anvil.base.config import Config
from anvil.base.errors import BadRecord, Conflict, InvalidSetting
from anvil.meta import dumps, recovery
from anvil.meta.embedded import EmbeddedPostgres
from anvil.meta.keyring import key_id
from anvil.meta.migrate import Database, migrate
from anvil.meta.recovery import Restored
from anvil.node.datadir import DataDirectory

FILES = {Database.REGIONAL: REGIONAL, Database.GLOBAL: GLOBAL}


class RestoreWanted(msgspec.Struct, frozen=True):
    """`snapshot`: "" for the newest. `keep_nodes`: only the databases were lost, the nodes and their drives are there. `regional_only`: the
    global database is there."""

    path: str
    snapshot: str = ""
    keep_nodes: bool = False
    regional_only: bool = False


class RestoredMetadata(msgspec.Struct, frozen=True):
    manifest: Manifest
    changes: Restored


@contextmanager
def databases(config: Config) -> Iterator[tuple[Config, str, str]]:
    """The configuration with its secrets, and both URLs; of the embedded PostgreSQL, which runs inside of this alone. Raises
    InvalidSetting, Unavailable while a node runs on the data directory."""
    directory = DataDirectory(config.node.data_path)
    key = config.node.data_path / "secrets" / "encryption_key"
    if not config.security.encryption_key and not key.exists():
        raise InvalidSetting(
            f"the master key of the backup is needed: set ANVIL_SECRET_ENCRYPTION_KEY, or put it into {str(key)!r} (mode 0600)"
        )
    directory.open()
    embedded: EmbeddedPostgres | None = None
    try:
        config = directory.with_secrets(config)
        if not config.database.embedded:
            yield config, config.database.global_url, config.database.regional_url
            return
        embedded = EmbeddedPostgres(config.node.data_path / "postgres")
        yield config, *embedded.start()
    finally:
        if embedded is not None:
            embedded.stop()
        directory.close()


def fingerprint(config: Config) -> str:
    """Of the master key, in hex."""
    return key_id(config.security.master_key).hex()


def chosen(repository: Repository, snapshot: str) -> Manifest:
    """A snapshot by its id, or the newest. Raises UnknownName, BadRecord."""
    return repository.manifest(snapshot) if snapshot else repository.newest()


class Told(Protocol):
    """Who is told how far it is: of steps, and of bytes to load that are to come and that were loaded."""

    def say(self, line: str) -> None: ...

    def expect(self, size: int | None) -> None: ...

    def moved(self, size: int) -> None: ...


async def restore_metadata(
    config: Config, global_url: str, regional_url: str, wanted: RestoreWanted, told: Told
) -> RestoredMetadata:
    """Raises InvalidSetting, Conflict, DatabaseUnavailable, UnknownName, BadRecord."""
    repository = Repository(Path(wanted.path))
    manifest = chosen(repository, wanted.snapshot)
    if manifest.key != fingerprint(config):
        raise InvalidSetting(
            f"snapshot {manifest.snapshot} was made under the master key {manifest.key}, and this one is {fingerprint(config)}: nothing of "
            "it could be opened. Set ANVIL_SECRET_ENCRYPTION_KEY to the key of then"
        )
    if manifest.region != config.node.region:
        raise InvalidSetting(f"snapshot {manifest.snapshot} is of the region {manifest.region!r}: set ANVIL_REGION to that")
    folder = repository.folder(manifest.snapshot)
    urls = (
        {Database.REGIONAL: regional_url}
        if wanted.regional_only
        else {Database.GLOBAL: global_url, Database.REGIONAL: regional_url}
    )
    told.say(f"reading the dumps of snapshot {manifest.snapshot}")
    for name in (*(FILES[database] for database in urls), BLOBS):
        if not repository.file_is(manifest, name):
            raise BadRecord(f"{name} of snapshot {manifest.snapshot} is not what was written: choose another snapshot")
    tools = {
        database: await dumps.prepare_load(
            url,
            database,
            manifest.tool_of(database.value),
            manifest.server_of(database.value),
            manifest.migrations[database.value],
        )
        for database, url in urls.items()
    }
    told.expect(sum((folder / FILES[database]).stat().st_size for database in urls))
    for database, url in urls.items():
        told.say(f"loading the {database} database")
        await dumps.load(url, database, tools[database], folder / FILES[database], told.moved)
        await migrate(url, database, restoring=True)
    told.say("beginning recovery mode")
    buckets = await recovery.known_buckets(global_url, config.node.region)
    changes = await recovery.begin_recovery(regional_url, manifest.snapshot, buckets, keep_nodes=wanted.keep_nodes)
    if not wanted.regional_only:
        await recovery.tidy_global(global_url, "operator", manifest.snapshot)
    for database in reversed(list(urls)):  # the global one last: a node looks there first
        await recovery.end_restore(urls[database], database)
    return RestoredMetadata(manifest, changes)


def assert_may_end(state: recovery.State, force: bool) -> None:
    """Raises Conflict while it is not known that everything is there, or something would be removed; `force` says that this is known."""
    if state.recovery is not None and state.recovery.snapshot is None:
        raise Conflict("the region was rebuilt from its drives: `anvil admin salvage end` ends that")
    if force or state.recovery is None:
        return
    checked = state.checked
    if checked is None:
        raise Conflict("nothing was checked since the restore: run `anvil admin fsck`, then repeat this")
    if not checked.whole:
        found = ", ".join(f"{count} {name}" for name, count in sorted(checked.found.items()))
        away = f"drives that were not looked at: {', '.join(checked.away)}" if checked.away else ""
        raise Conflict(
            f"the last fsck was not clean ({'; '.join(one for one in (found, away) if one)}): mend that, or end recovery mode with --force "
            "and live without it"
        )
    if orphans := checked.found.get("orphans", 0):
        raise Conflict(
            f"{orphans} shards belong to no row: written after the backup, they would be removed. If nothing of them is wanted, repeat "
            "this with --force"
        )
