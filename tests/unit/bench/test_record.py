"""What counts, and what is made of it: seconds, figures, comparisons."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import msgspec
import pytest

from anvil.base.errors import InvalidSetting
from anvil.bench import compare, plot, report
from anvil.bench.histogram import decode
from anvil.bench.plan import Plan, Target
from anvil.bench.record import SECOND_NS, Recorder, Result, Second, Series
from anvil.bench.run import Outcome

MS = 1_000_000
TARGET = Target("127.0.0.1", 9000, False, "AKID", "hush-hush", "us-east-1", "bucket")
PLAN = Plan("get", "run/", concurrency=4, duration_s=10, objects=5)


def recorder() -> Recorder:
    made = Recorder()
    made.window(100 * SECOND_NS, 110 * SECOND_NS)
    return made


def test_throughput_counts_what_ends_in_the_window_and_latency_what_begins_in_it() -> None:
    made = recorder()
    at = 100 * SECOND_NS
    made.note("get", at - 2 * SECOND_NS, at - SECOND_NS, 10, False)  # in the warm-up
    made.note("get", at - MS, at + MS, 10, False)  # began in the warm-up
    made.note("get", at + MS, at + 3 * MS, 10, False)
    made.note("get", at + 9 * SECOND_NS, at + 11 * SECOND_NS, 10, False)  # ended afterwards
    made.note("get", at + 2 * SECOND_NS, at + 2 * SECOND_NS + MS, 10, True)
    series = made.result().series["get"]
    assert [(one.requests, one.bytes, one.failed) for one in series.seconds] == [(2, 20, 0), (0, 0, 0), (0, 0, 1)]
    assert [sum(one.latency.values()) for one in series.seconds] == [1, 0, 0]
    assert sum(series.late.values()) == 1


def results(rate: int, latency_ms: float, *, seconds: int = 10, wobble: int = 0) -> list[Result]:
    """Of two processes, each with half of that."""
    made = []
    for _ in range(2):
        one = Recorder()
        one.window(0, seconds * SECOND_NS)
        for second in range(seconds):
            for number in range((rate + (wobble if second % 2 else -wobble)) // 2):
                end = second * SECOND_NS + (number + 1) * MS
                one.note("get", end - int(latency_ms * MS) if end > latency_ms * MS else 0, end, 1000, False)
        result = one.result()
        result.cpu_s, result.wall_s = 9.0, 10.0
        made.append(result)
    return made


def made(rate: int, latency_ms: float, **changes: Any) -> report.Report:
    plan = msgspec.structs.replace(PLAN, duration_s=float(changes.get("seconds", 10)))
    return report.build(TARGET, plan, Outcome(results(rate, latency_ms, **changes)), 1_800_000_000.0)


def test_a_report_adds_up_its_processes() -> None:
    one = made(100, 0.5)
    figures = one.operations["get"]
    assert (figures.requests, figures.bytes, figures.failed, figures.seconds) == (1000, 1_000_000, 0, 10)
    assert (figures.per_second, figures.bytes_per_second) == (100, 100_000)
    assert figures.latency_us["p50"] == pytest.approx(500, rel=2e-3) == figures.latency_us["max"]
    assert decode(figures.histogram).total == 1000
    assert [bucket.requests for bucket in figures.buckets] == [100] * 10
    assert not one.failed and one.started == "2027-01-15T08:00:00+00:00"
    assert any("closed loop" in note for note in one.notes)
    assert any("90% of a core" in note for note in one.notes)
    assert "client: 90% of" in report.text(one) or one.cores != 2


def test_a_rate_is_said_and_what_it_asked_for_in_vain() -> None:
    outcome = Outcome(results(100, 0.5))
    outcome.results[0].not_begun = 7
    one = report.build(TARGET, msgspec.structs.replace(PLAN, rate=200.0), outcome, 0.0)
    assert any("open loop, 200" in note for note in one.notes) and any(
        note.startswith("7 requests that were due") for note in one.notes
    )


def test_a_run_of_a_count_lasts_until_its_last_answer() -> None:
    outcome = Outcome(results(100, 0.5, seconds=2))
    figures = report.build(TARGET, msgspec.structs.replace(PLAN, duration_s=0, count=200), outcome, 0.0).operations["get"]
    assert figures.seconds == pytest.approx(1.05)
    assert figures.per_second == pytest.approx(200 / 1.05, rel=1e-4)


def test_a_report_holds_no_secret_and_is_read_again(tmp_path: Path) -> None:
    one = made(100, 0.5)
    path = str(tmp_path / "a.json")
    report.write_json(one, path)
    assert "hush" not in Path(path).read_text()
    assert report.load(path) == one


@pytest.mark.parametrize("text", ["", "{}", "[]", "\xff"])
def test_what_is_no_report(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_bytes(text.encode("latin-1"))
    for path in ("a.json", "absent.json"):
        with pytest.raises(InvalidSetting, match=path):
            report.load(str(tmp_path / path))


def test_a_report_of_another_format(tmp_path: Path) -> None:
    path = str(tmp_path / "a.json")
    report.write_json(msgspec.structs.replace(made(10, 0.5), format=2), path)
    with pytest.raises(InvalidSetting, match="format 2"):
        report.load(path)


def test_seconds_as_csv() -> None:
    out = io.StringIO()
    report.write_csv(made(100, 0.5, seconds=2), out)
    lines = out.getvalue().splitlines()
    assert lines[0] == "second,operation,requests,bytes,failed,p50_us,p99_us,max_us"
    assert [line.split(",")[:5] for line in lines[1:]] == [["0", "get", "100", "100000", "0"], ["1", "get", "100", "100000", "0"]]


def test_failures_are_added_up() -> None:
    outcome = Outcome([Result({"get": Series([Second(failed=2)])}, [], [])])
    from anvil.bench.record import Failure

    outcome.results[0].failures = [Failure("get", "s3", "SlowDown", 2, "k1"), Failure("get", "s3", "NoSuchKey", 5, "k2")]
    outcome.results.append(Result({}, [Failure("get", "s3", "SlowDown", 4, "k3")], []))
    one = report.build(TARGET, PLAN, outcome, 0.0)
    assert [(failure.code, failure.count, failure.example) for failure in one.failures] == [
        ("SlowDown", 6, "k3"),
        ("NoSuchKey", 5, "k2"),
    ]
    assert one.failed and "failed: get SlowDown, 6 times" in report.text(one)


def rows(first: report.Report, second: report.Report) -> dict[tuple[str, str], compare.Row]:
    return {(row.figure, row.unit): row for row in compare.compare(first, second)}


def test_a_difference_beyond_the_noise() -> None:
    found = rows(made(100, 0.5, wobble=2), made(120, 0.4, wobble=2))
    rate = found["throughput", "requests/s"]
    assert (rate.first.value, rate.second.value, rate.ratio, rate.verdict) == (100, 120, pytest.approx(1.2), "better")
    assert rate.first.noise == pytest.approx(2 * 1.4826)
    assert found["p50", "us"].verdict == "better" and found["p50", "us"].ratio == pytest.approx(0.8, rel=5e-3)
    assert found["p90", "us"].verdict == "unknown"  # no second says how much it wobbles
    assert rows(made(120, 0.4, wobble=2), made(100, 0.5, wobble=2))["throughput", "requests/s"].verdict == "worse"
    assert rows(made(100, 0.4), made(100, 0.5))["p99", "us"].verdict == "worse"


def test_a_difference_within_the_noise() -> None:
    assert rows(made(100, 0.5, wobble=10), made(120, 0.5, wobble=10))["throughput", "requests/s"].verdict == "within noise"


def test_too_few_seconds_say_nothing() -> None:
    found = rows(made(100, 0.5, seconds=4), made(500, 0.5, seconds=4))
    assert found["throughput", "requests/s"].verdict == "unknown" and found["throughput", "requests/s"].first.noise is None
    assert "unknown" in compare.text(list(found.values()))


def test_what_else_differs_is_told() -> None:
    first = made(100, 0.5)
    second = msgspec.structs.replace(
        first, endpoint="http://other", plan=msgspec.structs.replace(first.plan, concurrency=8, prefix="x/")
    )
    assert compare.differences(first, first) == []
    assert compare.differences(first, second) == ["concurrency: 4 and 8", "endpoint: http://127.0.0.1:9000 and http://other"]


def test_the_deviation() -> None:
    assert compare.deviation([1, 2, 3, 4]) is None
    assert compare.deviation([1, 2, 3, 4, 100]) == pytest.approx(1.4826)
    assert compare.deviation([5] * 5) == 0


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_plots(tmp_path: Path, name: str, begins: bytes) -> None:
    path = tmp_path / name
    plot.draw([("one", made(100, 0.5)), ("two", made(80, 0.7))], str(path))
    assert path.read_bytes().startswith(begins)
    if name.endswith(".svg"):
        assert b"requests per second" in path.read_bytes() or b"<!-- requests per second -->" in path.read_bytes()


def test_what_cannot_be_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("a.pdf", "absent/a.png"):
        with pytest.raises(InvalidSetting):
            plot.check(str(tmp_path / path))
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(InvalidSetting, match=r"pip install 'anvil-store\[plots\]'"):
        plot.check(str(tmp_path / "a.png"))
