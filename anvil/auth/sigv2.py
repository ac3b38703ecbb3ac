"""Presigned URLs of signature version 2, because boto3 and the AWS CLI still make them for us-east-1 unless told otherwise.

Owns: the string to sign (Amazon S3 User Guide, "Signing and authenticating REST requests", query string request authentication
alternative). Invariant: what version 2 does not sign cannot change what the URL does: every parameter of the query must be one that the
signature covers, and every `x-amz-*` header is part of it. The host is not covered by version 2; the bucket and key are. Header
authentication of version 2 stays refused: no current client needs it. Not here: version 4 (`sigv4`), the order of checks
(`authenticate`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac

import msgspec

from anvil.auth.credentials import decoded, iso, printable
from anvil.base.errors import AccessDenied, InvalidRequest, RequestExpired, SignatureMismatch
from anvil.base.limits import CLOCK_SKEW_S_MAX, PRESIGNED_S_MAX
from anvil.model.identity import App
from anvil.net.stream import RequestHead

_CREDENTIALS = frozenset((b"AWSAccessKeyId", b"Signature", b"Expires"))
# botocore repeats these headers in the query. What counts, for the signature and for the request, is the header itself.
_ECHOED = frozenset((b"content-type", b"content-md5"))
_SUBRESOURCES = frozenset(
    b"acl accelerate analytics cors defaultObjectAcl delete inventory lifecycle location logging metrics notification object-lock "
    b"partNumber policy policyStatus publicAccessBlock replication requestPayment restore retention legal-hold select select-type "
    b"tagging torrent uploadId uploads versionId versioning versions website encryption ownershipControls "
    b"response-cache-control response-content-disposition response-content-encoding response-content-language "
    b"response-content-type response-expires".split()
)


class ClaimV2(msgspec.Struct, frozen=True):
    """Credentials as claimed. `signed`: the covered query parameters, decoded, in the order of their names. `amz`: parameters that
    stand for `x-amz-*` headers, which the signature covers as such."""

    access_key: str
    signature: bytes
    expires: bytes
    signed: tuple[tuple[bytes, bytes | None], ...]
    amz: tuple[tuple[bytes, bytes], ...] = ()


def claim_v2(head: RequestHead, now: int) -> ClaimV2:
    """The claim of a presigned request, if it may still be used at `now` (Unix seconds). Raises InvalidRequest, AccessDenied,
    RequestExpired."""
    credentials: dict[bytes, bytes] = {}
    signed: list[tuple[bytes, bytes | None]] = []
    amz: dict[bytes, bytes] = {}
    for text in head.query.split(b"&"):
        name, equals, value = text.partition(b"=")
        name = decoded(name)
        if name in _CREDENTIALS and name not in credentials:
            credentials[name] = decoded(value)
        elif name in _SUBRESOURCES:
            signed.append((name, decoded(value) if equals else None))
        elif name.startswith(b"x-amz-") and name == name.lower() and name not in amz:
            amz[name] = decoded(value)
        elif text and name not in _ECHOED:
            raise InvalidRequest(
                f"The parameter {printable(name)[:64]} is not covered by a version 2 signature. Please use AWS4-HMAC-SHA256."
            )
    if credentials.keys() != _CREDENTIALS or not credentials[b"AWSAccessKeyId"].isascii():
        raise AccessDenied(
            "Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters, each of them once"
        )
    expires = credentials[b"Expires"]
    if not expires.isdigit() or len(expires) > 12:
        raise AccessDenied("Invalid date (should be seconds since epoch)", Expires=printable(expires)[:32])
    if now > int(expires):
        raise RequestExpired(RequestExpired.default, Expires=iso(int(expires)), ServerTime=iso(now))
    if int(expires) > now + PRESIGNED_S_MAX + CLOCK_SKEW_S_MAX:
        raise AccessDenied(f"Expires must be less than a week ({PRESIGNED_S_MAX} seconds) in the future")
    signed.sort()
    return ClaimV2(credentials[b"AWSAccessKeyId"].decode(), credentials[b"Signature"], expires, tuple(signed), tuple(amz.items()))


def verify_v2(head: RequestHead, claim: ClaimV2, app: App, virtual_bucket: str | None) -> None:
    """Raises SignatureMismatch unless the signature is that of this request by this app."""
    text = string_to_sign(head, claim, virtual_bucket)
    proof = base64.b64encode(hmac.digest(app.secret.encode(), text, hashlib.sha1))
    if not hmac.compare_digest(proof, claim.signature):
        raise SignatureMismatch(
            AWSAccessKeyId=claim.access_key, SignatureProvided=printable(claim.signature), StringToSign=printable(text)
        )


def string_to_sign(head: RequestHead, claim: ClaimV2, virtual_bucket: str | None) -> bytes:
    """Method, content-md5, content-type, expiry, amz headers by name (values of one name joined), and the resource."""
    amz: dict[bytes, list[bytes]] = {}
    for name, value in head.headers:
        if name.startswith(b"x-amz-"):
            amz.setdefault(name, []).append(value)
    for name, value in claim.amz:
        if amz.setdefault(name, [value]) != [value]:
            raise InvalidRequest(f"{printable(name)[:64]} is given as a header and as a parameter, with different values.")
    resource = (b"/" + virtual_bucket.encode() if virtual_bucket else b"") + head.path
    query = b"&".join(name if value is None else name + b"=" + value for name, value in claim.signed)
    return b"\n".join(
        (
            head.method.encode(),
            head.header(b"content-md5") or b"",
            head.header(b"content-type") or b"",
            claim.expires,
            *(name + b":" + b",".join(values) for name, values in sorted(amz.items())),
            resource + (b"?" + query if query else b""),
        )
    )
