"""Mistakes that other stores shipped, each by name. What is asserted is the refusal, and that nothing was accepted before it."""

from __future__ import annotations

import pytest
from heads import ACCESS_KEY, APP, ENDPOINT, NOW, SECRET, Apps, changed, head_of, presigned, run, signed

from anvil.auth.authorize import Authorizer
from anvil.auth.presign import EMPTY_SHA256
from anvil.auth.types import Payload
from anvil.base.errors import AccessDenied, InvalidRequest, NoSuchBucket, SignatureMismatch
from anvil.model.identity import Action, App, Bucket, BucketState, Policy, Principal, Tenant

TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
SIGNED_MODES = ["STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"]
STREAMING = [TRAILER, *SIGNED_MODES]
TRAILER_HEADERS = {
    "content-encoding": "aws-chunked",
    "x-amz-trailer": "x-amz-checksum-crc32",
    "x-amz-decoded-content-length": "5",
}


@pytest.mark.parametrize("mode", STREAMING)
def test_cve_2025_31489_streaming_upload_with_a_bad_signature(mode: str) -> None:
    with pytest.raises(SignatureMismatch):
        run(signed("PUT", headers=TRAILER_HEADERS, payload=mode, secret="not the secret"))
    head = signed("PUT", headers=TRAILER_HEADERS, payload=mode)
    value = head.header(b"authorization")
    assert value is not None
    with pytest.raises(SignatureMismatch):
        run(changed(head, headers={"authorization": value.decode()[:-1] + "x"}))
    assert run(head).principal.app is APP


@pytest.mark.parametrize("mode", STREAMING)
def test_cve_2025_31489_streaming_upload_without_credentials(mode: str) -> None:
    with pytest.raises(AccessDenied):
        run(head_of("PUT", f"{ENDPOINT}/bucket/key", {"x-amz-content-sha256": mode, **TRAILER_HEADERS}))


def test_cve_2026_40344_unsigned_trailer_with_invented_query_credentials() -> None:
    """Query credentials that name a real key and carry any signature, beside the unsigned-trailer mode."""
    query = (
        f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={ACCESS_KEY}%2F20130524%2Fus-east-1%2Fs3%2Faws4_request"
        f"&X-Amz-Date=20130524T000000Z&X-Amz-Expires=3600&X-Amz-SignedHeaders=host&X-Amz-Signature={'0' * 64}"
    )
    with pytest.raises(AccessDenied):
        run(head_of("PUT", f"{ENDPOINT}/bucket/key?{query}", {"x-amz-content-sha256": TRAILER, **TRAILER_HEADERS}))
    names = "host;x-amz-content-sha256;x-amz-decoded-content-length;x-amz-trailer"
    listed = query.replace("SignedHeaders=host", "SignedHeaders=" + names.replace(";", "%3B"))
    with pytest.raises(SignatureMismatch):
        run(head_of("PUT", f"{ENDPOINT}/bucket/key?{listed}", {"x-amz-content-sha256": TRAILER, **TRAILER_HEADERS}))


def test_cve_2026_41145_unsigned_trailer_smuggled_into_a_presigned_request() -> None:
    """A presigned URL is for an unsigned plain payload; the mode cannot be added by who holds it, in a header or a parameter."""
    head = presigned("PUT")
    assert run(head).payload is Payload.UNSIGNED
    with pytest.raises(AccessDenied):
        run(changed(head, headers={"x-amz-content-sha256": TRAILER, **TRAILER_HEADERS}))
    with pytest.raises(SignatureMismatch):
        run(changed(head, query=head.query + b"&X-Amz-Content-Sha256=" + TRAILER.encode()))


@pytest.mark.parametrize("mode", SIGNED_MODES)
def test_signed_chunks_with_presigned_credentials(mode: str) -> None:
    """Who holds a URL holds no secret and cannot sign chunks."""
    with pytest.raises(InvalidRequest):
        run(presigned("PUT", f"{ENDPOINT}/b/k?X-Amz-Content-Sha256={mode}"))
    with pytest.raises(InvalidRequest):
        run(presigned("PUT", headers={"x-amz-content-sha256": mode}))


