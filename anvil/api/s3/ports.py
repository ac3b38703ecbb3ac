"""What the S3 API needs from the rest of the node beside what all operations need (`operations/ports.py`), as Protocols.

Not here: any implementation.
"""

from __future__ import annotations

from typing import Protocol

from anvil.auth.types import Authenticated
from anvil.engine.ports import Body
from anvil.net.stream import RequestHead, Stream


class Authenticator(Protocol):
    async def authenticate(self, head: RequestHead) -> Authenticated: ...


class OpenBody(Protocol):
    """Makes the payload of a request readable: raw, or out of its aws-chunked framing."""

    def __call__(self, stream: Stream, auth: Authenticated, length: int, trailer_names: tuple[str, ...]) -> Body: ...
