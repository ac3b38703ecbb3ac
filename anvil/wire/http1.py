"""HTTP/1.1 heads, sans I/O: which protocol a connection speaks, strict parsing of request heads, serialisation of answers.

Owns: what is a well-formed head and how its body is framed (RFC 9110, RFC 9112). Invariant: a head either has exactly one
possible framing or is refused; whatever two parsers could read differently (both lengths, doubled fields, folded lines, bare
line ends) is refused, never repaired. Not here: sockets, bodies with transfer coding (`http1_chunked`), HTTP/2.
"""

from __future__ import annotations

import enum
import http
import re
from collections.abc import Sequence
from email.utils import formatdate
from typing import Final

import httptools

from anvil.base.limits import HEADER_BYTES_MAX, HEADER_FIELDS_MAX

HTTP2_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_CONTENT_LENGTH_MAX: Final = 2**63 - 1
_TOKEN_BYTES: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]+")
_BARE_LF: Final = re.compile(rb"(?<!\r)\n")
_VERSION: Final = re.compile(rb"[^ \r\n]+ [^\r\n]* HTTP/(\d)\.(\d)\r\n")
_FRAMING: Final = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))
_OURS: Final = frozenset((b"connection", b"transfer-encoding", b"keep-alive", b"date", b"server"))
_LINE_END: Final = re.compile(rb"[\r\n\0]")
_TOKEN: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# Names that need no checking, because nearly every answer has them.
_COMMON: Final = frozenset(
    (
        b"accept-ranges",
        b"content-type",
        b"etag",
        b"last-modified",
        b"x-amz-id-2",
        b"x-amz-request-id",
        b"x-amz-version-id",
    )
)


class Refusal(Exception):
    """A request that gets an answer without ever reaching a handler. `code` is S3's word for it; `message` is safe to show."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


class Preface(enum.Enum):
    """What the first bytes of a connection announce."""

    UNDECIDED = 0
    HTTP1 = 1
    HTTP2 = 2
    OTHER = 3


def sniff(first: bytes) -> Preface:
    """Decide by the first bytes of a connection (RFC 9113, 3.4). UNDECIDED: more are needed. OTHER cannot begin any request."""
    if first.startswith(HTTP2_PREFACE):
        return Preface.HTTP2
    if HTTP2_PREFACE.startswith(first):
        return Preface.UNDECIDED
    if first[0] in _TOKEN_BYTES or first[0] == 0x0D:
        return Preface.HTTP1
    return Preface.OTHER


class Head:
    """A request head that passed every check. Header names are lower case, values stripped, order and duplicates kept."""

    __slots__ = (
        "authority",
        "chunked",
        "content_length",
        "expects_continue",
        "headers",
        "keep_alive",
        "method",
        "path",
        "query",
        "target",
        "version",
    )

    method: str
    path: bytes
    query: bytes
    authority: bytes
    version: str
    content_length: int | None
    chunked: bool
    keep_alive: bool
    expects_continue: bool

    def __init__(self) -> None:
        self.headers: list[tuple[bytes, bytes]] = []
        self.target = b""

    def on_url(self, url: bytes) -> None:
        """Called by httptools."""
        self.target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools."""
        self.headers.append((name.lower(), value.strip(b" \t")))


def head_end(data: bytes, scanned: int = 0) -> int:
    """Length of the request head at the start of `data`, blank line included; 0 while it is not there yet. `scanned` bytes were
    looked at before. Raises Refusal for what can never become an acceptable head, so that nothing waits for a blank line."""
    end = data.find(b"\r\n\r\n", scanned - 3 if scanned > 3 else 0) + 4
    if end >= 4:
        if end > HEADER_BYTES_MAX:
            raise head_too_large()
        return end
    if _BARE_LF.search(data, max(0, scanned - 1)):
        raise bad_request("A line of the request head does not end with CR LF.")
    if len(data) > HEADER_BYTES_MAX:
        raise head_too_large()
    return 0


