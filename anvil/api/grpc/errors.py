"""From domain errors to gRPC statuses: the one table of status codes, and the details that carry S3's code and fields.

Owns: which `grpc.StatusCode` each `AnvilError` gets. Invariants: every subclass of `AnvilError` is found in CODES by itself or by the
nearest ancestor; nothing but `AnvilError.message` and the fields that S3 shows reaches a client; a status fits into the 8 KiB of
trailers that clients accept, whatever the error says. Not here: S3's codes and which fields are shown (`api/s3/errors.py`, the one
place for both), the percent-encoding of `grpc-message` and the base64 of `grpc-status-details-bin` (the host). Sources:
google/rpc/code.proto (what a code tells the client to do), google/rpc/error_details.proto.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from grpc import StatusCode

from anvil.api.s3.errors import INTERNAL_MESSAGE, classify
from anvil.base import errors as e
from anvil.base.limits import (
    GRPC_ERROR_FIELD_BYTES_MAX,
    GRPC_ERROR_FIELDS_BYTES_MAX,
    GRPC_ERROR_MESSAGE_BYTES_MAX,
    GRPC_RETRY_DELAY_S,
)

DOMAIN: Final = "anvil"

CODES: dict[type[e.AnvilError], StatusCode] = {
    e.AnvilError: StatusCode.INTERNAL,
    e.NotFound: StatusCode.NOT_FOUND,
    # Conflict: FAILED_PRECONDITION where repeating the call is of no use before something else was done, ABORTED where it lost a race
    # and may be repeated from its first step
    e.Conflict: StatusCode.ABORTED,
    e.BucketAlreadyExists: StatusCode.ALREADY_EXISTS,
    e.BucketAlreadyOwnedByYou: StatusCode.ALREADY_EXISTS,
    e.NameTaken: StatusCode.ALREADY_EXISTS,
    e.BucketNotEmpty: StatusCode.FAILED_PRECONDITION,
    e.LimitExceeded: StatusCode.RESOURCE_EXHAUSTED,
    e.PreconditionFailed: StatusCode.FAILED_PRECONDITION,
    # Denied: UNAUTHENTICATED says "other credentials", PERMISSION_DENIED "ask for the right"
    e.Denied: StatusCode.PERMISSION_DENIED,
    e.InvalidAccessKey: StatusCode.UNAUTHENTICATED,
    e.InvalidToken: StatusCode.UNAUTHENTICATED,
    e.ExpiredToken: StatusCode.UNAUTHENTICATED,
    e.SignatureMismatch: StatusCode.UNAUTHENTICATED,
    e.RequestTimeSkewed: StatusCode.UNAUTHENTICATED,
    e.RequestExpired: StatusCode.UNAUTHENTICATED,
    # Invalid
    e.Invalid: StatusCode.INVALID_ARGUMENT,
    e.AuthorizationHeaderMalformed: StatusCode.UNAUTHENTICATED,
    e.AuthorizationQueryError: StatusCode.UNAUTHENTICATED,
    e.MessageTooLarge: StatusCode.RESOURCE_EXHAUSTED,  # as every gRPC server says it
    e.InvalidRange: StatusCode.OUT_OF_RANGE,
    e.InvalidPartNumber: StatusCode.OUT_OF_RANGE,
    e.RequestTimeout: StatusCode.DEADLINE_EXCEEDED,
    e.PermanentRedirect: StatusCode.FAILED_PRECONDITION,
    e.MethodNotAllowed: StatusCode.UNIMPLEMENTED,
    e.NotSupported: StatusCode.UNIMPLEMENTED,
    e.TooManyBuckets: StatusCode.RESOURCE_EXHAUSTED,
    # Unavailable: repeating the same call mends it, and many clients do so by themselves. A full disk does not mend itself, and a write
    # that may have happened must not be repeated unseen
    e.Unavailable: StatusCode.UNAVAILABLE,
    e.StorageFull: StatusCode.RESOURCE_EXHAUSTED,
    e.OutcomeUnknown: StatusCode.UNKNOWN,
    # Corrupt
    e.Corrupt: StatusCode.DATA_LOSS,
    e.KernelFault: StatusCode.INTERNAL,
}


class Status(NamedTuple):
    """`message` is plain text; `details_bin` is the serialized google.rpc.Status for `grpc-status-details-bin`."""

    code: grpc.StatusCode
    message: str
    details_bin: bytes


def code_of(error: BaseException) -> StatusCode:
    """The code of its class or of the nearest ancestor; INTERNAL for what is not ours."""
    for cls in type(error).__mro__:
        found = CODES.get(cls)
        if found is not None:
            return found
    return StatusCode.INTERNAL


def status_of(error: BaseException, request_id: str) -> Status:
    """The status of a failed call: ErrorInfo (S3's code and fields), RequestInfo, and RetryInfo where repeating the call helps. Of
    what is not an AnvilError nothing is told but that it happened."""
    ours = error if isinstance(error, e.AnvilError) else None
    code = code_of(error)
    face = classify(error)
    message = _cut(ours.message if ours else INTERNAL_MESSAGE, GRPC_ERROR_MESSAGE_BYTES_MAX)
    info = ErrorInfo(reason=face.code, domain=DOMAIN)
    room = GRPC_ERROR_FIELDS_BYTES_MAX
    for name in face.fields:
        value = ours.fields.get(name) if ours else None
        if value is None:
            continue
        text = _cut(str(value), GRPC_ERROR_FIELD_BYTES_MAX)
        size = len(name) + len(text.encode())
        if size <= room:
            info.metadata[name] = text
            room -= size
    status = RpcStatus(code=code.value[0], message=message)
    status.details.add().Pack(info)
    status.details.add().Pack(RequestInfo(request_id=request_id))
    if code is StatusCode.UNAVAILABLE:
        status.details.add().Pack(RetryInfo(retry_delay=Duration(seconds=GRPC_RETRY_DELAY_S)))
    return Status(code, message, status.SerializeToString(deterministic=True))


def _cut(text: str, bytes_max: int) -> str:
    """Its longest beginning of so many bytes of UTF-8; what is not UTF-8 becomes a question mark."""
    return text.encode("utf-8", "replace")[:bytes_max].decode("utf-8", "ignore")
