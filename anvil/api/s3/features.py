"""Headers that ask for features: accepted where what they ask for is so anyway, refused where Anvil does not have it.

Owns: that judgement, for every operation at once. Invariant: a header that asks for something that will not happen is never
accepted silently. `request.parse_request` lists the `x-amz-*` headers that no handler reads; only those come here, so most
requests never do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from anvil.base.errors import InvalidArgument, InvalidStorageClass, NotSupported

_PUBLIC = (
    "Access control lists are not implemented. A bucket is made publicly readable by its operator: "
    "anvil admin bucket set-public NAME --allow true"
)
_ACLS = frozenset(
    {
        "private",
        "public-read",
        "public-read-write",
        "authenticated-read",
        "aws-exec-read",
        "bucket-owner-read",
        "bucket-owner-full-control",
        "log-delivery-write",
    }
)


def _acl(value: str) -> None:
    """Objects belong to the tenant of their bucket alone, which is what these two say."""
    if value in ("private", "bucket-owner-full-control"):
        return
    if value not in _ACLS:
        raise InvalidArgument(ArgumentName="x-amz-acl", ArgumentValue=value)
    raise NotSupported(_PUBLIC, Header="x-amz-acl")


def _encryption(value: str) -> None:
    """Every object is sealed with AES-256-GCM under keys of the deployment: SSE-S3 is how things are."""
    if value == "AES256":
        return
    if value in ("aws:kms", "aws:kms:dsse", "aws:fsx"):
        raise NotSupported("Encryption with a key management service is not implemented.", Header="x-amz-server-side-encryption")
    raise InvalidArgument(
        "The encryption method specified is not supported", ArgumentName="x-amz-server-side-encryption", ArgumentValue=value
    )


def _storage_class(value: str) -> None:
    if value != "STANDARD":
        raise InvalidStorageClass(StorageClassRequested=value)


def _only(*allowed: str) -> Callable[[str, str], None]:
    def check(name: str, value: str) -> None:
        if value not in allowed:
            raise NotSupported(f"The header {name} asks for a feature that is not implemented.", Header=name)

    return check


_VALUES: dict[bytes, Callable[[str], None]] = {
    b"x-amz-acl": _acl,
    b"x-amz-server-side-encryption": _encryption,
    b"x-amz-storage-class": _storage_class,
}

# header -> values that ask for nothing Anvil lacks
_NO_OPS: dict[bytes, tuple[str, ...]] = {
    b"x-amz-tagging": ("",),
    b"x-amz-tagging-directive": ("COPY", "REPLACE"),  # nothing has tags; new ones come in x-amz-tagging
    b"x-amz-bucket-object-lock-enabled": ("false", "False"),
    b"x-amz-object-ownership": ("BucketOwnerEnforced",),
    b"x-amz-server-side-encryption-bucket-key-enabled": ("false", "False"),
    b"x-amz-bypass-governance-retention": ("false", "False"),  # there is no retention to bypass
}

_REFUSED = frozenset(
    {
        b"x-amz-mfa",
        b"x-amz-write-offset-bytes",
        b"x-amz-rename-source",
        b"x-amz-confirm-remove-self-bucket-access",
        b"x-amz-if-match-size",
        b"x-amz-if-match-last-modified-time",
        b"x-amz-if-match-initiated-time",
    }
)
_REFUSED_PREFIXES = (
    b"x-amz-grant-",
    b"x-amz-object-lock-",
    b"x-amz-server-side-encryption-",
    b"x-amz-copy-source-server-side-encryption-",
    b"x-amz-checksum-",  # an algorithm Anvil does not compute
    b"x-amz-rename-source-",
    b"x-amz-fwd-",
)


def check(names: Sequence[bytes], headers: Mapping[bytes, bytes]) -> None:
    """Raises NotSupported, InvalidArgument or InvalidStorageClass. Names that S3 does not know either are ignored, as S3 does."""
    for name in names:
        value = headers[name].decode("latin-1")
        if name in _VALUES:
            _VALUES[name](value)
        elif name in _NO_OPS:
            _only(*_NO_OPS[name])(name.decode("ascii"), value)
        elif name in _REFUSED or name.startswith(_REFUSED_PREFIXES):
            shown = name.decode("latin-1")
            if name.startswith(b"x-amz-grant-"):
                raise NotSupported(_PUBLIC, Header=shown)
            raise NotSupported(f"The header {shown} asks for a feature that is not implemented.", Header=shown)
