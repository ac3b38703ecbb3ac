"""What a failed body leaves behind: nothing."""

from __future__ import annotations

import asyncio
import gc
import weakref

import pytest

from anvil.base.errors import AnvilError, IncompleteBody, InvalidRequest, RequestTimeout
from anvil.net.inbound import Inbound


class Buffer:
    """Stands for the stripe buffer in a frame of the upload."""


async def _read(body: Inbound, seen: list[weakref.ref[Buffer]], *, late: bool) -> None:
    buffer = Buffer()
    seen.append(weakref.ref(buffer))
    if late:
        body.check()
    body.begin(memoryview(bytearray(10)), memoryview(b""))
    await body.wait()


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [IncompleteBody(), RequestTimeout(), InvalidRequest("A chunk size is malformed.", Field="x")])
def test_a_failed_body_does_not_hold_the_frames_of_its_reader(error: AnvilError, late: bool) -> None:
    """The body outlives the failure (its connection lingers). Its error once held the reader's frames, which held the body and a stripe
    buffer: a cycle, so a hundred failed uploads used up the buffers of a worker until the garbage collector happened by."""

    async def fail() -> None:
        body, seen = Inbound(100, asyncio.get_running_loop()), []
        if late:
            body.fail(error)
        reading = asyncio.ensure_future(_read(body, seen, late=late))
        await asyncio.sleep(0)
        if not late:
            body.fail(error)
        try:
            await reading
        except AnvilError as raised:
            assert (type(raised), raised.message, raised.fields) == (type(error), error.message, error.fields)
        del reading
        await asyncio.sleep(0)
        assert seen[0]() is None

    gc.disable()
    try:
        asyncio.run(fail())
    finally:
        gc.enable()
