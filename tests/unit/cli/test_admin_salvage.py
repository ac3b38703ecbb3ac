"""`anvil admin salvage`, with the region in memory: what is asked for is named, what is irreversible needs --yes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from anvil.base.config import Config
from anvil.base.errors import Conflict, InvalidSetting
from anvil.cli.admin import command
from anvil.cli.admin_ops import Accepted, CandidateRow, RecoveryInfo
from anvil.cli.admin_salvage import _progress, _rebuilt
from anvil.cli.admin_session import Session
from anvil.model.dump import Rebuilt

CLOSED = RecoveryInfo(True, True, 1_700_000_000_000_000, "its database was lost", "dumps/1/", 1_600_000_000_000_000, 7, 2)


class Ops:
    """`calls`: what was asked, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[object, ...]] = []
        self.state = CLOSED

    @asynccontextmanager
    async def open(self, config: Config, global_url: str, regional_url: str) -> AsyncIterator[Ops]:
        yield self

    async def salvage_show(self) -> RecoveryInfo:
        return self.state

    async def salvage_list(self, bucket: str | None, limit: int) -> Sequence[CandidateRow]:
        self.calls.append(("list", bucket, limit))
        return [CandidateRow("b", "k", 0, "", "ab" * 16, 5, "e", 1_650_000_000_000_000, "older", 1_640_000_000_000_000)]

    async def salvage_open(self) -> RecoveryInfo:
        if not self.state.closed:
            raise Conflict("the region is not closed")
        self.state = msgspec.structs.replace(self.state, closed=False)
        return self.state

    async def salvage_accept(self, bucket: str | None, key: str | None) -> Accepted:
        self.calls.append(("accept", bucket, key))
        return Accepted(2, 1, {"no upload": 3}) if key is None else Accepted(1)

    async def salvage_reject(self, bucket: str | None, key: str | None) -> int:
        self.calls.append(("reject", bucket, key))
        return 4

    async def salvage_end(self) -> None:
        self.calls.append(("end",))


@pytest.fixture
def ops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ops:
    for name, value in (("GLOBAL", "g"), ("REGIONAL", "r")):
        monkeypatch.setenv(f"ANVIL_{name}_DATABASE_URL", f"postgresql://h/{value}")
    monkeypatch.setenv("ANVIL_DEV_MODE", "1")
    monkeypatch.setenv("ANVIL_DATA_DIR", str(tmp_path))
    return Ops()


def run(ops: Ops, *words: str) -> tuple[int, str]:
    done = CliRunner().invoke(command, ["salvage", *words], obj=Session(None, None, ops.open), standalone_mode=False)  # type: ignore[arg-type]
    if done.exception is not None:
        raise done.exception
    return done.return_value or 0, done.output


def test_accepting_the_dump_says_of_when_it_is_and_what_that_undoes(ops: Ops) -> None:
    assert "closed: no object is served" in run(ops, "show")[1]
    code, text = run(ops, "accept", "--dump")
    assert code == 0 and "2020-09-13" in text and "deleted after that is there again" in text
    assert "open; nothing is removed" in run(ops, "show")[1]
    with pytest.raises(Conflict):
        run(ops, "accept", "--dump")


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (("accept", "--bucket", "b", "k"), ("accept", "b", "k")),
        (("accept", "--bucket", "b", "--all"), ("accept", "b", None)),
        (("accept", "--all"), ("accept", None, None)),
        (("reject", "--bucket", "b", "k", "--yes"), ("reject", "b", "k")),
        (("reject", "--all", "--yes"), ("reject", None, None)),
    ],
)
def test_what_is_named_is_asked_for(ops: Ops, words: tuple[str, ...], asked: tuple[object, ...]) -> None:
    run(ops, *words)
    assert ops.calls == [asked]


@pytest.mark.parametrize(
    "words",
    [
        ("accept",),
        ("accept", "k"),
        ("accept", "--bucket", "b"),
        ("accept", "--all", "k"),
        ("accept", "--dump", "--all"),
        ("reject", "--all"),
        ("reject", "--bucket", "b", "--yes"),
    ],
)
def test_what_is_not_named_is_refused(ops: Ops, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidSetting):
        run(ops, *words)
    assert ops.calls == []


def test_what_stays_is_said_and_seen_in_the_exit_code(ops: Ops) -> None:
    code, text = run(ops, "accept", "--all")
    assert code == 1 and "2 accepted" in text and "3 not accepted: no upload" in text
    assert run(ops, "accept", "--bucket", "b", "k")[0] == 0
    assert json.loads(run(ops, "list", "--json")[1])[0]["obstacle"] == "older"
    assert "older" in run(ops, "list", "--bucket", "b")[1]


def test_a_rebuild_tells_how_far_it_is_and_what_it_found() -> None:
    assert _progress(Rebuilt(stage="dump")) == "looking for a dump"
    assert "50 %" in _progress(Rebuilt(stage="compare", partitions=2048))
    text = _rebuilt(
        Rebuilt(dump="dumps/1/", taken_us=1_600_000_000_000_000, rows=7, uncertain=3, away=["d1"], passed_over=["x: torn"])
    )
    for part in ("2020-09-13", "7 rows", "3 are uncertain", "not looked at: d1", "passed over: x: torn", "accept --dump"):
        assert part in text
    assert "there is no dump" in _rebuilt(Rebuilt())
