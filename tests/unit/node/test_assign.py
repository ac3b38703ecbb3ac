"""Which drive belongs at which folder: every way in which disks are added, moved, swapped, lost and copied."""

from __future__ import annotations

import pytest

from anvil.base.errors import InvalidSetting
from anvil.model.records import DriveId
from anvil.node.local import assign

A, B, C, STRANGER = b"a" * 16, b"b" * 16, b"c" * 16, b"s" * 16
Folders = dict[str, DriveId | None]

CASES: dict[str, tuple[Folders, dict[str, DriveId], Folders]] = {
    # what happened: (the drives in the folders now, where each drive was last, what is expected at each folder)
    "the first start": ({"/1": None, "/2": None}, {}, {"/1": None, "/2": None}),
    "nothing": ({"/1": A, "/2": B}, {"/1": A, "/2": B}, {"/1": A, "/2": B}),
    "one was added": ({"/1": A, "/2": None}, {"/1": A}, {"/1": A, "/2": None}),
    "one was taken out": ({"/2": B}, {"/1": A, "/2": B}, {"/2": B}),
    "one is not mounted": ({"/1": None, "/2": B}, {"/1": A, "/2": B}, {"/1": A, "/2": B}),
    "all are not mounted": ({"/1": None, "/2": None}, {"/1": A, "/2": B}, {"/1": A, "/2": B}),
    "another disk is in its place": ({"/1": STRANGER, "/2": B}, {"/1": A, "/2": B}, {"/1": A, "/2": B}),
    "two were swapped": ({"/1": B, "/2": A}, {"/1": A, "/2": B}, {"/1": B, "/2": A}),
    "three were rotated": ({"/1": C, "/2": A, "/3": B}, {"/1": A, "/2": B, "/3": C}, {"/1": C, "/2": A, "/3": B}),
    "one is mounted elsewhere": ({"/new": A, "/2": B}, {"/1": A, "/2": B}, {"/new": A, "/2": B}),
    "one took the place of one that was taken out": ({"/2": A}, {"/1": A, "/2": B}, {"/2": A}),
    "a drive the database does not know, in a new folder": ({"/1": A, "/2": STRANGER}, {"/1": A}, {"/1": A, "/2": STRANGER}),
    "the database was lost": ({"/1": A, "/2": B}, {}, {"/1": A, "/2": B}),
}


@pytest.mark.parametrize("happened", CASES)
@pytest.mark.parametrize("backwards", [False, True])
def test_what_belongs_where(happened: str, backwards: bool) -> None:
    present, known, expected = CASES[happened]
    paths = list(present)[:: -1 if backwards else 1]
    assert assign(paths, present, known) == expected, "whatever the order of ANVIL_DRIVES"


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("present", "known", "told"),
    [
        ({"/1": A, "/2": A}, {"/1": A}, "one is a copy of the other"),
        ({"/1": A, "/2": A}, {}, "one is a copy of the other"),
        ({"/1": None, "/2": A}, {"/1": A}, "'/1' is empty, and its drive is at '/2' now"),
        ({"/1": None, "/2": A}, {"/1": A, "/2": B}, "'/1' is empty, and its drive is at '/2' now"),
    ],
)
def test_a_drive_in_two_places_is_refused(present: Folders, known: dict[str, DriveId], told: str, backwards: bool) -> None:
    with pytest.raises(InvalidSetting, match=told):
        assign(list(present)[:: -1 if backwards else 1], present, known)
