"""Domain errors, classed by what the caller can do about them.

Owns: every error that crosses a package boundary. Invariant: an error says what happened in a field or a message that
is safe to show to a client; it never carries a secret, a path of the machine or a stack. Not here: how an error looks on
the wire (`api/s3/errors.py` holds the one table for S3; a test walks all subclasses of `AnvilError`).

Remedies:
    NotFound     name something that exists
    Conflict     look at the present state, then decide again
    Denied       use other credentials or ask for rights
    Invalid      mend the request
    Unavailable  wait and repeat the same request
    Corrupt      nothing the caller can do; an operator must look
"""

from __future__ import annotations

from typing import Self


class AnvilError(Exception):
    """Base of all domain errors. `message` is safe to show to a client; `fields` are extra facts for the reply."""

    default = "The request could not be served."

    def __init__(self, message: str | None = None, **fields: object) -> None:
        self.message = message or self.default
        self.fields = fields
        super().__init__(self.message)

    def again(self) -> Self:
        """The same error, to be raised. An exception that was raised holds the frames it went through, and what these hold: kept by one of
        them it is a cycle, and stripe buffers in it are gone until the garbage collector happens by."""
        return type(self)(self.message, **self.fields)


class NotFound(AnvilError):
    default = "The named thing does not exist."


class Conflict(AnvilError):
    default = "The present state does not allow this."


class Denied(AnvilError):
    default = "Access Denied."


class Invalid(AnvilError):
    default = "The request is not valid."


class Unavailable(AnvilError):
    default = "Please reduce your request rate or try again."


class Corrupt(AnvilError):
    default = "Stored data could not be read back."


# -- NotFound ---------------------------------------------------------------------------------------------------------


class NoSuchBucket(NotFound):
    default = "The specified bucket does not exist."


class NoSuchKey(NotFound):
    default = "The specified key does not exist."


class NoSuchVersion(NotFound):
    default = "The specified version does not exist."


class NoSuchUpload(NotFound):
    default = (
        "The specified upload does not exist. The upload ID may be invalid, or the upload may have been aborted or completed."
    )


class NoSuchPart(NotFound):
    default = "The specified part does not exist."


class UnknownName(NotFound):
    """An administrator named a tenant, app, region or policy that is not there."""


# -- Conflict ---------------------------------------------------------------------------------------------------------


class BucketAlreadyExists(Conflict):
    default = "The requested bucket name is not available. Select a different name and try again."


class BucketAlreadyOwnedByYou(Conflict):
    default = "Your previous request to create the named bucket succeeded and you already own it."


class BucketNotEmpty(Conflict):
    default = "The bucket you tried to delete is not empty."


class PreconditionFailed(Conflict):
    """A condition on a read or a write did not hold; `fields["condition"]` names the header."""

    default = "At least one of the pre-conditions you specified did not hold."


class NotModified(PreconditionFailed):
    """A read was asked for only if there were something new. `fields`: ETag."""

    default = "The object has not changed: it is what your conditions say you have."


class ConditionalRequestConflict(Conflict):
    default = "A conflicting operation occurred during this request. Try again."


class OperationAborted(Conflict):
    default = "A conflicting conditional operation is currently in progress against this resource. Try again."


class NameTaken(Conflict):
    """An administrator created something under a name already in use."""


class LimitExceeded(Conflict):
    """There is as much of it as there may be: rights of an app, grants of a bucket."""

    default = "The request would exceed a limit of this server."


# -- Denied -----------------------------------------------------------------------------------------------------------


class AccessDenied(Denied):
    default = "Access Denied."


class InvalidAccessKey(Denied):
    default = "The access key ID you provided does not exist in our records."


class InvalidToken(Denied):
    """An access token that this server did not issue, or that was made void (secret reset, app deleted); over S3 temporary credentials
    (x-amz-security-token), of which Anvil issues none, so none can be valid. S3 answers 400."""

    default = "The provided token is malformed or otherwise invalid."


class ExpiredToken(Denied):
    """An access token of this server, past its time: get another."""

    default = "The provided token has expired."


class SignatureMismatch(Denied):
    """`fields`: AWSAccessKeyId, SignatureProvided, StringToSign, CanonicalRequest, so that a client's author can compare."""

    default = "The request signature we calculated does not match the signature you provided. Check your key and signing method."


class RequestTimeSkewed(Denied):
    """`fields`: RequestTime, ServerTime, MaxAllowedSkewMilliseconds."""

    default = "The difference between the request time and the server's time is too large."


class RequestExpired(Denied):
    default = "Request has expired."


# -- Invalid ----------------------------------------------------------------------------------------------------------


class InvalidArgument(Invalid):
    """`fields`: ArgumentName, ArgumentValue where known."""


class InvalidRequest(Invalid):
    pass


class InvalidURI(Invalid):
    """The request target cannot be decoded: bad percent escapes, not UTF-8, or U+0000."""

    default = "Couldn't parse the specified URI."


class InvalidStorageClass(Invalid):
    default = "The storage class you specified is not valid: Anvil has STANDARD only."


class MissingRequestBody(Invalid):
    default = "Request body is empty."


class InvalidBucketName(Invalid):
    default = "The specified bucket is not valid."


class KeyTooLong(Invalid):
    default = "Your key is too long."


