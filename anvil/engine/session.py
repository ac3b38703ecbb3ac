"""This worker's writer session: the lease without which nothing may be committed.

Owns: the id, and its renewal. Invariant: `current` is a session that was alive at the last renewal and whose lease, by this process's
monotonic clock, has not run out; a write begun under a session commits under it or not at all; whoever else keeps the id (the drives:
segments and temporary files name it, and those of a dead session are taken for leftovers) has it before the first write under it. The
database decides in the end (the commit locks the session row), so a stopped process that wakes up late cannot do harm, it only fails.

A session does not live as long as its worker: what a drive that was away brings back of blobs deleted meanwhile is an orphan only when the
session it was written under is gone. So it is replaced every SESSION_ROTATE_S, and kept for SESSION_RETIRE_S more, for the writes begun
under it; one that takes longer is fenced. Not here: the row itself (`meta`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from anvil.base.errors import AnvilError, Unavailable, WriterFenced
from anvil.base.limits import SESSION_LEASE_S, SESSION_RENEW_S, SESSION_RETIRE_S, SESSION_ROTATE_S
from anvil.engine.ports import Metadata
from anvil.model.records import SessionId

log = logging.getLogger("anvil.session")


async def _nobody(session: SessionId) -> None:
    return


class WriterSession:
    """`opened`: awaited with each new id before `current` gives it out; must neither take long nor raise.

    `layout_version`: the layout that the oldest write in flight was placed by, or without one the layout that this process goes by; 0 until
    it has read one. It never falls. `present_version`: the latter alone, where it differs: what a new session begins with, since writes
    of the session before cannot be committed under it. Movers of a layout wait for every session to report it (`meta/sessions.py`).
    """

    def __init__(
        self,
        metadata: Metadata,
        node_id: bytes,
        worker: int,
        layout_version: Callable[[], int] = lambda: 0,
        present_version: Callable[[], int] | None = None,
    ) -> None:
        self._metadata = metadata
        self._node_id = node_id
        self._worker = worker
        self._layout_version = layout_version
        self._present_version = present_version or layout_version
        self._hastened = asyncio.Event()
        self._session: SessionId | None = None
        self._good_until = 0.0
        self._opened_at = 0.0
        self._retiring: list[tuple[SessionId, float]] = []  # with the time when it is closed
        self.opened: Callable[[SessionId], Awaitable[None]] = _nobody

    @property
    def current(self) -> SessionId:
        if self._session is None or asyncio.get_running_loop().time() >= self._good_until:
            raise WriterFenced()
        return self._session

    async def open(self) -> SessionId:
        """Take a session. Raises DatabaseUnavailable, WriterFenced (this process goes by an old layout)."""
        asked = asyncio.get_running_loop().time()
        session = await self._metadata.open_session(self._node_id, self._worker, self._present_version())
        await self.opened(session)
        self._session, self._good_until, self._opened_at = session, asked + SESSION_LEASE_S, asked
        return session

    async def keep(self) -> None:
        """Renew for ever. A lost session is replaced by a new one; what was written under the old one fails to commit."""
        while True:
            try:
                async with asyncio.timeout(SESSION_RENEW_S if self._session is not None else 1.0):
                    await self._hastened.wait()
            except TimeoutError:
                pass
            self._hastened.clear()
            try:
                if not await self.renew():
                    log.warning("writer session lost: opening another")
                    self._session = None
                    await self.open()
                else:
                    await self._rotate(asyncio.get_running_loop().time())
            except Unavailable as error:
                log.warning("writer session not renewed: %s", error)
            except Exception:
                # Whatever it is: a loop that ended here would leave a worker that never writes again.
                log.exception("writer session not renewed")

    async def renew(self) -> bool:
        """Renew now. Returns whether there still is a session. Raises DatabaseUnavailable."""
        asked = asyncio.get_running_loop().time()
        if self._session is None or not await self._metadata.renew_session(self._session, self._layout_version()):
            return False
        self._good_until = asked + SESSION_LEASE_S
        return True

    async def _rotate(self, now: float) -> None:
        """Replace a session that is old enough, and look after those that were."""
        old = self._session
        if old is not None and now - self._opened_at >= SESSION_ROTATE_S:
            await self.open()
            self._retiring.append((old, now + SESSION_RETIRE_S))
        for retired, until in tuple(self._retiring):
            if now < until:
                await self._metadata.renew_session(retired, self._layout_version())
            else:
                await self._metadata.close_session(retired)
                self._retiring.remove((retired, until))

    def hasten(self) -> None:
        """Renew now: the layout changed or the last write by an older one ended, and movers wait for this session to report it."""
        self._hastened.set()

    async def close(self) -> None:
        """Give the session back, so that nobody has to wait for its lease."""
        sessions = [retired for retired, _ in self._retiring] + ([self._session] if self._session is not None else [])
        self._session, self._retiring = None, []
        for session in sessions:
            try:
                await self._metadata.close_session(session)
            except AnvilError as error:
                log.warning("writer session not closed, its lease will run out: %s", error)
