"""Whether a repository can be restored from: every checksum read, every name looked up, and with the keys every seal opened.

Owns: the verdict. Invariant: nothing is called good that was not read to its end. Blocks; changes nothing. Not here: where keys come from,
whether a dump can be read (`node/repositories.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from anvil._ec.stripe import BlobKey, SealBroken
from anvil.backup.packs import Entry, Pack, Where, walk
from anvil.backup.repository import BLOBS, FILES, Manifest, Repository, is_damage, pair, said
from anvil.base.errors import BadRecord
from anvil.base.limits import BACKUP_EXAMPLES
from anvil.model.records import BlobId, BlobRef

Keys = Callable[[int], bytes | None]
"""A bucket's key by its id, None where it is not known."""


class Verdict(msgspec.Struct):
    """`damaged`: packs with anything wrong in them; `unreadable`: those that could not be read for another reason; `missing`: blobs that a
    snapshot names and of which no pack has a good copy; `keyless`: blobs of buckets that were deleted while the backup ran, whose seal
    cannot be judged. `troubles`: one line each, the first ones."""

    snapshots: int = 0
    packs: int = 0
    blobs: int = 0
    bytes: int = 0
    opened: int = 0
    missing: int = 0
    keyless: int = 0
    damaged: list[str] = msgspec.field(default_factory=list)
    unreadable: list[str] = msgspec.field(default_factory=list)
    troubles: list[str] = msgspec.field(default_factory=list)

    @property
    def good(self) -> bool:
        return not (self.troubles or self.damaged or self.unreadable or self.missing)

    def say(self, line: str) -> None:
        if len(self.troubles) < BACKUP_EXAMPLES:
            self.troubles.append(line)

    def blame(self, pack: str, error: Exception) -> None:
        """That it could not be read."""
        names = self.damaged if is_damage(error) else self.unreadable
        if pack not in names:
            names.append(pack)


class Verification:
    """`moved`: told how many bytes were read. `keys`: by snapshot; then seals are opened."""

    def __init__(
        self,
        repository: Repository,
        moved: Callable[[int], None] = lambda size: None,
        keys: Callable[[Manifest], Keys] | None = None,
    ) -> None:
        self._repository = repository
        self._moved = moved
        self._keys = keys
        self._spoiled: set[tuple[str, int]] = set()  # entries that are not what was written, by pack and offset
        self.verdict = Verdict()

    def run(self, snapshots: Sequence[Manifest]) -> Verdict:
        """Read all packs, then judge these snapshots. Raises OSError where the repository cannot be read at all."""
        verdict = self.verdict
        found = self._repository.packs()
        verdict.damaged += found.damaged
        verdict.unreadable += found.unreadable
        for name, why in found.bad.items():
            verdict.say(f"pack {name}: {why}")
        packs = [pack for pack in found.good if self._pack(pack)]
        for manifest in snapshots:
            self._snapshot(manifest, packs)
        return verdict

    def _pack(self, pack: Pack) -> bool:
        """Read every entry, where it lies. False where its index cannot be read any more."""
        verdict = self.verdict
        verdict.packs += 1
        try:
            for blob_id, offset, length in pack.index():
                self._entry(pack, blob_id, offset, length)
        except (BadRecord, OSError) as error:
            verdict.blame(pack.name, error)
            verdict.say(f"pack {pack.name}: {said(error)}")
            return False
        return True

    def _entry(self, pack: Pack, blob_id: BlobId, offset: int, length: int) -> None:
        try:
            with Entry(pack.path, offset, blob_id) as entry:
                if entry.length != length:
                    raise BadRecord("its index gives another length")
                for stripe in range(entry.packed.stripes):
                    self._moved(len(entry.stripe(stripe)))
        except (BadRecord, OSError) as error:
            self._spoiled.add((pack.name, offset))
            self.verdict.blame(pack.name, error)
            self.verdict.say(f"pack {pack.name}: blob {blob_id.hex()}: {said(error)}")

    def _snapshot(self, manifest: Manifest, packs: Sequence[Pack]) -> None:
        verdict, name = self.verdict, manifest.snapshot
        verdict.snapshots += 1
        wrong = [file for file in FILES if not self._repository.file_is(manifest, file)]
        for file in wrong:
            verdict.say(f"snapshot {name}: {file} is not what was written")
        if manifest.unread:
            verdict.say(f"snapshot {name} is incomplete: {manifest.unread} blobs could not be copied when it was made")
        if BLOBS in wrong:
            return  # it would name anything
        listed, keys = 0, self._keys(manifest) if self._keys is not None else None
        for blob, places in pair(self._repository.listed(name), self._good(packs)):
            listed += 1
            verdict.blobs += 1
            verdict.bytes += blob.size
            if not places:
                verdict.missing += 1
                verdict.say(f"snapshot {name}: no pack has blob {blob.blob_id.hex()}")
            elif keys is not None:
                self._open(manifest, blob, places[0], keys)
        if listed != manifest.blobs:
            verdict.say(f"snapshot {name}: {listed} blobs are listed, {manifest.blobs} should be")

    def _good(self, packs: Sequence[Pack]) -> Iterator[tuple[BlobId, list[Where]]]:
        for blob_id, places in walk(packs):
            good = [(pack, offset) for pack, offset in places if (pack.name, offset) not in self._spoiled]
            if good:
                yield blob_id, good

    def _open(self, manifest: Manifest, blob: BlobRef, place: Where, keys: Keys) -> None:
        """Open every seal: what is damaged shows there even where every checksum was made to fit."""
        verdict, (pack, offset) = self.verdict, place
        try:
            with Entry(pack.path, offset, blob.blob_id) as entry:
                packed = entry.packed
                if packed.blob != blob:
                    raise BadRecord("the row says another size or scheme than the pack")
                bucket_key = keys(packed.bucket_id)
                if bucket_key is None:
                    verdict.keyless += 1
                    return
                key = BlobKey(bucket_key, blob.blob_id)
                for stripe in range(packed.stripes):
                    sealed = entry.stripe(stripe)
                    key.open(stripe, stripe == packed.stripes - 1, sealed)
                    self._moved(len(sealed))
                verdict.opened += 1
        except SealBroken:
            self._broken(manifest, blob, pack, BadRecord("its seal does not open"))
        except (BadRecord, OSError) as error:
            self._broken(manifest, blob, pack, error)

    def _broken(self, manifest: Manifest, blob: BlobRef, pack: Pack, error: Exception) -> None:
        self.verdict.missing += 1
        self.verdict.blame(pack.name, error)
        self.verdict.say(f"snapshot {manifest.snapshot}: blob {blob.blob_id.hex()} in pack {pack.name}: {said(error)}")
