"""Requests that botocore signs, with awkward keys, are accepted; what `presign.py` makes is what botocore makes."""

from __future__ import annotations

import datetime
import time
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import botocore.auth
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSRequest, AWSResponse
from botocore.config import Config
from botocore.credentials import Credentials
from heads import ACCESS_KEY, APP, ENDPOINT, NOW, SECRET, head_of, run
from hypothesis import given, settings
from hypothesis import strategies as st

from anvil.auth.presign import EMPTY_SHA256, UNSIGNED_PAYLOAD, object_url, presign, sign
from anvil.auth.types import Payload

KEYS = [
    "plain", "with space", "a+b", "a//b", "//", "a/../b", "../a", "./a/.", "%2F", "a%2Fb", "100%", "%", "*", "~tilde~",
    "a~*'()!",
    "ünï/cödé/€/\N{GRINNING FACE}", "a=b&c=d", "q?x=1", "h#ash", "semi;colon", "at@col:on", "tab\tkey", "new\nline", "\\back",
    "a b+c%20d",
    "[brackets]", '"quotes"', "trailing/", "-._~",
]  # fmt: skip
CREDENTIALS = Credentials(ACCESS_KEY, SECRET)


def client(endpoint: str = ENDPOINT, **config: Any) -> tuple[Any, list[AWSPreparedRequest]]:
    """A boto3 client whose requests are recorded instead of sent."""
    s3 = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET,
        config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, **config),
    )  # fmt: skip
    sent: list[AWSPreparedRequest] = []

    class Raw:
        def stream(self, **_: object) -> list[bytes]:
            return []

    def record(request: AWSPreparedRequest, **_: object) -> AWSResponse:
        sent.append(request)
        return AWSResponse(request.url, 200, {}, Raw())

    s3.meta.events.register("before-send.s3", record)
    return s3, sent


def arrived(request: AWSPreparedRequest) -> Any:
    headers = {name.lower(): value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()}
    # With awscrt installed, botocore signs with it and names the host itself; else the connection would.
    headers.setdefault("host", urlsplit(request.url).netloc)
    return head_of(request.method, request.url, headers)


@pytest.mark.parametrize("key", KEYS)
def test_boto3_requests(key: str) -> None:
    s3, sent = client()
    s3.put_object(Bucket="bucket", Key=key, Body=b"12345", Metadata={"a": "two  words", "b": "x"})
    s3.get_object(Bucket="bucket", Key=key, Range="bytes=0-9")
    s3.copy_object(Bucket="bucket", Key=key, CopySource={"Bucket": "bucket", "Key": key})
    s3.list_objects_v2(Bucket="bucket", Prefix=key, Delimiter="/", StartAfter=key)
    s3.list_objects_v2(Bucket="bucket", ContinuationToken=key + "==")
    s3.delete_object(Bucket="bucket", Key=key)
    assert len(sent) == 6
    for request in sent:
        assert run(arrived(request), now=time.time()).principal.app is APP


@pytest.mark.parametrize("key", KEYS)
def test_boto3_presigned_urls(key: str) -> None:
    s3, _ = client(signature_version="s3v4")
    for operation, method in (("get_object", "GET"), ("put_object", "PUT"), ("delete_object", "DELETE")):
        url = s3.generate_presigned_url(operation, Params={"Bucket": "bucket", "Key": key}, ExpiresIn=60)
        result = run(head_of(method, url), now=time.time())
        assert result.principal.app is APP
        assert result.presigned
    url = s3.generate_presigned_url(
        "get_object",
        Params={"Bucket": "bucket", "Key": key, "ResponseContentDisposition": f'attachment; filename="{quote(key)}"'},
    )
    assert run(head_of("GET", url), now=time.time()).principal.app is APP


@pytest.mark.parametrize("key", KEYS)
def test_botocore_signers_on_bare_urls(key: str) -> None:
    """The signers alone sign path and query as they stand, encoded well or not."""
    raw = key.replace("#", "%23").replace("?", "%3F").replace("\n", "%0A").replace("\t", "%09")
    for path in (quote(key, safe="/~"), quote(key, safe=""), raw):
        for query in ("", "?prefix=" + quote(key, safe=""), "?prefix=a+b/c&acl"):
            url = f"{ENDPOINT}/bucket/{path}{query}"
            header = AWSRequest("GET", url)
            botocore.auth.S3SigV4Auth(CREDENTIALS, "s3", "us-east-1").add_auth(header)
            assert run(arrived(header.prepare()), now=time.time()).principal.app is APP
            in_query = AWSRequest("GET", url)
            botocore.auth.S3SigV4QueryAuth(CREDENTIALS, "s3", "us-east-1", expires=60).add_auth(in_query)
            assert run(head_of("GET", in_query.url), now=time.time()).principal.app is APP


