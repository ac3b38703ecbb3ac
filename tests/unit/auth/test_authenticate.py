"""Who asks: header and query credentials, times, scopes, payload modes. Hosts are in `test_hosts.py`."""

from __future__ import annotations

import pytest
from heads import ACCESS_KEY, APP, ENDPOINT, NOW, SECRET, Apps, authenticator, changed, head_of, presigned, run, signed

from anvil.auth import sigv4
from anvil.auth.presign import EMPTY_SHA256, UNSIGNED_PAYLOAD, presign
from anvil.auth.types import Payload, SignedElsewhere
from anvil.base import limits
from anvil.base.errors import (
    AccessDenied,
    AuthorizationHeaderMalformed,
    AuthorizationQueryError,
    InvalidAccessKey,
    InvalidArgument,
    InvalidRequest,
    InvalidToken,
    NotSupported,
    RequestExpired,
    RequestTimeSkewed,
    SignatureMismatch,
)
from anvil.model.identity import App

MINUTE, DAY = 60, 86400
DIGEST = bytes.fromhex(EMPTY_SHA256)


# -- who --------------------------------------------------------------------------------------------------------------


def test_a_signed_request() -> None:
    result = run(signed())
    assert result.principal.app is APP
    assert (result.payload, result.payload_sha256, result.seed, result.presigned) == (Payload.SHA256, DIGEST, None, False)


def test_a_presigned_request() -> None:
    result = run(presigned())
    assert result.principal.app is APP
    assert (result.payload, result.payload_sha256, result.seed, result.presigned) == (Payload.UNSIGNED, None, None, True)


def test_the_anonymous() -> None:
    apps = Apps(APP)
    result = run(head_of("GET", f"{ENDPOINT}/b/k?versionId=1&X-Amz-Meta=2&prefix=X-Amz-Signature="), apps=apps)
    assert result.principal.anonymous
    assert (result.payload, result.payload_sha256, result.presigned) == (Payload.UNSIGNED, None, False)
    assert apps.asked == 0


def test_the_anonymous_payload_is_still_verified() -> None:
    result = run(head_of("PUT", f"{ENDPOINT}/b/k", {"x-amz-content-sha256": EMPTY_SHA256}))
    assert result.principal.anonymous
    assert (result.payload, result.payload_sha256) == (Payload.SHA256, DIGEST)
    with pytest.raises(InvalidArgument):
        run(head_of("PUT", f"{ENDPOINT}/b/k", {"x-amz-content-sha256": "abc"}))


def test_unknown_key() -> None:
    with pytest.raises(InvalidAccessKey) as refused:
        run(signed(), apps=Apps())
    assert refused.value.fields == {"AWSAccessKeyId": ACCESS_KEY}


@pytest.mark.parametrize("head", [signed(secret="wrong"), presigned(secret="wrong")], ids=["header", "query"])
def test_wrong_secret(head: object) -> None:
    with pytest.raises(SignatureMismatch) as refused:
        run(head)
    fields = refused.value.fields
    assert fields["AWSAccessKeyId"] == ACCESS_KEY
    assert str(fields["StringToSign"]).startswith("AWS4-HMAC-SHA256\n20130524T000000Z\n20130524/us-east-1/s3/aws4_request\n")
    assert "\nhost:node.example:50051\n" in str(fields["CanonicalRequest"])
    assert SECRET not in repr((refused.value, fields))


@pytest.mark.parametrize("make", [signed, presigned])
@pytest.mark.parametrize(
    "change",
    [
        {"method": "DELETE"}, {"method": "HEAD"}, {"path": b"/bucket/other"}, {"path": b"/bucket/a/../key"},
        {"path": b"/bucket//key"},
        {"path": b"/other/key"}, {"path": b"/bucket%2Fkey"}, {"authority": b"other.example"},
    ],
    ids=str,
)  # fmt: skip
def test_the_signature_binds_method_path_and_host(make: object, change: dict) -> None:
    with pytest.raises(SignatureMismatch):
        run(changed(make(), **change))  # type: ignore[operator]


