"""What a request says about who sends it: the credentials in its head, parsed and bounded, not yet believed.

Owns: the Authorization header, the X-Amz-* query parameters, request times, `x-amz-content-sha256`. Invariant: what comes out
is well formed, given once, and says which of the two places it came from. Not here: whether any of it is true
(`authenticate.py`). Messages are S3's own, which clients match on. Source: Amazon S3 API Reference, "Authenticating Requests
(AWS Signature Version 4)".
"""

from __future__ import annotations

import binascii
import re
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import msgspec

from anvil.auth.sigv4 import signed_headers_valid
from anvil.auth.types import Payload
from anvil.base.errors import (
    AccessDenied,
    AuthorizationHeaderMalformed,
    AuthorizationQueryError,
    InvalidArgument,
    InvalidRequest,
    NotSupported,
)
from anvil.base.limits import AMZ_TIMES_REMEMBERED, PRESIGNED_S_MAX, SIGNER_BYTES_REMEMBERED, SIGNERS_REMEMBERED
from anvil.net.stream import RequestHead

ALGORITHM = b"AWS4-HMAC-SHA256"
_ECDSA = b"AWS4-ECDSA-P256-SHA256"
_ONCE = frozenset(
    (
        b"authorization",
        b"host",
        b"date",
        b"x-amz-date",
        b"x-amz-content-sha256",
        b"x-amz-security-token",
        b"x-amz-decoded-content-length",
    )
)
_QUERY_V4 = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature")
_QUERY_V4_SET = frozenset(_QUERY_V4)
_QUERY_IS_V4 = frozenset(("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Signature"))
_QUERY_IS_V2 = frozenset(("AWSAccessKeyId", "Signature"))
_QUERY_CREDENTIALS = _QUERY_IS_V4 | _QUERY_IS_V2
_QUERY_KNOWN = frozenset((*_QUERY_V4, *_QUERY_IS_V2, "X-Amz-Security-Token", "X-Amz-Content-Sha256"))
_PAYLOADS = {payload.value.encode(): payload for payload in Payload if payload is not Payload.SHA256}
_HTTP_DATE = re.compile(rb"[A-Z][a-z]{2}, (\d{1,2}) ([A-Z][a-z]{2}) (\d{4}) (\d\d):(\d\d):(\d\d) (?:GMT|UTC|[+-]0000)")
_EPOCH_DAYS = date(1970, 1, 1).toordinal()
_MONTHS = {month: at for at, month in enumerate(b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), 1)}

_CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in range(32) if code != 10}

_V2 = "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
_FIELDS = "The authorization header is malformed; it must name Credential, SignedHeaders and Signature, each once."
_SIGNATURE_LAST = b", Signature="  # as nearly everybody writes it
_NO_DATE = "AWS authentication requires a valid Date or x-amz-date header"
_MISSING_QUERY = (
    "Query-string authentication version 4 requires the X-Amz-Algorithm, X-Amz-Credential, X-Amz-Signature, X-Amz-Date, "
    "X-Amz-SignedHeaders, and X-Amz-Expires parameters."
)


class Claim(msgspec.Struct, frozen=True):
    """Credentials as claimed. `expires_s` is set for presigned requests, and only for them."""

    access_key: str
    date: bytes  # of the scope: 20130524
    region: str
    service: bytes
    scope: bytes
    signed_headers: bytes
    signature: bytes
    amz_date: bytes  # 20130524T000000Z
    time_s: int
    expires_s: int | None = None

    @property
    def presigned(self) -> bool:
        return self.expires_s is not None


def single_headers(head: RequestHead) -> dict[bytes, bytes]:
    """The headers that authentication reads. Raises InvalidRequest if one of them comes twice: proxies and libraries disagree on
    which counts."""
    found: dict[bytes, bytes] = {}
    for name, value in head.headers:
        if name in _ONCE:
            if name in found:
                raise InvalidRequest(f"The header {name.decode()} may be sent only once.")
            found[name] = value
    return found


def decoded(text: bytes) -> bytes:
    """A name or value of a query, as the canonical query reads it: `+` is a space."""
    if b"+" in text:
        text = text.replace(b"+", b" ")
    return unquote_to_bytes(text) if b"%" in text else text


def query_credentials(query: bytes) -> dict[str, list[bytes]] | None:
    """The decoded query parameters that authentication reads, by name, if there are credentials among them; else None."""
    if b"X-Amz-" not in query and b"Signature" not in query and b"AWSAccessKeyId" not in query:
        return None
    found: dict[str, list[bytes]] = {}
    for text in query.split(b"&"):
        name, _, value = text.partition(b"=")
        plain = decoded(name).decode("latin-1")
        if plain in _QUERY_KNOWN:
            found.setdefault(plain, []).append(decoded(value))
    return None if _QUERY_CREDENTIALS.isdisjoint(found) else found


