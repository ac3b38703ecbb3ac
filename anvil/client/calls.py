"""Calls: token, deadline, errors and retries, the same for all methods.

Owns: what is tried again. A call that failed with Unavailable is repeated after a random pause if doing it twice is harmless (`Ask`), a
body that was damaged on its way in any case, since nothing of it was stored; a call whose token was refused once, with a new one.
Invariant: a stream is over, at both ends, when its method returns or raises. Not here: what the methods mean.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from anvil.api.grpc.proto import auth_pb2, object_pb2
from anvil.base import limits
from anvil.base.types import Buffer
from anvil.client.channel import Endpoint
from anvil.client.errors import BadCredentials, BadDigest, ClientError, Denied, TokenRejected, Unavailable, from_status
from anvil.client.tokens import Credentials, Tokens, TokenStore, token_of
from anvil.client.types import Ask, Token
from anvil.client.wire import as_bytes, chunk_message, read_message

R = TypeVar("R", bound=Message)
T = TypeVar("T")

PACKAGE = "/anvil.v1."
EOF: Any = grpc.aio.EOF  # type: ignore[attr-defined]  # the stubs lack it
GET_TOKEN = f"{PACKAGE}AuthService/GetAccessToken"


def backoff_s(attempt: int) -> float:
    """Before attempt 1, 2, ...: a random share of a pause that doubles, so that clients do not come back all at once."""
    longest: float = min(limits.CLIENT_BACKOFF_S_MAX, limits.CLIENT_BACKOFF_S * 2 ** (attempt - 1))
    return longest * random.uniform(0.5, 1.0)


class Calls:
    """`attempts`: of a repeatable call, the first included."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        endpoint: Endpoint,
        credentials: Credentials,
        store: TokenStore | None = None,
        attempts: int = limits.CLIENT_ATTEMPTS,
    ) -> None:
        self._channel = channel
        self._endpoint = endpoint
        self._credentials = credentials
        self._attempts = attempts
        self.tokens = Tokens(self._fetch_token, store)

    async def unary(self, method: str, request: Message, response: type[R], ask: Ask) -> R:
        """`method`: Service/Method. Raises ClientError."""
        call = self._channel.unary_unary(PACKAGE + method, request_serializer=as_bytes, response_deserializer=response.FromString)

        async def once(metadata: tuple[tuple[str, str], ...]) -> R:
            answer: R = await call(request, metadata=metadata, timeout=ask.timeout_s)
            return answer

        return await self.attempt(once, ask)

    async def upload(
        self,
        method: str,
        header: Message,
        body: Callable[[], AsyncIterator[Buffer]],
        trailer: Callable[[], Message],
        response: type[R],
        ask: Ask,
    ) -> R:
        """A header, what `body` yields, a trailer. `body` is called once per attempt; `trailer` when all was sent."""
        stub: Any = self._channel.stream_unary(
            PACKAGE + method, request_serializer=as_bytes, response_deserializer=response.FromString
        )

        async def once(metadata: tuple[tuple[str, str], ...]) -> R:
            call = stub(metadata=metadata)
            chunks = body()
            try:
                if await _send_all(call, header, chunks, trailer):
                    async with asyncio.timeout(limits.CLIENT_STALL_S):
                        await _half_close(call)
                async with asyncio.timeout(limits.CLIENT_STALL_S):
                    answer: R = await call
                return answer
            except TimeoutError:
                raise self._stalled(ask) from None
            finally:
                call.cancel()  # does nothing where it is over
                await _close(chunks)

        return await self.attempt(once, ask)

    async def download(self, request: object_pb2.GetObjectRequest, ask: Ask) -> Reading:
        """Begins to read. Returns once the head is there; what follows is read from the `Reading`, which must be closed."""
        stub: Any = self._channel.unary_stream(
            f"{PACKAGE}ObjectService/GetObject", request_serializer=as_bytes, response_deserializer=read_message
        )

        async def once(metadata: tuple[tuple[str, str], ...]) -> Reading:
            call = stub(request, metadata=metadata)
            reading = Reading(call, lambda error: self.explain(error, ask), lambda: self._stalled(ask))
            try:
                await reading.begin()
            except BaseException:
                call.cancel()
                raise
            return reading

        return await self.attempt(once, ask)

    async def attempt(self, once: Callable[[tuple[tuple[str, str], ...]], Awaitable[T]], ask: Ask) -> T:
        """`once` gets the metadata of an authorized call."""
        tries, renewed = 0, False
        while True:
            token = await self.tokens.get()
            try:
                return await once((("authorization", f"Bearer {token.value}"),))
            except grpc.aio.AioRpcError as error:
                failure = self.explain(error, ask)
            except Unavailable as error:  # a stream that stalled
                failure = error
            if isinstance(failure, TokenRejected) and not renewed:
                self.tokens.refused(token)
                renewed = True
                continue
            tries += 1
            harmless = isinstance(failure, BadDigest) or (ask.repeatable and isinstance(failure, Unavailable))
            if not harmless or tries >= self._attempts:
                raise failure
            await asyncio.sleep(backoff_s(tries))

    def explain(self, error: grpc.aio.AioRpcError, ask: Ask) -> ClientError:
        return from_status(error, ask, str(self._endpoint), self._credentials.client_id)

    def _stalled(self, ask: Ask) -> Unavailable:
        return Unavailable(f"{self._endpoint}: nothing moved for {limits.CLIENT_STALL_S:g} s ({ask.action} on {ask.resource})")

    async def _fetch_token(self) -> Token:
        call = self._channel.unary_unary(
            GET_TOKEN, request_serializer=as_bytes, response_deserializer=auth_pb2.GetAccessTokenResponse.FromString
        )
        client_id = self._credentials.client_id
        request = auth_pb2.GetAccessTokenRequest(client_id=client_id, client_secret=self._credentials.client_secret)
        ask = Ask("a token", f"app {client_id}")
        for tries in range(1, self._attempts + 1):
            try:
                answer: auth_pb2.GetAccessTokenResponse = await call(request, timeout=ask.timeout_s)
            except grpc.aio.AioRpcError as error:
                failure = self.explain(error, ask)
                if isinstance(failure, Denied):
                    said = f"{self._endpoint} does not accept the credentials of app {client_id}: wrong client id or secret"
                    failure = BadCredentials(
                        said, code=failure.code, status=failure.status, metadata=failure.metadata, request_id=failure.request_id
                    )
                if not isinstance(failure, Unavailable) or tries == self._attempts:
                    raise failure from None
                await asyncio.sleep(backoff_s(tries))
            else:
                return token_of(answer.access_token, answer.expires_at.ToNanoseconds() / 1e9, self.tokens.now_s())
        raise AssertionError("unreachable")


