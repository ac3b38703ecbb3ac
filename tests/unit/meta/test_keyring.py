"""The keyring: what it seals opens only in its own row, under a key it has."""

from __future__ import annotations

import base64

import pytest

from anvil.base.errors import Corrupt, InvalidSetting
from anvil.meta.keyring import Keyring, parse_master_key

KEY = bytes(range(32))
OTHER = bytes(reversed(range(32)))


def test_master_key_forms() -> None:
    for text in (KEY.hex(), base64.b64encode(KEY).decode(), base64.urlsafe_b64encode(KEY).decode(), f"  {KEY.hex()}\n"):
        assert parse_master_key(text) == KEY
    for text in ("", "changeme", KEY.hex()[:-2], base64.b64encode(KEY[:-1]).decode(), "z" * 64):
        with pytest.raises(InvalidSetting):
            parse_master_key(text)


def test_sealed_values_belong_to_their_row() -> None:
    ring = Keyring(KEY)
    sealed = ring.wrap("apps", 7, b"secret")
    assert b"secret" not in sealed
    assert ring.unwrap("apps", 7, sealed) == b"secret"
    assert ring.wrap("apps", 7, b"secret") != sealed
    for table, row_id in (("apps", 8), ("buckets", 7)):
        with pytest.raises(Corrupt):
            ring.unwrap(table, row_id, sealed)
    for at in range(len(sealed)):
        with pytest.raises(Corrupt):
            ring.unwrap("apps", 7, sealed[:at] + bytes((sealed[at] ^ 1,)) + sealed[at + 1 :])
    with pytest.raises(Corrupt):
        ring.unwrap("apps", 7, b"")


def test_rotation() -> None:
    sealed = Keyring(KEY).wrap("apps", 7, b"secret")
    rotated = Keyring(OTHER, older=[KEY])
    assert rotated.unwrap("apps", 7, sealed) == b"secret"
    assert not rotated.is_current(sealed)
    fresh = rotated.wrap("apps", 7, b"secret")
    assert rotated.is_current(fresh)
    with pytest.raises(Corrupt, match="does not have"):
        Keyring(OTHER).unwrap("apps", 7, sealed)
    assert KEY.hex() not in repr(rotated)
