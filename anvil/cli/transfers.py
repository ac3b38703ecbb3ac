"""What `anvil object` does: files and folders up, down, copied and removed.

Owns: which key a file gets and which file a key gets. Invariant: what failed in a folder is told, and the rest is done all the same.
Not here: the commands and their options (`object.py`), bytes (`anvil.client`).
"""

from __future__ import annotations

import mimetypes
import sys
from collections.abc import AsyncIterator
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from anvil.base.errors import AnvilError, InvalidSetting
from anvil.cli.client import shown
from anvil.cli.exits import Exit, code_of
from anvil.cli.paths import STREAM, Remote, local_file, local_files
from anvil.cli.progress import Meter
from anvil.cli.several import side_by_side
from anvil.client import AnvilClient, Attributes, NoSuchKey, ObjectSummary, Prefix

# What a compressed file is, for mimetypes names only what is inside it.
COMPRESSED = {
    "gzip": "application/gzip",
    "bzip2": "application/x-bzip2",
    "xz": "application/x-xz",
    "br": "application/octet-stream",
    "compress": "application/x-compress",
}


class Done(msgspec.Struct, frozen=True, omit_defaults=True):
    """One object that was moved or removed. `verified`: of a download, whether there was a checksum to compare with."""

    action: str
    source: str
    target: str = ""
    size: int = 0
    etag: str = ""
    checksum: str = ""
    verified: bool | None = None

    def line(self) -> str:
        to = f" -> {shown(self.target)}" if self.target else ""
        note = " (not verified: the server has no checksum of the whole)" if self.verified is False else ""
        return f"{self.action}: {shown(self.source)}{to}{note}"


class Failed(msgspec.Struct, frozen=True):
    name: str
    message: str


class Outcome:
    """Of one command. What was done is told at once, and kept only where JSON is asked for: there may be millions. `exit_code`: of the
    first failure."""

    def __init__(self, meter: Meter, quiet: bool, as_json: bool) -> None:
        self.meter = meter
        self._quiet = quiet or as_json
        self._as_json = as_json
        self.done: list[Done] = []
        self.failed: list[Failed] = []
        self.objects = self.size = 0
        self.exit_code = Exit.OK

    def add(self, done: Done) -> None:
        self.objects += 1
        self.size += done.size
        if self._as_json:
            self.done.append(done)
        elif not self._quiet:
            self.meter.say(done.line())

    def fail(self, name: str, error: AnvilError) -> None:
        self.failed.append(Failed(name, error.message))
        self.exit_code = self.exit_code or code_of(error)
        self.meter.say(f"anvil: {shown(name)}: {error.message}")


class Chooser:
    """The attributes of an object: as asked for, the type else guessed by its name."""

    def __init__(self, content_type: str | None, metadata: dict[str, str]) -> None:
        self._content_type = content_type
        self._metadata = metadata

    def attributes(self, name: str) -> Attributes:
        guessed, encoding = mimetypes.guess_type(name, strict=False)
        if encoding is not None:
            guessed = COMPRESSED.get(encoding)
        return Attributes(content_type=self._content_type or guessed or "", user_metadata=self._metadata)

    def replaced(self, name: str) -> Attributes | None:
        """None where nothing was asked for: a copy then keeps what its source has."""
        return self.attributes(name) if self._content_type or self._metadata else None


def _name(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]


def _is_folder(path: Path) -> bool:
    return path.is_dir()


def _size(path: Path) -> int | None:
    """None: a pipe, or nothing at all, which is told when it is opened."""
    return path.stat().st_size if path.is_file() else None


def _into(where: Remote, name: str) -> Remote:
    """A target that is a folder gets the source's name."""
    return where.inside(name) if where.is_folder else where


# -- up --------------------------------------------------------------------------------------------------------------------


async def put_file(client: AnvilClient, source: str, where: Remote, choose: Chooser, outcome: Outcome) -> None:
    if source == STREAM:
        if where.is_folder:
            raise InvalidSetting(f"{shown(str(where))} must name the object: standard input has no name")
        with outcome.meter(str(where)):
            outcome.add(await _put(client, _standard_input(), STREAM, where, choose, outcome.meter))
        return
    path = Path(source)
    if _is_folder(path):
        raise InvalidSetting(f"{shown(source)} is a folder: -r uploads what is in it")
    where = _into(where, path.name)
    with outcome.meter(path.name):
        outcome.add(await _put(client, path, source, where, choose, outcome.meter))


async def _put(client: AnvilClient, source: Any, name: str, where: Remote, choose: Chooser, meter: Meter) -> Done:
    if isinstance(source, Path):
        meter.expect(_size(source))
    attributes = choose.attributes(where.key if name == STREAM else name)
    made = await client.objects.upload(where.bucket, where.key, source, attributes=attributes, progress=meter.moved)
    checksum = f"{made.checksum.algorithm.value}:{made.checksum.value.hex()}" if made.checksum is not None else ""
    return Done("upload", name, str(where), made.size, made.etag, checksum)


def _standard_input() -> BinaryIO:
    """Without the interpreter's buffer, whose lock a thread that waits for input would take with it into the end of the program."""
    try:
        return cast(BinaryIO, FileIO(sys.stdin.fileno(), "rb", closefd=False))
    except OSError:
        return sys.stdin.buffer