def test_boto3_uploads_over_tls_use_the_unsigned_trailer() -> None:
    s3, sent = client("https://s3.example.com")
    s3.put_object(Bucket="bucket", Key="k", Body=b"12345")
    result = run(arrived(sent[0]), now=time.time())
    assert (result.principal.app, result.payload, result.seed) == (APP, Payload.UNSIGNED_CHUNKS_TRAILER, None)


# -- our own client's side --------------------------------------------------------------------------------------------


class _Frozen(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(NOW, tz)

    @classmethod
    def utcnow(cls) -> datetime.datetime:
        return datetime.datetime.fromtimestamp(NOW, datetime.UTC).replace(tzinfo=None)


@pytest.mark.parametrize("key", KEYS)
def test_presign_and_sign_equal_botocore(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda remove_tzinfo=True: _Frozen.utcnow())
    url = object_url(ENDPOINT, "bucket", key)
    request = AWSRequest("GET", url)
    botocore.auth.S3SigV4QueryAuth(CREDENTIALS, "s3", "us-east-1", expires=60).add_auth(request)
    ours = presign("GET", url, ACCESS_KEY, SECRET, "us-east-1", 60, NOW)
    assert ours.rpartition("=")[2] == request.url.rpartition("=")[2]
    assert ours.partition("?")[0] == request.url.partition("?")[0]
    request = AWSRequest("GET", url, headers={"range": "bytes=0-9"})
    botocore.auth.S3SigV4Auth(CREDENTIALS, "s3", "us-east-1").add_auth(request)
    headers = sign("GET", url, {"Range": "bytes=0-9"}, EMPTY_SHA256, ACCESS_KEY, SECRET, "us-east-1", NOW)
    assert headers["authorization"] == request.headers["Authorization"]


def test_the_published_presigned_url() -> None:
    """Amazon S3 API Reference, "Authenticating Requests: Using Query Parameters"."""
    url = presign("GET", "https://examplebucket.s3.amazonaws.com/test.txt", ACCESS_KEY, SECRET, "us-east-1", 86400, NOW)
    assert url == (
        "https://examplebucket.s3.amazonaws.com/test.txt?X-Amz-Algorithm=AWS4-HMAC-SHA256"
        "&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date=20130524T000000Z"
        "&X-Amz-Expires=86400&X-Amz-SignedHeaders=host"
        "&X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
    )


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=40).filter(lambda key: key.isprintable()), st.text(max_size=20))
def test_what_we_sign_we_accept(key: str, prefix: str) -> None:
    url = object_url(ENDPOINT, "bucket", key) + "?prefix=" + quote(prefix, safe="")
    assert run(head_of("PUT", presign("PUT", url, ACCESS_KEY, SECRET, "us-east-1", 60, NOW))).principal.app is APP
    headers = sign("PUT", url, {"x-amz-meta-a": "1"}, UNSIGNED_PAYLOAD, ACCESS_KEY, SECRET, "us-east-1", NOW)
    assert run(head_of("PUT", url, headers)).principal.app is APP


@pytest.mark.parametrize("url", ["ftp://h/b", "/b/k", "http:///b", "http://h/b#k", "http://u@h/b"])
def test_bad_urls(url: str) -> None:
    with pytest.raises(ValueError, match="the URL must be"):
        presign("GET", url, ACCESS_KEY, SECRET, "us-east-1", 60, NOW)


@pytest.mark.parametrize("expires_s", [0, -1, 7 * 86400 + 1])
def test_bad_times(expires_s: int) -> None:
    with pytest.raises(ValueError, match="lasts 1 to 604800 seconds"):
        presign("GET", f"{ENDPOINT}/b/k", ACCESS_KEY, SECRET, "us-east-1", expires_s, NOW)
