"""Whatever byte of a repository is damaged, `verify` says so and does not fall over it; what cannot be read for now is left where it is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from anvil.backup import format as fmt
from anvil.backup import packs as packs_module
from anvil.backup.packs import PackWriter
from anvil.backup.repository import BLOBS, FILES, Manifest, Repository, describe
from anvil.backup.verify import Verdict, Verification
from tests.unit.backup.test_format import packed_of, stripes_of


def made(path: Path) -> Repository:
    """With one snapshot of two blobs."""
    with Repository.making(path, "k", 1) as repository:
        writer = PackWriter(repository.packs_folder, repository.id)
        blobs = sorted((packed_of(10), packed_of(100)), key=lambda packed: packed.blob_id)
        for packed in blobs:
            writer.begin(packed)
            for sealed in stripes_of(packed):
                writer.stripe(sealed)
            writer.end()
        writer.close()
        add_snapshot(repository, "one", [packed.blob for packed in blobs])
    return Repository(path)


def add_snapshot(repository: Repository, name: str, blobs: list[fmt.BlobRef]) -> None:
    folder = repository.begin(name)
    for file in FILES:
        (folder / file).write_bytes(b"".join(map(fmt.listed, blobs)) if file == BLOBS else b"dump")
    files = {file: describe(folder / file) for file in FILES}
    size = sum(blob.size for blob in blobs)
    numbers = {"migrations": {"regional": 1, "global": 1}, "counts": {"objects": 2}}
    repository.finish(
        Manifest(
            *(name, repository.head.repository, 1, 2, "0.1.0", "r", 1, "k"),
            files=files,
            blobs=len(blobs),
            blob_bytes=size,
            widest=3,
            copied=len(blobs),
            copied_bytes=size,
            unread=0,
            servers={"regional": 16, "global": 18},
            tools={"regional": 17, "global": 18},
            **numbers,  # type: ignore[arg-type]
        )
    )


def judged(repository: Repository) -> tuple[Verdict, dict[str, str]]:
    good, bad = repository.snapshots()
    return Verification(repository).run(good), bad


def test_every_byte_of_a_snapshot_counts(tmp_path: Path) -> None:
    repository = made(tmp_path / "r")
    verdict, bad = judged(repository)
    assert verdict.good and not bad and verdict.blobs == 2
    for file in sorted((repository.snapshots_folder / "one").iterdir()):
        whole = file.read_bytes()
        for at in range(len(whole)):
            data = bytearray(whole)
            data[at] ^= 1 << at % 8
            file.write_bytes(data)
            verdict, bad = judged(repository)
            assert bad or not verdict.good, f"{file.name}, byte {at}"
            assert not verdict.damaged and not verdict.unreadable, f"{file.name}, byte {at}: no pack is to blame"
        file.write_bytes(whole)
    assert judged(repository)[0].good


def test_what_is_no_snapshot_is_passed_over(tmp_path: Path) -> None:
    repository = made(tmp_path / "r")
    (repository.snapshots_folder / "notes.txt").write_text("stray")
    (repository.snapshots_folder / ".snapshot").mkdir()
    add_snapshot(repository, "two", [])
    good, bad = repository.snapshots()
    assert [one.snapshot for one in good] == ["one", "two"] and not bad
    assert repository.forget("two") == []
    assert len(repository.forget("one")) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.EMFILE, errno.EIO])
@pytest.mark.parametrize("when", ["opening", "reading"])
def test_only_damage_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, when: str) -> None:
    repository = made(tmp_path / "r")
    [name] = repository.pack_names()

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(packs_module.Pack if when == "opening" else packs_module.Entry, "__init__", fail)
    verdict, _ = judged(repository)
    assert not verdict.good and verdict.missing == 2 and os.strerror(number) in verdict.troubles[0]
    assert (verdict.damaged, verdict.unreadable) == (([name], []) if number == errno.EIO else ([], [name]))
