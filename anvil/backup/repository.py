"""A backup repository: a folder with packs and snapshots, and nothing in it that opens anything.

    anvil-backup.json      format, repository id, fingerprint of the master key
    lock                   held (flock) by whoever writes
    packs/ID.pack          blobs (`packs.py`); ID.part: being written, or left behind
    snapshots/ID/          regional.dump, global.dump, blobs (the list), manifest.json; ID.new: being made, or left behind

Owns: the folder, the manifests, and who may write. Invariants: a snapshot has its name only once everything that it names is durable; a
pack goes only when no snapshot names a blob in it; what an interrupted backup leaves is used (packs) or removed (the rest) by the next.
Everything here blocks. Not here: where blobs and dumps come from.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from anvil.backup import format as fmt
from anvil.backup.packs import SUFFIX, UNFINISHED, Pack, sync_folder, walk
from anvil.base.errors import BadRecord, Conflict, InvalidSetting, UnknownName
from anvil.base.limits import LISTED_READ_ENTRIES, PACK_WRITE_BYTES
from anvil.model.records import BlobId, BlobRef

HEAD = "anvil-backup.json"
MANIFEST = "manifest.json"
REGIONAL, GLOBAL, BLOBS = "regional.dump", "global.dump", "blobs"
FILES = (REGIONAL, GLOBAL, BLOBS)
SET_ASIDE = ".damaged"
UNMADE = ".new"


_MAKING = ("lost+found", "lock", "packs", "snapshots", HEAD, f".{HEAD}.new")


class Head(msgspec.Struct, frozen=True):
    """`key`: fingerprint of the master key that the first snapshot was made under, in hex."""

    format: int
    repository: str
    key: str
    created_us: int


class StoredFile(msgspec.Struct, frozen=True):
    bytes: int
    sha256: str


class Unread(msgspec.Struct, frozen=True):
    """A blob that a row names and that could not be copied. `key`: of the object; `part`: 0, or the number of a part of an upload."""

    blob: str
    bucket_id: int = 0
    key: str = ""
    part: int = 0


class Manifest(msgspec.Struct, frozen=True):
    """What a snapshot is. `key`: fingerprint of the master key. By database: `servers`, the major version of its server, `tools`, that of
    pg_dump, and `migrations`, the number of the newest one. `widest`: shards of the widest scheme, which takes as many drives. `unread`:
    blobs that the drives could not give; `examples` of them. `server`, `tool`: of both databases, where `servers` and `tools` are not."""

    snapshot: str
    repository: str
    started_us: int
    finished_us: int
    anvil: str
    region: str
    cluster_epoch: int
    key: str
    migrations: dict[str, int]
    files: dict[str, StoredFile]
    counts: dict[str, int]
    blobs: int
    blob_bytes: int
    widest: int
    copied: int
    copied_bytes: int
    unread: int = 0
    examples: tuple[Unread, ...] = ()
    servers: dict[str, int] = {}
    tools: dict[str, int] = {}
    server: int = 0
    tool: int = 0

    @property
    def complete(self) -> bool:
        return not self.unread

    def server_of(self, database: str) -> int:
        return self.servers.get(database, self.server)

    def tool_of(self, database: str) -> int:
        return self.tools.get(database, self.tool)


class _Sealed(msgspec.Struct, frozen=True):
    """As in the file: with a digest of the encoded manifest, so that a flipped bit is not believed."""

    format: int
    manifest: dict[str, Any]
    sha256: str


class Packs(NamedTuple):
    """Those that can be used, and what is wrong with the others, by name. `unreadable`: what is in them is not known to be damaged."""

    good: list[Pack]
    damaged: dict[str, str]
    unreadable: dict[str, str]

    @property
    def bad(self) -> dict[str, str]:
        return self.damaged | self.unreadable


def is_damage(error: Exception) -> bool:
    """Whether a file is to blame. Else it could not be read for now: no right, no descriptor, a server away."""
    return not isinstance(error, OSError) or error.errno == errno.EIO


def said(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


def _digest(manifest: dict[str, Any]) -> str:
    """Of what is in the file, be it of a release that knew more or less of it."""
    return hashlib.sha256(msgspec.json.encode(manifest, order="sorted")).hexdigest()


class Repository:
    """At `path`. Raises UnknownName where there is none, InvalidSetting where it cannot be read or is of another format."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packs_folder = path / "packs"
        self.snapshots_folder = path / "snapshots"
        try:
            data = (path / HEAD).read_bytes()
        except FileNotFoundError:
            raise UnknownName(f"there is no backup repository in {str(path)!r}: `anvil admin backup create` makes one") from None
        except OSError as error:
            raise InvalidSetting(f"the repository {str(path)!r} cannot be read: {error.strerror}") from None
        try:
            if msgspec.json.decode(data, type=dict)["format"] != fmt.FORMAT:
                raise InvalidSetting(f"{str(path / HEAD)!r} is of a format that this release does not know: use a newer one")
            self.head = msgspec.json.decode(data, type=Head)
            self.id = bytes.fromhex(self.head.repository)
        except (msgspec.DecodeError, KeyError, ValueError):
            raise InvalidSetting(f"{str(path / HEAD)!r} is damaged: restore it from a copy of the repository") from None

    @staticmethod
    @contextmanager
    def making(path: Path, key: str, now_us: int) -> Iterator[Repository]:
        """Be the only one who writes, in a repository that is made where the folder is empty or not there. Raises InvalidSetting, Conflict
        while somebody else writes."""
        try:
            if not (path / HEAD).exists():
                path.mkdir(mode=0o700, parents=True, exist_ok=True)
                strange = [entry.name for entry in path.iterdir() if entry.name not in _MAKING]
                if strange and not (path / HEAD).exists():  # nobody has just made it
                    raise InvalidSetting(f"{str(path)!r} is no repository and not empty ({strange[0]}): choose an empty folder")
            with locked(path):
                if not (path / HEAD).exists():
                    for name in ("packs", "snapshots"):
                        (path / name).mkdir(mode=0o700, exist_ok=True)
                    head = Head(fmt.FORMAT, os.urandom(16).hex(), key, now_us)
                    write_file(path / HEAD, msgspec.json.format(msgspec.json.encode(head)) + b"\n")
                yield Repository(path)
        except PermissionError as error:
            raise InvalidSetting(f"the repository {str(path)!r} cannot be written: {error.strerror}") from None

    def writing(self) -> AbstractContextManager[None]:
        """Be the only one who writes. Raises Conflict while somebody else does, InvalidSetting where that cannot be."""
        return locked(self.path)

    def assert_key(self, fingerprint: str) -> None:
        """Raises InvalidSetting."""
        if self.head.key != fingerprint:
            raise InvalidSetting(
                f"this repository was begun under the master key {self.head.key}, and this node has {fingerprint}: use another folder, or "
                "say --new-key if the key was replaced"
            )

    def rekey(self, fingerprint: str) -> None:
        """The master key was replaced; older snapshots keep theirs in their manifests. Inside of `writing`."""
        self.head = msgspec.structs.replace(self.head, key=fingerprint)
        write_file(self.path / HEAD, msgspec.json.format(msgspec.json.encode(self.head)) + b"\n")

    # -- packs ----------------------------------------------------------------------------------------------------------------------

    def pack_names(self) -> list[str]:
        return sorted(entry.name for entry in self.packs_folder.iterdir() if entry.name.endswith(SUFFIX))

    def packs(self, told: Callable[[], None] = lambda: None) -> Packs:
        """Sorted out; `told` of each. Raises OSError where the folder cannot be read."""
        found = Packs([], {}, {})
        for name in self.pack_names():
            told()
            try:
                found.good.append(Pack(self.packs_folder / name, self.id))
            except (BadRecord, ValueError, OSError) as error:
                (found.damaged if is_damage(error) else found.unreadable)[name] = said(error)
        return found

    def sweep(self) -> None:
        """Remove what an interrupted backup left. Inside of `writing`."""
        for entry in self.packs_folder.iterdir():
            if entry.name.endswith(UNFINISHED):
                entry.unlink()
        for entry in self.snapshots_folder.iterdir():
            if entry.name.endswith(UNMADE):
                shutil.rmtree(entry)

    def set_aside(self, names: Iterable[str]) -> None:
        """Have damaged packs count no longer: the next backup copies their blobs again. Inside of `writing`."""
        for name in names:
            (self.packs_folder / name).rename(self.packs_folder / (name + SET_ASIDE))
        sync_folder(self.packs_folder)

    # -- snapshots ------------------------------------------------------------------------------------------------------------------

    def folder(self, snapshot: str) -> Path:
        """Of a snapshot. Its name comes from an operator. Raises UnknownName."""
        named = snapshot and "/" not in snapshot and not snapshot.startswith(".") and not snapshot.endswith(UNMADE)
        if not named or not (self.snapshots_folder / snapshot).is_dir():
            raise UnknownName(f"there is no snapshot {snapshot!r}: `anvil admin backup list` shows them")
        return self.snapshots_folder / snapshot

    def snapshots(self) -> tuple[list[Manifest], dict[str, str]]:
        """Manifests, oldest first; and what is wrong with the snapshots that have no good one, by id. Other things in that folder are
        passed over."""
        good, bad = [], {}
        for entry in sorted(self.snapshots_folder.iterdir()):
            if entry.name.startswith(".") or entry.name.endswith(UNMADE) or not entry.is_dir():
                continue
            name = entry.name
            try:
                good.append(self.manifest(name))
            except BadRecord as error:
                bad[name] = str(error)
        return good, bad

    def manifest(self, snapshot: str) -> Manifest:
        """Raises UnknownName, BadRecord."""
        try:
            data = (self.folder(snapshot) / MANIFEST).read_bytes()
            sealed = msgspec.json.decode(data, type=_Sealed)
            manifest = msgspec.convert(sealed.manifest, Manifest)
        except FileNotFoundError:
            raise BadRecord(f"snapshot {snapshot} has no manifest: it was never finished, or the file is lost") from None
        except (msgspec.DecodeError, UnicodeDecodeError, OSError) as error:
            raise BadRecord(f"the manifest of snapshot {snapshot} cannot be read: {error}") from None
        if sealed.format != fmt.FORMAT or sealed.sha256 != _digest(sealed.manifest):
            raise BadRecord(f"the manifest of snapshot {snapshot} is damaged")
        if manifest.snapshot != snapshot or manifest.repository != self.head.repository:
            raise BadRecord(f"the manifest of snapshot {snapshot} is that of another one")
        return manifest

    def newest(self) -> Manifest:
        """The newest snapshot that has a good manifest. Raises UnknownName."""
        good, _ = self.snapshots()
        if not good:
            raise UnknownName(f"there is no snapshot in {str(self.path)!r}")
        return good[-1]

    def begin(self, snapshot: str) -> Path:
        """The folder of a snapshot to come. Inside of `writing`."""
        folder = self.snapshots_folder / f"{snapshot}{UNMADE}"
        folder.mkdir(mode=0o700)
        return folder

    def finish(self, manifest: Manifest) -> None:
        """The snapshot is there on return. Its files must be flushed, packs closed."""
        folder = self.snapshots_folder / f"{manifest.snapshot}{UNMADE}"
        written: dict[str, Any] = msgspec.to_builtins(manifest)
        sealed = _Sealed(fmt.FORMAT, written, _digest(written))
        write_file(folder / MANIFEST, msgspec.json.format(msgspec.json.encode(sealed)) + b"\n")
        folder.rename(self.snapshots_folder / manifest.snapshot)
        sync_folder(self.snapshots_folder)

    def listed(self, snapshot: str) -> Iterator[BlobRef]:
        """The blobs that a snapshot names, in the order of their ids. Whether the list is whole is known by its digest (`file_is`)."""
        return read_list(self.folder(snapshot) / BLOBS)

    def file_is(self, manifest: Manifest, name: str) -> bool:
        """Whether a file of a snapshot is what the manifest says. Reads it whole."""
        stored = manifest.files.get(name)
        try:
            return stored is not None and stored == describe(self.folder(manifest.snapshot) / name)
        except OSError:
            return False

    def forget(self, snapshot: str) -> list[str]:
        """Remove a snapshot, then the packs of which nothing is named any more, and return their names. Inside of `writing`. Raises
        UnknownName; Conflict, and removes no pack, while another snapshot cannot be read."""
        folder = self.folder(snapshot)
        gone_to = folder.with_name(folder.name + UNMADE)
        folder.rename(gone_to)  # at once: half a snapshot is none
        sync_folder(self.snapshots_folder)
        shutil.rmtree(gone_to)
        good, bad = self.snapshots()
        damaged = [one.snapshot for one in good if not self.file_is(one, BLOBS)]
        if bad or damaged:
            raise Conflict(
                f"snapshot {snapshot} is gone, and no pack was removed: snapshot {[*bad, *damaged][0]} is damaged, so that it is not known "
                "what it needs"
            )
        packs = self.packs().good
        wanted = self._wanted(packs, [one.snapshot for one in good])
        gone = [pack.name for pack in packs if pack.name not in wanted]
        for name in gone:
            (self.packs_folder / name).unlink()
        sync_folder(self.packs_folder)
        return gone

    def _wanted(self, packs: list[Pack], snapshots: list[str]) -> set[str]:
        """The packs that hold something that a snapshot names."""
        wanted: set[str] = set()
        for snapshot in snapshots:
            for _, places in pair(self.listed(snapshot), walk(packs)):
                wanted.update(pack.name for pack, _ in places)
        return wanted


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Be the only one who writes to the repository there. Raises Conflict while somebody else does, InvalidSetting where that cannot be."""
    try:
        fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidSetting(f"the repository {str(path)!r} cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another command is writing to the repository {str(path)!r}: wait for its end") from None
        yield
    finally:
        os.close(fd)


Places = list[tuple[Pack, int]]


def pair(wanted: Iterable[BlobRef], found: Iterator[tuple[BlobId, Places]]) -> Iterator[tuple[BlobRef, Places]]:
    """Each wanted blob with the places where it is, none if it is nowhere. Both come in the order of blob ids."""
    at = next(found, None)
    for blob in wanted:
        while at is not None and at[0] < blob.blob_id:
            at = next(found, None)
        yield blob, at[1] if at is not None and at[0] == blob.blob_id else []


def read_list(path: Path) -> Iterator[BlobRef]:
    """The blobs of a list, by and by."""
    with path.open("rb") as file:
        while data := file.read(LISTED_READ_ENTRIES * fmt.LISTED_BYTES):
            yield from fmt.unlisted(data[: len(data) - len(data) % fmt.LISTED_BYTES])


def describe(path: Path) -> StoredFile:
    """Length and SHA-256 of a file, which is flushed. Raises OSError."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while piece := file.read(PACK_WRITE_BYTES):
            digest.update(piece)
            size += len(piece)
    return StoredFile(size, digest.hexdigest())


def write_file(path: Path, data: bytes) -> None:
    """Whole or not at all, and durable on return. Raises OSError."""
    draft = path.with_name(f".{path.name}.new")
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
    sync_folder(path.parent)
