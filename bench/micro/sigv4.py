"""How long authentication takes: a typical GET and a presigned one, whole (`Authenticator.authenticate`) and the kernel alone.

Run `PYTHONPATH=. python bench/micro/sigv4.py`. Prints microseconds per call, the best of five rounds, single thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from anvil.auth import sigv4, sigv4_reference
from anvil.auth.authenticate import Authenticator
from anvil.auth.authorize import Authorizer
from anvil.auth.presign import EMPTY_SHA256, presign, sign
from anvil.model.identity import Action, App, Policy, Principal, Tenant
from anvil.net.stream import RequestHead
from bench.figures import figure

NOW = 1369353600
APP = App(
    1, Tenant(1, "default"), "app", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", 1, (Policy("*", "*"),)
)

URL = "http://s3.example.com:50051/my-bucket/some/prefix/2026/11/23/object-000123.bin"
ROUNDS, CALLS = 5, 4000


class Apps:
    async def app(self, access_key: str) -> App | None:
        return APP if access_key == APP.access_key else None


def heads() -> tuple[RequestHead, RequestHead]:
    """What boto3 sends for GetObject, and a presigned GET as a browser sends it."""
    given = {
        "accept-encoding": "identity",
        "user-agent": "Boto3/1.44.5 md/Botocore#1.44.5 ua/2.1 os/linux#6.1 md/arch#x86_64 lang/python#3.11.2 md/pyimpl#CPython",
        "amz-sdk-invocation-id": "0d9a4ae2-7d3a-4a6f-a1cf-0c1d2a3b4c5d",
        "amz-sdk-request": "attempt=1",
        "x-amz-checksum-mode": "ENABLED",
    }
    signed = {"x-amz-checksum-mode": "ENABLED"}
    path = URL.partition(":50051")[2].encode()
    fields = given | sign("GET", URL, signed, EMPTY_SHA256, APP.access_key, APP.secret, "us-east-1", NOW)
    headers = tuple((name.encode(), value.encode()) for name, value in fields.items())
    get = RequestHead("GET", path, b"", headers, b"s3.example.com:50051", "1.1", "127.0.0.1", None, False)
    query = presign("GET", URL, APP.access_key, APP.secret, "us-east-1", 3600, NOW).partition("?")[2].encode()
    browser = (
        (b"host", b"s3.example.com:50051"),
        (b"accept", b"*/*"),
        (b"user-agent", b"Mozilla/5.0"),
        (b"accept-language", b"en"),
    )
    return get, RequestHead("GET", path, query, browser, b"s3.example.com:50051", "1.1", "127.0.0.1", None, False)


def microseconds(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        best = min(best, time.perf_counter() - start)
    return best / CALLS * 1e6


def main() -> None:
    authenticator, authorizer = Authenticator(Apps(), "us-east-1", (), lambda: NOW), Authorizer()
    get, presigned = heads()

    def whole(head: RequestHead) -> Callable[[], object]:
        def call() -> object:
            try:
                authenticator.authenticate(head).send(None)
            except StopIteration as done:
                return done.value
            raise AssertionError("authentication waited")

        return call

    assert whole(get)().principal.app is APP
    assert whole(presigned)().principal.app is APP
    key = sigv4.derive_key(APP.secret, b"20130524", b"us-east-1", b"s3")
    names = b"host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date"
    arguments = (
        key, b"20130524T000000Z", b"20130524/us-east-1/s3/aws4_request", "GET", get.path, b"", get.headers, names, get.authority,
        EMPTY_SHA256.encode(),
    )  # fmt: skip
    anonymous = RequestHead("GET", get.path, b"", presigned.headers, get.authority, "1.1", "127.0.0.1", None, False)
    principal = Principal(APP)
    rows = {
        "authenticate: GET, header": whole(get),
        "authenticate: GET, presigned": whole(presigned),
        "authenticate: GET, anonymous": whole(anonymous),
        "signature, Cython": lambda: sigv4.signature(*arguments),
        "signature, reference": lambda: sigv4_reference.signature(*arguments),
        "signing key": lambda: sigv4.derive_key(APP.secret, b"20130524", b"us-east-1", b"s3"),
        "authorize": lambda: authorizer.allowed(principal, Action.OBJECT_READ, "my-bucket/some/prefix/object"),
    }
    for name, call in rows.items():
        figure(name, microseconds(call), "us")


if __name__ == "__main__":
    main()
