"""Random names: ids of blobs, versions and uploads, request ids, key pairs. All from the kernel's generator.

Owns: a small stock of random bytes, because one system call per id costs more than the id (0.44 us against 0.18 us).
Invariant: no byte is handed out twice, also not after a fork. Not here: the meaning of any id.
"""

from __future__ import annotations

import base64
import os

STOCK_IDS = 256

_stock: list[bytes] = []


def random_id() -> bytes:
    """16 random bytes: a blob, version, upload, session, node or drive id."""
    if not _stock:
        fresh = os.urandom(16 * STOCK_IDS)
        _stock.extend(fresh[start : start + 16] for start in range(0, len(fresh), 16))
    return _stock.pop()


def request_id() -> str:
    """16 upper-case hex digits, the form of S3's own x-amz-request-id."""
    return random_id()[:8].hex().upper()


def bucket_id() -> int:
    """A random number from 1 to 2**63-1."""
    return (int.from_bytes(random_id()[:8], "big") >> 1) or 1


def access_key() -> str:
    """20 characters: `AK` and 18 of the base32 alphabet, as clients expect an access key to look."""
    return "AK" + base64.b32encode(os.urandom(12)).decode()[:18]


def secret_key() -> str:
    """40 characters with nearly 240 bits of randomness, without any that a shell or a configuration file would need quoted."""
    return base64.urlsafe_b64encode(os.urandom(30)).decode().replace("-", "x").replace("_", "y")


os.register_at_fork(after_in_child=_stock.clear)
