"""Mistakes that other stores shipped, tried on a real node over its socket. Named after the advisories they are known by."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from urllib.parse import quote

import pytest

from anvil.auth.presign import sign
from tests.integration.bad_input.conftest import PUBLIC_HOST, World
from tests.support.node import AnvilNode, wait_until
from tests.support.rawclient import Client, exchange, raw_head

UNSIGNED_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
CHUNKS = b"3\r\nnew\r\n0\r\nx-amz-checksum-crc32:kcKxZg==\r\n\r\n"
STREAMED = {"x-amz-decoded-content-length": "3", "x-amz-trailer": "x-amz-checksum-crc32", "content-encoding": "aws-chunked"}
MISMATCH, DENIED = (403, "SignatureDoesNotMatch"), (403, "AccessDenied")


def old_is_there(world: World) -> bool:
    return world.own("GET", "/attacked/kept").body == b"old"


@pytest.mark.parametrize(
    "mode", [UNSIGNED_TRAILER, "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"]
)
def test_cve_2025_31489_streaming_upload_with_a_bad_signature(world: World, mode: str) -> None:
    forger = Client(world.node, world.own.access_key, "x" * 40)
    assert forger("PUT", "/attacked/kept", CHUNKS, STREAMED, mode).face == MISMATCH
    assert world.nobody("PUT", "/attacked/kept", CHUNKS, {**STREAMED, "x-amz-content-sha256": mode}).face == DENIED
    assert old_is_there(world)


def test_cve_2026_40344_unsigned_trailer_with_invented_query_credentials(world: World) -> None:
    day = time.strftime("%Y%m%d", time.gmtime())
    scope = quote(f"{world.own.access_key}/{day}/us-east-1/s3/aws4_request", safe="")
    query = (
        f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={scope}&X-Amz-Date={day}T000000Z&X-Amz-Expires=86400"
        f"&X-Amz-SignedHeaders=host&X-Amz-Signature={'0' * 64}"
    )
    headers = {**STREAMED, "x-amz-content-sha256": UNSIGNED_TRAILER}
    answer = world.nobody("PUT", f"/attacked/kept?{query}", CHUNKS, headers)
    assert answer.face == DENIED and b"<HeadersNotSigned>" in answer.body
    assert old_is_there(world)


def test_cve_2026_41145_unsigned_trailer_smuggled_into_a_presigned_request(world: World) -> None:
    url = world.own.presigned("PUT", "/attacked/kept")
    for headers in ({**STREAMED, "x-amz-content-sha256": UNSIGNED_TRAILER}, {"x-amz-content-sha256": UNSIGNED_TRAILER}):
        assert world.nobody("PUT", url, CHUNKS, headers).face == DENIED
    assert world.nobody("PUT", f"{url}&X-Amz-Content-Sha256={UNSIGNED_TRAILER}", CHUNKS).face == MISMATCH
    assert old_is_there(world)


def test_cve_2026_97731_a_copy_source_added_to_a_presigned_put(world: World) -> None:
    url = world.own.presigned("PUT", "/attacked/dropbox")
    for name in ("x-amz-copy-source", "X-AMZ-Copy-Source", "x-amz-meta-a", "x-amz-acl", "x-amz-storage-class", "x-amz-tagging"):
        answer = world.nobody("PUT", url, b"", {name: "/second/kept"})
        assert answer.face == DENIED and b"<HeadersNotSigned>" in answer.body
    assert world.nobody("PUT", f"{url}&x-amz-copy-source=%2Fsecond%2Fkept").face == MISMATCH
    signed = world.own.headers("PUT", "/attacked/dropbox")
    assert world.nobody("PUT", "/attacked/dropbox", b"", {**signed, "x-amz-copy-source": "/second/kept"}).face == DENIED
    assert world.own("GET", "/attacked/dropbox").face == (404, "NoSuchKey")


def test_cve_2026_34204_internal_metadata_is_not_set_by_headers(world: World) -> None:
    """What is not the client's to say is ignored or refused, and never comes back as if it were ours."""
    inventions = {
        "x-minio-internal-replication-status": "COMPLETED", "x-anvil-internal-owner": "rival", "x-amz-version-id": "forged",
        "x-amz-internal-tenant": "2", "x-amz-replication-status": "REPLICA", "x-amz-delete-marker": "true",
        "etag": '"forged"', "last-modified": "Thu, 01 Jan 1970 00:00:00 GMT", "x-amz-checksum-type": "COMPOSITE",
    }  # fmt: skip
    answer = world.own("PUT", "/attacked/internal", b"new", inventions)
    assert answer.status == 200
    found = world.own("HEAD", "/attacked/internal").headers
    for name, value in inventions.items():
        assert found.get(name) != value, name
    assert found["etag"] == '"22af645d1859cb5ca6da0c484f1f37ea"', "the MD5 of what was sent"


