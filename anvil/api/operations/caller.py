"""Who calls an operation, and what it works with.

Owns: the contract that S3's `Call` and gRPC's caller both satisfy. Not here: what is asked, how it is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from anvil.api.operations.ports import Authorizer, Engine
from anvil.base.errors import InRecovery
from anvil.engine.ports import Catalog, Rights
from anvil.model.identity import Principal


def _open() -> str:
    return ""


class Services(msgspec.Struct, frozen=True):
    """What operations work with. `region`: the node's; `endpoint`: the URL that clients reach the node under; `closed`: why the region
    serves no object now, "" where it does."""

    engine: Engine
    catalog: Catalog
    authorizer: Authorizer
    rights: Rights
    region: str
    endpoint: str = ""
    closed: Callable[[], str] = _open

    def require_open(self) -> None:
        """Raises InRecovery."""
        if reason := self.closed():
            raise InRecovery(f"This region is in recovery and serves no object: {reason}")


class Caller(Protocol):
    """One request, authenticated. `peer`: the address it came from, for the audit."""

    @property
    def services(self) -> Services: ...
    @property
    def principal(self) -> Principal: ...
    @property
    def request_id(self) -> str: ...
    @property
    def peer(self) -> str: ...
