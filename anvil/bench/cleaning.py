"""Removing what a run made: everything under its prefix, and the uploads that were begun there.

Owns: which requests that takes. Invariant: only keys that begin with the prefix are named. Objects of versioned buckets only get a
delete marker. Source: Amazon S3 API Reference, "ListObjectsV2", "DeleteObjects", "ListMultipartUploads", "AbortMultipartUpload".
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from html import escape, unescape
from typing import Final, cast

from anvil.base.limits import BENCH_CLEAN_TRIES
from anvil.bench.exchange import Answer, Request
from anvil.bench.http import Client, Script
from anvil.bench.operations import said
from anvil.bench.sign import encoded, parameter

_KEY: Final = re.compile(rb"<Key>([^<]*)</Key>")
_UPLOAD: Final = re.compile(rb"<Upload>.*?<Key>([^<]*)</Key>.*?<UploadId>([^<]*)</UploadId>.*?</Upload>", re.DOTALL)
_ERROR: Final = re.compile(rb"<Error>.*?<Code>([^<]*)</Code>", re.DOTALL)


async def remove(client: Client, bucket: str, prefix: str, removed: Callable[[int], None]) -> str:
    """Remove all of it over the client's connections; `removed` is told how many objects are gone so far. Returns what could not be, for
    people, or ""."""
    path, after, done, refused = f"/{bucket}".encode(), "", 0, ""
    while True:
        pages: list[list[str]] = []
        while len(pages) < len(client.connections):
            query = f"list-type=2&max-keys=1000&prefix={quoted(prefix)}" + (f"&start-after={quoted(after)}" if after else "")
            answer = await client.ask(Request(b"GET", path, query.encode()))
            if answer.code:
                return f"objects cannot be listed: {said(answer)}"
            keys = [unescape(key.decode()) for key in _KEY.findall(answer.body)]
            keys = [key for key in keys if key.startswith(prefix)]
            if not keys:
                break
            pages.append(keys)
            after = keys[-1]
        if not pages:
            break
        failures: list[str] = []
        await client.run([_deleting(path, page, failures) for page in pages])
        done += sum(len(page) for page in pages)
        removed(done)
        refused = refused or (failures[0] if failures else "")
    return refused or await _abort(client, path, prefix)


def quoted(text: str) -> str:
    return parameter(text).decode()


def _deleting(path: bytes, keys: list[str], failures: list[str]) -> Script:
    document = "".join(f"<Object><Key>{escape(key, quote=False)}</Key></Object>" for key in keys)
    body = f"<Delete><Quiet>true</Quiet>{document}</Delete>".encode()
    digest = base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest())
    why = ""
    for _ in range(BENCH_CLEAN_TRIES):
        answer = cast(Answer, (yield Request(b"POST", path, b"delete=", body=body, extra=((b"content-md5", digest),))))
        if not answer.code:
            found = _ERROR.search(answer.body)
            if found is None:
                return
            why = found[1].decode(errors="replace")
        else:
            why = said(answer)
    failures.append(f"objects cannot be removed: {why}")


async def _abort(client: Client, path: bytes, prefix: str) -> str:
    """The uploads that nobody completed."""
    answer = await client.ask(Request(b"GET", path, f"prefix={quoted(prefix)}&uploads=".encode()))
    if answer.code:
        return "" if answer.status in (400, 501) else f"uploads cannot be listed: {said(answer)}"
    for key, upload_id in _uploads(answer.body, prefix):
        query = b"uploadId=" + parameter(upload_id)
        gone = await client.ask(Request(b"DELETE", path + b"/" + encoded(key), query))
        if gone.code and gone.code != "NoSuchUpload":
            return f"an upload cannot be aborted: {said(gone)}"
    return ""


def _uploads(body: bytes, prefix: str) -> Iterator[tuple[str, str]]:
    for key, upload_id in _UPLOAD.findall(body):
        name = unescape(key.decode())
        if name.startswith(prefix):
            yield name, unescape(upload_id.decode())
