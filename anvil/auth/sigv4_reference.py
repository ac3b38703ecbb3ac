"""AWS Signature Version 4 as S3 uses it, written to be read; `sigv4.pyx` does the same in C and is what runs.

Owns: the rules of canonicalization, with their reasons. Source: Amazon S3 API Reference, "Signature Calculations for the
Authorization Header" and "Authenticating Requests: Using Query Parameters". Invariant: a request is accepted for a text that
somebody signed only if both decode to the same path and the same parameters (in any order, so nobody above may give meaning to
the order of equal parameters); a signature never serves another request than the one signed.

Two forms of path and query exist, because clients differ in what they sign when what they send is not canonically encoded:

- canonical (default): decode, then encode once, parameters sorted. What every SDK signs, whatever it sends. No dot segments are
  removed and no slashes merged, since `..` and `//` are legal in keys. `%2F` in a path stays `%2F`: an encoded slash is never
  taken for a separator. A `+` in a query is a space, as forms and the clients in Go and Java have it; in a path it is itself.
- VERBATIM: as sent, parameters only sorted. What botocore's bare signer signs. It cannot be turned into another request: the
  signed text is the sent text.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools

PRESIGNED = 1
VERBATIM = 2

_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")  # RFC 3986 section 2.3
_HEX = frozenset(b"0123456789ABCDEFabcdef")

Headers = tuple[tuple[bytes, bytes], ...]


def _units(text: bytes) -> list[tuple[int, bool]]:
    """The bytes that `text` stands for, each with whether it was percent-encoded. A stray `%` stands for itself."""
    units = []
    at = 0
    while at < len(text):
        pair = text[at + 1 : at + 3]
        if text[at] == ord("%") and len(pair) == 2 and all(digit in _HEX for digit in pair):
            units.append((int(pair, 16), True))
            at += 3
        else:
            units.append((text[at], False))
            at += 1
    return units


def _encode(byte: int) -> bytes:
    return bytes([byte]) if byte in _UNRESERVED else b"%%%02X" % byte


def canonical_path(path: bytes) -> bytes:
    """The path, encoded once; `/` for an empty one."""
    return b"".join(b"/" if (byte, encoded) == (ord("/"), False) else _encode(byte) for byte, encoded in _units(path)) or b"/"


def _component(text: bytes) -> bytes:
    return b"".join(b"%20" if (byte, encoded) == (ord("+"), False) else _encode(byte) for byte, encoded in _units(text))


def canonical_query(query: bytes, flags: int = 0) -> bytes:
    """`name=value` pairs, encoded once, sorted by name, then value; duplicates stay. A name without `=` has an empty value."""
    if not query:
        return b""
    pairs = []
    for text in query.split(b"&"):
        name, _, value = text.partition(b"=")
        if flags & VERBATIM:
            pairs.append((name, value))
        elif text:
            pairs.append((_component(name), _component(value)))
    if flags & PRESIGNED:
        pairs = [pair for pair in pairs if pair[0] != b"X-Amz-Signature"]
    return b"&".join(name + b"=" + value for name, value in sorted(pairs))


def _collapsed(value: bytes) -> bytes:
    return b" ".join(word for word in value.replace(b"\t", b" ").split(b" ") if word)


def canonical_request(
    method: str,
    path: bytes,
    query: bytes,
    headers: Headers,
    signed_headers: bytes,
    host: bytes,
    payload_hash: bytes,
    flags: int = 0,
) -> bytes:
    """The canonical request. `path` and `query` are raw; `headers` have lower-case names; `signed_headers` is the client's list,
    joined by `;`; `host` is taken for the value of the header of that name, because HTTP/2 has `:authority` instead and proxies
    rewrite it; `payload_hash` is the value of x-amz-content-sha256, or UNSIGNED-PAYLOAD for presigned requests."""
    lines = []
    for name in signed_headers.split(b";"):
        values = [host] if name == b"host" else [value for key, value in headers if key == name]
        lines.append(name + b":" + b",".join(_collapsed(value) for value in values) + b"\n")
    uri = (path or b"/") if flags & VERBATIM else canonical_path(path)
    return b"\n".join([method.encode(), uri, canonical_query(query, flags), b"".join(lines), signed_headers, payload_hash])


def string_to_sign(amz_date: bytes, scope: bytes, canonical: bytes) -> bytes:
    """Algorithm, time, scope and the hash of the canonical request, one per line."""
    return b"\n".join([b"AWS4-HMAC-SHA256", amz_date, scope, hashlib.sha256(canonical).hexdigest().encode()])


def signature(
    key: bytes,
    amz_date: bytes,
    scope: bytes,
    method: str,
    path: bytes,
    query: bytes,
    headers: Headers,
    signed_headers: bytes,
    host: bytes,
    payload_hash: bytes,
    flags: int = 0,
) -> bytes:
    """The signature of a request, 64 lower-case hex digits. `key`: from `derive_key`; the rest as in `canonical_request`."""
    canonical = canonical_request(method, path, query, headers, signed_headers, host, payload_hash, flags)
    return hmac.new(key, string_to_sign(amz_date, scope, canonical), "sha256").hexdigest().encode()


def derive_key(secret: str, date: bytes, region: bytes, service: bytes) -> bytes:
    """The signing key of a secret for a day (`20130524`), a region and a service: 32 bytes."""
    key = b"AWS4" + secret.encode()
    for text in (date, region, service, b"aws4_request"):
        key = hmac.digest(key, text, "sha256")
    return key


def signed_headers_valid(signed_headers: bytes) -> bool:
    """Whether a SignedHeaders list is lower case, strictly ascending and without empty or odd names.

    Strictness costs no real client anything and leaves one spelling for one set of headers."""
    names = signed_headers.split(b";")
    if any(
        not name or any(byte <= 32 or byte >= 127 or byte in b":,ABCDEFGHIJKLMNOPQRSTUVWXYZ" for byte in name) for name in names
    ):
        return False
    return all(before < after for before, after in itertools.pairwise(names))


def unsigned_headers(headers: Headers, signed_headers: bytes) -> list[bytes]:
    """Names that had to be in SignedHeaders and are not: `host` and every `x-amz-*` header of the request.

    An unsigned x-amz-copy-source would turn a presigned PUT into a copy of anything the signer can read."""
    signed = signed_headers.split(b";")
    missing = [] if b"host" in signed else [b"host"]
    for name, _ in headers:
        if name.startswith(b"x-amz-") and name not in signed and name not in missing:
            missing.append(name)
    return missing
