"""From domain errors to S3 errors: the one table, and the XML that carries them.

Owns: which S3 code, status and extra XML elements each `AnvilError` gets. Invariant: every subclass of `AnvilError` is found in
TABLE by itself or by the nearest ancestor, and nothing but `AnvilError.message` and the listed fields reaches a client. Sources:
Amazon S3 API Reference, "Error Responses" (codes and statuses).
"""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from anvil.api.s3.xml import Xml
from anvil.auth.hosts import is_address
from anvil.base import errors as e


class S3Error(NamedTuple):
    """`fields`: names in `AnvilError.fields` that S3 shows as elements of the error document."""

    code: str
    status: int
    fields: tuple[str, ...] = ()


_ARGUMENT = ("ArgumentName", "ArgumentValue")
_SIZE = ("ProposedSize", "MaxSizeAllowed", "MinSizeAllowed", "PartNumber", "ETag")
_DATE = ("RequestTime", "ServerTime", "MaxAllowedSkewMilliseconds")
_EXPIRED = ("X-Amz-Expires", "Expires", "ServerTime")

TABLE: dict[type[e.AnvilError], S3Error] = {
    e.AnvilError: S3Error("InternalError", 500),
    # NotFound
    e.NotFound: S3Error("NoSuchEntity", 404),
    e.NoSuchBucket: S3Error("NoSuchBucket", 404, ("BucketName",)),
    e.NoSuchKey: S3Error("NoSuchKey", 404, ("Key",)),
    e.NoSuchVersion: S3Error("NoSuchVersion", 404, ("Key", "VersionId")),
    e.NoSuchUpload: S3Error("NoSuchUpload", 404, ("UploadId",)),
    e.NoSuchPart: S3Error("InvalidPart", 400, ("PartNumber",)),
    e.UnknownName: S3Error("NoSuchEntity", 404),
    # Conflict
    e.Conflict: S3Error("OperationAborted", 409),
    e.BucketAlreadyExists: S3Error("BucketAlreadyExists", 409, ("BucketName",)),
    e.BucketAlreadyOwnedByYou: S3Error("BucketAlreadyOwnedByYou", 409, ("BucketName",)),
    e.BucketNotEmpty: S3Error("BucketNotEmpty", 409, ("BucketName",)),
    e.PreconditionFailed: S3Error("PreconditionFailed", 412, ("Condition",)),
    e.NotModified: S3Error("NotModified", 304, ("ETag",)),  # gRPC's: S3 answers it without a document
    e.ConditionalRequestConflict: S3Error("ConditionalRequestConflict", 409),
    e.OperationAborted: S3Error("OperationAborted", 409),
    e.NameTaken: S3Error("EntityAlreadyExists", 409),
    e.LimitExceeded: S3Error("LimitExceeded", 409),
    # Denied
    e.Denied: S3Error("AccessDenied", 403),
    e.AccessDenied: S3Error("AccessDenied", 403, ("HeadersNotSigned", "RequiredAction", "RequiredResource")),
    e.InvalidAccessKey: S3Error("InvalidAccessKeyId", 403, ("AWSAccessKeyId",)),
    e.InvalidToken: S3Error("InvalidToken", 400),
    e.ExpiredToken: S3Error("ExpiredToken", 400),
    e.SignatureMismatch: S3Error(
        "SignatureDoesNotMatch", 403, ("AWSAccessKeyId", "StringToSign", "SignatureProvided", "CanonicalRequest")
    ),
    e.RequestTimeSkewed: S3Error("RequestTimeTooSkewed", 403, _DATE),
    e.RequestExpired: S3Error("AccessDenied", 403, _EXPIRED),
    # Invalid
    e.Invalid: S3Error("InvalidRequest", 400),
    e.InvalidArgument: S3Error("InvalidArgument", 400, _ARGUMENT),
    e.InvalidRequest: S3Error("InvalidRequest", 400),
    e.InvalidURI: S3Error("InvalidURI", 400, ("URI",)),
    e.InvalidStorageClass: S3Error("InvalidStorageClass", 400, ("StorageClassRequested",)),
    e.MissingRequestBody: S3Error("MissingRequestBodyError", 400),
    e.InvalidBucketName: S3Error("InvalidBucketName", 400, ("BucketName",)),
    e.KeyTooLong: S3Error("KeyTooLongError", 400, ("Size", "MaxSizeAllowed")),
    e.MetadataTooLarge: S3Error("MetadataTooLarge", 400, ("Size", "MaxSizeAllowed")),
    e.EntityTooLarge: S3Error("EntityTooLarge", 400, _SIZE),
    e.MessageTooLarge: S3Error("EntityTooLarge", 400, ("Size", "MaxSizeAllowed")),
    e.EntityTooSmall: S3Error("EntityTooSmall", 400, _SIZE),
    e.InvalidPart: S3Error("InvalidPart", 400, ("UploadId", "PartNumber", "ETag")),
    e.InvalidPartOrder: S3Error("InvalidPartOrder", 400, ("UploadId",)),
    e.InvalidPartNumber: S3Error("InvalidPartNumber", 416, ("PartNumberRequested", "ActualPartCount")),
    e.InvalidRange: S3Error("InvalidRange", 416, ("RangeRequested", "ActualObjectSize")),
    e.BadDigest: S3Error("BadDigest", 400, ("ExpectedDigest", "CalculatedDigest")),
    e.InvalidDigest: S3Error("InvalidDigest", 400),
    e.ContentSHA256Mismatch: S3Error(
        "XAmzContentSHA256Mismatch", 400, ("ClientComputedContentSHA256", "S3ComputedContentSHA256")
    ),
    e.IncompleteBody: S3Error("IncompleteBody", 400),
    e.MissingContentLength: S3Error("MissingContentLength", 411),
    e.RequestTimeout: S3Error("RequestTimeout", 400),
    e.MalformedXML: S3Error("MalformedXML", 400),
    e.AuthorizationHeaderMalformed: S3Error("AuthorizationHeaderMalformed", 400, ("Region",)),
    e.AuthorizationQueryError: S3Error("AuthorizationQueryParametersError", 400, ("Region",)),
    e.IllegalLocationConstraint: S3Error("IllegalLocationConstraintException", 400),
    e.InvalidLocationConstraint: S3Error("InvalidLocationConstraint", 400, ("LocationConstraint",)),
    e.PermanentRedirect: S3Error("PermanentRedirect", 301, ("Bucket", "Endpoint", "Region")),
    e.MethodNotAllowed: S3Error("MethodNotAllowed", 405, ("Method", "ResourceType")),
    e.NotSupported: S3Error("NotImplemented", 501, ("Header",)),
    e.TooManyBuckets: S3Error("TooManyBuckets", 400),
    e.InvalidSetting: S3Error("InvalidRequest", 400),
    # Unavailable: 503 is what every SDK retries; a full disk does not mend itself by retrying, hence 507
    e.Unavailable: S3Error("ServiceUnavailable", 503),
    e.SlowDown: S3Error("SlowDown", 503),
    e.StorageFull: S3Error("InternalError", 507),
    e.DriveFailed: S3Error("SlowDown", 503),
    e.DriveStalled: S3Error("SlowDown", 503),
    e.WriteQuorumLost: S3Error("SlowDown", 503),
    e.ReadQuorumLost: S3Error("SlowDown", 503),
    e.DatabaseUnavailable: S3Error("ServiceUnavailable", 503),
    e.OutcomeUnknown: S3Error("ServiceUnavailable", 503),
    e.WriterFenced: S3Error("ServiceUnavailable", 503),
    e.ShuttingDown: S3Error("ServiceUnavailable", 503),
    e.InRecovery: S3Error("ServiceUnavailable", 503),
    # Corrupt
    e.Corrupt: S3Error("InternalError", 500),
    e.DataLost: S3Error("InternalError", 500),
    e.BadRecord: S3Error("InternalError", 500),
    e.KernelFault: S3Error("InternalError", 500),
}

