"""Names of buckets, keys and owners.

Owns: which are valid. Sources: S3 User Guide, "General purpose bucket naming rules", "Naming Amazon S3 objects". Not here:
percent-decoding (`api/s3/request.py`).
"""

from __future__ import annotations

import re

from anvil.base.errors import InvalidBucketName, KeyTooLong
from anvil.base.limits import KEY_BYTES_MAX
from anvil.model.identity import Tenant

NULL_VERSION = "null"  # the id of the only version there is, while no bucket is versioned
RESERVED_NAMES = frozenset(("ready", "metrics"))  # paths of the node itself

_BUCKET_NAME = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
_IP_ADDRESS = re.compile(r"\d{1,3}(\.\d{1,3}){3}")
_BAD_PREFIXES = ("xn--", "sthree-", "amzn-s3-demo-")
_BAD_SUFFIXES = ("-s3alias", "--ol-s3", ".mrap", "--x-s3", "--table-s3")


def check_key(key: str) -> str:
    """The key itself. Raises KeyTooLong beyond 1,024 bytes of UTF-8."""
    if len(key) * 4 > KEY_BYTES_MAX and (size := len(key.encode("utf-8"))) > KEY_BYTES_MAX:
        raise KeyTooLong(Size=size, MaxSizeAllowed=KEY_BYTES_MAX)
    return key


def check_bucket_name(name: str) -> str:
    """A name that may be looked up: nothing outside the charset of bucket names gets any further. Raises InvalidBucketName."""
    if not _BUCKET_NAME.fullmatch(name):
        raise InvalidBucketName(BucketName=name)
    return name


def check_new_bucket_name(name: str) -> str:
    """A name a bucket may be created under: S3's rules, and Anvil's reserved names. Raises InvalidBucketName, saying why."""
    if name in RESERVED_NAMES:
        raise InvalidBucketName(f"The name {name} is reserved for the node's own paths.", BucketName=name)
    if (
        not _BUCKET_NAME.fullmatch(name)
        or ".." in name
        or _IP_ADDRESS.fullmatch(name)
        or name.startswith(_BAD_PREFIXES)
        or name.endswith(_BAD_SUFFIXES)
    ):
        raise InvalidBucketName(BucketName=name)
    return name


def owner_id(tenant: Tenant) -> str:
    """The canonical user id of a tenant, shaped as an AWS account id, which is also what an expected bucket owner names."""
    return f"{tenant.tenant_id:012d}"
