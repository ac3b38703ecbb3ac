"""What a run can be, and how it is dealt out."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from anvil.base.errors import InvalidSetting
from anvil.bench.plan import Plan, Target, check, default_objects, parse_endpoint, parse_mix, parse_seconds, part_count, shares

GET = Plan("get", "run/", duration_s=10, objects=100)
UPLOAD = Plan("multipart", "run/", size="64MiB", duration_s=10, part_bytes=8 << 20, parallel=4)
MIXED = Plan("mixed", "run/", duration_s=10, objects=100, mix={"get": 1, "put": 1})


@pytest.mark.parametrize("plan", [GET, UPLOAD, MIXED, Plan("put", "a/b-1/c.d_/", count=1)])
def test_these_are_plans(plan: Plan) -> None:
    check(plan)


@pytest.mark.parametrize(
    ("plan", "changes", "says"),
    [
        (GET, {"operation": "copy"}, "not one of"),
        (GET, {"prefix": "run"}, "prefix"),
        (GET, {"prefix": "/run/"}, "prefix"),
        (GET, {"prefix": "a b/"}, "prefix"),
        (GET, {"concurrency": 0}, "--concurrency"),
        (GET, {"processes": 17}, "17 processes cannot share 16"),
        (GET, {"duration_s": 0}, "either --duration or --count"),
        (GET, {"count": 5}, "either --duration or --count"),
        (GET, {"duration_s": 0, "count": 5, "warmup_s": 1}, "--warmup"),
        (GET, {"objects": 0}, "--objects"),
        (GET, {"processes": 4, "objects": 3}, "--objects"),
        (GET, {"size": "6GiB"}, "5 GiB"),
        (GET, {"size": "4"}, ""),
        (GET, {"max_keys": 1001}, "--max-keys"),
        (GET, {"timeout_s": 0}, "--timeout"),
        (GET, {"rate": -1}, "--rate"),
        (GET, {"operation": "delete", "duration_s": 0, "count": 101}, "--objects is 100"),
        (MIXED, {"mix": {}}, "--mix"),
        (MIXED, {"mix": {"put": 1, "delete": 2}}, "run out"),
        (UPLOAD, {"part_bytes": 1 << 20}, "5 MiB"),
        (UPLOAD, {"part_bytes": 0}, "--part-size"),
        (UPLOAD, {"size": "100GiB"}, "10,000 parts"),
        (UPLOAD, {"size": "0"}, "one byte"),
        (UPLOAD, {"parallel": 17}, "--parallel"),
        (UPLOAD, {"parallel": 0}, "--parallel"),
    ],
)
def test_these_are_none(plan: Plan, changes: dict[str, Any], says: str) -> None:
    changed = msgspec.structs.replace(plan, **changes)
    if not says:
        check(changed)
        return
    with pytest.raises(InvalidSetting, match=says):
        check(changed)


def test_shares_add_up() -> None:
    plan = msgspec.structs.replace(GET, concurrency=10, processes=3, duration_s=0, count=100, objects=7, rate=50.0)
    made = shares(plan)
    assert [one.connections for one in made] == [4, 3, 3]
    assert [one.count for one in made] == [34, 33, 33]
    assert [one.objects for one in made] == [3, 2, 2]
    assert sum(one.rate for one in made) == pytest.approx(50.0)


def test_default_objects() -> None:
    assert (default_objects("put", 5), default_objects("get", 5), default_objects("delete", 5)) == (0, 1000, 5)
    assert default_objects("delete", 0) == 10_000


def test_parts() -> None:
    assert [part_count(size, 5) for size in (1, 5, 6, 10, 11)] == [1, 1, 2, 2, 3]


def test_a_mix() -> None:
    assert parse_mix("get=45, put=15,stat=30,delete=10") == {"get": 45, "put": 15, "stat": 30, "delete": 10}


@pytest.mark.parametrize("text", ["", "get", "get=", "get=-1", "get=1,get=2", "list=1", "get=0", "get=1.5"])
def test_no_mix(text: str) -> None:
    with pytest.raises(InvalidSetting):
        parse_mix(text)


def test_times() -> None:
    assert [parse_seconds(text) for text in ("10", "10s", "1.5m", "1h", "0")] == [10, 10, 90, 3600, 0]
    for text in ("", "s", "10 s", "1d", "-1", "1e3"):
        with pytest.raises(InvalidSetting):
            parse_seconds(text)


def test_endpoints() -> None:
    assert parse_endpoint("http://127.0.0.1:9000") == ("127.0.0.1", 9000, False)
    assert parse_endpoint("https://s3.example.com/") == ("s3.example.com", 443, True)
    assert parse_endpoint("http://[::1]") == ("::1", 80, False)
    for text in (
        "",
        "host",
        "host:80",
        "ftp://host",
        "http://",
        "http://host:x",
        "http://host/path",
        "http://u@host",
        "http://h?q",
    ):
        with pytest.raises(InvalidSetting):
            parse_endpoint(text)


def test_the_host_header_has_no_usual_port() -> None:
    def header(url: str) -> str:
        return Target(*parse_endpoint(url), "key", "secret", "r", "b").host_header

    assert [header(url) for url in ("http://h:80", "https://h", "http://h:443", "http://[::1]:81")] == [
        "h",
        "h",
        "h:443",
        "[::1]:81",
    ]


def test_a_target_shows_no_secret() -> None:
    assert "hush" not in repr(Target("h", 80, False, "key", "hush", "r", "b", token="hush"))
