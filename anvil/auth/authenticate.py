"""From the head of a request to who sent it, and how its payload is to be verified.

Owns: the order of the checks and the cache of signing keys. Invariant: a principal other than the anonymous comes out only
after its signature over method, path, query, host, every `x-amz-*` header and the payload's hash has been verified with the
app's present secret, within its time; and a payload mode that promises a signature comes out only with one. Not here: rights
(`authorize.py`), bodies and chunk signatures (`wire/awschunked`), bearer tokens of gRPC.

No secret and no signing key reaches a message, a field of an error or a repr.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Container, Sequence
from hmac import compare_digest

from anvil.auth.credentials import (
    Claim,
    header_claim,
    is_v2,
    iso,
    parse_payload,
    printable,
    query_claim,
    query_credentials,
    single_headers,
)
from anvil.auth.hosts import Hosts
from anvil.auth.sigv2 import claim_v2, verify_v2
from anvil.auth.sigv4 import PRESIGNED, VERBATIM, canonical_request, derive_key, signature, string_to_sign, unsigned_headers
from anvil.auth.types import Authenticated, ChunkSeed, Payload, SignedElsewhere
from anvil.base.errors import (
    AccessDenied,
    AnvilError,
    AuthorizationHeaderMalformed,
    AuthorizationQueryError,
    InvalidAccessKey,
    InvalidRequest,
    InvalidToken,
    RequestExpired,
    RequestTimeSkewed,
    SignatureMismatch,
)
from anvil.base.limits import CLOCK_SKEW_S_MAX, SIGNING_KEYS_MAX
from anvil.engine.ports import Catalog
from anvil.model.identity import ANONYMOUS, App, Principal
from anvil.net.stream import RequestHead

DEFAULT_REGION = "us-east-1"  # what clients sign for when nobody configured one
_SERVICE = b"s3"
_UNSIGNED = b"UNSIGNED-PAYLOAD"
_STREAMING = (Payload.SIGNED_CHUNKS, Payload.SIGNED_CHUNKS_TRAILER, Payload.UNSIGNED_CHUNKS_TRAILER)
_SIGNED_STREAMING = (Payload.SIGNED_CHUNKS, Payload.SIGNED_CHUNKS_TRAILER)

Headers = tuple[tuple[bytes, bytes], ...]


class Authenticator:
    """Verifies SigV4 in the header or the query, or finds that a request is anonymous.

    `region` is the node's; `regions` tells all there are (without it, those of others are like unknown ones);
    `public_endpoints` are the names clients use when a proxy stands between (`Hosts`); `clock` gives Unix seconds;
    `trusted_proxies` are addresses or networks whose X-Forwarded-Host counts."""

    __slots__ = ("_all_regions", "_catalog", "_clock", "_keys", "_region", "_regions", "hosts")

    def __init__(
        self,
        catalog: Catalog,
        region: str,
        public_endpoints: Sequence[str] = (),
        clock: Callable[[], float] = time.time,
        *,
        trusted_proxies: Sequence[str] = (),
        regions: Callable[[], Awaitable[Container[str]]] | None = None,
    ) -> None:
        self._all_regions = regions
        self._catalog = catalog
        self._clock = clock
        self._region = region
        self._regions = (region, DEFAULT_REGION)
        self._keys: OrderedDict[tuple[str, int, bytes, str], bytes] = OrderedDict()
        self.hosts = Hosts(public_endpoints, trusted_proxies)

    async def authenticate(self, head: RequestHead) -> Authenticated:
        """Who sent it. Costs no look-up for the anonymous, one (`Catalog.app`) otherwise, after every check that needs none.

        Raises InvalidRequest, InvalidArgument, NotSupported, InvalidToken, AuthorizationHeaderMalformed, AuthorizationQueryError,
        RequestTimeSkewed, RequestExpired, AccessDenied, InvalidAccessKey, SignatureMismatch; SignedElsewhere; and
        DatabaseUnavailable."""
        headers = single_headers(head)
        params = query_credentials(head.query) if head.query else None
        if params is not None and b"authorization" in headers:
            raise InvalidRequest(
                "Only one auth mechanism allowed; only the X-Amz-Algorithm query parameter, Signature query string parameter or "
                "the Authorization header should be specified"
            )
        if b"x-amz-security-token" in headers or (params is not None and "X-Amz-Security-Token" in params):
            raise InvalidToken()
        if params is not None and is_v2(params):
            return await self._presigned_v2(head, headers)
        if params is not None:
            claim = query_claim(params)
            declared = _declared_presigned(headers, params)
        elif b"authorization" in headers:
            claim = header_claim(headers)
            declared = headers.get(b"x-amz-content-sha256")
            if declared is None:
                raise InvalidRequest("Missing required header for this request: x-amz-content-sha256")
        else:
            return _anonymous(headers)
        elsewhere = None if claim.region in self._regions else await self._elsewhere(claim)
        self._check_scope(claim)
        self._check_time(claim)
        payload, digest = parse_payload(declared)
        if claim.presigned and payload in _SIGNED_STREAMING:
            raise InvalidRequest("A payload with signed chunks needs its credentials in the Authorization header.")
        missing = unsigned_headers(head.headers, claim.signed_headers)
        if missing:
            names = b", ".join(missing)
            raise AccessDenied(
                "There were headers present in the request which were not signed", HeadersNotSigned=printable(names)
            )
        app = await self._catalog.app(claim.access_key)
        if app is None:
            raise InvalidAccessKey(AWSAccessKeyId=claim.access_key)
        key = self._signing_key(app, claim)
        self._verify(head, claim, key, declared or _UNSIGNED)
        if elsewhere is not None:
            raise SignedElsewhere(Principal(app), elsewhere)
        seed = None
        if payload in _SIGNED_STREAMING:
            seed = ChunkSeed(key, claim.signature.decode(), claim.amz_date.decode(), claim.scope.decode())
        return Authenticated(Principal(app), payload, digest, seed, claim.presigned)

    async def _presigned_v2(self, head: RequestHead, headers: dict[bytes, bytes]) -> Authenticated:
        """See `sigv2`. The payload of such a request is not signed, but a digest it declares still counts."""
        claim = claim_v2(head, int(self._clock()))
        payload, digest = parse_payload(headers.get(b"x-amz-content-sha256"))
        if payload in _STREAMING:
            raise InvalidRequest("A payload in chunks needs its credentials in the Authorization header.")
        app = await self._catalog.app(claim.access_key)
        if app is None:
            raise InvalidAccessKey(AWSAccessKeyId=claim.access_key)
        verify_v2(head, claim, app, self.hosts.virtual_bucket(head.authority))
        return Authenticated(Principal(app), payload, digest, None, True)

    async def _elsewhere(self, claim: Claim) -> AnvilError:
        """What a signature for another region of the deployment is refused with, if it is good. SDKs that were told of a bucket's region
        sign for it, but some ask the same node again (boto3, given an endpoint): they deserve to be told once more where to go.

        Raises AuthorizationHeaderMalformed, AuthorizationQueryError for any other, before all other checks: clients mend it and repeat."""
        prefix, error = _scope_error(claim)
        wrong = error(f"{prefix}; the region '{claim.region}' is wrong; expecting '{self._region}'", Region=self._region)
        if self._all_regions is None or claim.region not in await self._all_regions():
            raise wrong
        return wrong

    def _check_scope(self, claim: Claim) -> None:
        """Service and date of the credential."""
        prefix, error = _scope_error(claim)
        if claim.service != _SERVICE:
            service = claim.service.decode()
            raise error(f'{prefix}; incorrect service "{service}". This endpoint belongs to "s3".')
        if claim.date != claim.amz_date[:8]:
            date, other = claim.date.decode(), claim.amz_date.decode()
            raise error(f'{prefix}; Invalid credential date "{date}". This date is not the same as X-Amz-Date: "{other}".')

    def _check_time(self, claim: Claim) -> None:
        """Skew of a header-signed request; not yet valid and expired for a presigned one."""
        now = int(self._clock())
        if claim.expires_s is None:
            if abs(now - claim.time_s) > CLOCK_SKEW_S_MAX:
                raise RequestTimeSkewed(
                    RequestTime=claim.amz_date.decode(),
                    ServerTime=iso(now),
                    MaxAllowedSkewMilliseconds=CLOCK_SKEW_S_MAX * 1000,
                )
            return
        if claim.time_s - now > CLOCK_SKEW_S_MAX:
            raise AccessDenied("Request is not valid yet", **{"X-Amz-Date": claim.amz_date.decode(), "ServerTime": iso(now)})
        if now > claim.time_s + claim.expires_s:
            raise RequestExpired(
                RequestExpired.default,
                **{"X-Amz-Expires": claim.expires_s, "Expires": iso(claim.time_s + claim.expires_s), "ServerTime": iso(now)},
            )

    def _signing_key(self, app: App, claim: Claim) -> bytes:
        """From the cache, or derived. A new secret has a new generation, so old keys are never found again."""
        name = (app.access_key, app.secret_generation, claim.date, claim.region)
        key = self._keys.get(name)
        if key is not None:
            self._keys.move_to_end(name)
            return key
        key = derive_key(app.secret, claim.date, claim.region.encode(), _SERVICE)
        self._keys[name] = key
        if len(self._keys) > SIGNING_KEYS_MAX:
            self._keys.popitem(last=False)
        return key

    def _verify(self, head: RequestHead, claim: Claim, key: bytes, payload_hash: bytes) -> None:
        """Raises SignatureMismatch unless the signature is that of the request, as it arrived or under another of its names."""
        headers = _as_signed(head, claim.signed_headers)
        base = PRESIGNED if claim.presigned else 0

        def matches(host: bytes, flags: int) -> bool:
            return compare_digest(
                claim.signature,
                signature(
                    key,
                    claim.amz_date,
                    claim.scope,
                    head.method,
                    head.path,
                    head.query,
                    headers,
                    claim.signed_headers,
                    host,
                    payload_hash,
                    flags,
                ),
            )

        if matches(head.authority, base) or matches(head.authority, base | VERBATIM):
            return
        for host in self.hosts.alternatives(head):
            if matches(host, base) or matches(host, base | VERBATIM):
                return
        canonical = canonical_request(
            head.method, head.path, head.query, headers, claim.signed_headers, head.authority, payload_hash, base
        )
        raise SignatureMismatch(
            AWSAccessKeyId=claim.access_key,
            SignatureProvided=printable(claim.signature),
            StringToSign=printable(string_to_sign(claim.amz_date, claim.scope, canonical)),
            **({} if b"-customer-key" in canonical.lower() else {"CanonicalRequest": printable(canonical)}),
        )


def _scope_error(claim: Claim) -> tuple[str, type[AuthorizationHeaderMalformed] | type[AuthorizationQueryError]]:
    if claim.presigned:
        return "Error parsing the X-Amz-Credential parameter", AuthorizationQueryError
    return "The authorization header is malformed", AuthorizationHeaderMalformed


def _declared_presigned(headers: dict[bytes, bytes], params: dict[str, list[bytes]]) -> bytes | None:
    """The payload hash of a presigned request: header, or parameter as some SDKs have it, or neither."""
    values = set(params.get("X-Amz-Content-Sha256", ()))
    if b"x-amz-content-sha256" in headers:
        values.add(headers[b"x-amz-content-sha256"])
    if len(values) > 1:
        raise InvalidRequest("X-Amz-Content-Sha256 is given more than once, with different values.")
    return values.pop() if values else None


def _anonymous(headers: dict[bytes, bytes]) -> Authenticated:
    """No credentials at all. A declared digest still counts; a streaming payload needs a signature that covers it."""
    payload, digest = parse_payload(headers.get(b"x-amz-content-sha256"))
    if payload in _STREAMING:
        raise AccessDenied()
    return Authenticated(ANONYMOUS, payload, digest)


def _as_signed(head: RequestHead, signed_headers: bytes) -> Headers:
    """The headers, with `expect` put back where a proxy that answered it took it away (nginx does)."""
    if b"expect" in signed_headers and b"expect" in signed_headers.split(b";") and head.header(b"expect") is None:
        return (*head.headers, (b"expect", b"100-continue"))
    return head.headers
