"""Between the client's values (`types.py`) and the messages of the .proto files. Nothing else is here."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from anvil.api.grpc.proto import bucket_pb2, object_pb2
from anvil.client.types import (
    Attributes,
    Bucket,
    BucketPolicy,
    ByteRange,
    Checksum,
    ChecksumAlgorithm,
    Grant,
    ListPage,
    ObjectInfo,
    ObjectSummary,
    Part,
    Prefix,
    ReadConditions,
    WriteConditions,
)

ALGORITHMS = {
    ChecksumAlgorithm.CRC32: object_pb2.CHECKSUM_ALGORITHM_CRC32,
    ChecksumAlgorithm.CRC32C: object_pb2.CHECKSUM_ALGORITHM_CRC32C,
    ChecksumAlgorithm.CRC64NVME: object_pb2.CHECKSUM_ALGORITHM_CRC64NVME,
    ChecksumAlgorithm.SHA1: object_pb2.CHECKSUM_ALGORITHM_SHA1,
    ChecksumAlgorithm.SHA256: object_pb2.CHECKSUM_ALGORITHM_SHA256,
}
NAMES = {number: name for name, number in ALGORITHMS.items()}
ATTRIBUTES = tuple(name for name in Attributes.__struct_fields__ if name != "user_metadata")


def time_of(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)


def stamp_of(time: datetime | None) -> Timestamp | None:
    """Raises ValueError for a time without a zone, which would mean another one on another machine."""
    if time is None:
        return None
    if time.tzinfo is None:
        raise ValueError("a time needs a time zone")
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def bucket_of(message: bucket_pb2.Bucket) -> Bucket:
    return Bucket(message.name, message.region, time_of(message.created_at))


def policy_of(message: bucket_pb2.BucketPolicy) -> BucketPolicy:
    return BucketPolicy(message.public_read, tuple(Grant(one.app, one.action, one.resource) for one in message.grants))


def policy_message(policy: BucketPolicy) -> bucket_pb2.BucketPolicy:
    grants = [bucket_pb2.Grant(app=one.app, action=one.action, resource=one.resource) for one in policy.grants]
    return bucket_pb2.BucketPolicy(public_read=policy.public_read, grants=grants)


def checksum_of(message: object_pb2.Checksum) -> Checksum | None:
    """None where there is none, or one of an algorithm that this client does not know."""
    name = NAMES.get(message.algorithm)
    if name is None:
        return None
    composite = message.type == object_pb2.CHECKSUM_TYPE_COMPOSITE
    return Checksum(name, message.value, "COMPOSITE" if composite else "FULL_OBJECT", message.parts)


def checksum_message(checksum: Checksum) -> object_pb2.Checksum:
    return object_pb2.Checksum(
        algorithm=ALGORITHMS[checksum.algorithm],
        value=checksum.value,
        type=object_pb2.CHECKSUM_TYPE_COMPOSITE if checksum.type == "COMPOSITE" else object_pb2.CHECKSUM_TYPE_FULL_OBJECT,
        parts=checksum.parts,
    )


def attributes_of(message: object_pb2.Attributes) -> Attributes:
    return Attributes(**{name: getattr(message, name) for name in ATTRIBUTES}, user_metadata=dict(message.user_metadata))


def attributes_message(attributes: Attributes | None) -> object_pb2.Attributes | None:
    if attributes is None:
        return None
    return object_pb2.Attributes(
        **{name: getattr(attributes, name) for name in ATTRIBUTES}, user_metadata=attributes.user_metadata
    )


def object_of(message: object_pb2.Object) -> ObjectInfo:
    return ObjectInfo(
        message.key,
        message.size,
        message.etag,
        time_of(message.modified_at),
        message.version_id,
        attributes_of(message.attributes),
        checksum_of(message.checksum),
        message.part_count,
    )


def page_of(message: object_pb2.ListObjectsResponse) -> ListPage:
    objects = tuple(ObjectSummary(one.key, one.size, one.etag, time_of(one.modified_at)) for one in message.objects)
    return ListPage(objects, tuple(Prefix(one) for one in message.prefixes), message.next_page_token)


def part_of(message: object_pb2.Part) -> Part:
    return Part(message.number, message.size, message.etag, time_of(message.modified_at), checksum_of(message.checksum))


def read_conditions(conditions: ReadConditions | None) -> object_pb2.ReadConditions | None:
    if conditions is None:
        return None
    return object_pb2.ReadConditions(
        if_match=conditions.if_match,
        if_none_match=conditions.if_none_match,
        if_modified_since=stamp_of(conditions.if_modified_since),
        if_unmodified_since=stamp_of(conditions.if_unmodified_since),
    )


def write_conditions(conditions: WriteConditions | None) -> object_pb2.WriteConditions | None:
    if conditions is None:
        return None
    return object_pb2.WriteConditions(if_match=conditions.if_match, if_none_match=conditions.if_none_match)


def range_message(range: ByteRange | None) -> object_pb2.ByteRange | None:
    if range is None:
        return None
    return object_pb2.ByteRange(offset=range.offset, length=range.length)
