"""How much a process asks for, and when."""

from __future__ import annotations

import msgspec

from anvil.bench.exchange import Request, now_ns
from anvil.bench.http import Wait
from anvil.bench.operations import Work, mixing, scripts
from anvil.bench.plan import Plan, Target, shares
from anvil.bench.record import SECOND_NS

TARGET = Target("127.0.0.1", 9000, False, "AKID", "secret", "us-east-1", "bucket")
PUT = Plan("put", "run/", concurrency=4, processes=2, count=3)


def begun(plan: Plan, number: int = 0) -> Work:
    work = Work(TARGET, plan, shares(plan)[number])
    work.begin(now_ns())
    return work


def claims(work: Work, most: int = 100) -> list[int]:
    made = []
    while len(made) < most and (due := work.claim()) >= 0:
        made.append(due)
    return made


def test_a_count_is_dealt_out_whole() -> None:
    assert [len(claims(begun(PUT, number))) for number in (0, 1)] == [2, 1]
    one = msgspec.structs.replace(PUT, count=1)
    assert [len(claims(begun(one, number))) for number in (0, 1)] == [1, 0]  # and not without end


def test_a_time_ends() -> None:
    work = Work(TARGET, msgspec.structs.replace(PUT, count=0, duration_s=1.0), shares(PUT)[0])
    work.begin(now_ns() - 2 * SECOND_NS)
    assert claims(work) == []
    work.begin(now_ns())
    assert claims(work, 5) == [0] * 5
    work.stop()
    assert claims(work) == []


def test_a_rate_is_dealt_out_and_what_was_not_begun_is_known() -> None:
    plan = msgspec.structs.replace(PUT, count=0, duration_s=1.0, rate=20.0)
    start = now_ns()
    every: list[int] = []
    for number in (0, 1):
        work = Work(TARGET, plan, shares(plan)[number])
        work.begin(start)
        made = claims(work)
        assert len(made) == 10
        every += made
        work.begin(start)
        claims(work, 4)
        work.finish()
        assert work.not_begun == 6
    steps = {after - before for before, after in zip(sorted(every), sorted(every)[1:], strict=False)}
    assert steps == {SECOND_NS // 20}  # the processes take turns


def test_a_request_waits_until_it_is_due() -> None:
    plan = msgspec.structs.replace(PUT, count=0, duration_s=100.0, rate=1.0)
    script = scripts(begun(plan, 1))[0]
    wanted = next(script)
    assert isinstance(wanted, Wait) and wanted.due_ns > now_ns()
    request = script.send(None)
    assert isinstance(request, Request) and request.due_ns == wanted.due_ns


def test_processes_keep_to_their_own_keys() -> None:
    first, second = begun(PUT, 0), begun(PUT, 1)
    assert first.key(5) == b"run/w000/p00000/000000000005" and second.key(5) == b"run/w001/p00000/000000000005"
    spread = begun(msgspec.structs.replace(PUT, prefixes=3))
    assert {spread.key(number)[:-12] for number in range(9)} == {b"run/w000/p%05d/" % number for number in range(3)}


def test_what_is_read_is_not_deleted_meanwhile() -> None:
    plan = Plan("mixed", "run/", concurrency=1, count=10, objects=1, mix={"get": 1, "put": 1, "delete": 1})
    work = begun(plan)
    one = mixing(work)
    reading = None
    while reading is None:  # until a script happens to read the one object
        script = one(0)
        request = next(script)
        assert isinstance(request, Request)
        if request.method == b"DELETE":
            return
        reading = request if request.method == b"GET" else None
    methods = set()
    for _ in range(200):
        request = next(one(0))
        assert isinstance(request, Request)
        methods.add(request.method)
    assert methods == {b"GET", b"PUT"}
