"""`anvil admin backup verify|forget`: a repository without any node.

Owns: how the keys that open a snapshot's seals are got: out of its own dump of the global database, under the master key. Not here: what is
verified (`backup/verify.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from anvil.backup.repository import GLOBAL, Manifest, Repository
from anvil.backup.verify import Keys, Verdict, Verification
from anvil.base.config import Config
from anvil.base.errors import AnvilError, Corrupt, InvalidSetting
from anvil.meta import dumps
from anvil.meta.keyring import Keyring
from anvil.node.restoring import FILES, fingerprint


async def verify(path: Path, snapshot: str, deep: Config | None, moved: Callable[[int], None]) -> Verdict:
    """Of one snapshot, or of all (""). `deep`: with the configuration that has the master key, every seal is opened, too. Raises
    UnknownName, InvalidSetting (no repository, another key), OSError."""
    repository = await asyncio.to_thread(Repository, path)
    good, bad = await asyncio.to_thread(repository.snapshots)
    if snapshot:
        repository.folder(snapshot)  # it is there at all
        good, bad = (
            [one for one in good if one.snapshot == snapshot],
            {name: why for name, why in bad.items() if name == snapshot},
        )
    sealed: dict[str, dict[int, bytes]] = {}
    trouble = list(bad.values())
    for manifest in good:
        trouble += await _dumps(repository, manifest, deep, sealed)

    def keys(manifest: Manifest) -> Keys:
        assert deep is not None
        keyring, found = Keyring(deep.security.master_key), sealed.get(manifest.snapshot, {})
        return lambda bucket_id: _opened(keyring, bucket_id, found.get(bucket_id))

    verification = Verification(repository, moved, None if deep is None else keys)
    verdict = await asyncio.to_thread(verification.run, good)
    for line in trouble:
        verdict.say(line)
    return verdict


async def _dumps(
    repository: Repository, manifest: Manifest, deep: Config | None, sealed: dict[str, dict[int, bytes]]
) -> list[str]:
    """What is wrong with the dumps of a snapshot; with a key, also reads the sealed keys of its buckets."""
    if deep is not None and manifest.key != fingerprint(deep):
        raise InvalidSetting(
            f"snapshot {manifest.snapshot} was made under the master key {manifest.key}, and this one is {fingerprint(deep)}: set "
            "ANVIL_SECRET_ENCRYPTION_KEY to the key of then, or leave --deep away"
        )
    folder, trouble = repository.folder(manifest.snapshot), []
    for database, name in FILES.items():
        tool = manifest.tool_of(database.value)
        try:
            await dumps.readable(folder / name, tool)
            if name == GLOBAL and deep is not None:
                sealed[manifest.snapshot] = await dumps.sealed_bucket_keys(folder / name, tool)
        except InvalidSetting:
            raise  # no pg_restore
        except (AnvilError, ValueError) as error:
            trouble.append(f"snapshot {manifest.snapshot}: {name} cannot be read: {error}")
    return trouble


def _opened(keyring: Keyring, bucket_id: int, sealed: bytes | None) -> bytes | None:
    try:
        return None if sealed is None else keyring.unwrap("buckets", bucket_id, sealed)
    except Corrupt:
        return None