def is_v2(params: dict[str, list[bytes]]) -> bool:
    """Whether the credentials of a query are those of signature version 2, and of nothing else."""
    return _QUERY_V4_SET.isdisjoint(params)


def amz_seconds(text: bytes) -> int | None:
    """Unix seconds of an ISO 8601 basic time (20130524T000000Z), None if it is none."""
    return _amz_seconds(text) if len(text) == 16 else None


@lru_cache(maxsize=AMZ_TIMES_REMEMBERED)
def _amz_seconds(text: bytes) -> int | None:
    if text[8:9] != b"T" or text[15:] != b"Z" or not (text[:8] + text[9:15]).isdigit():
        return None
    return _seconds(int(text[:4]), int(text[4:6]), int(text[6:8]), int(text[9:11]), int(text[11:13]), int(text[13:15]))


def _seconds(year: int, month: int, day: int, hour: int, minute: int, second: int) -> int | None:
    """Unix seconds of a time in UTC, None if there is no such time. (`datetime.timestamp` takes five times as long.)"""
    if hour > 23 or minute > 59 or second > 59:
        return None
    try:
        days = date(year, month, day).toordinal() - _EPOCH_DAYS
    except ValueError:
        return None
    return days * 86400 + hour * 3600 + minute * 60 + second


def amz_date(seconds: int) -> bytes:
    """The other way round."""
    return iso(seconds).replace("-", "").replace(":", "").encode()


def iso(seconds: int) -> str:
    """Unix seconds as 2013-05-24T00:00:00Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:19] + "Z"


def printable(text: bytes) -> str:
    """Bytes of a request as text that fits into XML and a log."""
    return text.decode("ascii", "backslashreplace").translate(_CONTROLS)


def _http_seconds(text: bytes) -> int | None:
    """Unix seconds of an HTTP date (RFC 9110 section 5.6.7, the preferred form; zones of offset zero)."""
    match = _HTTP_DATE.fullmatch(text)
    if match is None or match[2] not in _MONTHS:
        return None
    return _seconds(int(match[3]), _MONTHS[match[2]], int(match[1]), int(match[4]), int(match[5]), int(match[6]))


def _scope(
    credential: bytes, error: type[AuthorizationHeaderMalformed] | type[AuthorizationQueryError]
) -> tuple[str, bytes, str, bytes]:
    """Access key, date, region and service of `AK/20130524/us-east-1/s3/aws4_request`. Access keys may contain slashes."""
    parts = credential.rsplit(b"/", 4)
    if (
        not credential.isascii()
        or not credential.decode().isprintable()
        or len(parts) != 5
        or not parts[0]
        or parts[4] != b"aws4_request"
    ):
        raise error('The Credential is mal-formed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".')
    return parts[0].decode(), parts[1], parts[2].decode(), parts[3]


def header_claim(headers: dict[bytes, bytes]) -> Claim:
    """The claim in the Authorization header. Raises InvalidRequest (signature version 2), NotSupported (ECDSA), InvalidArgument
    (another scheme), AuthorizationHeaderMalformed, AccessDenied (no usable date)."""
    authorization = headers[b"authorization"]
    scheme, _, rest = authorization.partition(b" ")
    if scheme != ALGORITHM:
        if scheme == b"AWS":
            raise InvalidRequest(_V2)
        if scheme == _ECDSA:
            raise NotSupported("Signature Version 4A (ECDSA) is not supported. Please use AWS4-HMAC-SHA256.")
        raise InvalidArgument("Unsupported Authorization Type", ArgumentName="Authorization")
    stated, _, signature = rest.rpartition(_SIGNATURE_LAST)
    if not stated or b"," in signature:
        stated, signature = _signature_apart(rest)
    signer = _signer(stated) if len(stated) <= SIGNER_BYTES_REMEMBERED else _parse_signer(stated)
    when, time_s = _header_time(headers)
    return Claim(
        signer.access_key,
        signer.date,
        signer.region,
        signer.service,
        signer.scope,
        signer.signed_headers,
        signature,
        when,
        time_s,
    )


def _signature_apart(rest: bytes) -> tuple[bytes, bytes]:
    """The fields of an Authorization header without `Signature`, and that, wherever it stands."""
    stated, signatures = [], []
    for part in rest.split(b","):
        name, _, value = part.strip().partition(b"=")
        if name == b"Signature":
            signatures.append(value)
        else:
            stated.append(part)
    if len(signatures) != 1:
        raise AuthorizationHeaderMalformed(_FIELDS)
    return b",".join(stated), signatures[0]


class _Signer(NamedTuple):
    """What an Authorization header says beside the signature: the same in all requests of a client on a day."""

    access_key: str
    date: bytes
    region: str
    service: bytes
    scope: bytes
    signed_headers: bytes


def _parse_signer(stated: bytes) -> _Signer:
    """Raises AuthorizationHeaderMalformed."""
    fields: dict[bytes, bytes] = {}
    for part in stated.split(b","):
        name, _, value = part.strip().partition(b"=")
        if name in fields or name not in (b"Credential", b"SignedHeaders"):
            raise AuthorizationHeaderMalformed(_FIELDS)
        fields[name] = value
    if len(fields) != 2:
        raise AuthorizationHeaderMalformed(_FIELDS)
    credential, signed = fields[b"Credential"], fields[b"SignedHeaders"]
    access_key, date, region, service = _scope(credential, AuthorizationHeaderMalformed)
    if not signed_headers_valid(signed):
        raise AuthorizationHeaderMalformed("The authorization header is malformed; SignedHeaders must be lower case and sorted.")
    return _Signer(access_key, date, region, service, credential[len(access_key) + 1 :], signed)


_signer = lru_cache(maxsize=SIGNERS_REMEMBERED)(_parse_signer)


def _header_time(headers: dict[bytes, bytes]) -> tuple[bytes, int]:
    """The request's time as signed and in seconds: x-amz-date, else Date."""
    text = headers.get(b"x-amz-date", headers.get(b"date", b""))
    seconds = amz_seconds(text)
    if seconds is not None:
        return text, seconds
    seconds = None if b"x-amz-date" in headers else _http_seconds(text)
    if seconds is None:
        raise AccessDenied(_NO_DATE)
    return amz_date(seconds), seconds


