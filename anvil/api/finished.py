"""One answered request, of either API, for metrics and access log. Not here: what is counted (`node/observe.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

import msgspec

NOTHING: Final[Mapping[str, float]] = MappingProxyType({})
CLIENT_GONE: Final = 499  # as nginx counts it; never sent


class Finished(msgspec.Struct, frozen=True):
    """Times in seconds; `ttfb_s` is None when no byte was sent. `status`: of HTTP, CLIENT_GONE when the client went away before an
    answer was begun; gRPC's code, CANCELLED (1) likewise. `server_fault`: the status says that it was not the client's doing.
    `waits`: see `base.underway.STAGES`."""

    api: str  # "s3" or "grpc"
    operation: str
    method: str
    path: str
    peer: str
    request_id: str
    access_key: str
    status: int
    error_code: str
    seconds: float
    ttfb_s: float | None
    received_bytes: int
    sent_bytes: int
    server_fault: bool
    waits: Mapping[str, float] = NOTHING


Observer = Callable[[Finished], None]
