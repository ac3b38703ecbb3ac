"""Fuzz what S3 requests are parsed with: target and headers to a request and its operation, ranges, conditions, copy sources, tokens,
stated digests, and the XML documents.

    PYTHONPATH=. python tests/fuzz/fuzz_s3_request.py -max_total_time=60     # atheris
    PYTHONPATH=. python tests/fuzz/fuzz_s3_request.py -runs=100000 -seed=1   # without it

Properties: nothing but an AnvilError is ever raised; the bucket is the first segment or the one in the host, whatever the rest
says; a key is what was written, decoded once; text holds no U+0000; an XML document that is accepted is UTF-8, bounded and
without a DTD. A failing input is printed: `one_input(bytes.fromhex(...))` shows it again.
"""

from __future__ import annotations

import argparse
import importlib
import random
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote_to_bytes

from anvil.api.operations.listing import decode_token, encode_token
from anvil.api.s3 import checksums, conditions, documents, features, metadata, ranges, xml
from anvil.api.s3.handlers.copy import parse_source
from anvil.api.s3.handlers.paging import encoder_of, limit_of
from anvil.api.s3.payload import payload_length
from anvil.api.s3.request import S3Request, parse_address, parse_request
from anvil.api.s3.routes import resolve
from anvil.auth.hosts import Hosts
from anvil.auth.types import Authenticated, Payload
from anvil.base.errors import AnvilError
from anvil.base.limits import KEY_BYTES_MAX, USER_METADATA_BYTES_MAX, XML_DEPTH_MAX
from anvil.engine.types import ObjectInfo
from anvil.model.identity import ANONYMOUS
from anvil.model.records import Attributes
from anvil.net.stream import RequestHead

atheris: Any
try:
    atheris = importlib.import_module("atheris")
except ImportError:
    atheris = None

HOSTS = Hosts(("s3.example.com", "localhost:50051"))
METHODS = ("GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS")
PIECES = (
    b"/", b"bucket", b"..", b"%2e", b"%2F", b"%00", b"%ff", b"%", b"+", b"&", b"=", b"?", b"a", b"uploadId", b"uploads", b"delete",
    b"partNumber", b"list-type=2", b"max-keys", b"continuation-token", b"x-amz-", b"x-amz-meta-", b"copy-source", b"versionId=null",
    b"bytes=", b"-", b"0", b"9" * 20, b",", b'"', b"W/", b"*", b"Thu, 01 Jan 1970 00:00:00 ", b"GMT", b"+9999", b"99999999999",
    b"<Delete>", b"</Delete>", b"<Object>", b"</Object>", b"<Key>", b"</Key>", b"<!DOCTYPE a [", b"]>", b"<!ENTITY x 'y'>", b"&x;",
    b"&#0;", b"&lt;", b"<![CDATA[", b"]]>", b"<a>", b"</a>", b"xmlns='", b"<?xml version='1.0' encoding='UTF-16'?>", b"\xff\xfe", b"\x00",
    b"<CompleteMultipartUpload>", b"</CompleteMultipartUpload>", b"<Part>", b"</Part>", b"<PartNumber>1</PartNumber>",
    b"<ETag>", b"</ETag>",
    b"\xe2\x82\xac", b"\xed\xa0\x80", b"AAAAAA==", b"crc32", b"checksum-", b"ENABLED", b"s3.example.com", b":", b".",
)  # fmt: skip
NAMES = (
    b"range", b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since", b"if-range", b"x-amz-copy-source",
    b"x-amz-copy-source-range", b"x-amz-copy-source-if-modified-since", b"content-md5", b"x-amz-checksum-crc32", b"x-amz-checksum-sha256",
    b"x-amz-checksum-algorithm", b"x-amz-checksum-type", b"x-amz-checksum-mode", b"x-amz-sdk-checksum-algorithm", b"x-amz-trailer",
    b"x-amz-decoded-content-length", b"x-amz-meta-a", b"x-amz-meta-", b"content-type", b"content-encoding", b"x-amz-acl", b"x-amz-tagging",
    b"x-amz-storage-class", b"x-amz-website-redirect-location", b"x-amz-object-lock-mode", b"expires", b"x-amz-object-attributes",
)  # fmt: skip
INFO = ObjectInfo("key", 100, "0" * 32, 1_700_000_000_000_000, bytes(16), True, Attributes(), None, 0)


