PRESIGNED: int
"""Flag: leave the query parameter X-Amz-Signature out of the canonical query."""
VERBATIM: int
"""Flag: take path and query as sent, only sorting parameters."""

def canonical_path(path: bytes) -> bytes: ...
def canonical_query(query: bytes, flags: int = 0) -> bytes: ...
def canonical_request(
    method: str,
    path: bytes,
    query: bytes,
    headers: tuple[tuple[bytes, bytes], ...],
    signed_headers: bytes,
    host: bytes,
    payload_hash: bytes,
    flags: int = 0,
) -> bytes: ...
def string_to_sign(amz_date: bytes, scope: bytes, canonical: bytes) -> bytes: ...
def signature(
    key: bytes,
    amz_date: bytes,
    scope: bytes,
    method: str,
    path: bytes,
    query: bytes,
    headers: tuple[tuple[bytes, bytes], ...],
    signed_headers: bytes,
    host: bytes,
    payload_hash: bytes,
    flags: int = 0,
) -> bytes: ...
def derive_key(secret: str, date: bytes, region: bytes, service: bytes) -> bytes: ...
def signed_headers_valid(signed_headers: bytes) -> bool: ...
def unsigned_headers(headers: tuple[tuple[bytes, bytes], ...], signed_headers: bytes) -> list[bytes]: ...
