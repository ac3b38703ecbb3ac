"""Serves gRPC services on the port's own HTTP/2 streams: grpcio's generated servicers, without its server.

Owns: from a stream to a method, its messages, and the one status that ends the call: deadline, cancellation (by the task's), refusals.
Invariants: every call ends with a grpc-status or was given up by its client; what escapes a method is told as `describe` says, and not
otherwise. Not here: HTTP/2 (`net`), who may call (`admit`), what the services do.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import grpc
from google.protobuf.message import DecodeError

from anvil.base.errors import AnvilError, InvalidRequest
from anvil.base.limits import GRPC_SHOWN_METHOD_CHARS_MAX
from anvil.net.stream import TrailingStream
from anvil.rpc.context import OK, Aborted, Context
from anvil.rpc.messages import MessageReader, Room
from anvil.wire.grpc_head import is_protobuf, parse_timeout

log = logging.getLogger(__name__)
_EOF: Final = grpc.aio.EOF  # type: ignore[attr-defined]

CANCELLED: Final = 1
DEADLINE_EXCEEDED: Final = 4
UNIMPLEMENTED: Final = 12
INTERNAL: Final = 13


class Status(NamedTuple):
    """How a call ends. `details`: a serialized google.rpc.Status, or nothing."""

    code: int
    message: str
    details: bytes = b""


Admit = Callable[[Context], Awaitable[None]]
"""Called before a method is: sets `context.caller` and `context.known`, or raises."""
Describe = Callable[[Exception, Context], Status]
"""The status for what escaped a method. Also logs what is no error of the client's."""
Observe = Callable[[Context, Exception | None], None]
"""Called once for each call, after it, with what made it fail."""
Parse = Callable[[bytes], Any]
Takes = Callable[[TrailingStream, MessageReader, Parse], Any]
"""The attribute `takes` of a method of several messages: makes what it is called with instead of an iterator of messages."""


class _Method(NamedTuple):
    name: str
    handler: grpc.RpcMethodHandler[Any, Any]
    function: Callable[[Any, Context], Any]
    parse: Parse
    serialize: Callable[[Any], bytes]
    takes: Takes | None


async def everybody(context: Context) -> None:
    """The default `Admit`."""


def plain_status(error: Exception, context: Context) -> Status:
    """The default `Describe`: nothing is told but what is meant to be."""
    if not isinstance(error, AnvilError):
        log.error("gRPC call %s failed", context.method, exc_info=error)
    return Status(INTERNAL, error.message if isinstance(error, AnvilError) else "")


def ignore(context: Context, error: Exception | None) -> None:
    """The default `Observe`."""