async def put_folder(client: AnvilClient, folder: Path, where: Remote, choose: Chooser, outcome: Outcome) -> None:
    async def files() -> AsyncIterator[tuple[Path, str]]:
        for one in local_files(folder):
            yield one

    async def put(one: tuple[Path, str]) -> None:
        path, name = one
        outcome.add(await _put(client, path, str(path), where.inside(name), choose, outcome.meter))

    with outcome.meter(str(folder)):
        await side_by_side(files(), put, lambda one, error: outcome.fail(str(one[0]), error))


# -- down ------------------------------------------------------------------------------------------------------------------


async def get_file(client: AnvilClient, source: Remote, target: str, outcome: Outcome) -> None:
    path = Path(target)
    if target.endswith("/") or _is_folder(path):
        name = _name(source.key)
        if source.key.endswith("/"):
            raise InvalidSetting(f"{shown(str(source))} has no name for a file: name one")
        path = local_file(path, name)
    with outcome.meter(path.name):
        outcome.add(await _get(client, source, path, outcome.meter))


async def _get(client: AnvilClient, source: Remote, path: Path, meter: Meter) -> Done:
    got = await client.objects.download(
        source.bucket, source.key, path, progress=meter.moved, begun=lambda info: meter.expect(info.size)
    )
    return Done("download", str(source), str(path), got.size, got.info.etag, verified=got.verified)


async def get_stream(client: AnvilClient, source: Remote, meter: Meter) -> None:
    sink = sys.stdout.buffer
    with meter(_name(source.key)):
        await client.objects.download(
            source.bucket, source.key, sink, progress=meter.moved, begun=lambda info: meter.expect(info.size)
        )
    sink.flush()


async def get_folder(client: AnvilClient, source: Remote, target: Path, outcome: Outcome) -> None:
    async def get(one: ObjectSummary) -> None:
        name = one.key.removeprefix(source.folder)
        if name.endswith("/") and one.size == 0:
            return  # a folder's marker, as some tools leave them
        path = local_file(target, name)
        outcome.add(await _get(client, Remote(source.bucket, one.key), path, outcome.meter))

    with outcome.meter(str(source)):
        await side_by_side(_below(client, source), get, lambda one, error: outcome.fail(one.key, error))


async def _below(client: AnvilClient, source: Remote) -> AsyncIterator[ObjectSummary]:
    """Everything in a folder but its own marker. Raises NoSuchKey where there is nothing."""
    empty = True
    async for one in client.objects.list_keys(source.bucket, source.folder):
        empty = False
        if one.key != source.key:
            yield one
    if empty:
        raise NoSuchKey(f"there is nothing below {source.bucket}/{shown(source.folder)}")


# -- copies and removals ---------------------------------------------------------------------------------------------------


async def copy_object(client: AnvilClient, source: Remote, where: Remote, choose: Chooser, outcome: Outcome) -> None:
    where = _into(where, _name(source.key))
    with outcome.meter(str(source)):
        outcome.add(await _copy(client, source, where, choose, outcome.meter))


async def _copy(client: AnvilClient, source: Remote, where: Remote, choose: Chooser, meter: Meter) -> Done:
    info = await client.objects.head(source.bucket, source.key)
    meter.expect(info.size)
    made = await client.objects.copy_large(
        source.bucket,
        source.key,
        where.bucket,
        where.key,
        attributes=choose.replaced(where.key),
        progress=meter.moved,
    )
    return Done("copy", str(source), str(where), info.size, made.etag)


async def copy_folder(client: AnvilClient, source: Remote, where: Remote, choose: Chooser, outcome: Outcome) -> None:
    if source.bucket == where.bucket and where.folder.startswith(source.folder):
        raise InvalidSetting(f"{shown(str(where))} lies in {shown(str(source))}: the copy would copy itself")

    async def copy(one: ObjectSummary) -> None:
        name = one.key.removeprefix(source.folder)
        target = where.inside(name)
        outcome.add(await _copy(client, Remote(source.bucket, one.key), target, choose, outcome.meter))

    with outcome.meter(str(source)):
        await side_by_side(_below(client, source), copy, lambda one, error: outcome.fail(one.key, error))


async def remove(client: AnvilClient, where: Remote, outcome: Outcome) -> None:
    await client.objects.delete(where.bucket, where.key)
    outcome.add(Done("delete", str(where)))


async def remove_folder(client: AnvilClient, where: Remote, outcome: Outcome) -> None:
    """Also the folder's own marker."""

    async def delete(one: ObjectSummary) -> None:
        await client.objects.delete(where.bucket, one.key)
        outcome.add(Done("delete", str(Remote(where.bucket, one.key)), size=one.size))

    found = client.objects.list_keys(where.bucket, where.folder)
    await side_by_side(found, delete, lambda one, error: outcome.fail(one.key, error))


# -- listing ---------------------------------------------------------------------------------------------------------------


async def show_listing(client: AnvilClient, where: Remote, recursive: bool, as_json: bool) -> None:
    """Written as it comes: one JSON array, or a line for each."""
    out = sys.stdout
    between = "["
    async for one in client.objects.list(where.bucket, where.key, delimiter="" if recursive else "/"):
        if as_json:
            out.write(f"{between}\n  {msgspec.json.encode(one).decode()}")
            between = ","
        elif isinstance(one, Prefix):
            out.write(f"{'':>19}  {'PRE':>14}  {shown(one.prefix)}\n")
        else:
            out.write(f"{one.modified_at.astimezone():%Y-%m-%d %H:%M:%S}  {one.size:>14}  {shown(one.key)}\n")
    if as_json:
        out.write("[]\n" if between == "[" else "\n]\n")
