"""`grpc.health.v1`: what `/ready` says, to gRPC clients and load balancers.

Invariant: never touches a database or a disk. The whole node ("") and each service have one state: they stand and fall together. Source:
grpc/grpc, doc/health-checking.md. Not here: the checks (`node/health.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from anvil.base.limits import GRPC_WATCH_EVERY_S, GRPC_WATCHES_MAX
from anvil.rpc.context import Context

_SERVING: Final[int] = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING: Final[int] = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN: Final[int] = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService:
    """The servicer. `ready`: this worker's answer on /ready, now; `draining`: whether it takes its leave. `services`: the names that can
    be asked for, beside ""."""

    def __init__(self, ready: Callable[[], bool], draining: Callable[[], bool], services: Sequence[str]) -> None:
        self._ready = ready
        self._draining = draining
        self._names = ("", *services)
        self._watches = 0

    def _status(self, service: str) -> int:
        if service not in self._names:
            return _UNKNOWN
        return _SERVING if self._ready() else _NOT_SERVING

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        """NOT_FOUND for a service that is not here."""
        status = self._status(request.service)
        if status == _UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND, "There is no such service here.")
        return health_pb2.HealthCheckResponse(status=status)

    async def List(self, request: health_pb2.HealthListRequest, context: Context) -> health_pb2.HealthListResponse:
        status = self._status("")
        return health_pb2.HealthListResponse(
            statuses={name: health_pb2.HealthCheckResponse(status=status) for name in self._names}
        )

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """The state now and whenever it changes; RESOURCE_EXHAUSTED beyond GRPC_WATCHES_MAX. UNAVAILABLE ends it when the server takes its
        leave, which waits for calls to end."""
        if self._watches >= GRPC_WATCHES_MAX:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many clients watch this server: use Check.")
        self._watches += 1
        try:
            told = None
            while True:
                status = self._status(request.service)
                if status != told:
                    told = status
                    yield health_pb2.HealthCheckResponse(status=status)
                if self._draining():
                    await context.abort(grpc.StatusCode.UNAVAILABLE, "The server is stopping.")
                await asyncio.sleep(GRPC_WATCH_EVERY_S)
        finally:
            self._watches -= 1
