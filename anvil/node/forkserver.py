"""The process that a node's children are forked off. It is itself forked off the supervisor, before there is anything but imported modules.

To import what a child needs is half a second of work; here that is done once, a child is there within milliseconds, and the pages of all
that was imported are shared. Owns: fork(), the reaping of the children, their process groups and titles. Invariants: it has one thread, no
event loop and no file but the link to the supervisor, so that a fork is safe and a child inherits nothing; children die with it, it dies
with the supervisor (PR_SET_PDEATHSIG); what stops a node does not end it (service managers signal every process, and the children are still
draining then). Not here: what children do (`node/child.py`), when they are started again (`node/processes.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import resource
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import NoReturn

import msgspec
from setproctitle import setproctitle

from anvil.base.config import forget_environment
from anvil.base.errors import Unavailable
from anvil.base.limits import FORK_ANSWER_S, START_S_MAX
from anvil.node.child import Target, bind_to_parent, main

MESSAGE_BYTES = 4096  # more than any message takes
UNTOLD = -signal.SIGKILL  # how children end whose server is gone, and most that end while it hangs
GONE = "the fork server is gone"


class Fork(msgspec.Struct, tag="fork", frozen=True):
    """The order, with the child's end of its control connection. `target`: by name."""

    number: int
    target: str
    title: str


class Forked(msgspec.Struct, tag="forked", frozen=True):
    """The answer, with a pidfd."""

    number: int
    pid: int


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """The other answer. `why`: the error number."""

    number: int
    why: int


class Ended(msgspec.Struct, tag="ended", frozen=True):
    """A child was reaped. `code`: negative is the number of the signal that ended it."""

    pid: int
    code: int


_told = msgspec.msgpack.Decoder(Forked | Refused | Ended)
_ordered = msgspec.msgpack.Decoder(Fork)


class ForkedChild:
    """A child that was forked, seen from the supervisor. `code` is None while it runs; how it ended is told by the server, that it ended is
    seen without it, since a server that hangs must not keep a node from stopping."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.code: int | None = None
        self._pidfd = pidfd
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(pidfd, self._exited)

    async def ended(self) -> int:
        """Wait until it has ended and was reaped. Returns its code."""
        await self._over.wait()
        assert self.code is not None
        return self.code

    def kill(self) -> None:
        """SIGKILL, if it runs. It reaches this very process or none, also when its number was given to another one."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def end(self, code: int) -> None:
        """It was reaped. What is told later changes nothing."""
        if self.code is None:
            self.code = code
            self._loop.remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._over.set()

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        self._loop.call_later(FORK_ANSWER_S, self.end, UNTOLD)


