"""The one table from (method, level, sub-resource) to operation and handler, with every S3 operation in it, served or not.

Owns: routing. Invariant: a request reaches at most one handler; an S3 operation without a handler is answered 501 by name,
and a known sub-resource with another method 405, so that `DELETE /bucket?policy` can never be taken for DeleteBucket.
`docs/S3.md` shows this table; a test compares the two. Query parameters that are no sub-resource choose nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from anvil.api.s3.call import Call
from anvil.api.s3.handlers import buckets, copy, deletes, listing, multipart, objects, service
from anvil.api.s3.request import BUCKET, OBJECT, SERVICE, S3Request
from anvil.base.errors import InvalidArgument, MethodNotAllowed, NotSupported

Handler = Callable[[Call], Awaitable[None]]


class Route(NamedTuple):
    """`sub`: the query parameter that names the operation, "" for none. `copies`: chosen by `x-amz-copy-source`."""

    operation: str
    method: str
    level: str
    sub: str = ""
    handler: Handler | None = None
    copies: bool = False


ROUTES: tuple[Route, ...] = (
    Route("ListBuckets", "GET", SERVICE, "", service.list_buckets),
    # -- buckets
    Route("CreateBucket", "PUT", BUCKET, "", buckets.create_bucket),
    Route("HeadBucket", "HEAD", BUCKET, "", buckets.head_bucket),
    Route("DeleteBucket", "DELETE", BUCKET, "", buckets.delete_bucket),
    Route("GetBucketLocation", "GET", BUCKET, "location", buckets.get_bucket_location),
    Route("GetBucketVersioning", "GET", BUCKET, "versioning", buckets.get_bucket_versioning),
    Route("GetBucketAcl", "GET", BUCKET, "acl", buckets.get_bucket_acl),
    Route("ListObjects", "GET", BUCKET, "", listing.list_objects_v1),
    Route("ListObjectsV2", "GET", BUCKET, "list-type", listing.list_objects_v2),
    Route("ListObjectVersions", "GET", BUCKET, "versions", listing.list_object_versions),
    Route("ListMultipartUploads", "GET", BUCKET, "uploads", multipart.list_uploads),
    Route("DeleteObjects", "POST", BUCKET, "delete", deletes.delete_objects),
    # -- objects
    Route("PutObject", "PUT", OBJECT, "", objects.put_object),
    Route("CopyObject", "PUT", OBJECT, "", copy.copy_object, copies=True),
    Route("GetObject", "GET", OBJECT, "", objects.get_object),
    Route("HeadObject", "HEAD", OBJECT, "", objects.head_object),
    Route("DeleteObject", "DELETE", OBJECT, "", objects.delete_object),
    Route("GetObjectAttributes", "GET", OBJECT, "attributes", objects.get_object_attributes),
    Route("GetObjectAcl", "GET", OBJECT, "acl", buckets.get_object_acl),
    Route("GetObjectTagging", "GET", OBJECT, "tagging", buckets.get_object_tagging),
    Route("CreateMultipartUpload", "POST", OBJECT, "uploads", multipart.create_upload),
    Route("UploadPart", "PUT", OBJECT, "uploadId", multipart.upload_part),
    Route("UploadPartCopy", "PUT", OBJECT, "uploadId", multipart.upload_part_copy, copies=True),
    Route("CompleteMultipartUpload", "POST", OBJECT, "uploadId", multipart.complete_upload),
    Route("AbortMultipartUpload", "DELETE", OBJECT, "uploadId", multipart.abort_upload),
    Route("ListParts", "GET", OBJECT, "uploadId", multipart.list_parts),
    # -- what S3 has and Anvil has not: 501
    Route("PutBucketAccelerateConfiguration", "PUT", BUCKET, "accelerate"),
    Route("GetBucketAccelerateConfiguration", "GET", BUCKET, "accelerate"),
    Route("PutBucketAbac", "PUT", BUCKET, "abac"),
    Route("GetBucketAbac", "GET", BUCKET, "abac"),
    Route("PutBucketAcl", "PUT", BUCKET, "acl"),
    Route("PutBucketAnalyticsConfiguration", "PUT", BUCKET, "analytics"),
    Route("GetBucketAnalyticsConfiguration", "GET", BUCKET, "analytics"),
    Route("DeleteBucketAnalyticsConfiguration", "DELETE", BUCKET, "analytics"),
    Route("PutBucketCors", "PUT", BUCKET, "cors"),
    Route("GetBucketCors", "GET", BUCKET, "cors"),
    Route("DeleteBucketCors", "DELETE", BUCKET, "cors"),
    Route("PutBucketEncryption", "PUT", BUCKET, "encryption"),
    Route("GetBucketEncryption", "GET", BUCKET, "encryption"),
    Route("DeleteBucketEncryption", "DELETE", BUCKET, "encryption"),
    Route("PutBucketIntelligentTieringConfiguration", "PUT", BUCKET, "intelligent-tiering"),
    Route("GetBucketIntelligentTieringConfiguration", "GET", BUCKET, "intelligent-tiering"),
    Route("DeleteBucketIntelligentTieringConfiguration", "DELETE", BUCKET, "intelligent-tiering"),
    Route("PutBucketInventoryConfiguration", "PUT", BUCKET, "inventory"),
    Route("GetBucketInventoryConfiguration", "GET", BUCKET, "inventory"),
    Route("DeleteBucketInventoryConfiguration", "DELETE", BUCKET, "inventory"),
    Route("PutBucketLifecycleConfiguration", "PUT", BUCKET, "lifecycle"),
    Route("GetBucketLifecycleConfiguration", "GET", BUCKET, "lifecycle"),
    Route("DeleteBucketLifecycle", "DELETE", BUCKET, "lifecycle"),
    Route("PutBucketLogging", "PUT", BUCKET, "logging"),
    Route("GetBucketLogging", "GET", BUCKET, "logging"),
    Route("CreateBucketMetadataConfiguration", "POST", BUCKET, "metadataConfiguration"),
    Route("GetBucketMetadataConfiguration", "GET", BUCKET, "metadataConfiguration"),
    Route("DeleteBucketMetadataConfiguration", "DELETE", BUCKET, "metadataConfiguration"),
    Route("CreateBucketMetadataTableConfiguration", "POST", BUCKET, "metadataTable"),
    Route("GetBucketMetadataTableConfiguration", "GET", BUCKET, "metadataTable"),
    Route("DeleteBucketMetadataTableConfiguration", "DELETE", BUCKET, "metadataTable"),
    Route("UpdateBucketMetadataInventoryTableConfiguration", "PUT", BUCKET, "metadataInventoryTable"),
    Route("UpdateBucketMetadataJournalTableConfiguration", "PUT", BUCKET, "metadataJournalTable"),
    Route("PutBucketMetricsConfiguration", "PUT", BUCKET, "metrics"),
    Route("GetBucketMetricsConfiguration", "GET", BUCKET, "metrics"),
    Route("DeleteBucketMetricsConfiguration", "DELETE", BUCKET, "metrics"),
    Route("PutBucketNotificationConfiguration", "PUT", BUCKET, "notification"),
    Route("GetBucketNotificationConfiguration", "GET", BUCKET, "notification"),
    Route("PutObjectLockConfiguration", "PUT", BUCKET, "object-lock"),
    Route("GetObjectLockConfiguration", "GET", BUCKET, "object-lock"),
    Route("PutBucketOwnershipControls", "PUT", BUCKET, "ownershipControls"),
    Route("GetBucketOwnershipControls", "GET", BUCKET, "ownershipControls"),
    Route("DeleteBucketOwnershipControls", "DELETE", BUCKET, "ownershipControls"),
    Route("PutBucketPolicy", "PUT", BUCKET, "policy"),
    Route("GetBucketPolicy", "GET", BUCKET, "policy"),
    Route("DeleteBucketPolicy", "DELETE", BUCKET, "policy"),
    Route("GetBucketPolicyStatus", "GET", BUCKET, "policyStatus"),
    Route("PutPublicAccessBlock", "PUT", BUCKET, "publicAccessBlock"),
    Route("GetPublicAccessBlock", "GET", BUCKET, "publicAccessBlock"),
    Route("DeletePublicAccessBlock", "DELETE", BUCKET, "publicAccessBlock"),
    Route("PutBucketReplication", "PUT", BUCKET, "replication"),
    Route("GetBucketReplication", "GET", BUCKET, "replication"),
    Route("DeleteBucketReplication", "DELETE", BUCKET, "replication"),
    Route("PutBucketRequestPayment", "PUT", BUCKET, "requestPayment"),
    Route("GetBucketRequestPayment", "GET", BUCKET, "requestPayment"),
    Route("CreateSession", "GET", BUCKET, "session"),
    Route("PutBucketTagging", "PUT", BUCKET, "tagging"),
    Route("GetBucketTagging", "GET", BUCKET, "tagging"),
    Route("DeleteBucketTagging", "DELETE", BUCKET, "tagging"),
    Route("PutBucketVersioning", "PUT", BUCKET, "versioning"),
    Route("PutBucketWebsite", "PUT", BUCKET, "website"),
    Route("GetBucketWebsite", "GET", BUCKET, "website"),
    Route("DeleteBucketWebsite", "DELETE", BUCKET, "website"),
    Route("PostObject", "POST", BUCKET),
    Route("PutObjectAcl", "PUT", OBJECT, "acl"),
    Route("UpdateObjectEncryption", "PUT", OBJECT, "encryption"),
    Route("PutObjectLegalHold", "PUT", OBJECT, "legal-hold"),
    Route("GetObjectLegalHold", "GET", OBJECT, "legal-hold"),
    Route("PutObjectRetention", "PUT", OBJECT, "retention"),
    Route("GetObjectRetention", "GET", OBJECT, "retention"),
    Route("PutObjectTagging", "PUT", OBJECT, "tagging"),
    Route("DeleteObjectTagging", "DELETE", OBJECT, "tagging"),
    Route("RenameObject", "PUT", OBJECT, "renameObject"),
    Route("RestoreObject", "POST", OBJECT, "restore"),
    Route("SelectObjectContent", "POST", OBJECT, "select"),
    Route("GetObjectTorrent", "GET", OBJECT, "torrent"),
    # OPTIONS is the CORS preflight of browsers, on whatever path
    Route("PreflightService", "OPTIONS", SERVICE),
    Route("PreflightBucket", "OPTIONS", BUCKET),
    Route("PreflightObject", "OPTIONS", OBJECT),
)


def _index(*, copies: bool) -> dict[tuple[str, str, str], Route]:
    index: dict[tuple[str, str, str], Route] = {}
    for route in ROUTES:
        if route.copies is copies:
            place = (route.method, route.level, route.sub)
            if place in index:
                raise ValueError(f"{route.operation} and {index[place].operation} share one place")
            index[place] = route
    return index


_PLAIN = _index(copies=False)
_COPIES = _index(copies=True)
_SUBS: dict[str, frozenset[str]] = {
    level: frozenset(route.sub for route in ROUTES if route.level == level and route.sub) for level in (SERVICE, BUCKET, OBJECT)
}


def resolve(request: S3Request) -> Route:
    """The operation of a request. Raises MethodNotAllowed (with Allow), InvalidArgument when two sub-resources are named."""
    level, query = request.level, request.query
    sub = ""
    if query and request.method != "OPTIONS":
        known = _SUBS[level]
        for name in query:
            if name in known:
                if sub:
                    raise InvalidArgument("Conflicting query string parameters.", ArgumentName="ResourceType", ArgumentValue=name)
                sub = name
    place = (request.method, level, sub)
    if b"x-amz-copy-source" in request.headers and place in _COPIES:
        return _COPIES[place]
    route = _PLAIN.get(place)
    if route is None:
        allowed = sorted({other.method for other in ROUTES if other.level == level and other.sub == sub})
        raise MethodNotAllowed(Method=request.method, ResourceType=(sub or level).upper(), Allow=", ".join(allowed))
    return route


def refuse(route: Route) -> NotSupported:
    """What an operation without a handler answers."""
    if route.operation == "PostObject":
        return NotSupported("Uploads by HTML form (POST policy) are not implemented.")
    if route.operation.endswith("Acl"):
        return NotSupported(
            "Access control lists are not implemented. A bucket is made publicly readable by its operator: "
            "anvil admin bucket set-public NAME --allow true"
        )
    return NotSupported(f"The operation {route.operation} is not implemented.")