def test_the_signature_binds_the_query() -> None:
    for head in (signed(url=f"{ENDPOINT}/b?prefix=a"), presigned(url=f"{ENDPOINT}/b?prefix=a")):
        run(head)
        for query in (head.query + b"&max-keys=1", head.query.replace(b"prefix=a", b"prefix=b"), head.query + b"&prefix=a"):
            with pytest.raises(SignatureMismatch):
                run(changed(head, query=query))


def test_an_unencoded_path_is_verified_as_sdks_sign_it() -> None:
    """Sent raw, signed encoded: decode, then encode once."""
    head = signed(url=f"{ENDPOINT}/bucket/a%20(b)*%E2%82%AC~")
    run(changed(head, path="/bucket/a (b)*€~".encode()))
    run(changed(head, path=b"/bucket/a%20%28b%29%2a%e2%82%ac%7E"))


def test_plus_and_percent_20_are_one_space_in_a_query_and_two_keys_in_a_path() -> None:
    head = signed(url=f"{ENDPOINT}/bucket?prefix=a%20b")
    run(changed(head, query=b"prefix=a+b"))
    with pytest.raises(SignatureMismatch):
        run(changed(head, query=b"prefix=a%2Bb"))
    with pytest.raises(SignatureMismatch):
        run(changed(signed(url=f"{ENDPOINT}/bucket/a%20b"), path=b"/bucket/a+b"))


def test_an_encoded_slash_is_not_a_separator() -> None:
    head = signed(url=f"{ENDPOINT}/bucket/a%2Fb")
    run(head)
    with pytest.raises(SignatureMismatch):
        run(changed(head, path=b"/bucket/a/b"))


def test_two_kinds_of_credentials() -> None:
    both = presigned()
    for scheme in ("AWS4-HMAC-SHA256 x", "AWS a:b", "Basic eDp5"):
        with pytest.raises(InvalidRequest):
            run(changed(both, headers={"authorization": scheme}))
    with pytest.raises(InvalidRequest):
        run(changed(signed(), query=b"AWSAccessKeyId=a&Signature=b&Expires=1"))


@pytest.mark.parametrize("name", ["authorization", "host", "x-amz-date", "x-amz-content-sha256"])
def test_a_header_that_decides_may_not_come_twice(name: str) -> None:
    head = signed()
    value = head.header(name.encode())
    assert value is not None
    with pytest.raises(InvalidRequest):
        run(changed(head, headers=(*head.headers, (name.encode(), value))))


# -- scope and time ---------------------------------------------------------------------------------------------------


def test_regions() -> None:
    assert run(signed(region="eu-north-1"), region="eu-north-1").principal.app is APP
    assert run(signed(region="us-east-1"), region="eu-north-1").principal.app is APP
    with pytest.raises(AuthorizationHeaderMalformed) as refused:
        run(signed(region="us-west-2"), region="eu-north-1")
    assert refused.value.fields == {"Region": "eu-north-1"}
    assert (
        refused.value.message == "The authorization header is malformed; the region 'us-west-2' is wrong; expecting 'eu-north-1'"
    )
    with pytest.raises(AuthorizationQueryError) as in_query:
        run(presigned(region="us-west-2"), region="eu-north-1")
    assert in_query.value.fields == {"Region": "eu-north-1"}


async def two_regions() -> tuple[str, ...]:
    return "eu-north-1", "us-west-2"


def test_a_signature_for_another_region_opens_nothing_but_may_be_told_where_to_go() -> None:
    for head in (signed(region="us-west-2"), presigned(region="us-west-2")):
        with pytest.raises(SignedElsewhere) as elsewhere:
            run(head, region="eu-north-1", regions=two_regions)
        assert elsewhere.value.principal.app is APP
        assert elsewhere.value.error.fields == {"Region": "eu-north-1"}
        with pytest.raises(SignatureMismatch):
            run(changed(head, path=b"/bucket/other"), region="eu-north-1", regions=two_regions)
    with pytest.raises(AuthorizationHeaderMalformed):
        run(signed(region="mars-1"), region="eu-north-1", regions=two_regions)


