"""Between protobuf messages and the values of operations, both ways.

Owns: what each field of a message means, and refusing what a field cannot hold. Invariant: what is let through here could have come
over S3 as well, so that it can be said back over S3: names, keys, attributes. Not here: reading and sending messages
(`messages.py`, `chunks.py`), rules (`operations`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

from google.protobuf.timestamp_pb2 import Timestamp

from anvil.api.grpc.proto import bucket_pb2, object_pb2
from anvil.api.operations import attributes as rules
from anvil.api.operations.conditions import ReadConditions, etags
from anvil.api.operations.integrity import DIGEST_BYTES, Integrity, check_type, expected_of_upload, md5_digest
from anvil.api.operations.names import NULL_VERSION, check_bucket_name, check_key
from anvil.api.operations.objects import check_size
from anvil.base.errors import InvalidArgument, InvalidRequest, KeyTooLong, MetadataTooLarge, MissingContentLength
from anvil.base.limits import SYSTEM_METADATA_BYTES_MAX, USER_METADATA_NAMES_MAX
from anvil.engine.types import ObjectInfo
from anvil.model.identity import Bucket
from anvil.model.records import (
    NO_CONDITION,
    Algorithm,
    Attributes,
    Checksum,
    ChecksumType,
    Condition,
    ListEntry,
    PartRecord,
    UploadRecord,
)

_ALGORITHMS: Final[dict[int, Algorithm]] = {
    object_pb2.CHECKSUM_ALGORITHM_CRC32: Algorithm.CRC32,
    object_pb2.CHECKSUM_ALGORITHM_CRC32C: Algorithm.CRC32C,
    object_pb2.CHECKSUM_ALGORITHM_CRC64NVME: Algorithm.CRC64NVME,
    object_pb2.CHECKSUM_ALGORITHM_SHA1: Algorithm.SHA1,
    object_pb2.CHECKSUM_ALGORITHM_SHA256: Algorithm.SHA256,
}
_TYPES: Final[dict[int, ChecksumType]] = {
    object_pb2.CHECKSUM_TYPE_FULL_OBJECT: ChecksumType.FULL_OBJECT,
    object_pb2.CHECKSUM_TYPE_COMPOSITE: ChecksumType.COMPOSITE,
}
_SHOWN_ALGORITHMS: Final[dict[Algorithm, Any]] = {algorithm: number for number, algorithm in _ALGORITHMS.items()}
_SHOWN_TYPES: Final[dict[ChecksumType, Any]] = {type_: number for number, type_ in _TYPES.items()}
_SYSTEM: Final = (
    "content_type",
    "cache_control",
    "content_disposition",
    "content_encoding",
    "content_language",
    "expires",
    "website_redirect",
)
_TIMESTAMP_S: Final = range(-62_135_596_800, 253_402_300_800)  # the years 1 to 9999 (google/protobuf/timestamp.proto)


class Upload(Protocol):
    """The header of PutObject and of UploadPart, as far as they are alike."""

    size: int
    md5: bytes
    checksum_algorithm: object_pb2.ChecksumAlgorithm

    @property
    def checksum(self) -> object_pb2.Checksum: ...
    def HasField(self, field_name: Any) -> bool: ...


class ChunkBody(Protocol):
    """What `chunks.py` makes of the messages of an upload, as far as its trailer goes."""

    @property
    def trailer(self) -> bytes | None: ...


# -- what comes: names and numbers ------------------------------------------------------------------------------------------


def text(value: str, name: str) -> str:
    """Raises InvalidArgument for text that no key can hold."""
    if "\0" in value:
        raise InvalidArgument(f"{name} contains U+0000.", ArgumentName=name)
    return value


def bucket_name(value: str) -> str:
    """Raises InvalidBucketName."""
    return check_bucket_name(value)


def object_key(value: str) -> str:
    """Raises InvalidArgument, KeyTooLong."""
    if not value:
        raise InvalidArgument("A key is missing.", ArgumentName="key")
    return check_key(text(value, "key"))


def marker(value: str, name: str) -> str:
    """A place in the order of keys. Raises InvalidArgument."""
    try:
        return check_key(text(value, name))
    except KeyTooLong:
        raise InvalidArgument(f"{name} is longer than a key can be.", ArgumentName=name) from None


def version(value: str) -> str | None:
    return value or None


def at_least_zero(value: int, name: str) -> int:
    """Raises InvalidArgument."""
    if value < 0:
        raise InvalidArgument(f"{name} must not be negative.", ArgumentName=name, ArgumentValue=str(value))
    return value


def page_size(value: int, most: int) -> int:
    """0 for as many as there can be; more counts as that. Raises InvalidArgument."""
    return min(at_least_zero(value, "page_size") or most, most)


def upload_size(header: Upload) -> int:
    """Bytes that an upload announces. Raises MissingContentLength, InvalidArgument, EntityTooLarge."""
    if not header.HasField("size"):
        raise MissingContentLength("You must say in the header how many bytes will come: size.")
    return check_size(at_least_zero(header.size, "size"))


def byte_range(message: object_pb2.ByteRange) -> tuple[int, int | None, str]:
    """Offset, length, and how the range is called in an error. Raises InvalidArgument."""
    length = at_least_zero(message.length, "range.length") if message.HasField("length") else None
    return message.offset, length, f"{message.offset}+{'' if length is None else length}"


# -- what comes: attributes and conditions ----------------------------------------------------------------------------------


def attributes(message: object_pb2.Attributes) -> Attributes:
    """ "" is absent. Raises InvalidArgument, InvalidRequest, MetadataTooLarge."""
    found: dict[str, Any] = {}
    size = 0
    for name in _SYSTEM:
        value = getattr(message, name)
        if value:
            found[name] = rules.header_value(value, name)
            size += len(name) + len(value.encode("utf-8"))
    if size > SYSTEM_METADATA_BYTES_MAX:
        raise MetadataTooLarge(Size=size, MaxSizeAllowed=SYSTEM_METADATA_BYTES_MAX)
    if "content_encoding" in found:
        found["content_encoding"] = rules.content_encoding(found["content_encoding"])
    if "website_redirect" in found:
        rules.website_redirect(found["website_redirect"])
    if not message.user_metadata:
        return Attributes(**found)
    if len(message.user_metadata) > USER_METADATA_NAMES_MAX:
        raise MetadataTooLarge(
            f"An object has at most {USER_METADATA_NAMES_MAX} names of user metadata: each is a header over S3."
        )
    user = dict(message.user_metadata)
    rules.check_user(user)
    for name, value in user.items():
        if not rules.is_field_name(name):
            raise InvalidArgument(
                "A name of user metadata cannot be part of a header's name in lower case.", ArgumentName="user_metadata"
            )
        rules.header_value(value, f"user_metadata.{name}")
    return Attributes(**found, user=user)


def read_conditions(message: object_pb2.ReadConditions) -> ReadConditions:
    """Raises InvalidArgument."""
    return ReadConditions(
        if_match=_etags(message.if_match),
        if_none_match=_etags(message.if_none_match),
        if_modified_since_s=_seconds(message, "if_modified_since"),
        if_unmodified_since_s=_seconds(message, "if_unmodified_since"),
    )


def write_conditions(message: object_pb2.WriteConditions) -> Condition:
    """Raises InvalidArgument."""
    if not message.if_match and not message.if_none_match:
        return NO_CONDITION
    return Condition(if_match=_etags(message.if_match), if_none_match=_etags(message.if_none_match))


def _etags(values: Sequence[str]) -> tuple[str, ...] | None:
    return etags(values) if values else None


def _seconds(message: object_pb2.ReadConditions, name: Any) -> int | None:
    if not message.HasField(name):
        return None
    time: Timestamp = getattr(message, name)
    if time.seconds not in _TIMESTAMP_S or not 0 <= time.nanos < 1_000_000_000:
        raise InvalidArgument(f"{name} is no point in time.", ArgumentName=name)
    return time.seconds


# -- what comes: checksums --------------------------------------------------------------------------------------------------


def algorithm(number: int, name: str = "checksum_algorithm") -> Algorithm | None:
    """None for unspecified. Raises InvalidArgument."""
    if number and number not in _ALGORITHMS:
        raise InvalidArgument("The checksum algorithm is not known.", ArgumentName=name, ArgumentValue=str(number))
    return _ALGORITHMS.get(number)


def checksum_type(number: int, name: str = "checksum_type") -> ChecksumType | None:
    """None for unspecified. Raises InvalidArgument."""
    if number and number not in _TYPES:
        raise InvalidArgument("The checksum type is not known.", ArgumentName=name, ArgumentValue=str(number))
    return _TYPES.get(number)


def _value(of: Algorithm, value: bytes, name: str) -> bytes:
    if len(value) != DIGEST_BYTES[of]:
        raise InvalidRequest(f"{name} is no {of} checksum: that has {DIGEST_BYTES[of]} bytes.")
    return value


def _stated(message: object_pb2.Checksum) -> tuple[Algorithm, bytes]:
    named = algorithm(message.algorithm, "checksum.algorithm")
    if named is None:
        raise InvalidArgument("A checksum needs its algorithm.", ArgumentName="checksum.algorithm")
    return named, _value(named, message.value, "checksum.value")


def integrity(header: Upload) -> Integrity:
    """What the header of an upload states about its payload. Raises InvalidDigest, InvalidArgument, InvalidRequest."""
    stated = Integrity(algorithm=algorithm(header.checksum_algorithm))
    if header.md5:
        stated.md5 = md5_digest(header.md5)
    if header.HasField("checksum"):
        named, value = _stated(header.checksum)
        if stated.algorithm not in (None, named):
            raise InvalidRequest("checksum and checksum_algorithm name different algorithms.")
        if checksum_type(header.checksum.type, "checksum.type") is ChecksumType.COMPOSITE or header.checksum.parts:
            raise InvalidRequest("The checksum of a payload is of the whole of it: a COMPOSITE one is of a multipart object.")
        stated.algorithm, stated.value = named, value
    return stated


def expect_trailer(stated: Integrity, body: ChunkBody, request: type[Any]) -> None:
    """Have the trailer compared, should one come. `stated`: as `integrity` gave it; `request`: the class of the messages."""
    named, known = stated.algorithm, stated.value is not None

    def late() -> bytes | None:
        if body.trailer is None:
            return None
        if named is None or known:
            raise InvalidRequest("An upload with a trailer names its checksum_algorithm in the header, and no checksum.")
        return _value(named, request.FromString(body.trailer).trailer.checksum, "trailer.checksum")

    stated.late = late


def completed_checksum(request: object_pb2.CompleteMultipartUploadRequest, upload: UploadRecord) -> Checksum | None:
    """What a completion says of the object. Raises InvalidArgument, InvalidRequest."""
    if not request.HasField("checksum"):
        return None
    message = request.checksum
    named, value = _stated(message)
    type_ = checksum_type(message.type, "checksum.type")
    check_type(type_, upload.checksum_type)
    composite = (type_ or upload.checksum_type) is ChecksumType.COMPOSITE
    if message.parts and (not composite or message.parts != len(request.parts)):
        raise InvalidRequest("checksum.parts is not the number of parts that a COMPOSITE checksum is of.")
    return expected_of_upload(named, value, len(request.parts) if composite else 0, upload.checksum_type)


# -- what goes --------------------------------------------------------------------------------------------------------------


def timestamp(time_us: int) -> Timestamp:
    return Timestamp(seconds=time_us // 1_000_000, nanos=time_us % 1_000_000 * 1000)


def bucket_message(bucket: Bucket) -> bucket_pb2.Bucket:
    return bucket_pb2.Bucket(name=bucket.name, region=bucket.region, created_at=timestamp(bucket.created_us))


def algorithm_number(of: Algorithm | None) -> Any:
    return object_pb2.CHECKSUM_ALGORITHM_UNSPECIFIED if of is None else _SHOWN_ALGORITHMS[of]


def type_number(of: ChecksumType | None) -> Any:
    return object_pb2.CHECKSUM_TYPE_UNSPECIFIED if of is None else _SHOWN_TYPES[of]


def checksum_message(checksum: Checksum | None) -> object_pb2.Checksum | None:
    """None leaves the field out."""
    if checksum is None:
        return None
    return object_pb2.Checksum(
        algorithm=algorithm_number(checksum.algorithm),
        value=checksum.value,
        type=type_number(checksum.type),
        parts=checksum.parts,
    )


def object_message(info: ObjectInfo) -> object_pb2.Object:
    kept = info.attributes
    shown = object_pb2.Attributes(
        **{name: getattr(kept, name) for name in _SYSTEM if getattr(kept, name) is not None}, user_metadata=kept.user
    )
    return object_pb2.Object(
        key=info.key,
        size=info.size,
        etag=info.etag,
        modified_at=timestamp(info.modified_us),
        version_id=NULL_VERSION if info.is_null else info.version_id.hex(),
        attributes=shown,
        checksum=checksum_message(info.checksum),
        part_count=info.part_count,
    )


def summary_message(entry: ListEntry) -> object_pb2.ObjectSummary:
    checksum = entry.checksum
    return object_pb2.ObjectSummary(
        key=entry.key,
        size=entry.size,
        etag=entry.etag,
        modified_at=timestamp(entry.modified_us),
        checksum_algorithm=algorithm_number(None if checksum is None else checksum.algorithm),
        checksum_type=type_number(None if checksum is None else checksum.type),
    )


def part_message(part: PartRecord) -> object_pb2.Part:
    return object_pb2.Part(
        number=part.number,
        size=part.size,
        etag=part.etag,
        modified_at=timestamp(part.modified_us),
        checksum=checksum_message(part.checksum),
    )