def test_cve_2023_25812_a_bypass_of_governance_is_not_accepted_silently(world: World) -> None:
    for headers in ({"x-amz-bypass-governance-retention": "true"}, {"x-amz-object-lock-mode": "GOVERNANCE"}):
        assert world.own("PUT", "/attacked/locked", b"x", headers).face == (501, "NotImplemented")
    assert world.own("DELETE", "/attacked/kept", headers={"x-amz-bypass-governance-retention": "true"}).face == (
        501,
        "NotImplemented",
    )
    assert old_is_there(world)


@pytest.mark.parametrize(
    "target",
    ["/attacked/../second/kept", "/attacked/%2e%2e/second/kept", "/attacked/%2E%2E%2Fsecond%2Fkept", "/attacked/./../second/kept",
     "/attacked/..%5csecond%5ckept", "/attacked//../second/kept"],
)  # fmt: skip
def test_cve_2026_54917_dot_segments_do_not_cross_buckets(world: World, target: str) -> None:
    """They are part of the key, in each way of writing it, for each method, for the narrow app and for the wide one."""
    assert world.own("GET", target).face == (404, "NoSuchKey")
    assert world.own("PUT", target, b"dots").status == 200
    assert world.own("GET", "/second/kept").body == b"second"
    assert world.own("GET", target).body == b"dots"
    assert world.reader("GET", target).face == DENIED
    assert world.own("DELETE", target).status == 204
    assert world.own("GET", "/second/kept").body == b"second"


@pytest.mark.parametrize(
    "target", ["/..%2fsecond/kept", "/attacked%2f..%2fsecond/kept", "/./second/kept", "/../second/kept", "//second/kept"]
)
def test_no_bucket_has_such_a_name(world: World, target: str) -> None:
    assert world.own("GET", target).face == (400, "InvalidBucketName")