def authorization(head: object, old: str, new: str) -> object:
    value = head.header(b"authorization").decode()  # type: ignore[attr-defined]
    assert old in value
    return changed(head, headers={"authorization": value.replace(old, new)})  # type: ignore[arg-type]


def test_another_service_or_date_in_the_scope() -> None:
    for old, new in (("/s3/", "/ec2/"), ("/20130524/", "/20130523/"), ("/20130524/", "/2013052/")):
        with pytest.raises(AuthorizationHeaderMalformed):
            run(authorization(signed(), old, new))
        head = presigned()
        with pytest.raises(AuthorizationQueryError):
            run(changed(head, query=head.query.replace(old.replace("/", "%2F").encode(), new.replace("/", "%2F").encode())))


@pytest.mark.parametrize("skew", [-15 * MINUTE, 0, 15 * MINUTE])
def test_skew_allowed(skew: int) -> None:
    assert run(signed(now=NOW + skew)).principal.app is APP


@pytest.mark.parametrize("skew", [-15 * MINUTE - 1, 15 * MINUTE + 1])
def test_skew_refused(skew: int) -> None:
    with pytest.raises(RequestTimeSkewed) as refused:
        run(signed(now=NOW + skew))
    assert refused.value.fields["ServerTime"] == "2013-05-24T00:00:00Z"
    assert refused.value.fields["MaxAllowedSkewMilliseconds"] == 900_000


def test_date_instead_of_x_amz_date() -> None:
    """The Date header is the time when there is no x-amz-date, and is bound by the string to sign."""
    reference = signed()
    names = b"host;x-amz-content-sha256"
    for date in ("Fri, 24 May 2013 00:00:00 GMT", "Fri, 24 May 2013 00:00:00 +0000", "20130524T000000Z"):
        head = changed(reference, headers={"x-amz-date": None, "date": date})
        key = sigv4.derive_key(SECRET, b"20130524", b"us-east-1", b"s3")
        scope = b"20130524/us-east-1/s3/aws4_request"
        proof = sigv4.signature(
            key, b"20130524T000000Z", scope, "GET", head.path, b"", head.headers, names, head.authority, EMPTY_SHA256.encode()
        ).decode()
        text = f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/{scope.decode()},SignedHeaders={names.decode()},Signature={proof}"
        assert run(changed(head, headers={"authorization": text})).principal.app is APP
    other = changed(head, headers={"authorization": text, "date": "Fri, 24 May 2013 00:00:01 GMT"})
    with pytest.raises(SignatureMismatch):
        run(other)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-amz-date": None}, {"x-amz-date": ""}, {"x-amz-date": "2013-05-24T00:00:00Z"},
        {"x-amz-date": "20131324T000000Z"},
        {"x-amz-date": "junk", "date": "Fri, 24 May 2013 00:00:00 GMT"},
        {"x-amz-date": None, "date": "Fri, 31 Feb 2013 00:00:00 GMT"},
        {"x-amz-date": None, "date": "yesterday"}, {"x-amz-date": None, "date": "Fri, 24 Mai 2013 00:00:00 GMT"},
    ],
    ids=str,
)  # fmt: skip
def test_no_usable_date(headers: dict) -> None:
    with pytest.raises(AccessDenied, match="requires a valid Date or x-amz-date header"):
        run(changed(signed(), headers=headers))


def test_presigned_times() -> None:
    head = presigned(expires_s=60)
    run(head, now=NOW + 60)
    with pytest.raises(RequestExpired) as refused:
        run(head, now=NOW + 61)
    assert refused.value.fields == {"X-Amz-Expires": 60, "Expires": "2013-05-24T00:01:00Z", "ServerTime": "2013-05-24T00:01:01Z"}
    run(head, now=NOW - 15 * MINUTE)
    with pytest.raises(AccessDenied, match="not valid yet"):
        run(head, now=NOW - 15 * MINUTE - 1)
    week = presigned(expires_s=7 * DAY)
    run(week, now=NOW + 7 * DAY)
    with pytest.raises(RequestExpired):
        run(week, now=NOW + 7 * DAY + 1)


