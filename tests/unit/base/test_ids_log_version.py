"""Ids are unique also across a fork; log lines carry facts and no secrets."""

from __future__ import annotations

import contextvars
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from anvil.base import ids, log, version
from anvil.base.clock import SYSTEM_CLOCK
from anvil.base.underway import begin


def test_ids_have_the_documented_form() -> None:
    assert len({ids.random_id() for _ in range(2000)}) == 2000
    assert all(len(ids.random_id()) == 16 for _ in range(600))
    assert re.fullmatch("[0-9A-F]{16}", ids.request_id())
    assert re.fullmatch("AK[A-Z2-7]{18}", ids.access_key())
    assert re.fullmatch("[0-9A-Za-z]{40}", ids.secret_key())
    assert 1 <= ids.bucket_id() < 2**63


def test_a_forked_child_draws_other_ids() -> None:
    ids.random_id()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writer, b"".join(ids.random_id() for _ in range(100)))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        theirs = pipe.read()
    os.waitpid(child, 0)
    assert not {ids.random_id() for _ in range(300)} & {theirs[i : i + 16] for i in range(0, len(theirs), 16)}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(log.JsonFormatter("worker-1"))
    logger = logging.getLogger("anvil.test")
    logger.addHandler(handler)
    logger.setLevel("DEBUG")
    logger.propagate = False
    yield stream
    logger.removeHandler(handler)


def test_a_line_is_json_with_facts_and_the_request_id(lines: io.StringIO) -> None:
    begun = contextvars.copy_context()
    begun.run(begin, "0123456789ABCDEF")
    logger = logging.getLogger("anvil.test")
    begun.run(lambda: logger.warning("drive %s is slow", "d1", extra={"ms": 12.5}))
    line = json.loads(lines.getvalue())
    assert line["message"] == "drive d1 is slow"
    assert (line["level"], line["process"], line["ms"], line["request_id"]) == ("warning", "worker-1", 12.5, "0123456789ABCDEF")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])


def test_secrets_do_not_reach_a_line(lines: io.StringIO) -> None:
    log.protect("topsecretvalue")
    logger = logging.getLogger("anvil.test")
    logger.error("key topsecretvalue", extra={"detail": "topsecretvalue", "header": "Bearer abc.def-ghi"})
    logger.error("cannot reach postgresql://anvil:hunter2@db/x")
    logger.error("GET /b/k?X-Amz-Signature=0badcafe&X-Amz-Date=1")
    shown = lines.getvalue()
    for secret in ("topsecretvalue", "hunter2", "0badcafe", "abc.def"):
        assert secret not in shown
    assert "X-Amz-Date=1" in shown


def test_a_hostile_value_cannot_forge_a_line_or_fill_the_disk(lines: io.StringIO) -> None:
    logging.getLogger("anvil.test").error("key %s", "a\n{}\r" + "x" * 100_000)
    assert lines.getvalue().count("\n") == 1
    assert len(lines.getvalue()) < 10_000
    record = logging.makeLogRecord({"msg": "a\nb", "levelname": "INFO"})
    assert "\n" not in log.TextFormatter("p").format(record)


def test_clocks() -> None:
    assert SYSTEM_CLOCK.now_us() > 1_700_000_000_000_000
    assert SYSTEM_CLOCK.monotonic() <= SYSTEM_CLOCK.monotonic()


def test_an_image_knows_its_commit_by_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Outside of a checkout: what the build wrote beside the module, else nothing."""
    module = tmp_path / "anvil" / "base" / "version.py"
    module.parent.mkdir(parents=True)
    monkeypatch.setattr(version, "__file__", str(module))
    assert version._commit() == ""
    module.with_name("REVISION").write_text("0123456789abcdef0123456789abcdef01234567")
    assert version._commit() == "0123456789ab"
