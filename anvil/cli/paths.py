"""Paths of `anvil object`: `s3://bucket/key`, `-`, local ones; and where downloaded keys may be written.

Invariant: a key never names a file outside of the folder it is downloaded into, whatever it holds and whatever links are there. Not here:
reading and writing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec

from anvil.base.errors import InvalidSetting
from anvil.base.limits import KEY_BYTES_MAX
from anvil.cli.client import shown

SCHEME = "s3://"
STREAM = "-"


class Remote(msgspec.Struct, frozen=True):
    """`key` may be empty: the bucket itself."""

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.bucket}/{self.key}"

    @property
    def is_folder(self) -> bool:
        return not self.key or self.key.endswith("/")

    def inside(self, name: str) -> Remote:
        """A key below this one, taken as a folder."""
        return remote(self.bucket, f"{self.folder}{name}")

    @property
    def folder(self) -> str:
        """The prefix that everything in it begins with."""
        return self.key if self.is_folder else f"{self.key}/"


def is_remote(text: str) -> bool:
    return text.startswith(SCHEME)


def remote(bucket: str, key: str) -> Remote:
    """Raises InvalidSetting for a key that S3 does not allow."""
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise InvalidSetting(f"{shown(key)} is not UTF-8, which keys must be") from None
    if size > KEY_BYTES_MAX:
        raise InvalidSetting(f"the key {shown(key[:40])}... has {size} bytes: at most {KEY_BYTES_MAX} are allowed")
    if "\0" in key:
        raise InvalidSetting("a key must not hold U+0000")
    return Remote(bucket, key)


def parse_remote(text: str) -> Remote:
    """`s3://bucket[/key]`; the key as it stands, without any escapes."""
    if not is_remote(text):
        raise InvalidSetting(f"{shown(text)} is not of the form s3://bucket/key")
    bucket, _, key = text.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise InvalidSetting(f"{shown(text)} names no bucket: s3://bucket/key")
    return remote(bucket, key)


def parse_object(text: str) -> Remote:
    """The same, and it must name an object."""
    found = parse_remote(text)
    if not found.key:
        raise InvalidSetting(f"{shown(text)} names a bucket, not an object: s3://bucket/key")
    return found


def local_file(folder: Path, name: str) -> Path:
    """Where the key `name`, relative to what is downloaded, goes inside `folder`; its folders are made. Raises InvalidSetting for keys that
    are no names of files, or would leave the folder."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in name or "\0" in name:
        raise InvalidSetting(f"the key {shown(name)} is no safe name for a file: download it by itself, under another name")
    target = folder.joinpath(*parts)
    root = Path(os.path.realpath(folder))
    # Looked at before anything is made, and as the links lead: a link in the folder must not be a way out of it.
    if not Path(os.path.realpath(target)).is_relative_to(root):
        raise InvalidSetting(f"the key {shown(name)} would be written outside of {folder}: a link leads there")
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def local_files(folder: Path) -> Iterator[tuple[Path, str]]:
    """All regular files below a folder with their names relative to it, in the order of names. Links to files are followed, links to
    folders are not: they could lead in circles. Links that lead nowhere are among them, so that somebody is told."""
    for place, folders, files in os.walk(folder):
        folders.sort()
        for file in sorted(files):
            path = Path(place) / file
            if path.is_file() or (path.is_symlink() and not path.exists()):
                yield path, path.relative_to(folder).as_posix()
