"""gRPC statuses: every error class has its code, S3's code goes with it, and no status is too large for a client's trailers."""

from __future__ import annotations

import base64
from urllib.parse import quote

import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status as RpcStatus
from grpc import StatusCode

from anvil.api.grpc.errors import CODES, code_of, status_of
from anvil.api.s3.errors import INTERNAL_MESSAGE, TABLE
from anvil.base import errors
from anvil.base.errors import AnvilError
from tests.unit.api.test_errors import OURS


def details(serialized: bytes) -> tuple[RpcStatus, dict[str, Message]]:
    status = RpcStatus.FromString(serialized)
    found: dict[str, Message] = {}
    for packed in status.details:
        kind = next(kind for kind in (ErrorInfo, RequestInfo, RetryInfo) if packed.Is(kind.DESCRIPTOR))
        message = kind()
        assert packed.Unpack(message)
        found[kind.__name__] = message
    return status, found


# What each remedy may be told as. Classes that leave their remedy's own code are listed with the expected one below.
REMEDIES = {
    errors.NotFound: StatusCode.NOT_FOUND,
    errors.Conflict: StatusCode.ABORTED,
    errors.Denied: StatusCode.PERMISSION_DENIED,
    errors.Invalid: StatusCode.INVALID_ARGUMENT,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.Corrupt: StatusCode.DATA_LOSS,
}
SPECIAL = {
    errors.AnvilError: StatusCode.INTERNAL,
    errors.BucketAlreadyExists: StatusCode.ALREADY_EXISTS,
    errors.BucketAlreadyOwnedByYou: StatusCode.ALREADY_EXISTS,
    errors.NameTaken: StatusCode.ALREADY_EXISTS,
    errors.BucketNotEmpty: StatusCode.FAILED_PRECONDITION,
    errors.PreconditionFailed: StatusCode.FAILED_PRECONDITION,
    errors.NotModified: StatusCode.FAILED_PRECONDITION,
    errors.InvalidAccessKey: StatusCode.UNAUTHENTICATED,
    errors.InvalidToken: StatusCode.UNAUTHENTICATED,
    errors.ExpiredToken: StatusCode.UNAUTHENTICATED,
    errors.SignatureMismatch: StatusCode.UNAUTHENTICATED,
    errors.RequestTimeSkewed: StatusCode.UNAUTHENTICATED,
    errors.RequestExpired: StatusCode.UNAUTHENTICATED,
    errors.AuthorizationHeaderMalformed: StatusCode.UNAUTHENTICATED,
    errors.AuthorizationQueryError: StatusCode.UNAUTHENTICATED,
    errors.MessageTooLarge: StatusCode.RESOURCE_EXHAUSTED,
    errors.InvalidRange: StatusCode.OUT_OF_RANGE,
    errors.InvalidPartNumber: StatusCode.OUT_OF_RANGE,
    errors.RequestTimeout: StatusCode.DEADLINE_EXCEEDED,
    errors.PermanentRedirect: StatusCode.FAILED_PRECONDITION,
    errors.MethodNotAllowed: StatusCode.UNIMPLEMENTED,
    errors.NotSupported: StatusCode.UNIMPLEMENTED,
    errors.TooManyBuckets: StatusCode.RESOURCE_EXHAUSTED,
    errors.LimitExceeded: StatusCode.RESOURCE_EXHAUSTED,
    errors.StorageFull: StatusCode.RESOURCE_EXHAUSTED,
    errors.OutcomeUnknown: StatusCode.UNKNOWN,
    errors.KernelFault: StatusCode.INTERNAL,
}


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_every_error_has_a_status(cls: type[AnvilError]) -> None:
    expected = SPECIAL.get(cls) or next(code for remedy, code in REMEDIES.items() if issubclass(cls, remedy))
    status = status_of(cls(), "req-1")
    assert status.code is expected
    rpc, found = details(status.details_bin)
    info = found["ErrorInfo"]
    assert isinstance(info, ErrorInfo)
    assert (rpc.code, rpc.message, status.message) == (expected.value[0], cls.default, cls.default)
    assert (info.reason, info.domain, dict(info.metadata)) == (TABLE[cls].code, "anvil", {})
    request = found["RequestInfo"]
    assert isinstance(request, RequestInfo)
    assert request.request_id == "req-1"
    assert ("RetryInfo" in found) == (expected is StatusCode.UNAVAILABLE)


