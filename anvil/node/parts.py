"""What the supervisor needs from the composition root, as values: so that it can be tested with toy parts.

Not here: the real ones (`node/assemble.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Protocol

import msgspec

from anvil.base.config import Config
from anvil.node.child import Target


class Embedded(Protocol):
    """The embedded PostgreSQL: started once, restarts itself when it dies, ends with `stop`."""

    def start(self) -> tuple[str, str]:
        """Blocks. Returns the URLs of the global and the regional database. Raises InvalidSetting, DatabaseUnavailable."""
        ...

    def stop(self) -> None: ...

    @property
    def pid(self) -> int | None: ...


class KeyPair(msgspec.Struct, frozen=True):
    """An app's key pair. Its repr shows no secret."""

    access_key: str
    secret: str

    def __repr__(self) -> str:
        return f"KeyPair({self.access_key})"


class Parts(msgspec.Struct, frozen=True):
    """`embedded`: the database for a configuration without URLs. `prepare`: migrations, region, tenant and first app,
    drives; gets the configuration with all secrets, the database URLs and the node's id; returns the key pair if it made
    one. `worker`, `background`: what the child processes do.
    """

    embedded: Callable[[Config], Embedded]
    prepare: Callable[[Config, str, str, bytes], Coroutine[Any, Any, KeyPair | None]]
    worker: Target
    background: Target
