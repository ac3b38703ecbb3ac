"""Presigned URLs of signature version 2: made by botocore, verified here, and everything they do not cover refused."""

from __future__ import annotations

import pytest
from botocore.auth import HmacV1QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from heads import ACCESS_KEY, APP, ENDPOINT, NOW, SECRET, changed, head_of, run

from anvil.auth.sigv2 import ClaimV2, string_to_sign
from anvil.auth.types import Payload
from anvil.base.errors import AccessDenied, InvalidAccessKey, InvalidRequest, RequestExpired, SignatureMismatch
from anvil.net.stream import RequestHead


def presigned_v2(
    method: str, target: str, headers: dict[str, str] | None = None, *, expires_s: int = 600, access_key: str = ACCESS_KEY
) -> RequestHead:
    """As botocore signs it, with a clock of our own."""
    signer = HmacV1QueryAuth(Credentials(access_key, SECRET), expires=expires_s)
    signer._get_date = lambda: str(int(NOW + expires_s))
    request = AWSRequest(method=method, url=ENDPOINT + target, headers=headers or {})
    request.auth_path = target.partition("?")[0]
    signer.add_auth(request)
    return head_of(method, request.url, headers or {})


@pytest.mark.parametrize("target", ["/b/k", "/b/a%20b", "/b/%E2%82%AC/x%2By", "/b/k?versionId=null", "/b", "/b/k?uploads"])
def test_what_botocore_signs_is_accepted(target: str) -> None:
    result = run(presigned_v2("GET", target))
    assert result.principal.app is APP
    assert (result.payload, result.presigned) == (Payload.UNSIGNED, True)


def test_response_overrides_and_headers_are_covered() -> None:
    target = "/b/k?response-content-type=text%2Fplain&response-content-disposition=attachment%3B%20filename%3D%22a%20b%22"
    head = presigned_v2("GET", target)
    assert run(head).principal.app is APP
    with pytest.raises(SignatureMismatch):
        run(changed(head, query=head.query.replace(b"text%2Fplain", b"text%2Fhtml")))
    put = presigned_v2("PUT", "/b/k", {"x-amz-meta-a": "1", "content-type": "text/plain"})
    assert b"x-amz-meta-a=1" in put.query, "botocore moves them into the query"
    assert run(put).principal.app is APP
    assert run(changed(put, headers={"x-amz-meta-a": None})).principal.app is APP, "the API reads it from there"
    for change in ({"x-amz-meta-a": "2"}, {"x-amz-meta-b": "2"}, {"content-type": "text/html"}):
        with pytest.raises((SignatureMismatch, InvalidRequest)):
            run(changed(put, headers=change))
    with pytest.raises(SignatureMismatch):
        run(changed(head_without := presigned_v2("GET", "/b/k"), query=head_without.query + b"&x-amz-acl=public-read"))


def test_the_string_to_sign_of_the_documentation() -> None:
    """Amazon S3 User Guide, "Signing and authenticating REST requests", examples "Object GET" (as a query) and "Upload"."""
    claim = ClaimV2("AKIAIOSFODNN7EXAMPLE", b"", b"1175139620", ())
    head = head_of("GET", "http://awsexamplebucket1.us-west-1.s3.amazonaws.com/photos/puppy.jpg")
    expected = b"GET\n\n\n1175139620\n/awsexamplebucket1/photos/puppy.jpg"
    assert string_to_sign(head, claim, "awsexamplebucket1") == expected


@pytest.mark.parametrize(
    "change",
    [
        {"method": "PUT"},
        {"path": b"/b/other"},
        {"path": b"/other/k"},
        {"headers": {"x-amz-copy-source": "/b/secret"}},
        {"headers": {"content-type": "text/html"}},
    ],
    ids=["method", "key", "bucket", "an amz header added", "content type"],
)
def test_what_it_covers_cannot_be_changed(change: dict[str, object]) -> None:
    head = presigned_v2("GET", "/b/k")
    with pytest.raises(SignatureMismatch):
        run(changed(head, **change))


@pytest.mark.parametrize(
    "extra", ["prefix=a", "list-type=2", "attributes", "x-amz-Acl=public-read", "X-Amz-Content-Sha256=x", "a"]
)
def test_what_it_does_not_cover_is_refused(extra: str) -> None:
    head = presigned_v2("GET", "/b/k")
    with pytest.raises(InvalidRequest):
        run(changed(head, query=head.query + b"&" + extra.encode()))


def test_times() -> None:
    assert run(presigned_v2("GET", "/b/k", expires_s=0)).presigned
    with pytest.raises(RequestExpired):
        run(presigned_v2("GET", "/b/k", expires_s=-1))
    with pytest.raises(AccessDenied):
        run(presigned_v2("GET", "/b/k", expires_s=9 * 24 * 3600))


@pytest.mark.parametrize("query", ["Signature=x", "AWSAccessKeyId=a&Signature=b", "AWSAccessKeyId=a&Signature=b&Expires=x"])
def test_incomplete_credentials(query: str) -> None:
    with pytest.raises(AccessDenied):
        run(head_of("GET", f"{ENDPOINT}/b/k?{query}"))


def test_unknown_key_and_doubled_parameters() -> None:
    with pytest.raises(InvalidAccessKey):
        run(presigned_v2("GET", "/b/k", access_key="AKIANOBODY"))
    head = presigned_v2("GET", "/b/k")
    with pytest.raises(InvalidRequest):
        run(changed(head, query=head.query + b"&Expires=99999999999"))


@pytest.mark.parametrize("mode", ["STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"])
def test_no_streaming_payload(mode: str) -> None:
    with pytest.raises(InvalidRequest):
        run(presigned_v2("PUT", "/b/k", {"x-amz-content-sha256": mode}))