class Choices:
    """Decisions read off the front of an input; zeros once it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def number(self, below: int) -> int:
        self._at += 1
        return (self._data[self._at - 1] if self._at <= len(self._data) else 0) % below

    def text(self) -> bytes:
        """Some pieces and some bytes as they are."""
        out = []
        for _ in range(self.number(8)):
            if self.number(4):
                out.append(PIECES[self.number(len(PIECES))])
            else:
                count = self.number(6)
                out.append(self._data[self._at : self._at + count])
                self._at += count
        return b"".join(out)


def tried(what: Callable[[], Any]) -> Any:
    """Its result; None where it was refused as it should be."""
    try:
        return what()
    except AnvilError:
        return None


def visible(text: bytes) -> bytes:
    """What can stand in a header value (RFC 9110, 5.5), as the parser of heads lets it through."""
    return bytes(c for c in text if c == 9 or 32 <= c != 127).strip(b" \t")


def one_input(data: bytes) -> None:
    """One fuzzed request and document. Raises AssertionError, or whatever escaped."""
    choices = Choices(data)
    check_request(choices)
    check_values(choices)
    check_document(choices)


def check_request(choices: Choices) -> None:
    authority = (b"node", b"bucket.s3.example.com", b"s3.example.com:443", choices.text())[choices.number(4)]
    path = b"/" + choices.text().replace(b"?", b"")
    fields = tuple((NAMES[choices.number(len(NAMES))], visible(choices.text())) for _ in range(choices.number(5)))
    length = (None, 0, 5, 2**63 - 1)[choices.number(4)]
    method = METHODS[choices.number(len(METHODS))]
    head = RequestHead(
        method, path, choices.text(), fields, authority, "1.1", "", length, length is None and choices.number(2) == 1
    )
    address = tried(lambda: parse_address(head, HOSTS.virtual_bucket))
    if address is None:
        return
    virtual = HOSTS.virtual_bucket(authority)
    first, _, rest = path[1:].partition(b"/")
    assert address.bucket == (unquote_to_bytes(first).decode() if virtual is None else virtual)
    assert address.key == unquote_to_bytes(rest if virtual is None else path[1:]).decode()
    assert "\0" not in address.key and len(address.key.encode()) <= KEY_BYTES_MAX
    request = tried(lambda: parse_request(head, address, signed=choices.number(2) == 1))
    if isinstance(request, S3Request):
        assert not any("\0" in name + value for name, value in request.query.items())
        assert not any(byte in value for value in request.headers.values() for byte in b"\r\n\0")
        tried(lambda: resolve(request))
        tried(lambda: features.check(request.special, request.headers))
        made = tried(lambda: metadata.attributes(request))
        assert made is None or sum(len(k.encode()) + len(v.encode()) for k, v in made.user.items()) <= USER_METADATA_BYTES_MAX
        tried(lambda: limit_of(request.query, "max-keys"))
        tried(lambda: encoder_of(request.query)("é/\0"))
        shown = tried(lambda: metadata.override([], request.query, anonymous=False))
        assert shown is None or not any(byte in value for _, value in shown for byte in b"\r\n\0")
        for payload in Payload:
            auth = Authenticated(ANONYMOUS, payload)
            size = tried(lambda auth=auth: payload_length(head, request.headers, auth))
            assert size is None or 0 <= size < 10**19
            tried(lambda auth=auth: checksums.integrity(request.headers, auth))


def check_values(choices: Choices) -> None:
    value = visible(choices.text())
    headers = {NAMES[choices.number(len(NAMES))]: value}
    tried(lambda: conditions.not_modified(headers, INFO))
    tried(lambda: conditions.check_copy_source(headers, INFO))
    tried(lambda: conditions.write_condition(headers))
    tried(lambda: conditions.range_applies(headers, INFO))
    tried(lambda: checksums.upload_checksum(headers))
    tried(lambda: checksums.expected_of_upload(headers, None))
    chosen = tried(lambda: ranges.by_range(value, INFO))
    assert chosen is None or 0 <= chosen.start <= chosen.start + chosen.length <= INFO.size
    part = tried(lambda: ranges.source_range(value, INFO.size))
    assert part is None or (part[1] > 0 and part[0] + part[1] <= INFO.size)
    source = tried(lambda: parse_source(value))
    assert source is None or (source[0] and source[1] and "\0" not in source[1])
    text = value.decode("latin-1")
    tried(lambda: ranges.part_number(text))
    after = tried(lambda: decode_token(text))
    assert after is None or (encode_token(after) == text and "\0" not in after)


def depth(element: xml.Element) -> int:
    return 1 + max(map(depth, element.children), default=0)


def check_document(choices: Choices) -> None:
    document = choices.text() + choices.text() + choices.text()
    for root in ("Delete", "CompleteMultipartUpload"):
        for body in (document, f"<{root}>".encode() + document + f"</{root}>".encode()):
            parsed = tried(lambda root=root, body=body: xml.parse(body, root))
            if parsed is not None:
                assert parsed.name == root and depth(parsed) <= XML_DEPTH_MAX
                assert b"<!DOCTYPE" not in body or b"<![CDATA[" in body or b"<!--" in body
                assert "\0" not in body.decode("utf-8")
            for read in (documents.deletions, documents.complete_parts, documents.location_constraint):
                tried(lambda read=read, body=body: read(body))
    written = xml.Xml(prolog=False)
    written.text("Key", document.decode("utf-8", "replace"))
    assert written.bytes().count(b"<") == 2, "a key opens no element"


def run_without_atheris(runs: int, seed: int) -> None:
    """`runs` inputs drawn from a generator with that seed."""
    generator = random.Random(seed)
    for _ in range(runs):
        data = generator.randbytes(generator.randrange(200))
        try:
            one_input(data)
        except BaseException:
            print(f"one_input(bytes.fromhex({data.hex()!r}))", file=sys.stderr)
            raise


def main() -> None:
    if atheris is not None and not any(argument.startswith("-seed") for argument in sys.argv):
        atheris.instrument_all()
        atheris.Setup(sys.argv, one_input)
        atheris.Fuzz()
        return
    parser = argparse.ArgumentParser()
    parser.add_argument("-runs", type=int, default=100_000)
    parser.add_argument("-seed", type=int, default=1)
    arguments = parser.parse_args()
    run_without_atheris(arguments.runs, arguments.seed)


if __name__ == "__main__":
    main()