class MetadataTooLarge(Invalid):
    default = "Your metadata headers exceed the maximum allowed metadata size."


class EntityTooLarge(Invalid):
    default = "Your proposed upload exceeds the maximum allowed object size."


class MessageTooLarge(Invalid):
    """One message of a gRPC call. `fields`: Size, MaxSizeAllowed."""

    default = "A message of the call is larger than the server takes: send the bytes in smaller chunks."


class EntityTooSmall(Invalid):
    default = "Your proposed upload is smaller than the minimum allowed object size."


class InvalidPart(Invalid):
    default = (
        "One or more of the specified parts could not be found. The part might not have been uploaded, or the specified "
        "entity tag might not have matched the part's entity tag."
    )


class InvalidPartOrder(Invalid):
    default = "The list of parts was not in ascending order. Parts must be ordered by part number."


class InvalidPartNumber(Invalid):
    default = "The requested partnumber is not satisfiable."


class InvalidRange(Invalid):
    """`fields`: ActualObjectSize, RangeRequested."""

    default = "The requested range is not satisfiable."


class BadDigest(Invalid):
    default = "The Content-MD5 or checksum you specified did not match what we received."


class InvalidDigest(Invalid):
    default = "The Content-MD5 or checksum value that you specified is not valid."


class ContentSHA256Mismatch(Invalid):
    default = "The provided 'x-amz-content-sha256' header does not match what was computed."


class IncompleteBody(Invalid):
    default = "You did not provide the number of bytes specified by the Content-Length HTTP header."


class MissingContentLength(Invalid):
    default = "You must provide the Content-Length HTTP header."


class RequestTimeout(Invalid):
    default = "Your socket connection to the server was not read from or written to within the timeout period."


class MalformedXML(Invalid):
    default = "The XML you provided was not well-formed or did not validate against our published schema."


class AuthorizationHeaderMalformed(Invalid):
    """`fields`: Region, the one that should have been used, where that is what was wrong."""

    default = "The authorization header that you provided is not valid."


class AuthorizationQueryError(Invalid):
    """S3's AuthorizationQueryParametersError. `fields`: Region, as above."""

    default = "Error parsing the X-Amz-* query parameters."


class IllegalLocationConstraint(Invalid):
    default = "The specified location constraint is not valid for this region."


class InvalidLocationConstraint(Invalid):
    """No region has that name."""

    default = "The specified location constraint is not valid."


class PermanentRedirect(Invalid):
    """The bucket lives in another region; `fields`: Region, Bucket, Endpoint (a URL, where the region has told one)."""

    default = "The bucket you are attempting to access must be addressed using the specified endpoint."


class MethodNotAllowed(Invalid):
    default = "The specified method is not allowed against this resource."


class NotSupported(Invalid):
    """A real S3 feature that Anvil does not have: always said aloud, never silently accepted."""

    default = "A header or operation you provided implies functionality that is not implemented."


class TooManyBuckets(Invalid):
    default = "You have attempted to create more buckets than allowed."


class InvalidSetting(Invalid):
    """A configuration or command-line value is wrong; the message is one line: what is wrong and how to mend it."""


# -- Unavailable ------------------------------------------------------------------------------------------------------


class SlowDown(Unavailable):
    default = "Please reduce your request rate."


class StorageFull(Unavailable):
    default = "The node's drives have no room for this object. Free space or add a drive, then try again."


class DriveFailed(Unavailable):
    """A drive could not be read or written; `fields["drive"]` is its label. Seen by the engine, rarely by a client."""

    default = "A drive failed. Try again."


class DriveStalled(DriveFailed):
    """A drive did not answer in time. Nothing is known to be wrong with what it holds, and a native job may still be using the buffers
    that were given to it: they stay alive with the job, and must not be used for anything else."""

    default = "A drive does not answer. Try again."


class WriteQuorumLost(Unavailable):
    default = "Too few drives are working to store this object safely. Try again."


class ReadQuorumLost(Unavailable):
    """Fewer than k shards answered, but the missing ones may come back (a drive is away)."""

    default = "Too few drives are reachable to read this object now. Try again."


class DatabaseUnavailable(Unavailable):
    default = "The metadata database is not reachable now. Try again."


class OutcomeUnknown(Unavailable):
    """A commit was sent and its result could not be learned: the write may or may not have happened."""

    default = "The outcome of the write is not known. Read the object back before you repeat the request."


class WriterFenced(Unavailable):
    """This worker's writer session is gone: nothing it holds may be committed any more."""

    default = "This server lost its lease and must not write. Try again."


class ShuttingDown(Unavailable):
    default = "The server is shutting down. Try again."


class InRecovery(Unavailable):
    """The region's metadata is being recovered: what there is may be incomplete, so nothing is said about any object."""

    default = "This region is in recovery and serves no object."


# -- Corrupt ----------------------------------------------------------------------------------------------------------


class DataLost(Corrupt):
    """Fewer than k good shards exist."""

    default = "Stored data is damaged beyond repair."


class KernelFault(Corrupt):
    """A native kernel gave a wrong answer in the self-test: this process must not store anything."""

    default = "A native kernel gave a wrong answer in the self-test."


class BadRecord(Corrupt):
    """A record on disk is not what its place says it should be."""

    default = "A stored record is damaged."