@pytest.mark.parametrize(
    "name",
    [
        "x-amz-copy-source",
        "x-amz-acl",
        "x-amz-meta-a",
        "x-amz-storage-class",
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-tagging",
    ],
)
def test_cve_2026_97731_unsigned_amz_header(name: str) -> None:
    value = {"x-amz-content-sha256": EMPTY_SHA256, "x-amz-date": "20130524T000000Z"}.get(name, "/secret/object")
    with pytest.raises(AccessDenied, match="not signed") as refused:
        run(changed(presigned("PUT"), headers={name: value}))
    assert refused.value.fields == {"HeadersNotSigned": name}
    if name not in ("x-amz-content-sha256", "x-amz-date"):
        with pytest.raises(AccessDenied) as in_header:
            run(changed(signed("PUT"), headers={name: value}))
        assert in_header.value.fields == {"HeadersNotSigned": name}


def test_cve_2026_97731_a_second_value_of_a_signed_header() -> None:
    head = presigned("PUT", headers={"x-amz-copy-source": "/bucket/allowed"})
    run(head)
    with pytest.raises(SignatureMismatch):
        run(changed(head, headers=(*head.headers, (b"x-amz-copy-source", b"/bucket/secret"))))


def test_host_must_be_signed() -> None:
    head = presigned()
    with pytest.raises(AccessDenied) as refused:
        run(changed(head, query=head.query.replace(b"SignedHeaders=host", b"SignedHeaders=range")))
    assert refused.value.fields == {"HeadersNotSigned": "host"}


def test_cve_2026_54917_dot_segments_do_not_cross_buckets() -> None:
    """The path is signed as sent, so `/a/../b` is neither accepted for `/b` nor turned into it."""
    head = signed(url=f"{ENDPOINT}/public/../private/key")
    result = run(head)
    assert head.path == b"/public/../private/key"
    assert result.principal.app is APP
    for path in (b"/private/key", b"/public/%2E%2E%2Fprivate/key", b"/public/..%2Fprivate/key"):
        with pytest.raises(SignatureMismatch):
            run(changed(head, path=path))
    reader = Principal(App(2, Tenant(1, "t"), "r", "k", "s", 1, (Policy("object:read", "public/*"),)))
    private = Bucket(2, Tenant(1, "t"), "private", "us-east-1", 0, BucketState.ACTIVE, False, bytes(32))
    with pytest.raises(AccessDenied):
        Authorizer().require_object(reader, Action.OBJECT_READ, private, "../public/key")


def test_cve_2026_21862_forwarded_addresses_are_not_believed() -> None:
    """X-Forwarded-For, Forwarded and X-Real-IP cannot make a peer a trusted proxy."""
    head = changed(
        signed(url="https://s3.example.com/b/k"),
        authority=b"upstream:1",
        headers={
            "x-forwarded-host": "s3.example.com",
            "x-forwarded-for": "10.0.0.1",
            "x-real-ip": "10.0.0.1",
            "forwarded": "for=10.0.0.1;host=s3.example.com",
        },
    )
    with pytest.raises(SignatureMismatch):
        run(head, trusted_proxies=["10.0.0.0/8"])
    assert run(changed(head, peer="10.0.0.1:4711"), trusted_proxies=["10.0.0.0/8"]).principal.app is APP


def test_lookups_are_by_tenant() -> None:
    """The widest policy of one tenant's app does not reach another tenant's bucket of any name."""
    theirs = Bucket(3, Tenant(2, "theirs"), "shared-name", "us-east-1", 0, BucketState.ACTIVE, False, bytes(32))
    with pytest.raises(NoSuchBucket):
        Authorizer().require_object(run(signed()).principal, Action.OBJECT_READ, theirs, "key")


def test_a_request_recorded_earlier() -> None:
    """A replay is bounded by the skew, a presigned URL by its expiry, both by the secret's generation."""
    head, apps = signed(), Apps(App(1, APP.tenant, "app", ACCESS_KEY, SECRET + "!", 2, ()))
    with pytest.raises(SignatureMismatch):
        run(head, apps=apps)
    assert run(head, now=NOW + 900).principal.app is APP