def parse_head(data: bytes) -> Head:
    """Parse exactly one head, blank line included. Raises Refusal."""
    if data.startswith(b"PRI "):
        raise bad_request("The preface of HTTP/2 is for the beginning of a connection.")
    head = Head()
    parser = httptools.HttpRequestParser(head)
    fault: Exception | None = None
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # Upgrade is never honoured: h2c through a proxy is a way to smuggle requests past it
    except httptools.HttpParserError as error:
        fault = error
    if fault is None and not head.target:
        raise bad_request("The request head is empty.")
    if fault is not None:
        _explain(data, head, fault)
    version = parser.get_http_version()
    if version not in ("1.1", "1.0"):
        raise Refusal(505, "HttpVersionNotSupported", "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if len(head.headers) > HEADER_FIELDS_MAX:
        raise head_too_large()
    head.version = version
    head.method = parser.get_method().decode("ascii")
    _frame(head)
    _route(head)
    return head


def bad_request(message: str) -> Refusal:
    """400."""
    return Refusal(400, "BadRequest", message)


def head_too_large() -> Refusal:
    """What S3 answers to too many header bytes or fields."""
    return Refusal(
        400, "RequestHeaderSectionTooLarge", "The request header and query parameters exceed the maximum allowed size."
    )


def _explain(data: bytes, head: Head, fault: Exception) -> None:
    """Turn an error of the parser into the most fitting refusal. Always raises."""
    match = _VERSION.match(data)
    if match and (match[1], match[2]) not in ((b"1", b"1"), (b"1", b"0")):
        raise Refusal(505, "HttpVersionNotSupported", "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
    if isinstance(fault, httptools.HttpParserInvalidMethodError) and match:
        raise Refusal(501, "NotImplemented", "This method is not known here.")
    codings = [value.lower() for name, value in head.headers if name == b"transfer-encoding"]
    lengths = any(name == b"content-length" for name, _ in head.headers)
    if len(codings) == 1 and codings[0] != b"chunked" and not lengths and match and match[2] == b"1":
        raise _unknown_coding()
    raise bad_request(f"The request head is malformed: {fault}.") from fault


def _unknown_coding() -> Refusal:
    return Refusal(501, "NotImplemented", "The only transfer coding known here is chunked.")


def _frame(head: Head) -> None:
    """Decide where the body ends and whether the connection may live on (RFC 9112, 6.3 and 9.3)."""
    modern = head.version == "1.1"
    host: bytes | None = None
    length: bytes | None = None
    coding: bytes | None = None
    options: list[bytes] = []
    expect = b""
    for name, value in head.headers:
        if name not in _FRAMING:
            continue
        if name == b"host":
            if host is not None:
                raise bad_request("More than one Host header.")
            host = value
        elif name == b"content-length":
            if length is not None:
                raise bad_request("More than one Content-Length header.")
            length = value
        elif name == b"transfer-encoding":
            if coding is not None:
                raise bad_request("More than one Transfer-Encoding header.")
            coding = value
        elif name == b"connection":
            options += [option.strip(b" \t") for option in value.lower().split(b",")]
        else:
            expect = value.lower()
    if host is None and modern:
        raise bad_request("The Host header is missing.")
    if host is not None and not HOST.fullmatch(host):
        raise bad_request("The Host header is not valid.")
    if coding is not None:
        if length is not None:
            raise bad_request("Content-Length and Transfer-Encoding exclude each other.")
        if not modern:
            raise bad_request("HTTP/1.0 has no Transfer-Encoding.")
        if coding.lower() != b"chunked":
            raise _unknown_coding()
    check_expectation(expect)
    head.authority = host or b""
    head.chunked = coding is not None
    head.content_length = None if length is None else content_length(length)
    head.expects_continue = modern and expect != b""
    head.keep_alive = b"close" not in options if modern else b"keep-alive" in options and b"close" not in options


def check_expectation(expect: bytes) -> None:
    """The lower-case value of Expect, or nothing. Raises Refusal."""
    if expect and expect != b"100-continue":
        raise Refusal(417, "ExpectationFailed", "The only expectation known here is 100-continue.")


def content_length(value: bytes) -> int:
    """The value of that header. Raises Refusal."""
    if not value.isdigit() or len(value) > 19 or int(value) > _CONTENT_LENGTH_MAX:
        raise bad_request("The Content-Length header is not valid.")
    return int(value)


def _route(head: Head) -> None:
    """Split the target (RFC 9112, 3.2): origin-form, absolute-form, and `*` for OPTIONS."""
    target = head.target
    if b"#" in target:
        raise bad_request("A request target has no fragment.")
    if head.method == "CONNECT":
        raise Refusal(501, "NotImplemented", "This server is not a proxy.")
    if not target.startswith(b"/"):
        if target == b"*" and head.method == "OPTIONS":
            head.path, head.query = target, b""
            return
        scheme, separator, rest = target.partition(b"://")
        if not separator or scheme.lower() not in (b"http", b"https"):
            raise bad_request("The request target is not valid.")
        cut = min((at for at in (rest.find(b"/"), rest.find(b"?")) if at >= 0), default=len(rest))
        authority, target = rest[:cut], rest[cut:]
        if not HOST.fullmatch(authority) or (head.authority and authority.lower() != head.authority.lower()):
            raise bad_request("The request target and the Host header name different hosts.")
        head.authority = head.authority or authority
        if not target.startswith(b"/"):
            target = b"/" + target
    head.path, _, head.query = target.partition(b"?")


# -- answers -----------------------------------------------------------------------------------------------------------

Fields = Sequence[tuple[bytes, bytes]]

_STATUS_LINES: Final = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode()) for status in http.HTTPStatus
}


BODYLESS: Final = frozenset((204, 304))
"""Statuses whose answers never have a body (RFC 9110, 6.4.1)."""


def date_and_server(unix_s: float) -> tuple[tuple[bytes, bytes], ...]:
    """The fields that every answer has, at that time (seconds since 1970)."""
    return (b"date", formatdate(unix_s, usegmt=True).encode()), (b"server", b"Anvil")


def field_lines(fields: Fields) -> bytes:
    """Fields of our own making, as they stand in a head."""
    return b"".join(b"%b: %b\r\n" % field for field in fields)


def response_head(status: int, headers: Fields, common: bytes, framing: bytes) -> bytes:
    """Serialise the head of an answer: status line, `headers`, the `common` lines, the `framing` lines, blank line. `common` and
    `framing` are complete lines made by the caller. Raises ValueError for a field that would break the head (CR, LF, NUL, a name
    that is no token or belongs to the connection) and for a status outside 200-599."""
    check_answer(status, headers, framing)
    parts: list[bytes] = []
    for name, value in headers:
        parts += (name, b": ", value, b"\r\n")
    fields = b"".join(parts)
    line = _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return b"".join((line, fields, common, framing, b"\r\n"))


def check_answer(status: int, headers: Fields, framing: bytes) -> None:
    """Raises ValueError as `response_head`."""
    if not 200 <= status <= 599:
        raise ValueError(f"{status} is not the status of a final answer")
    for name, _ in headers:
        if name not in _COMMON:
            _check_name(name, framing)
    if _LINE_END.search(b"".join([value for _, value in headers])):
        raise ValueError("an answer's header holds a line end or NUL")


def _check_name(name: bytes, framing: bytes) -> None:
    if not _TOKEN.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a header")
    lower = name.lower()
    if lower in _OURS or (lower == b"content-length" and framing.startswith((b"content-length", b"transfer-encoding"))):
        raise ValueError(f"{name!r} is added by the stream")
