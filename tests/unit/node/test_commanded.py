"""Long work that a command begins: whatever ends it, it is not told as done."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import msgspec
import pytest

from anvil.base.errors import Unavailable
from anvil.meta.recovery import Checked
from anvil.node.checking import Checking, Wanted
from anvil.node.commanded import Commanded
from anvil.tasks.fsck import Report

FAILURES = [
    (Unavailable("a drive is away"), "a drive is away"),
    (OSError(5, "Input/output error", "/mnt/x"), "Input/output error (/mnt/x)"),
    (ZeroDivisionError("oops"), "it failed: ZeroDivisionError('oops'); the log says more"),
]


class Notes:
    async def now_us(self) -> int:
        return 1

    async def note_fsck(self, checked: Checked) -> None:
        raise AssertionError("nothing is remembered of a check that was not ended")


@pytest.mark.parametrize(("error", "said"), FAILURES)
def test_a_check_that_falls_over_is_not_clean(error: Exception, said: str) -> None:
    class Fsck:
        async def run(self, report: Report, *, deep: bool, repair: bool) -> None:
            raise error

    async def main() -> None:
        checking = Checking(cast(Any, Fsck()), Notes())
        running = asyncio.create_task(checking.run())
        for number in (1, 2):
            assert checking.ask(Wanted()) == number
            async with asyncio.timeout(10):
                while not checking.state.over:
                    await asyncio.sleep(0)
            assert (checking.state.failed, checking.state.clean) == (said, False)
            assert not running.done(), "the next one can be asked for"
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize(("error", "said"), FAILURES)
def test_a_run_that_falls_over_says_so(error: Exception, said: str) -> None:
    async def work(report: list[int], wanted: bool) -> None:
        raise error

    async def main() -> None:
        made = Commanded("dump", work, list)
        running = asyncio.create_task(made.run())
        await made.handlers["dump.ask"](cast(Any, None), msgspec.Raw(msgspec.msgpack.encode(True)))
        async with asyncio.timeout(10):
            while not (state := cast(Any, await made.handlers["dump.state"](cast(Any, None), msgspec.Raw(b"")))).over:
                await asyncio.sleep(0)
        assert state.failed == said and not running.done()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())