def test_cve_2026_58372_parent_segments_in_a_deletion(world: World) -> None:
    keys = ["../second/kept", "/../second/kept", "..%2fsecond%2fkept", "public/../kept", "../../../etc/passwd"]
    document = "<Delete>" + "".join(f"<Object><Key>{key}</Key></Object>" for key in keys) + "</Delete>"
    stated = {"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(document.encode()).digest()).decode()}
    deleter = world.app("default", "deleter", ("object:delete", "attacked/public/*"))
    wait_until("the app is known", lambda: deleter("DELETE", "/attacked/public/x").status == 204)
    answer = deleter("POST", "/attacked?delete", document.encode(), stated)
    assert answer.status == 200
    assert answer.body.count(b"<Code>AccessDenied</Code>") == 4 and answer.body.count(b"<Deleted>") == 1
    assert old_is_there(world) and world.own("GET", "/second/kept").body == b"second"
    assert world.own("POST", "/attacked?delete", document.encode(), stated).body.count(b"<Deleted>") == 5
    assert old_is_there(world) and world.own("GET", "/second/kept").body == b"second"


def test_cve_2026_21862_forwarded_headers_are_not_believed(world: World) -> None:
    """Not for signatures, where the peer is no trusted proxy; and they never make a request local."""
    signed = world.own.headers("GET", "/attacked/kept")
    host = {"host": "elsewhere.example", "x-forwarded-host": signed["host"], "forwarded": f"host={signed['host']}"}
    lines = [*{**signed, **host}.items()]
    assert exchange(world.node.port, raw_head("GET", "/attacked/kept", lines)).face == MISMATCH
    for name in ("x-forwarded-for", "x-real-ip", "forwarded", "via", "x-forwarded-host"):
        assert world.node.get("/metrics", {name: "127.0.0.1"})[0] == 403


def test_metrics_need_authorization(tmp_path_factory: pytest.TempPathFactory) -> None:
    token = "0123456789abcdef-of-metrics"
    with AnvilNode(tmp_path_factory.mktemp("metrics") / "data", {"ANVIL_WORKERS": "1", "ANVIL_METRICS_TOKEN": token}) as node:
        assert node.get("/metrics")[0] == 401
        for wrong in ("Bearer", "Bearer ", "Bearer x", f"Basic {token}", f"Bearer {token}x", token, f"Bearer {token[:-1]}"):
            assert node.get("/metrics", {"authorization": wrong})[0] == 401, wrong
        status, _, text = node.get("/metrics", {"authorization": f"Bearer {token}"})
        assert status == 200 and token.encode() not in text and node.secret_key.encode() not in text


def test_cve_2023_28432_nothing_tells_the_environment(world: World) -> None:
    for path in (
        "/minio/bootstrap/v1/verify",
        "/debug",
        "/env",
        "/ready",
        "/ready/cluster",
        "/",
        "/metrics",
        "/.env",
        "/ready/../env",
    ):
        status, _, body = world.node.get(path)
        assert status in (200, 400, 403), path
        for secret in (world.own.secret.encode(), b"ANVIL_SECRET", b"postgresql://", str(world.node.data_dir).encode()):
            assert secret not in body


def test_credentials_in_two_places(world: World) -> None:
    url = world.own.presigned("GET", "/attacked/kept")
    assert world.own("GET", url).face == (400, "InvalidRequest")
    assert world.own("GET", "/attacked/kept?AWSAccessKeyId=a&Signature=b&Expires=1").face == (400, "InvalidRequest")
    mixed = f"{url}&AWSAccessKeyId={world.own.access_key}&Signature=x&Expires=9999999999"
    assert world.nobody("GET", mixed).face == (400, "AuthorizationQueryParametersError")
    twice = world.own.headers("GET", "/attacked/kept")
    lines = [*twice.items(), ("authorization", twice["authorization"])]
    assert exchange(world.node.port, raw_head("GET", "/attacked/kept", lines)).face == (400, "InvalidRequest")


def test_a_presigned_url_is_bound_to_method_host_path_and_query(world: World) -> None:
    url = world.own.presigned("GET", "/attacked/kept")
    nobody = world.nobody
    assert nobody("GET", url).body == b"old"
    for method in ("HEAD", "PUT", "DELETE", "POST"):
        assert nobody(method, url).status == 403, method
    assert nobody("GET", url.replace("kept", "public/kept")).face == MISMATCH
    assert nobody("GET", url + "&response-content-type=text/html").face == MISMATCH
    assert nobody("GET", url + "&uploads").face == MISMATCH
    assert nobody("GET", url.replace("Expires=600", "Expires=604800")).face == MISMATCH
    assert exchange(world.node.port, raw_head("GET", url, [("host", "other.example")])).face == MISMATCH
    assert nobody("GET", url.replace("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders=date")).face == DENIED


# -- signature version 2, which boto3 still presigns with for us-east-1 ------------------------------------------------------


def presigned_v2(client: Client, method: str, resource: str, expires_s: int = 600, headers: str = "") -> str:
    """The query that allows `method` on `resource` (`/bucket/key`), as the S3 User Guide has it."""
    expires = int(time.time()) + expires_s
    text = f"{method}\n\n\n{expires}\n{headers}{resource}"
    proof = base64.b64encode(hmac.digest(client.secret.encode(), text.encode(), "sha1")).decode()
    return f"AWSAccessKeyId={client.access_key}&Signature={quote(proof, safe='')}&Expires={expires}"


def test_sigv2_presigned_cannot_be_widened(world: World) -> None:
    own, nobody = world.own, world.nobody
    query = presigned_v2(own, "GET", "/attacked/kept")
    assert nobody("GET", f"/attacked/kept?{query}").body == b"old"
    for method in ("HEAD", "PUT", "DELETE"):
        assert nobody(method, f"/attacked/kept?{query}").status == 403
    assert nobody("GET", f"/second/kept?{query}").face == MISMATCH
    for added in ("&acl", "&uploads", "&versionId=null", "&response-content-type=text/html", "&x-amz-copy-source=/second/kept"):
        assert nobody("GET", f"/attacked/kept?{query}{added}").face == MISMATCH
    for added in (
        "&prefix=a",
        "&list-type=2",
        "&max-keys=1",
        "&attributes",
        "&X-Amz-Meta-A=1",
        "&Signature=x",
        "&partNumber=1&x=y",
    ):
        assert nobody("GET", f"/attacked/kept?{query}{added}").status in (400, 403)
    put = presigned_v2(own, "PUT", "/attacked/v2")
    assert nobody("PUT", f"/attacked/v2?{put}", b"", {"x-amz-copy-source": "/second/kept"}).face == MISMATCH
    assert nobody("PUT", f"/attacked/v2?{put}&x-amz-copy-source=/second/kept").face == MISMATCH
    assert nobody("PUT", f"/attacked/v2?{put}", CHUNKS, {**STREAMED, "x-amz-content-sha256": UNSIGNED_TRAILER}).status in (
        400,
        403,
    )
    late = presigned_v2(own, "GET", "/attacked/kept", -10)
    assert nobody("GET", f"/attacked/kept?{late}").face == DENIED
    assert nobody("GET", f"/attacked/kept?{presigned_v2(own, 'GET', '/attacked/kept', 30 * 86400)}").face == DENIED
    assert nobody("GET", f"/attacked/kept?{presigned_v2(world.other, 'GET', '/attacked/kept')}").face == (404, "NoSuchBucket")


@pytest.mark.parametrize("host", [f"attacked.{PUBLIC_HOST}", f"ATTACKED.{PUBLIC_HOST}:80", f"x.attacked.{PUBLIC_HOST}"])
def test_sigv2_does_not_open_another_bucket_through_a_host_name(world: World, host: str) -> None:
    """Version 2 does not sign the host. A URL for attacked/second/kept, sent to the host attacked.<public endpoint> with the path
    /second/kept, was verified for the one bucket and served from the other."""
    assert world.own("PUT", "/attacked/second/kept", b"in attacked").status == 200
    query = presigned_v2(world.own, "GET", "/attacked/second/kept")
    answer = exchange(world.node.port, raw_head("GET", f"/second/kept?{query}", [("host", host)]))
    assert answer.body == b"in attacked" if host.lower().startswith("attacked") else answer.face == MISMATCH


def test_sigv2_in_a_header_is_refused(world: World) -> None:
    headers = {"authorization": f"AWS {world.own.access_key}:AAAA", "date": "Mon, 23 Nov 2026 19:00:00 GMT"}
    assert world.nobody("GET", "/attacked/kept", headers=headers).face == (400, "InvalidRequest")


def test_requests_recorded_earlier_and_made_for_later(world: World) -> None:
    own = world.own
    for seconds in (-901, 901):
        url = f"http://{own.host}/attacked/kept"
        headers = sign("GET", url, None, "UNSIGNED-PAYLOAD", own.access_key, own.secret, "us-east-1", time.time() + seconds)
        assert world.nobody("GET", "/attacked/kept", headers=headers).face == (403, "RequestTimeTooSkewed")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (("us-east-1/s3", "eu-west-1/s3"), (400, "AuthorizationHeaderMalformed")),
        (("us-east-1/s3", "us-east-1/iam"), (400, "AuthorizationHeaderMalformed")),
        (("aws4_request", "aws5_request"), (400, "AuthorizationHeaderMalformed")),
        (("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"), (400, "InvalidArgument")),
        (("AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256"), (501, "NotImplemented")),
        (("AWS4-HMAC-SHA256", "none"), (400, "InvalidArgument")),
        (("SignedHeaders=host;", "SignedHeaders="), (403, "AccessDenied")),
        (("SignedHeaders=host;", "SignedHeaders=Host;"), (400, "AuthorizationHeaderMalformed")),
        (("Signature=", "Signature=,Signature="), (400, "AuthorizationHeaderMalformed")),
        (("Credential=", "Credential=x/"), (403, "InvalidAccessKeyId")),
    ],
)  # fmt: skip
def test_mangled_authorization_headers(world: World, change: tuple[str, str], expected: tuple[int, str]) -> None:
    headers = world.own.headers("GET", "/attacked/kept")
    headers["authorization"] = headers["authorization"].replace(*change, 1)
    answer = world.nobody("GET", "/attacked/kept", headers=headers)
    assert answer.face == expected
    assert world.own.secret.encode() not in answer.body
