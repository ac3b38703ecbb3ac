"""Answers that may take long: white space keeps proxies and clients waiting until the result is known.

Owns: when an answer turns into a waiting one. Invariant: a result or an error that comes within ANSWER_KEEPALIVE_AFTER_S is a
plain answer with its own status; later ones are 200 with the result or an Error document as the body, as S3 documents it for
CompleteMultipartUpload and CopyObject. Proxies give up on a silent upstream after 60 s.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from anvil.api.s3.call import Call
from anvil.api.s3.errors import classify, write_error
from anvil.api.s3.xml import CONTENT_TYPE, PROLOG, Xml
from anvil.base.errors import AnvilError
from anvil.base.limits import ANSWER_KEEPALIVE_AFTER_S, ANSWER_KEEPALIVE_EVERY_S
from anvil.net.stream import Headers

T = TypeVar("T")
log = logging.getLogger(__name__)


async def answer_when_done(
    call: Call,
    work: Coroutine[Any, Any, T],
    write: Callable[[Xml, T], None],
    headers: Headers = (),
    *,
    after_s: float = ANSWER_KEEPALIVE_AFTER_S,
    every_s: float = ANSWER_KEEPALIVE_EVERY_S,
) -> None:
    """Run `work` and answer with what `write` makes of its result. Raises what `work` raises while no byte was sent."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task,), timeout=after_s)
        if task.done():
            document = Xml()
            write(document, task.result())
            await call.respond_xml(200, document.bytes(), headers)
            return
        call.start(200, [CONTENT_TYPE, *headers], None)
        await call.stream.write(PROLOG.encode("ascii"))
        while not task.done():
            await asyncio.wait((task,), timeout=every_s)
            if not task.done():
                await call.stream.write(b"\n")
        await call.stream.write(_late(call, task, write))
        await call.stream.finish()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _late(call: Call, task: asyncio.Future[T], write: Callable[[Xml, T], None]) -> bytes:
    """The document of a finished task, behind a prolog that has been sent."""
    document = Xml(prolog=False)
    error = task.exception()
    if error is None:
        write(document, task.result())
        return document.bytes()
    face = classify(error)
    call.error_code = face.code
    if not isinstance(error, AnvilError):
        log.error("request %s failed", call.request_id, exc_info=error)
    write_error(document, error, face, resource=call.resource, request_id=call.request_id, host_id=call.host_id)
    return document.bytes()