def query_claim(params: dict[str, list[bytes]]) -> Claim:
    """The claim of a presigned request. Raises InvalidRequest (signature version 2), NotSupported (ECDSA) and
    AuthorizationQueryError."""
    if _QUERY_IS_V4.isdisjoint(params):
        raise InvalidRequest(_V2)
    if params.get("X-Amz-Algorithm") == [_ECDSA]:
        raise NotSupported("Signature Version 4A (ECDSA) is not supported. Please use AWS4-HMAC-SHA256.")
    once = [value for name in _QUERY_V4 for value in params.get(name, ())]
    if len(once) != len(_QUERY_V4) or not params.keys() >= _QUERY_V4_SET or not _QUERY_IS_V2.isdisjoint(params):
        raise AuthorizationQueryError(_MISSING_QUERY)
    algorithm, credential, when, expires, signed, signature = once
    if algorithm != ALGORITHM:
        raise AuthorizationQueryError('X-Amz-Algorithm only supports "AWS4-HMAC-SHA256"')
    access_key, date, region, service = _scope(credential, AuthorizationQueryError)
    time_s = amz_seconds(when)
    if time_s is None:
        raise AuthorizationQueryError("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    if not signed_headers_valid(signed):
        raise AuthorizationQueryError("X-Amz-SignedHeaders must be lower case and sorted.")
    expires_s = _expires(expires)
    return Claim(access_key, date, region, service, credential[len(access_key) + 1 :], signed, signature, when, time_s, expires_s)


def _expires(text: bytes) -> int:
    if text.startswith(b"-") and text[1:].isdigit():
        raise AuthorizationQueryError("X-Amz-Expires must be non-negative")
    if not text.isdigit():
        raise AuthorizationQueryError("X-Amz-Expires should be a number")
    # The length first: Python refuses to convert thousands of digits.
    if len(text) > 6 or not 0 < int(text) <= PRESIGNED_S_MAX:
        raise AuthorizationQueryError(f"X-Amz-Expires must be from 1 to {PRESIGNED_S_MAX} seconds (a week)")
    return int(text)


def parse_payload(text: bytes | None) -> tuple[Payload, bytes | None]:
    """What `x-amz-content-sha256` says; without one the payload is unsigned. Raises InvalidArgument and NotSupported (ECDSA
    chunks)."""
    if text is None:
        return Payload.UNSIGNED, None
    payload = _PAYLOADS.get(text)
    if payload is not None:
        return payload, None
    if text.startswith(b"STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD"):
        raise NotSupported("Signature Version 4A (ECDSA) is not supported. Please use AWS4-HMAC-SHA256.")
    if text.startswith(b"STREAMING-"):
        raise NotSupported("This kind of streaming payload is not supported.")
    if len(text) == 64:
        try:
            return Payload.SHA256, binascii.unhexlify(text)
        except binascii.Error:
            pass
    raise InvalidArgument(
        "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER "
        "or a valid sha256 value.",
        ArgumentName="x-amz-content-sha256",
        ArgumentValue=printable(text),
    )
