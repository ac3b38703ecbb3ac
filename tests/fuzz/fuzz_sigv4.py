"""Fuzz target: whatever a request's head says, authentication answers or raises an AnvilError, and never believes a changed
request.

    PYTHONPATH=. python tests/fuzz/fuzz_sigv4.py -runs=100000

Uses atheris where it is installed; elsewhere inputs are drawn from a seeded generator. `test_fuzz_sigv4.py` runs it on Hypothesis's.
An input is fields separated by NUL. The first byte of the first says what to start from: a signed, a presigned or an empty
head; each other field changes one thing, named by its first byte.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import sys

from anvil.auth.authenticate import Authenticator
from anvil.auth.presign import UNSIGNED_PAYLOAD, presign, sign
from anvil.base.errors import AnvilError
from anvil.model.identity import App, Policy, Tenant
from anvil.net.stream import RequestHead

NOW = 1369353600
APP = App(
    1, Tenant(1, "default"), "app", "AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", 1, (Policy("*", "*"),)
)
URL = "http://node.example:50051/bucket/key?prefix=a"
OPTIONS = {"public_endpoints": ["s3.example.com:8443"], "trusted_proxies": ["10.0.0.0/8"]}
NAMES = (
    b"authorization", b"x-amz-date", b"date", b"x-amz-content-sha256", b"x-amz-security-token", b"host", b"expect",
    b"x-forwarded-host", b"x-amz-meta-a", b"range",
)  # fmt: skip
FIXED_FIELDS = 5


class Apps:
    async def app(self, access_key: str) -> App | None:
        return APP if access_key == APP.access_key else None


def _start(kind: int) -> RequestHead:
    authority = b"node.example:50051"
    if kind % 3 == 0:
        fields = sign("GET", URL, {"x-amz-meta-a": "1"}, UNSIGNED_PAYLOAD, APP.access_key, APP.secret, "us-east-1", NOW)
        headers = tuple((name.encode(), value.encode()) for name, value in fields.items())
        return RequestHead("GET", b"/bucket/key", b"prefix=a", headers, authority, "1.1", "203.0.113.9", None, False)
    if kind % 3 == 1:
        query = presign("GET", URL, APP.access_key, APP.secret, "us-east-1", 3600, NOW).partition("?")[2].encode()
        return RequestHead("GET", b"/bucket/key", query, ((b"host", authority),), authority, "1.1", "203.0.113.9", None, False)
    return RequestHead("GET", b"/", b"", (), b"", "2", "", None, False)


def _change(head: RequestHead, field: bytes) -> RequestHead:
    target, value = field[0] % (len(NAMES) + FIXED_FIELDS), field[1:]
    method, path, query, headers, authority, peer = head.method, head.path, head.query, head.headers, head.authority, head.peer
    if target == 0:
        path = value
    elif target == 1:
        query = query + b"&" + value
    elif target == 2:
        # Replace the first occurrence of what stands before "=" by what stands behind it, in query and headers.
        old, _, new = value.partition(b"=")
        query = query.replace(old, new, 1)
        headers = tuple((name, text.replace(old, new, 1)) for name, text in headers)
    elif target == 3:
        authority = value
    elif target == 4:
        method, peer = "PUT", value.decode("latin-1")
    else:
        name = NAMES[target - FIXED_FIELDS]
        kept = headers if value[:1] == b"+" else tuple(pair for pair in headers if pair[0] != name)
        headers = (*kept, (name, value.removeprefix(b"+").strip()))
    return RequestHead(method, path, query, headers, authority, head.version, peer, None, False)


def one_input(data: bytes) -> None:
    fields = data.split(b"\0")[:16]
    original = head = _start(fields[0][0] if fields[0] else 2)
    for field in fields[1:]:
        if field:
            head = _change(head, field)
    try:
        Authenticator(
            Apps(), "eu-north-1", OPTIONS["public_endpoints"], lambda: NOW, trusted_proxies=OPTIONS["trusted_proxies"]
        ).authenticate(head).send(None)
    except AnvilError:
        return
    except StopIteration as done:
        if not done.value.principal.anonymous:
            # Believed: then it is the request that was signed, up to spelling and unsigned headers.
            assert head.method == original.method, head
            signed = [pair for pair in head.headers if pair[0].startswith(b"x-amz-")]
            assert sorted(dict(signed)) == sorted(dict(pair for pair in original.headers if pair[0].startswith(b"x-amz-"))), head


def run_without_atheris(runs: int, seed: int) -> None:
    """`runs` heads with up to four changes each, drawn from a generator with that seed."""
    rng = random.Random(seed)
    words = (
        b"=",
        b"%",
        b"%2F",
        b"&",
        b"X-Amz-Expires=1",
        b"20130524",
        b"us-east-1",
        b"host",
        b"Signature",
        b";",
        b",",
        b"[",
        b":",
    )
    for _ in range(runs):
        fields = [bytes([rng.randrange(3)])]
        for _ in range(rng.randrange(5)):
            pieces = (
                rng.choice(words) if rng.random() < 0.7 else rng.randbytes(rng.randrange(7)) for _ in range(rng.randrange(7))
            )
            fields.append(bytes([rng.randrange(1, 1 + len(NAMES) + FIXED_FIELDS)]) + b"".join(pieces).replace(b"\0", b""))
        data = b"\0".join(fields)
        try:
            one_input(data)
        except BaseException:
            print(f"failed, to see it again: one_input(bytes.fromhex({data.hex()!r}))", file=sys.stderr)
            raise


def main() -> None:
    if importlib.util.find_spec("atheris") is not None:
        import atheris

        atheris.instrument_all()
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("-runs", type=int, default=100_000)
    parser.add_argument("-seed", type=int, default=1)
    arguments = parser.parse_args()
    print(f"atheris is not importable here: {arguments.runs} generated inputs, seed {arguments.seed}, not guided by coverage")
    run_without_atheris(arguments.runs, arguments.seed)


if __name__ == "__main__":
    main()
