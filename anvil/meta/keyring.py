"""The master key and what it wraps: bucket keys and app secrets.

Owns: AES-256-GCM sealing of the secrets that lie in the global database. A sealed value carries the id of the master key that
sealed it, and the table and row it belongs to are its associated data, so a value copied to another row does not open.
Invariant: no key leaves this module but through `unwrap`. Not here: sealing of object data (`ec`), where the master key comes
from (`base.config`).

Sealed form: version (1 byte, 1), key id (4 bytes), nonce (12 bytes), ciphertext and tag. A key's id is the front of SHA-256
over a label and the key: it is derived, so two nodes cannot disagree about it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from anvil.base.errors import Corrupt, InvalidSetting

KEY_BYTES: Final = 32
_VERSION: Final = b"\x01"
_ID_BYTES: Final = 4
_NONCE_BYTES: Final = 12


def parse_master_key(text: str) -> bytes:
    """32 bytes, as 64 hex digits or as base64 (standard or URL alphabet). Raises InvalidSetting."""
    text = text.strip()
    try:
        key = (
            bytes.fromhex(text)
            if len(text) == 2 * KEY_BYTES
            else base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
        )
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise InvalidSetting(
            "ANVIL_SECRET_ENCRYPTION_KEY must be 32 bytes, as base64 or 64 hex digits: make one with `openssl rand -base64 32`"
        )
    return key


def key_id(key: bytes) -> bytes:
    """The 4-byte id of a master key; also its fingerprint in backup manifests."""
    return hashlib.sha256(b"anvil master key id\0" + key).digest()[:_ID_BYTES]


def system_key(master_key: bytes) -> bytes:
    """The key of the system bucket, which holds the dumps of the metadata: it must not be wrapped in a database. HKDF-SHA256 (RFC 5869)."""
    return HKDF(hashes.SHA256(), KEY_BYTES, None, b"anvil system bucket v1").derive(master_key)


class Keyring:
    """Master keys by id. The first one seals; all of them open, so that a key can be replaced while its values are rewritten."""

    def __init__(self, master_key: bytes, older: Sequence[bytes] = ()) -> None:
        self._current = key_id(master_key)
        self._keys = {key_id(key): AESGCM(key) for key in (master_key, *older)}

    @property
    def current_id(self) -> bytes:
        return self._current

    def wrap(self, table: str, row_id: int, secret: bytes) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return (
            _VERSION
            + self._current
            + nonce
            + self._keys[self._current].encrypt(nonce, secret, self._context(self._current, table, row_id))
        )

    def is_current(self, sealed: bytes) -> bool:
        """Whether a sealed value was sealed with the key that seals now."""
        return sealed[1 : 1 + _ID_BYTES] == self._current

    def unwrap(self, table: str, row_id: int, sealed: bytes) -> bytes:
        """Raises Corrupt: unknown master key, or the value was altered or belongs to another row."""
        ident, nonce = sealed[1 : 1 + _ID_BYTES], sealed[1 + _ID_BYTES : 1 + _ID_BYTES + _NONCE_BYTES]
        key = self._keys.get(ident)
        if key is None or not sealed.startswith(_VERSION):
            raise Corrupt(f"a row of {table} is sealed with master key {ident.hex()}, which this server does not have")
        try:
            return key.decrypt(nonce, sealed[1 + _ID_BYTES + _NONCE_BYTES :], self._context(ident, table, row_id))
        except InvalidTag:
            raise Corrupt(f"a sealed value of {table} row {row_id} was altered") from None

    @staticmethod
    def _context(ident: bytes, table: str, row_id: int) -> bytes:
        return b"anvil\0" + ident + table.encode() + b"\0" + row_id.to_bytes(8, "big")

    def __repr__(self) -> str:
        return f"Keyring({self._current.hex()})"
