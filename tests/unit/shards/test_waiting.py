"""When a drive counts as stalled, who is told, and when it is well again. With a clock that the tests turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from anvil.base.errors import DriveStalled
from anvil.shards.waiting import Waiting

LIMIT_S = 10.0


class Timer:
    def __init__(self, at: float, call: Callable[[], None]) -> None:
        self.at = at
        self.call = call


class Clock:
    """The two methods of an event loop that `Waiting` uses."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now

    def call_later(self, after_s: float, call: Callable[[], None]) -> Timer:
        self.timers.append(Timer(self.now + after_s, call))
        return self.timers[-1]

    def turn(self, by_s: float) -> None:
        end = self.now + by_s
        while due := sorted((timer for timer in self.timers if timer.at <= end), key=lambda timer: timer.at):
            self.now = max(self.now, due[0].at)
            self.timers.remove(due[0])
            due[0].call()
        self.now = end


def made() -> tuple[Waiting, Clock]:
    async def make() -> Waiting:
        return Waiting("d1", LIMIT_S)

    waiting, clock = asyncio.run(make()), Clock()
    waiting._loop = cast(Any, clock)
    return waiting, clock


def test_the_oldest_call_decides() -> None:
    waiting, clock = made()
    hung = waiting.begin()
    for _ in range(5):  # others come back meanwhile
        clock.turn(LIMIT_S / 5)
        waiting.end(waiting.begin())
    assert not waiting.stalled
    clock.turn(LIMIT_S / 10)
    assert waiting.stalled
    waiting.end(hung)
    assert not waiting.stalled


def test_a_long_queue_that_moves_is_no_hang() -> None:
    waiting, clock = made()
    numbers = [waiting.begin() for _ in range(20)]
    for number in numbers:
        clock.turn(LIMIT_S * 0.9)
        assert not waiting.stalled
        waiting.end(number)
    clock.turn(LIMIT_S * 10)
    assert not waiting.stalled, "nothing is under way"
    assert clock.timers == [], "an idle drive costs nothing"


def test_a_process_that_slept_first_looks_what_came_back() -> None:
    waiting, clock = made()
    number = waiting.begin()
    clock.now += 100 * LIMIT_S  # no timer ran
    clock.turn(0)
    assert not waiting.stalled
    waiting.end(number)
    clock.turn(LIMIT_S)
    assert not waiting.stalled


def test_it_is_well_when_all_that_was_under_way_came_back() -> None:
    waiting, clock = made()
    numbers = [waiting.begin() for _ in range(3)]
    clock.turn(2 * LIMIT_S)
    later = waiting.begin()
    for number in numbers:
        assert waiting.stalled
        waiting.end(number)
    assert not waiting.stalled
    clock.turn(2 * LIMIT_S)
    assert waiting.stalled, "the later one hangs too"
    waiting.end(later)
    assert not waiting.stalled


def test_everybody_who_waits_is_told_once() -> None:
    waiting, clock = made()
    told: list[DriveStalled] = []
    loop = asyncio.new_event_loop()
    kept, gone = loop.create_future(), loop.create_future()
    waiting.add(kept)
    waiting.add(gone)
    waiting.discard(gone)
    waiting.begin(told.append)
    waiting.end(waiting.begin(told.append))
    clock.turn(3 * LIMIT_S)
    assert [error.fields["drive"] for error in told] == ["d1"]
    assert isinstance(kept.exception(), DriveStalled)
    assert not gone.done()
    loop.close()
