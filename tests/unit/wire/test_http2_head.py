"""What the fields of an HTTP/2 request mean, and the fields of an answer."""

from __future__ import annotations

import pytest

from anvil.wire.http1 import Refusal, date_and_server
from anvil.wire.http2_head import answer_fields, parse_fields

GET = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/a//b%2F?x=1&y"), (b":authority", b"h:1")]


def changed(**fields: bytes | None) -> list[tuple[bytes, bytes]]:
    kept = [(name, value) for name, value in GET if name[1:].decode() not in fields]
    return kept + [(b":" + name.encode(), value) for name, value in fields.items() if value is not None]


def test_a_request() -> None:
    head = parse_fields([*GET, (b"x-a", b"1"), (b"x-a", b"2"), (b"content-length", b"77")])
    assert (head.method, head.path, head.query, head.authority) == ("GET", b"/a//b%2F", b"x=1&y", b"h:1")
    assert head.headers == [(b"x-a", b"1"), (b"x-a", b"2"), (b"content-length", b"77")]
    assert (head.version, head.content_length, head.chunked, head.expects_continue) == ("2", 77, False, False)


def test_the_host_may_stand_in_for_the_authority() -> None:
    assert parse_fields([*changed(authority=None), (b"host", b"b.h")]).authority == b"b.h"
    assert parse_fields([*GET, (b"host", b"H:1")]).authority == b"h:1"


def test_an_asterisk_is_for_options_only() -> None:
    assert parse_fields(changed(method=b"OPTIONS", path=b"*")).path == b"*"


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ([*GET, (b"host", b"other")], 400),
        ([*GET, (b"host", b"h:1"), (b"host", b"h:1")], 400),
        (changed(authority=None), 400),
        (changed(authority=b"a/b"), 400),
        (changed(path=b"*"), 400),
        (changed(path=b"http://h/"), 400),
        (changed(path=b"/a#b"), 400),
        (changed(path=None), 400),
        (changed(method=b"CONNECT"), 501),
        ([*GET, (b"content-length", b"-1")], 400),
        ([*GET, (b"expect", b"200-ok")], 417),
    ],
)
def test_refused(fields: list[tuple[bytes, bytes]], status: int) -> None:
    with pytest.raises(Refusal) as refusal:
        parse_fields(fields)
    assert refusal.value.status == status


def test_an_answer_is_in_lower_case_with_its_length_last() -> None:
    common = date_and_server(784111777.9)
    assert answer_fields(206, [(b"ETag", b'"x"')], common, 5) == [
        (b":status", b"206"),
        (b"etag", b'"x"'),
        (b"date", b"Sun, 06 Nov 1994 08:49:37 GMT"),
        (b"server", b"Anvil"),
        (b"content-length", b"5"),
    ]
    assert answer_fields(204, [], common, None)[0] == (b":status", b"204")


@pytest.mark.parametrize(
    ("status", "headers"),
    [(100, []), (200, [(b"x", b"a\r\nb: c")]), (200, [(b"x y", b"a")]), (200, [(b"connection", b"close")])],
)
def test_an_answer_that_would_break_the_message(status: int, headers: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ValueError, match=r"."):
        answer_fields(status, headers, (), 0)