class Reading:
    """The chunks of a download, after its head. Closing it early tells the server to stop."""

    def __init__(
        self, call: Any, explain: Callable[[grpc.aio.AioRpcError], ClientError], stalled: Callable[[], ClientError]
    ) -> None:
        self._call = call
        self._explain = explain
        self._stalled = stalled
        self._left = 0
        self.head = object_pb2.GetObjectHead()

    async def begin(self) -> None:
        try:
            async with asyncio.timeout(limits.CLIENT_STALL_S):
                first = await self._call.read()
        except TimeoutError:
            raise self._stalled() from None
        if not isinstance(first, object_pb2.GetObjectResponse) or first.WhichOneof("part") != "head":
            raise ClientError("the server's answer does not begin with the object's head", code="MalformedAnswer")
        self.head, self._left = first.head, first.head.length

    async def read(self) -> memoryview | None:
        """The next chunk; None after the last. Raises ClientError, also where fewer or more bytes come than the head said."""
        try:
            async with asyncio.timeout(limits.CLIENT_STALL_S):
                message = await self._call.read()
        except grpc.aio.AioRpcError as error:
            raise self._explain(error) from None
        except TimeoutError:
            raise self._stalled() from None
        if message is EOF:
            if self._left:
                raise ClientError(f"the answer ended {self._left} bytes early", code="MalformedAnswer")
            return None
        if not isinstance(message, memoryview) or len(message) > self._left:
            raise ClientError("the server sent more than the head announced", code="MalformedAnswer")
        self._left -= len(message)
        return message

    def close(self) -> None:
        self._call.cancel()


async def _send_all(call: Any, header: Message, chunks: AsyncIterator[Buffer], trailer: Callable[[], Message]) -> bool:
    """False: the server ended the call before all was sent; its status says why."""
    async with asyncio.timeout(limits.CLIENT_STALL_S):
        await call.wait_for_connection()
        if not await _send(call, as_bytes(header)):
            return False
    async for chunk in chunks:
        async with asyncio.timeout(limits.CLIENT_STALL_S):
            if not await _send(call, chunk_message(chunk)):
                return False
    async with asyncio.timeout(limits.CLIENT_STALL_S):
        return await _send(call, as_bytes(trailer()))


async def _send(call: Any, message: bytes) -> bool:
    """Like `call.write`. But that one reports INTERNAL instead of what the server said, where the server ended the call meanwhile
    (2 of 100 early refusals, grpcio 1.85): it marks the call as failed before the status is read."""
    if call.done():
        return False
    try:
        await call._cython_call.send_serialized_message(message)
    except grpc.aio.InternalError:
        return False
    return True


async def _half_close(call: Any) -> None:
    """Like `call.done_writing`, for the same reason."""
    if not call.done():
        try:
            await call._cython_call.send_receive_close()
        except grpc.aio.InternalError:
            return


async def _close(chunks: AsyncIterator[Buffer]) -> None:
    """Of a generator: lets it close its file now."""
    close = getattr(chunks, "aclose", None)
    if close is not None:
        await close()