@pytest.mark.parametrize("expires", ["0", "604801", "-1", "1.5", "abc", "", "9" * 5000, "%32", "1&X-Amz-Expires=1"])
def test_presigned_expiry_out_of_bounds(expires: str) -> None:
    head = presigned(expires_s=60)
    with pytest.raises((AuthorizationQueryError, SignatureMismatch)) as refused:
        run(changed(head, query=head.query.replace(b"X-Amz-Expires=60", b"X-Amz-Expires=" + expires.encode())))
    assert isinstance(refused.value, SignatureMismatch) == (expires == "%32")


@pytest.mark.parametrize("name", ["Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature"])
def test_presigned_parameters_come_exactly_once(name: str) -> None:
    head = presigned()
    pairs = head.query.split(b"&")
    without = b"&".join(pair for pair in pairs if not pair.startswith(b"X-Amz-" + name.encode()))
    assert without != head.query
    with pytest.raises(AuthorizationQueryError):
        run(changed(head, query=without))
    with pytest.raises(AuthorizationQueryError):
        run(changed(head, query=head.query + b"&X-Amz-" + name.encode() + b"=x"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"AWS4-HMAC-SHA256", b"AWS4-HMAC-SHA512"), (b"20130524T000000Z", b"2013-05-24"),
        (b"SignedHeaders=host", b"SignedHeaders=Host"),
        (b"SignedHeaders=host", b"SignedHeaders="), (b"%2Fs3%2F", b"%2F"), (b"aws4_request", b"aws5_request"), (b"AKIA", b"%00"),
        (b"AKIA", b"%FF"),
    ],
)  # fmt: skip
def test_presigned_parameters_are_well_formed(old: bytes, new: bytes) -> None:
    head = presigned()
    assert old in head.query
    with pytest.raises(AuthorizationQueryError):
        run(changed(head, query=head.query.replace(old, new)))


@pytest.mark.parametrize(
    "value",
    [
        "AWS4-HMAC-SHA256", "AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256 Credential=a", "AWS4-HMAC-SHA256 x,y,z",
        "AWS4-HMAC-SHA256 Credential=a/20130524/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0, Signature=0",
        "AWS4-HMAC-SHA256 Credential=a/20130524/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0, Extra=0",
        "AWS4-HMAC-SHA256 Credential=/20130524/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0",
        "AWS4-HMAC-SHA256 Credential=a/20130524/us-east-1/s3, SignedHeaders=host, Signature=0",
        "AWS4-HMAC-SHA256 Credential=é/20130524/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0",
        "AWS4-HMAC-SHA256 Credential=a/20130524/us-east-1/s3/aws4_request, SignedHeaders=x-amz-date;host, Signature=0",
        "AWS4-HMAC-SHA256 Credential=a/20130524/us-east-1/s3/aws4_request, SignedHeaders=Host, Signature=0",
    ],
)  # fmt: skip
def test_malformed_authorization_headers(value: str) -> None:
    with pytest.raises(AuthorizationHeaderMalformed):
        run(changed(signed(), headers={"authorization": value}))


def test_an_access_key_may_contain_slashes() -> None:
    key = "team/a"
    apps = Apps(App(2, APP.tenant, "slash", key, SECRET, 1, ()))
    head = head_of("GET", presign("GET", f"{ENDPOINT}/b", key, SECRET, "us-east-1", 60, NOW))
    assert run(head, apps=apps).principal.app is apps.apps[key]


# -- other mechanisms -------------------------------------------------------------------------------------------------