INTERNAL_MESSAGE = "We encountered an internal error. Please try again."


def classify(error: BaseException) -> S3Error:
    """The S3 face of an error: the entry of its class or of the nearest ancestor; anything that is not ours is InternalError."""
    for cls in type(error).__mro__:
        found = TABLE.get(cls)
        if found is not None:
            return found
    return TABLE[e.AnvilError]


def error_xml(error: BaseException, face: S3Error, *, resource: str, request_id: str, host_id: str) -> bytes:
    """The error document. Only an AnvilError's own message and listed fields are shown."""
    doc = Xml()
    write_error(doc, error, face, resource=resource, request_id=request_id, host_id=host_id)
    return doc.bytes()


def write_error(doc: Xml, error: BaseException, face: S3Error, *, resource: str, request_id: str, host_id: str) -> None:
    ours = isinstance(error, e.AnvilError)
    doc.open("Error", namespace=False)
    doc.text("Code", face.code)
    doc.text("Message", error.message if isinstance(error, e.AnvilError) else INTERNAL_MESSAGE)
    if ours:
        fields = error.fields if isinstance(error, e.AnvilError) else {}
        for name in face.fields:
            value = fields.get(name)
            if value is not None:
                doc.text(name, str(value))
    doc.text("Resource", resource)
    doc.text("RequestId", request_id)
    doc.text("HostId", host_id)
    doc.close("Error")


def redirect_endpoint(url: str, bucket: str, *, virtual: bool) -> str:
    """A region's endpoint as S3 tells it and clients take it (s3cmd): host and port, behind the bucket for who addressed it by its host."""
    host = urlsplit(url).netloc
    return f"{bucket}.{host}" if virtual and not is_address(urlsplit(url).hostname or "") else host


def error_headers(error: BaseException, face: S3Error) -> list[tuple[bytes, bytes]]:
    """Headers that belong to an error beside its document (RFC 9110 15.5.6 Allow, 15.5.17 Content-Range; S3's bucket region)."""
    headers: list[tuple[bytes, bytes]] = []
    fields = error.fields if isinstance(error, e.AnvilError) else {}
    if face.status == 416 and "ActualObjectSize" in fields:
        headers.append((b"content-range", b"bytes */%d" % int(str(fields["ActualObjectSize"]))))
    elif face.status == 405 and "Allow" in fields:
        headers.append((b"allow", str(fields["Allow"]).encode("ascii")))
    elif face.status == 503:
        headers.append((b"retry-after", b"1"))
    region = fields.get("Region")
    if region is not None:
        headers.append((b"x-amz-bucket-region", str(region).encode("ascii")))
    return headers