class GrpcHost:
    """A `net.stream.TrailingHandler`. Give it to generated `add_..._to_server` functions as the server."""

    def __init__(self, *, admit: Admit = everybody, describe: Describe = plain_status, observe: Observe = ignore) -> None:
        self._admit: Final = admit
        self._describe: Final = describe
        self._observe: Final = observe
        self._room: Final = Room()
        self._methods: Final[dict[bytes, _Method]] = {}

    # -- what generated code calls

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        """The same methods come as registered ones, by name."""

    def add_registered_method_handlers(
        self, service: str, method_handlers: Mapping[str, grpc.RpcMethodHandler[Any, Any]]
    ) -> None:
        for name, handler in method_handlers.items():
            function: Any = (
                (handler.stream_stream if handler.response_streaming else handler.stream_unary)
                if handler.request_streaming
                else (handler.unary_stream if handler.response_streaming else handler.unary_unary)
            )
            assert function is not None
            self._methods[f"/{service}/{name}".encode()] = _Method(
                f"/{service}/{name}",
                handler,
                function,
                _parser(handler.request_deserializer),
                handler.response_serializer or bytes,
                getattr(function, "takes", None),
            )

    @property
    def services(self) -> tuple[str, ...]:
        """The names of all services, for reflection."""
        return tuple(sorted({path.decode().split("/")[1] for path in self._methods}))

    @property
    def methods(self) -> tuple[str, ...]:
        """The paths of all methods."""
        return tuple(method.name for method in self._methods.values())

    # -- serving

    async def __call__(self, stream: TrailingStream) -> None:
        """Serve one call. Raises nothing but CancelledError."""
        head = stream.head
        method = self._methods.get(head.path)
        context = Context(stream, head.path.decode("latin-1"), method.serialize if method else bytes)
        timer: asyncio.Timeout | None = None
        failure: Exception | None = None
        try:
            timeout_s, gzip = _read_head(head.headers)
            if method is None:
                raise _Refused(f"There is no method {context.method[:GRPC_SHOWN_METHOD_CHARS_MAX]}.")
            if timeout_s is None:
                await self._run(context, method, gzip)
            else:
                context.deadline_s = asyncio.get_running_loop().time() + timeout_s
                async with asyncio.timeout_at(context.deadline_s) as timer:
                    await self._run(context, method, gzip)
        except Aborted:
            await _end(context)
        except _Refused as refused:
            context.set_status(UNIMPLEMENTED, str(refused))
            await _end(context)
        except asyncio.CancelledError:
            context.set_status(CANCELLED, "")
            raise
        except ConnectionError:
            context.set_status(CANCELLED, "")  # the client has gone away: nobody to tell
        except Exception as error:
            if timer is not None and timer.expired():
                context.set_status(DEADLINE_EXCEEDED, "The deadline of the call has passed.")
                if stream.writing:  # the client does not read, or not so fast: a status behind that would wait as long
                    stream.abort()
                    return
            else:
                failure = error
                context.set_status(*self._describe(error, context))
            await _end(context)
        finally:
            context.over()
            self._observe(context, failure)
            failure = None  # its traceback holds this frame, and with it the buffers of an upload

    async def _run(self, context: Context, method: _Method, gzip: bool) -> None:
        await self._admit(context)
        reader = MessageReader(context.stream, self._room, gzip=gzip, known=context.known)
        try:
            await self._call(context, method, reader)
        finally:
            reader.free()

    async def _call(self, context: Context, method: _Method, reader: MessageReader) -> None:
        handler = method.handler
        request: Any
        if not handler.request_streaming:
            request = method.parse(await reader.only())
        elif method.takes is not None:
            request = method.takes(context.stream, reader, method.parse)
        else:
            request = _Requests(reader, method.parse)
            context.reads_by(request.read)
        result = method.function(request, context)
        if not handler.response_streaming:
            response = await result
            if context.code() == OK:
                await context.answer(response)
            else:
                await context.end()
            return
        if hasattr(result, "__aiter__"):
            await _send_all(context, result)
        else:
            await result
        await context.end()


class _Refused(Exception):
    """The call asks for something that is not here."""


async def _end(context: Context) -> None:
    try:
        await context.end()
    except ConnectionError:
        log.debug("gRPC call %s: the client has gone before its status", context.method)


def _parser(parse: Callable[[bytes], Any] | None) -> Callable[[bytes], Any]:
    """The deserializer of a method's messages, for bytes that may be anything."""

    def read(message: bytes) -> Any:
        try:
            return parse(message) if parse else message
        except DecodeError:
            raise InvalidRequest("A message of the call is not what the method takes.") from None

    return read


def _read_head(headers: Sequence[tuple[bytes, bytes]]) -> tuple[float | None, bool]:
    """The time-out in seconds, and whether messages may be compressed by gzip. Raises _Refused, InvalidRequest."""
    timeout_s, gzip = None, False
    for name, value in headers:
        if name == b"grpc-timeout":
            timeout_s = parse_timeout(value)
        elif name == b"grpc-encoding":
            if value not in (b"identity", b"gzip"):
                raise _Refused("Messages may be compressed by gzip, and by nothing else.")
            gzip = value == b"gzip"
        elif name == b"content-type" and not is_protobuf(value):
            raise _Refused("Messages are encoded as protobuf: application/grpc or application/grpc+proto.")
    return timeout_s, gzip


class _Requests:
    """The messages of a client that sends several, as an asynchronous iterator."""

    __slots__ = ("_parse", "_reader")

    def __init__(self, reader: MessageReader, parse: Callable[[bytes], Any]) -> None:
        self._reader = reader
        self._parse = parse

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        message = await self._reader.next()
        if message is None:
            raise StopAsyncIteration
        return self._parse(message)

    async def read(self) -> Any:
        message = await self._reader.next()
        return _EOF if message is None else self._parse(message)


async def _send_all(context: Context, responses: AsyncIterator[Any]) -> None:
    try:
        async for item in responses:
            if type(item) is memoryview:
                await context.write_chunk(item)
            else:
                await context.write(item)
    finally:
        close = getattr(responses, "aclose", None)
        if close is not None:
            await close()