def test_signature_version_2_in_the_header_is_named_and_refused() -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(head_of("GET", f"{ENDPOINT}/b/k", {"authorization": f"AWS {ACCESS_KEY}:frJIUN8DYpKDtOLCwo//yllqDzg="}))
    assert refused.value.message == (
        "The authorization mechanism you have provided is not supported. Please use AWS4-HMAC-SHA256."
    )


def test_signature_version_4a_is_not_supported() -> None:
    with pytest.raises(NotSupported):
        run(changed(signed(), headers={"authorization": "AWS4-ECDSA-P256-SHA256 Credential=x"}))
    head = presigned()
    with pytest.raises(NotSupported):
        run(changed(head, query=head.query.replace(b"AWS4-HMAC-SHA256", b"AWS4-ECDSA-P256-SHA256")))
    for value in ("STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD-TRAILER", "STREAMING-X"):
        with pytest.raises(NotSupported):
            run(signed("PUT", payload=value))


@pytest.mark.parametrize("value", ["Basic eDp5", "Bearer abc", "", "aws4-hmac-sha256 x"])
def test_other_schemes(value: str) -> None:
    with pytest.raises(InvalidArgument, match="Unsupported Authorization Type") as refused:
        run(changed(signed(), headers={"authorization": value}))
    assert "eDp5" not in repr(refused.value.fields)


def test_temporary_credentials_are_refused() -> None:
    with pytest.raises(InvalidToken):
        run(signed(headers={"x-amz-security-token": "t"}))
    with pytest.raises(InvalidToken):
        run(presigned(url=f"{ENDPOINT}/b/k?X-Amz-Security-Token=t"))


# -- payloads ---------------------------------------------------------------------------------------------------------


def test_payload_hash_is_required_and_well_formed() -> None:
    with pytest.raises(InvalidRequest, match="Missing required header for this request: x-amz-content-sha256"):
        run(changed(signed(), headers={"x-amz-content-sha256": None}))
    for value in ("", "abc", "g" * 64, " " * 64, EMPTY_SHA256 + "0", "unsigned-payload", "sha256"):
        with pytest.raises(InvalidArgument):
            run(signed("PUT", payload=value))


def test_payload_modes() -> None:
    modes = {
        UNSIGNED_PAYLOAD: Payload.UNSIGNED,
        EMPTY_SHA256: Payload.SHA256,
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD": Payload.SIGNED_CHUNKS,
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER": Payload.SIGNED_CHUNKS_TRAILER,
        "STREAMING-UNSIGNED-PAYLOAD-TRAILER": Payload.UNSIGNED_CHUNKS_TRAILER,
    }
    for text, mode in modes.items():
        assert run(signed("PUT", payload=text)).payload is mode


def test_another_payload_hash_than_the_signed_one() -> None:
    for value in (UNSIGNED_PAYLOAD, "0" * 64, "STREAMING-UNSIGNED-PAYLOAD-TRAILER"):
        with pytest.raises(SignatureMismatch):
            run(changed(signed("PUT"), headers={"x-amz-content-sha256": value}))


def test_seed_of_signed_chunks() -> None:
    """Amazon S3 API Reference, "Signature Calculations ... Multiple Chunks": the seed signature of its example."""
    headers = {
        "host": "s3.amazonaws.com", "x-amz-date": "20130524T000000Z", "x-amz-storage-class": "REDUCED_REDUNDANCY",
        "x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "content-encoding": "aws-chunked",
        "x-amz-decoded-content-length": "66560", "content-length": "66824",
        "authorization": "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,SignedHeaders="
        "content-encoding;content-length;host;x-amz-content-sha256;x-amz-date;x-amz-decoded-content-length;x-amz-storage-class,"
        "Signature=4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
    }  # fmt: skip
    result = run(head_of("PUT", "https://s3.amazonaws.com/examplebucket/chunkObject.txt", headers))
    assert result.payload is Payload.SIGNED_CHUNKS
    assert result.seed is not None
    assert result.seed.signature == "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
    assert (result.seed.amz_date, result.seed.scope) == ("20130524T000000Z", "20130524/us-east-1/s3/aws4_request")
    assert len(result.seed.signing_key) == 32
    assert repr(result.seed.signing_key) not in repr(result)


