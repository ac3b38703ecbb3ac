"""What can go wrong with a call, as exceptions: classed by remedy like all of Anvil's errors (`base/errors.py`), with S3's error code.

Owns: the one table from S3's codes to classes, and the sentence that people read. Invariant: no message holds a secret or a token.
Not here: retries (`calls.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from anvil.base import errors as base
from anvil.client.types import Ask

__all__ = [
    "BadCredentials",
    "BadDigest",
    "BucketAlreadyExists",
    "BucketAlreadyOwnedByYou",
    "BucketNotEmpty",
    "ClientError",
    "Conflict",
    "DataLost",
    "DeadlineExceeded",
    "Denied",
    "Exhausted",
    "Invalid",
    "InvalidRange",
    "NoSuchBucket",
    "NoSuchKey",
    "NoSuchUpload",
    "NotAnvil",
    "NotFound",
    "NotModified",
    "OutcomeUnknown",
    "PermissionMissing",
    "PreconditionFailed",
    "ServerUnavailable",
    "SourceChanged",
    "TokenRejected",
    "TransferDamaged",
    "Unreachable",
]

DETAILS = "grpc-status-details-bin"
REQUEST_ID = "x-amz-request-id"
BAD_CREDENTIALS = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch"})


class ClientError(base.AnvilError):
    """Base of all. `code`: S3's error code, or the client's own word where no server said one. `status`: the gRPC status code's name,
    empty where no call was made. `resource`: what the call was about (`bucket/key`), as rights name it. `metadata`: the fields of S3's
    error document. `request_id`: what the server's log calls the call."""

    resource = ""

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str = "",
        status: str = "",
        metadata: Mapping[str, str] | None = None,
        request_id: str = "",
    ) -> None:
        super().__init__(message)
        self.code = code or type(self).__name__
        self.status = status
        self.metadata = dict(metadata or {})
        self.request_id = request_id


class NotFound(ClientError, base.NotFound):
    """Name something that exists."""


class NoSuchBucket(NotFound):
    """There is no such bucket, or it is another tenant's."""


class NoSuchKey(NotFound):
    """There is no such object."""


class NoSuchUpload(NotFound):
    """The multipart upload was completed, aborted, or never begun."""


class Conflict(ClientError, base.Conflict):
    """Look at the present state, then decide again."""


class BucketAlreadyExists(Conflict):
    """The name is another tenant's."""


class BucketAlreadyOwnedByYou(Conflict):
    """The bucket is there already."""


class BucketNotEmpty(Conflict):
    """The bucket still holds objects or uploads."""


class PreconditionFailed(Conflict):
    """A condition (`if_match` and the like) did not hold."""


class NotModified(Conflict):
    """The object is what `if_none_match` or `if_modified_since` names: nothing was sent."""


class Denied(ClientError, base.Denied):
    """Use other credentials or ask for rights."""


class PermissionMissing(Denied):
    """The app lacks a right: `action` on `resource`."""

    action = ""


class BadCredentials(Denied):
    """There is no such app, or its secret is another."""


class TokenRejected(Denied):
    """The token expired or is not valid (any more). The client has then asked for another one, which was rejected, too."""


class Invalid(ClientError, base.Invalid):
    """Mend the request."""


class InvalidRange(Invalid):
    """The object has none of the bytes that were asked for."""


class BadDigest(Invalid):
    """What the server received is not what was sent: the server's checksum differs from the client's. Nothing was stored."""


class NotAnvil(Invalid):
    """Something answers at this address that does not have Anvil's services."""


class SourceChanged(Invalid):
    """What was to be uploaded is shorter or longer than it said."""


class Unavailable(ClientError, base.Unavailable):
    """Wait and repeat the call."""


class ServerUnavailable(Unavailable):
    """The server answered that it cannot serve this now."""


class Unreachable(Unavailable):
    """No server answered."""


class DeadlineExceeded(ClientError, base.Unavailable):
    """The answer took too long: the whole time of the call has been spent, so it is not repeated by itself."""


class Exhausted(ClientError, base.Unavailable):
    """The server has no room, or a limit is reached: repeating the call does not help by itself."""


class OutcomeUnknown(ClientError, base.Unavailable):
    """The write may or may not have happened: read the object back before you repeat it."""


class DataLost(ClientError, base.Corrupt):
    """The server cannot read back what it stored."""


class TransferDamaged(ClientError, base.Corrupt):
    """What arrived is not what was stored: the client's checksum differs from the server's."""


