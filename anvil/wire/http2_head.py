"""HTTP/2 heads: what a request's fields mean, and an answer's fields.

Owns: the rules that HTTP/2 adds to those of `wire/http1.py`. libnghttp2 has seen to the shape of the fields before (RFC 9113, 8.2 and
8.3: pseudo-headers first and once, lower-case names, nothing that belongs to a connection). Invariant: a request names one host and one
target, or is refused. Not here: frames and header compression (`http2.pyx`).
"""

from __future__ import annotations

from typing import Final

from anvil.wire.http1 import HOST, Fields, Head, Refusal, bad_request, check_answer, check_expectation, content_length

_PSEUDO: Final = b":"[0]


def parse_fields(fields: Fields) -> Head:
    """The head that these fields make, `content_length` as declared. Raises Refusal."""
    head = Head()
    head.version = "2"
    head.keep_alive, head.chunked = True, False
    head.content_length = None
    method = target = authority = host = expect = b""
    for name, value in fields:
        if name[0] == _PSEUDO:
            if name == b":method":
                method = value
            elif name == b":path":
                target = value
            elif name == b":authority":
                authority = value
            continue  # `:scheme` is what a proxy says it is: never used
        head.headers.append((name, value))
        if name == b"host":
            if host:
                raise bad_request("More than one Host header.")
            host = value
        elif name == b"content-length":
            head.content_length = content_length(value)
        elif name == b"expect":
            expect = value.lower()
    if method == b"CONNECT":
        raise Refusal(501, "NotImplemented", "This server is not a proxy.")
    if authority and host and authority.lower() != host.lower():
        raise bad_request("The authority and the Host header name different hosts.")
    head.authority = authority or host
    if not HOST.fullmatch(head.authority):
        raise bad_request("The request names no valid host.")
    if not target.isascii():
        raise bad_request("The request target is not valid.")
    if b"#" in target:
        raise bad_request("A request target has no fragment.")
    if not target.startswith(b"/") and not (target == b"*" and method == b"OPTIONS"):
        raise bad_request("The request target is not valid.")
    check_expectation(expect)
    head.expects_continue = expect != b""
    head.method = method.decode("ascii")
    head.target = target
    head.path, _, head.query = target.partition(b"?")
    return head


def answer_fields(status: int, headers: Fields, common: Fields, length: int | None) -> list[tuple[bytes, bytes]]:
    """The fields of an answer. Raises ValueError as `wire.http1.response_head`."""
    check_answer(status, headers, b"content-length" if length is not None else b"")
    fields = [(b":status", b"%d" % status)]
    fields += [(name.lower(), value) for name, value in headers]
    fields += common
    if length is not None:
        fields.append((b"content-length", b"%d" % length))
    return fields
