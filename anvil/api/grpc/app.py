"""The gRPC API: which services there are, who calls them, how their errors look, what is told to metrics and access log.

Invariants: but for the calls that need no credentials, a token that is not valid ends the call before its message is read; every call
of the services has a request id in its trailers and in its error details. Not here: what operations do (`operations`), messages
(`services`), how calls are served (`host`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Final, Protocol

import grpc
import msgspec
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from anvil.api.finished import NOTHING, Finished, Observer
from anvil.api.grpc.errors import code_of, status_of
from anvil.api.grpc.proto.auth_pb2_grpc import add_AuthServiceServicer_to_server
from anvil.api.grpc.proto.bucket_pb2_grpc import add_BucketServiceServicer_to_server
from anvil.api.grpc.proto.object_pb2_grpc import add_ObjectServiceServicer_to_server
from anvil.api.grpc.services.auth import AuthService
from anvil.api.grpc.services.bucket import BucketService
from anvil.api.grpc.services.health import HealthService
from anvil.api.grpc.services.object import ObjectService
from anvil.api.grpc.services.reflection import add_reflection
from anvil.api.operations.caller import Services
from anvil.api.s3.errors import classify
from anvil.auth.tokens import Tokens
from anvil.base.errors import AnvilError, InvalidToken
from anvil.base.underway import UNDERWAY, begin, waited
from anvil.model.identity import ANONYMOUS, Principal
from anvil.net.stream import TrailingStream
from anvil.rpc.context import Context
from anvil.rpc.host import GrpcHost, Status

log = logging.getLogger(__name__)

_SIGN_IN: Final = "/anvil.v1.AuthService/GetAccessToken"
_OWN: Final = "/anvil."
# What the server did wrong, or could not do: UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS.
# Of calls that no error of ours ended: a deadline, a client that went away, a method that is not there.
_STATUS_NAMES: Final = {code.value[0]: code.name for code in grpc.StatusCode if code is not grpc.StatusCode.OK}
_SERVER_FAULTS: Final = frozenset((2, 13, 14, 15))


class Readiness(Protocol):
    def __call__(self) -> bool: ...


class GrpcCaller(msgspec.Struct, frozen=True):
    """Who makes a call (`operations.caller.Caller`)."""

    services: Services
    principal: Principal
    request_id: str
    peer: str


class GrpcApi:
    """Serves gRPC on streams (`net.stream.TrailingHandler`). `ready`, `draining`: this worker's answer on /ready, now. `observers` are
    called once for each call, after it."""

    def __init__(
        self,
        services: Services,
        tokens: Tokens,
        *,
        ready: Readiness,
        draining: Readiness,
        request_ids: Callable[[], str],
        observers: Sequence[Observer] = (),
    ) -> None:
        self._services: Final = services
        self._tokens: Final = tokens
        self._request_ids: Final = request_ids
        self._observers: Final = tuple(observers)
        self.in_flight = 0
        host = self._host = GrpcHost(admit=self._admit, describe=self._describe, observe=self._observe)
        add_AuthServiceServicer_to_server(AuthService(tokens), host)
        add_BucketServiceServicer_to_server(BucketService(), host)
        add_ObjectServiceServicer_to_server(ObjectService(), host)
        own = host.services
        add_HealthServicer_to_server(HealthService(ready, draining, own), host)
        add_reflection(host, (*own, "grpc.health.v1.Health"))
        self._operations: Final = {name: _operation(name) for name in host.methods}

    async def __call__(self, stream: TrailingStream) -> None:
        """Answer one call. Raises nothing but CancelledError."""
        self.in_flight += 1
        try:
            await self._host(stream)
        finally:
            self.in_flight -= 1

    async def _admit(self, context: Context) -> None:
        head = context.stream.head
        request_id = self._request_ids()
        begin(request_id)
        context.caller = GrpcCaller(self._services, ANONYMOUS, request_id, head.peer)
        context.known = False
        if not context.method.startswith(_OWN):
            return  # health and reflection, for everybody
        context.set_trailing_metadata((("x-amz-request-id", request_id),))
        if context.method == _SIGN_IN:
            return  # also with an old token
        given = head.all(b"authorization")
        if len(given) > 1:
            raise InvalidToken
        if given:
            principal = await self._tokens.authenticate(given[0].decode("latin-1"))
            waited("auth", context.started_at)
            context.caller = GrpcCaller(self._services, principal, request_id, head.peer)
            context.known = True

    def _describe(self, error: Exception, context: Context) -> Status:
        request_id = context.caller.request_id if context.caller is not None else self._request_ids()
        if not isinstance(error, AnvilError):
            log.error("request %s (%s) failed", request_id, context.method, exc_info=error)
        elif code_of(error).value[0] in _SERVER_FAULTS and classify(error).status == 500:
            log.error("request %s (%s): %s", request_id, context.method, error.message)
        status = status_of(error, request_id)
        return Status(status.code.value[0], status.message, status.details_bin)

    def _observe(self, context: Context, error: Exception | None) -> None:
        stream, caller, code = context.stream, context.caller, context.code()
        app = caller.principal.app if caller is not None else None
        first, underway = context.first_byte_at, UNDERWAY.get()
        known = caller is not None and underway is not None and underway.request_id == caller.request_id
        finished = Finished(
            api="grpc",
            operation=self._operations.get(context.method, "other"),
            method="POST",
            path=context.method,
            peer=stream.head.peer,
            request_id=caller.request_id if caller is not None else "",
            access_key=app.access_key if app is not None else "",
            status=code,
            error_code=classify(error).code if error is not None else _STATUS_NAMES.get(code, ""),
            seconds=perf_counter() - context.started_at,
            ttfb_s=None if first is None else first - context.started_at,
            received_bytes=stream.received_bytes,
            sent_bytes=stream.sent_bytes,
            server_fault=code in _SERVER_FAULTS,
            waits=underway.waits if underway is not None and known else NOTHING,
        )
        for observer in self._observers:
            try:
                observer(finished)
            except Exception:
                log.exception("request %s: an observer failed", finished.request_id)


def _operation(method: str) -> str:
    """What metrics call it: `GetObject`, and `Health.Check` where the service is not Anvil's."""
    _, service, name = method.split("/")
    return name if method.startswith(_OWN) else f"{service.rpartition('.')[2]}.{name}"
