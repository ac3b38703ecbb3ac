"""What stands between a socket and a handler, each beside the least it could cost, measured in the same run, in turn, best of ROUNDS.

| path | its limit |
|---|---|
| aws-chunked, signed chunks of 64 KiB | SHA-256 of the same bytes by OpenSSL: each chunk's signature covers its hash |
| HTTP/1.1 request head | httptools (llhttp) with callbacks that only keep the fields |
| HTTP/2 request and answer of 4 KiB | nghttp2 called from C with the same frames (`nghttp2_loop.c`) |
| SigV4 signature of a GET | the two SHA-256 and the HMAC that it is made of, by OpenSSL |
| a call through a coalescer, 64 at a time | a future that is made, awaited and resolved in the loop |

Run: python -m bench.micro.wire
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable
from pathlib import Path

import httptools

from anvil.auth import sigv4
from bench.counted import paths
from bench.figures import figure
from bench.micro.sigv4 import APP, heads
from bench.native import compiled

ROUNDS = 7
CHUNK = 64 << 10
BATCH = 64


def seconds(call: Callable[[], object], times: int) -> float:
    """Of one call."""
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def beside(
    name: str, ours: Callable[[], object], limit: Callable[[], object], times: int, *, nbytes: int = 0, per: int = 1
) -> None:
    """Figures of both and their ratio, 1 where nothing is lost. `per`: what one call does so many times."""
    turns = [(seconds(ours, times), seconds(limit, times)) for _ in range(ROUNDS)]
    mine, least = (min(side) / per for side in zip(*turns, strict=True))
    note = f"limit {least * 1e6:.2f} us" + (f", {nbytes / least / 1e9:.2f} GB/s" if nbytes else "")
    if nbytes:
        figure(name, nbytes / mine / 1e9, "GB/s")
    else:
        figure(name, mine * 1e6, "us")
    figure(f"{name}, beside its limit", least / mine, "ratio", note=note)


class _Kept:
    """Callbacks of httptools."""

    def __init__(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name, value))


def bare_head(data: bytes) -> None:
    httptools.HttpRequestParser(_Kept()).feed_data(data)


def signature() -> tuple[Callable[[], object], Callable[[], object]]:
    get, _ = heads()
    key = sigv4.derive_key(APP.secret, b"20130524", b"us-east-1", b"s3")
    names = b"host;x-amz-checksum-mode;x-amz-content-sha256;x-amz-date"
    scope, date, empty = b"20130524/us-east-1/s3/aws4_request", b"20130524T000000Z", hashlib.sha256().hexdigest().encode()
    canonical = (
        b"GET\n" + get.path + b"\n\n" + b"".join(b"%s:%s\n" % field for field in get.headers) + b"\n" + names + b"\n" + empty
    )
    to_sign = b"AWS4-HMAC-SHA256\n" + date + b"\n" + scope + b"\n" + empty

    def ours() -> object:
        return sigv4.signature(key, date, scope, "GET", get.path, b"", get.headers, names, get.authority, empty)

    def limit() -> object:
        return hashlib.sha256(canonical).hexdigest(), hmac.digest(key, to_sign, "sha256").hex()

    return ours, limit


def bare_nghttp2() -> Callable[[], object]:
    """A hundred requests and answers, in C."""
    loaded = compiled(Path(__file__).with_name("nghttp2_loop.c"), "libnghttp2")
    block = paths.request_block()
    preface = paths.preface()

    def call() -> None:
        if loaded.requests(preface, len(preface), block, len(block), 100) != 0:
            raise AssertionError("nghttp2 refused the frames")

    return call


def futures() -> tuple[Callable[[], object], asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()

    async def one() -> None:
        future = loop.create_future()
        loop.call_soon(future.set_result, None)
        await future

    async def batch() -> None:
        await asyncio.gather(*(one() for _ in range(BATCH)))

    return lambda: loop.run_until_complete(batch()), loop


def main() -> None:
    data = bytes(CHUNK)
    with paths.chunked() as call:
        beside("aws-chunked, signed chunks of 64 KiB", call, lambda: hashlib.sha256(data).digest(), 200, nbytes=CHUNK)
    head = paths.request_head()
    beside("HTTP/1.1 request head", lambda: paths.parse_head(head), lambda: bare_head(head), 5000)
    bare = bare_nghttp2()
    with paths.http2() as call:
        beside("HTTP/2 request and answer, 4 KiB", lambda: [call() for _ in range(100)], bare, 20, per=100)
    beside("SigV4 signature", *signature(), 5000)
    limit, loop = futures()
    with paths.coalescer() as call:
        beside("a call through a coalescer, 64 at a time", call, limit, 100, per=BATCH)
    loop.close()


if __name__ == "__main__":
    main()