class ForkServer:
    """The supervisor's side. To be made while this process has one thread and no event loop. Raises Unavailable: no memory, no process."""

    def __init__(self, targets: Mapping[str, Target]) -> None:
        self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._children: dict[int, ForkedChild] = {}
        self._waiting: dict[int, asyncio.Future[ForkedChild]] = {}
        self._number = 0
        self._lost = asyncio.Event()
        gc.collect()
        gc.freeze()  # the collector would write to the pages that are shared
        supervisor = os.getpid()
        try:
            self.pid = os.fork()
        except OSError as error:
            raise Unavailable(f"no process can be started: {error.strerror}") from error
        if self.pid == 0:
            self._link.close()
            _never_return(lambda: _serve(theirs, supervisor, targets))
        theirs.close()
        self._link.setblocking(False)

    def attach(self) -> None:
        """Listen to it from the running loop."""
        asyncio.get_running_loop().add_reader(self._link, self._hear)

    async def fork(self, target: str, title: str, control: socket.socket) -> ForkedChild:
        """Start a child. Raises OSError: no memory, no process, or the server is gone or does not answer."""
        if self._lost.is_set():
            raise OSError(errno.ECONNRESET, GONE)
        number = self._number = self._number + 1
        answer: asyncio.Future[ForkedChild] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            socket.send_fds(self._link, [msgspec.msgpack.encode(Fork(number, target, title))], [control.fileno()])
            async with asyncio.timeout(START_S_MAX):
                return await answer
        except TimeoutError:
            raise OSError(errno.ETIMEDOUT, "the fork server does not answer") from None
        finally:
            del self._waiting[number]

    async def lost(self) -> NoReturn:
        """Wait until it is gone, which it is not while the node is well. Raises Unavailable."""
        await self._lost.wait()
        raise Unavailable("the process that the others are forked off was killed, and they with it")

    def close(self) -> None:
        """End it, and with it what it has forked. Whoever waits for either is told."""
        if self._link.fileno() < 0:
            return
        with contextlib.suppress(RuntimeError):
            asyncio.get_running_loop().remove_reader(self._link)
        self._link.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        self._give_up()

    def _hear(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._link, MESSAGE_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self._is_lost()
            return
        match _told.decode(data):
            case Forked(number, pid):
                child = self._children[pid] = ForkedChild(pid, fds[0])
                waiting = self._waiting.get(number)
                if waiting is None or waiting.done():
                    child.kill()  # who asked for it has given up
                else:
                    waiting.set_result(child)
            case Refused(number, why):
                if (waiting := self._waiting.get(number)) is not None and not waiting.done():
                    waiting.set_exception(OSError(why, os.strerror(why)))
            case Ended(pid, code):
                self._children.pop(pid).end(code)

    def _is_lost(self) -> None:
        asyncio.get_running_loop().remove_reader(self._link)
        self._lost.set()
        self._give_up()

    def _give_up(self) -> None:
        for child in self._children.values():
            child.end(UNTOLD)
        self._children.clear()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(OSError(errno.ECONNRESET, GONE))


# -- in the server itself --------------------------------------------------------------------------------------------------


def _never_return(work: Callable[[], int]) -> NoReturn:
    """Nothing of the process that this one is a copy of may go on here: no handler, no `finally`, no exit hook."""
    code = 1
    try:
        code = work()
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):  # whoever read what it prints may be gone
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _serve(link: socket.socket, supervisor: int, targets: Mapping[str, Target]) -> int:
    """Fork when asked, reap, tell; until the supervisor is gone."""
    bind_to_parent(supervisor)
    os.setpgid(0, 0)  # Ctrl-C at the terminal is for the supervisor alone
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    forget_environment(lambda: setproctitle("anvil: fork server"))
    os.closerange(3, link.fileno())  # what `anvil server` was started with is not for children
    os.closerange(link.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    running: dict[int, int] = {}  # process numbers by pidfd
    poll = select.poll()
    poll.register(link, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == link.fileno():
                data, fds, _, _ = socket.recv_fds(link, MESSAGE_BYTES, 1)
                if not data:
                    return 0
                control = socket.socket(fileno=fds[0])
                with control:
                    _fork(link, _ordered.decode(data), control, targets, poll, running)
            else:
                poll.unregister(fd)
                pid = running.pop(fd)
                os.close(fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                link.send(msgspec.msgpack.encode(Ended(pid, code)))


def _fork(
    link: socket.socket,
    order: Fork,
    control: socket.socket,
    targets: Mapping[str, Target],
    poll: select.poll,
    running: dict[int, int],
) -> None:
    server = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        link.send(msgspec.msgpack.encode(Refused(order.number, error.errno or 0)))
        return
    if pid == 0:
        link.close()
        for pidfd in running:
            os.close(pidfd)
        _never_return(lambda: _child(server, order, control, targets))
    try:
        pidfd = os.pidfd_open(pid)  # nobody else reaps it, so this is the one that was just forked
    except OSError as error:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        link.send(msgspec.msgpack.encode(Refused(order.number, error.errno or 0)))
        return
    running[pidfd] = pid
    poll.register(pidfd, select.POLLIN)
    socket.send_fds(link, [msgspec.msgpack.encode(Forked(order.number, pid))], [pidfd])


def _child(server: int, order: Fork, control: socket.socket, targets: Mapping[str, Target]) -> int:
    os.setpgid(0, 0)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    setproctitle(order.title)
    return main(targets[order.target], control, server)