def test_presigned_with_a_payload_hash() -> None:
    head = presigned("PUT", headers={"x-amz-content-sha256": EMPTY_SHA256})
    key = sigv4.derive_key(SECRET, b"20130524", b"us-east-1", b"s3")
    proof = sigv4.signature(
        key, b"20130524T000000Z", b"20130524/us-east-1/s3/aws4_request", "PUT", head.path, head.query, head.headers,
        b"host;x-amz-content-sha256", head.authority, EMPTY_SHA256.encode(), sigv4.PRESIGNED,
    )  # fmt: skip
    query = head.query[: head.query.rindex(b"=") + 1] + proof
    result = run(changed(head, query=query))
    assert (result.payload, result.payload_sha256) == (Payload.SHA256, DIGEST)


def test_presigned_with_the_payload_hash_as_a_parameter() -> None:
    assert run(presigned("PUT", f"{ENDPOINT}/b/k?X-Amz-Content-Sha256=UNSIGNED-PAYLOAD")).payload is Payload.UNSIGNED
    with pytest.raises(InvalidRequest):
        run(
            presigned(
                "PUT", f"{ENDPOINT}/b/k?X-Amz-Content-Sha256=UNSIGNED-PAYLOAD", headers={"x-amz-content-sha256": EMPTY_SHA256}
            )
        )


def test_expect_taken_away_by_a_proxy() -> None:
    head = signed("PUT", headers={"expect": "100-continue"})
    assert run(changed(head, headers={"expect": None})).principal.app is APP
    with pytest.raises(SignatureMismatch):
        run(changed(head, headers={"expect": "something"}))


# -- keys -------------------------------------------------------------------------------------------------------------


def test_a_new_secret_counts_at_once() -> None:
    apps = Apps(APP)
    target = authenticator(apps=apps)

    def ask(head: object) -> object:
        with pytest.raises(StopIteration) as done:
            target.authenticate(head).send(None)  # type: ignore[arg-type]
        return done.value.value.principal.app

    assert ask(signed()) is APP
    apps.apps[ACCESS_KEY] = renewed = App(1, APP.tenant, "app", ACCESS_KEY, "renewed", 2, ())
    with pytest.raises(SignatureMismatch):
        target.authenticate(signed()).send(None)
    assert ask(signed(secret="renewed")) is renewed


def test_signing_keys_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anvil.auth.authenticate.SIGNING_KEYS_MAX", 2)
    target = authenticator(region="eu-north-1", now=NOW)
    heads = [
        presigned(now=NOW - day * DAY, expires_s=7 * DAY, region=region)
        for day in range(4)
        for region in ("us-east-1", "eu-north-1")
    ]
    for head in heads * 2:
        with pytest.raises(StopIteration):
            target.authenticate(head).send(None)
    assert len(target._keys) == 2
    assert limits.SIGNING_KEYS_MAX > 2


def test_nothing_prints_a_secret() -> None:
    target = authenticator()
    with pytest.raises(StopIteration) as done:
        target.authenticate(signed("PUT", payload="STREAMING-AWS4-HMAC-SHA256-PAYLOAD")).send(None)
    key = next(iter(target._keys.values()))
    text = repr((target, done.value.value, done.value.value.principal))
    assert SECRET not in text
    assert repr(key) not in text


def test_a_refusal_never_echoes_a_customer_key() -> None:
    """SSE-C keys travel in a signed header, or in a parameter where an SDK moved it there."""
    name = "x-amz-server-side-encryption-customer-key"
    for head in (signed(headers={name: "S0VZ"}, secret="wrong"), presigned(url=f"{ENDPOINT}/b/k?{name}=S0VZ", secret="wrong")):
        with pytest.raises(SignatureMismatch) as refused:
            run(head)
        assert "S0VZ" not in repr(refused.value.fields)
