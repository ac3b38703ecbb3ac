"""What authentication hands to an API: who asks, and how the payload is to be verified."""

from __future__ import annotations

from enum import Enum

import msgspec

from anvil.base.errors import AnvilError
from anvil.model.identity import Principal


class Payload(Enum):
    """How `x-amz-content-sha256` says the payload is protected."""

    UNSIGNED = "UNSIGNED-PAYLOAD"
    SHA256 = "sha256"  # the header is the hex digest of the payload
    SIGNED_CHUNKS = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
    SIGNED_CHUNKS_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"
    UNSIGNED_CHUNKS_TRAILER = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"


class ChunkSeed(msgspec.Struct, frozen=True):
    """What the signatures of chunks are computed from."""

    signing_key: bytes
    signature: str
    amz_date: str
    scope: str

    def __repr__(self) -> str:
        return "ChunkSeed(...)"


class Authenticated(msgspec.Struct, frozen=True):
    principal: Principal
    payload: Payload = Payload.UNSIGNED
    payload_sha256: bytes | None = None  # raw digest, for Payload.SHA256
    seed: ChunkSeed | None = None
    presigned: bool = False


class SignedElsewhere(Exception):
    """A good signature for another region of the deployment. It opens nothing here: `principal` may be told where its bucket is, and is
    refused with `error` otherwise."""

    def __init__(self, principal: Principal, error: AnvilError) -> None:
        super().__init__(error.message)
        self.principal = principal
        self.error = error
