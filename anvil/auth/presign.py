"""The client's side of SigV4: signed headers and presigned URLs, for the command line, benchmarks and tests.

Owns: making signatures. Invariant: what is sent is what is signed, so paths and queries leave here canonically encoded. Not
here: verification (`authenticate.py`), sending. Source: Amazon S3 API Reference, "Signature Calculations for the Authorization
Header" and "Authenticating Requests: Using Query Parameters".
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import quote, urlsplit

from anvil.auth.credentials import amz_date
from anvil.auth.sigv4 import PRESIGNED, canonical_path, canonical_query, derive_key, signature
from anvil.base.limits import PRESIGNED_S_MAX

UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
_PORTS = {"http": ":80", "https": ":443"}


def object_url(endpoint: str, bucket: str, key: str | None = None) -> str:
    """The path-style URL of a bucket or of any key in it, canonically encoded. `endpoint` is like `http://127.0.0.1:50051`."""
    path = f"/{bucket}" if key is None else f"/{bucket}/{quote(key, safe='/~')}"
    return endpoint.rstrip("/") + path


def _parts(url: str) -> tuple[str, str, bytes, bytes]:
    """What stands before the path, the Host an HTTP client sends, canonical path, canonical query."""
    split = urlsplit(url)
    if split.scheme not in _PORTS or not split.netloc or split.fragment or split.username is not None:
        raise ValueError("the URL must be http or https, with a host and without user or fragment (encode a # in a key as %23)")
    host = split.netloc.removesuffix(_PORTS[split.scheme])
    path, query = canonical_path(split.path.encode()), canonical_query(split.query.encode())
    return f"{split.scheme}://{split.netloc}", host, path, query


def _lower(headers: Mapping[str, str] | None, host: str) -> dict[str, str]:
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    lower["host"] = host
    return lower


def _sign(
    secret: str,
    region: str,
    amz_date: bytes,
    method: str,
    path: bytes,
    query: bytes,
    headers: Mapping[str, str],
    payload_hash: str,
    flags: int,
) -> str:
    """The signature over all of `headers`, whose names are lower case and among which is `host`."""
    key = derive_key(secret, amz_date[:8], region.encode(), b"s3")
    scope = f"{amz_date[:8].decode()}/{region}/s3/aws4_request".encode()
    pairs = tuple((name.encode(), value.encode()) for name, value in headers.items())
    signed, host = ";".join(sorted(headers)).encode(), headers["host"].encode()
    return signature(key, amz_date, scope, method, path, query, pairs, signed, host, payload_hash.encode(), flags).decode()


def presign(
    method: str,
    url: str,
    access_key: str,
    secret: str,
    region: str,
    expires_s: int,
    now: float,
    headers: Mapping[str, str] | None = None,
) -> str:
    """A URL that lets whoever has it make that one request until `now + expires_s` (Unix seconds; at most a week).

    `headers` must be sent with the request exactly as given here. Raises ValueError for a bad URL or time."""
    if not 0 < expires_s <= PRESIGNED_S_MAX:
        raise ValueError(f"a presigned URL lasts 1 to {PRESIGNED_S_MAX} seconds, not {expires_s}")
    base, host, path, query = _parts(url)
    lower, when = _lower(headers, host), amz_date(int(now))
    credential = f"{access_key}/{when[:8].decode()}/{region}/s3/aws4_request"
    added = {
        "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
        "X-Amz-Credential": credential,
        "X-Amz-Date": when.decode(),
        "X-Amz-Expires": str(expires_s),
        "X-Amz-SignedHeaders": ";".join(sorted(lower)),
    }
    text = "&".join(f"{name}={quote(value, safe='-_.~')}" for name, value in added.items())
    query = canonical_query(query + b"&" + text.encode())
    proof = _sign(secret, region, when, method, path, query, lower, UNSIGNED_PAYLOAD, PRESIGNED)
    return f"{base}{path.decode()}?{query.decode()}&X-Amz-Signature={proof}"


def sign(
    method: str,
    url: str,
    headers: Mapping[str, str] | None,
    payload_hash: str,
    access_key: str,
    secret: str,
    region: str,
    now: float,
) -> dict[str, str]:
    """All headers to send, lower case: those given, host, x-amz-date, x-amz-content-sha256 and authorization.

    `payload_hash` is a hex SHA-256 (`EMPTY_SHA256` without a body), `UNSIGNED_PAYLOAD`, or a STREAMING-... value; `now` is Unix
    seconds. Raises ValueError for a bad URL."""
    _, host, path, query = _parts(url)
    when = amz_date(int(now))
    lower = _lower(headers, host) | {"x-amz-date": when.decode(), "x-amz-content-sha256": payload_hash}
    proof = _sign(secret, region, when, method, path, query, lower, payload_hash, 0)
    credential = f"{access_key}/{when[:8].decode()}/{region}/s3/aws4_request"
    lower["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders={';'.join(sorted(lower))}, Signature={proof}"
    )
    return lower