CLASSES: dict[str, type[ClientError]] = {
    "NoSuchBucket": NoSuchBucket,
    "NoSuchKey": NoSuchKey,
    "NoSuchVersion": NoSuchKey,
    "NoSuchUpload": NoSuchUpload,
    "BucketAlreadyExists": BucketAlreadyExists,
    "BucketAlreadyOwnedByYou": BucketAlreadyOwnedByYou,
    "BucketNotEmpty": BucketNotEmpty,
    "PreconditionFailed": PreconditionFailed,
    "NotModified": NotModified,
    "InvalidRange": InvalidRange,
    "BadDigest": BadDigest,
    "AccessDenied": PermissionMissing,
    "ExpiredToken": TokenRejected,
    "InvalidToken": TokenRejected,
    "LimitExceeded": Conflict,
    "TooManyBuckets": Invalid,
    "NotImplemented": Invalid,
    "MethodNotAllowed": Invalid,
    **dict.fromkeys(BAD_CREDENTIALS, BadCredentials),
}
STATUSES: dict[grpc.StatusCode, type[ClientError]] = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
    grpc.StatusCode.FAILED_PRECONDITION: Conflict,
    grpc.StatusCode.PERMISSION_DENIED: PermissionMissing,
    grpc.StatusCode.UNAUTHENTICATED: TokenRejected,
    grpc.StatusCode.INVALID_ARGUMENT: Invalid,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRange,
    grpc.StatusCode.UNIMPLEMENTED: NotAnvil,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Exhausted,
    grpc.StatusCode.UNKNOWN: OutcomeUnknown,
    grpc.StatusCode.DATA_LOSS: DataLost,
    grpc.StatusCode.UNAVAILABLE: ServerUnavailable,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
}


def from_status(error: grpc.aio.AioRpcError, ask: Ask, host: str, client_id: str) -> ClientError:
    """The exception for a failed call: by S3's code where the server sent one, else by the status."""
    status = error.code()
    info, request_id = _details(error)
    said = error.details() or ""
    metadata = dict(info.metadata) if info is not None else {}
    action, resource = metadata.get("RequiredAction", ask.action), metadata.get("RequiredResource", ask.resource)
    code = info.reason if info is not None else ""
    cls = CLASSES.get(code) or STATUSES.get(status, ClientError)
    if info is None and status is grpc.StatusCode.UNAVAILABLE:
        cls, said = Unreachable, f"cannot reach {host}: {_cause(said)}"
    elif status is grpc.StatusCode.DEADLINE_EXCEEDED and info is None:
        said = f"{host} took too long to answer ({ask.action} on {ask.resource})"
    elif info is None and status is grpc.StatusCode.UNIMPLEMENTED:
        said = (
            f"{host} answers, but has no such gRPC service: {said or 'is it an Anvil server, and gRPC passed on by its proxy?'}"
        )
    elif code == "PermanentRedirect":
        to = metadata.get("Endpoint")
        said = f"the bucket {metadata.get('Bucket')} is in the region {metadata.get('Region')}" + (f": ask {to}" if to else "")
    elif cls is PermissionMissing:
        said = f"not allowed: {action} on {resource} (app {client_id})"
    elif cls is TokenRejected:
        said = f"the access token is not accepted by {host}: {said}"
    elif cls is BadCredentials:
        said = f"{host} does not accept the credentials of app {client_id}: {said}"
    failure = cls(said or status.name, code=code, status=status.name, metadata=metadata, request_id=request_id)
    failure.resource = resource
    if isinstance(failure, PermissionMissing):
        failure.action = action
    return failure


def _details(error: grpc.aio.AioRpcError) -> tuple[error_details_pb2.ErrorInfo | None, str]:
    """The ErrorInfo of the rich status, and the id of the request, each where there is one."""
    info = None
    request_id = ""
    for metadata in (error.initial_metadata(), error.trailing_metadata()):
        pairs: Any = metadata or ()  # the stubs say otherwise
        for name, value in pairs:
            if name == REQUEST_ID:
                request_id = str(value)
            elif name == DETAILS:
                info, request_id = _unpack(value if isinstance(value, bytes) else value.encode(), request_id)
    if info is not None:
        request_id = info.metadata.get("RequestId", "") or request_id
    return info, request_id


def _unpack(value: bytes, request_id: str) -> tuple[error_details_pb2.ErrorInfo | None, str]:
    found = None
    try:
        for packed in status_pb2.Status.FromString(value).details:
            info, request = error_details_pb2.ErrorInfo(), error_details_pb2.RequestInfo()
            if packed.Unpack(info):
                found = info
            elif packed.Unpack(request):
                request_id = request.request_id
    except DecodeError:
        return None, request_id  # not a server's of ours: the status itself still says what happened
    return found, request_id


def _cause(details: str) -> str:
    """gRPC's words for why there is no connection, without its internal ones."""
    cause = details.rpartition("last error: ")[2] or "no answer"
    cause = cause.removeprefix("UNKNOWN: ").removeprefix("UNAVAILABLE: ")
    if "Connection refused" in cause:
        return "connection refused"
    return cause if len(cause) <= 200 else cause[:200] + "..."
