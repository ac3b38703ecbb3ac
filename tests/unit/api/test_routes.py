"""The table of operations: complete, without two ways to read it, and the same as the one in docs/S3.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from anvil.api.s3.routes import ROUTES, Route
from tests.unit.api.fakes import World

DOCS = Path(__file__).parents[3] / "docs" / "S3.md"


def target_of(route: Route) -> str:
    path = {"service": "/", "bucket": "/bucket", "object": "/bucket/key"}[route.level]
    return f"{path}?{route.sub}" if route.sub else path


@pytest.mark.parametrize("route", [route for route in ROUTES if route.handler is None], ids=lambda route: route.operation)
def test_what_is_not_there_says_so(route: Route) -> None:
    world = World()
    answer = world.ask(route.method, target_of(route), b"" if route.method in ("PUT", "POST") else None)
    assert (answer.status, answer.code) == (501, "NotImplemented")
    assert world.finished[-1].operation == route.operation
    assert "bucket" in world.catalog.rows


@pytest.mark.parametrize("route", [route for route in ROUTES if route.handler is not None], ids=lambda route: route.operation)
def test_what_is_there_is_reached(route: Route) -> None:
    world = World()
    headers = {"authorization": "x"} | ({"x-amz-copy-source": "/bucket/none"} if route.copies else {})
    world.ask(route.method, target_of(route), headers=headers)
    assert world.finished[-1].operation == route.operation and world.finished[-1].status != 501


def test_operations_have_one_name() -> None:
    names = [route.operation for route in ROUTES]
    assert len(names) == len(set(names))


def test_two_subresources_are_refused() -> None:
    world = World()
    assert world.ask("GET", "/bucket?acl&policy").code == "InvalidArgument"
    assert world.ask("DELETE", "/bucket/key?uploadId=x&tagging").code == "InvalidArgument"


def test_other_parameters_choose_nothing() -> None:
    world = World()
    world.engine.store(world.bucket, "key", b"data")
    assert world.ask("GET", "/bucket/key?x-id=GetObject").sent == b"data"


def test_the_documentation_says_the_same() -> None:
    rows = re.findall(r"^\| (\w+) \| (yes|no) \|", DOCS.read_text(), re.MULTILINE)
    documented = {name: answer == "yes" for name, answer in rows}
    assert len(rows) == len(documented)
    assert documented == {route.operation: route.handler is not None for route in ROUTES}