def test_no_entry_without_a_class_of_ours() -> None:
    assert set(CODES) <= set(OURS)


def test_what_is_retried_unseen_is_only_what_did_not_happen() -> None:
    """Clients repeat UNAVAILABLE by themselves; a commit of unknown outcome must not be."""
    assert code_of(errors.OutcomeUnknown()) is not StatusCode.UNAVAILABLE
    retry = details(status_of(errors.SlowDown(), "r").details_bin)[1]["RetryInfo"]
    assert isinstance(retry, RetryInfo)
    assert retry.retry_delay.ToSeconds() == 1


def test_unknown_subclasses_look_like_their_parents() -> None:
    class Odd(errors.BucketNotEmpty):
        pass

    assert code_of(Odd()) is StatusCode.FAILED_PRECONDITION


def test_foreign_errors_tell_nothing() -> None:
    status = status_of(RuntimeError("secret path /var/lib/anvil"), "req-2")
    assert (status.code, status.message) == (StatusCode.INTERNAL, INTERNAL_MESSAGE)
    assert b"secret" not in status.details_bin
    info = details(status.details_bin)[1]["ErrorInfo"]
    assert isinstance(info, ErrorInfo)
    assert info.reason == "InternalError"


def test_only_what_s3_shows_is_shown() -> None:
    status = status_of(errors.NoSuchKey(Key="a/ü", drive="/mnt/drive3"), "r")
    info = details(status.details_bin)[1]["ErrorInfo"]
    assert isinstance(info, ErrorInfo)
    assert dict(info.metadata) == {"Key": "a/ü"}


def encoded(status: tuple[StatusCode, str, bytes]) -> int:
    """Bytes of the trailers that carry it, as HPACK counts them: name, value, 32 for each."""
    trailers = {
        "grpc-status": str(status[0].value[0]),
        "grpc-message": quote(status[1], safe=""),
        "grpc-status-details-bin": base64.b64encode(status[2]).decode(),
    }
    return sum(len(name) + len(value) + 32 for name, value in trailers.items())


@pytest.mark.parametrize("text", ["x", "ü", "\U0001f600", "%", "\ud800"])
def test_no_status_outgrows_a_clients_trailers(text: str) -> None:
    """8 KiB is what grpc clients accept of headers unless told otherwise (GRPC_ARG_MAX_METADATA_SIZE)."""
    long = text * 100_000
    error = errors.SignatureMismatch(long, AWSAccessKeyId=long, StringToSign=long, SignatureProvided=long, CanonicalRequest=long)
    status = status_of(error, "0123456789ABCDEF" * 2)
    assert encoded(status) < 7 * 1024
    info = details(status.details_bin)[1]["ErrorInfo"]
    assert isinstance(info, ErrorInfo)
    assert all(len(value.encode()) <= 1024 for value in info.metadata.values())


def test_a_long_field_does_not_push_out_the_short_ones_after_it() -> None:
    error = errors.SignatureMismatch(
        AWSAccessKeyId="AK", StringToSign="s" * 5000, SignatureProvided="f00", CanonicalRequest="c" * 9000
    )
    info = details(status_of(error, "r").details_bin)[1]["ErrorInfo"]
    assert isinstance(info, ErrorInfo)
    assert dict(info.metadata) == {"AWSAccessKeyId": "AK", "StringToSign": "s" * 1024, "SignatureProvided": "f00"}
