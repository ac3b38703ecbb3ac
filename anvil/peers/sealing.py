"""Who calls, and that nobody changed what they say: authentication of the calls between nodes, both ways.

    head      time, nonce, caller, MAC = HMAC-SHA256(secret, "call" | method | time | nonce | caller | target)
    message   AES-256-GMAC under a key of this call and direction, over the payload; its nonce is kind and number of the message

Owns: these values and their checks. Invariants: no byte of a call is looked at before its head is proved, and none of a message before the
message is. The MAC names the node that is meant, so a removal that was recorded cannot be sent to another node, whose copy is a good one;
and the method, so a message cannot be taken for one of another call. A message's number and kind are in its nonce, and the last one says
that it is that: what is altered, repeated, left out, moved to another place or another call, or cut off at the end is found. Answers are
sealed under a key that the server's own salt is part of: a head sent to it twice gives two keys, never two messages under one nonce.

This is stricter than a digest of the body in the head, which a stream cannot have before its end and which leaves the answers open:
whoever could forge "it is durable" would lose shards as surely as one who removes them. And it is cheap: GMAC does 30 GB/s on one core,
SHA-256 1.7. Secrecy is not the matter: shards are sealed before they come here.

What is left: within PEER_CALL_SKEW_S a whole call can be sent to the same node again, where it does again what it did: blob ids are
never reused. A removal, which would not be harmless after a change of layout, is refused after seconds (`ages.py`).

Not here: what the messages say (`documents.py`), sockets.
"""

from __future__ import annotations

import binascii
import hmac
import os
import struct
import time
from base64 import b64decode
from collections.abc import Callable
from enum import IntEnum
from typing import Final

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from anvil.base.errors import Denied
from anvil.base.limits import PEER_CALL_SKEW_S
from anvil.base.types import Buffer
from anvil.model.cluster import NodeId

HEAD_NAME: Final = "anvil-call-bin"
_HEAD: Final = struct.Struct("<BQ16s16s32s")
_VERSION: Final = 1
_CALL: Final = b"anvil peers 1 call\0"
_REQUEST: Final = b"anvil peers 1 request\0"
_ANSWER: Final = b"anvil peers 1 answer\0"
SALT_BYTES: Final = 16
TAG_BYTES: Final = 17  # kind and GMAC


class NotAuthentic(Denied):
    """`reason`: for the counter, one of a few. What the other side hears is the same for all."""

    default = "The call is not authenticated."

    def __init__(self, reason: str) -> None:
        super().__init__()
        self.reason = reason


class Kind(IntEnum):
    """What a payload is: see `shards.proto`."""

    DOCUMENT = 0
    FRAMES = 1
    LAST = 2


class Sealer:
    """Seals one direction of one call: gives each message its tag."""

    __slots__ = ("_key", "_number")

    def __init__(self, key: bytes) -> None:
        self._key: Final = key
        self._number = 0

    def tag(self, kind: Kind, *payload: Buffer) -> bytes:
        """Of the next message, whose payload is these pieces."""
        tag = bytes((kind,)) + _gmac(self._key, kind, self._number, payload)
        self._number += 1
        return tag


class Opener:
    """Checks the messages of one direction of one call, in their order."""

    __slots__ = ("_key", "_number", "ended")

    def __init__(self, key: bytes) -> None:
        self._key: Final = key
        self._number = 0
        self.ended = False  # the last message has come

    def check(self, tag: Buffer, payload: Buffer) -> Kind:
        """What the next message is. Raises NotAuthentic."""
        if self.ended or len(tag) != TAG_BYTES or tag[0] > Kind.LAST:
            raise NotAuthentic("message")
        kind = Kind(tag[0])
        if not hmac.compare_digest(_gmac(self._key, kind, self._number, (payload,)), bytes(tag[1:])):
            raise NotAuthentic("message")
        self._number += 1
        self.ended = kind is Kind.LAST
        return kind


class Call:
    """One call that this process makes: its head, and both directions. `take_salt` before the first answer is checked."""

    __slots__ = ("_keys", "_mac", "head", "sealer")

    def __init__(self, keys: Keys, head: bytes, mac: bytes) -> None:
        self._keys: Final = keys
        self._mac: Final = mac
        self.head: Final = head
        self.sealer: Final = Sealer(keys.derive(_REQUEST, mac))

    def opener(self, salt: Buffer) -> Opener:
        """For the answers; `salt` stands before the first one's tag."""
        return Opener(self._keys.derive(_ANSWER, self._mac, salt))


class Served:
    """One call that this process answers, its head proved. `salt` goes before the tag of the first answer."""

    __slots__ = ("caller", "opener", "salt", "sealer", "sent_s")

    def __init__(self, keys: Keys, caller: NodeId, mac: bytes, sent_s: float) -> None:
        self.caller: Final = caller
        self.sent_s: Final = sent_s  # by the caller's clock
        self.salt: Final = os.urandom(SALT_BYTES)
        self.opener: Final = Opener(keys.derive(_REQUEST, mac))
        self.sealer: Final = Sealer(keys.derive(_ANSWER, mac, self.salt))


class Keys:
    """What this node can prove with the cluster's secret. The secret is in no repr and no error."""

    __slots__ = ("_own", "_secret", "_time")

    def __init__(self, own: NodeId, secret: str, time_s: Callable[[], float] = time.time) -> None:
        self._own: Final = own
        self._secret: Final = secret.encode()
        self._time: Final = time_s

    def call(self, method: str, target: NodeId) -> Call:
        """A new call of `method` (as in the request's path) to that node."""
        now_us, nonce = int(self._time() * 1e6), os.urandom(16)
        mac = self._mac(method, now_us, nonce, self._own, target)
        return Call(self, _HEAD.pack(_VERSION, now_us, nonce, self._own, mac), mac)

    def admit(self, method: str, values: list[bytes]) -> Served:
        """`values`: those of the head's field, as they came. Raises NotAuthentic."""
        if len(values) != 1:
            raise NotAuthentic("absent")
        head = _unbase64(values[0])
        if len(head) != _HEAD.size:
            raise NotAuthentic("head")
        version, then_us, nonce, caller, mac = _HEAD.unpack(head)
        if version != _VERSION or not hmac.compare_digest(mac, self._mac(method, then_us, nonce, caller, self._own)):
            raise NotAuthentic("head")
        if abs(self._time() - then_us / 1e6) > PEER_CALL_SKEW_S:
            raise NotAuthentic("time")
        return Served(self, caller, mac, then_us / 1e6)

    def derive(self, label: bytes, *parts: Buffer) -> bytes:
        """The key of one direction of one call."""
        return hmac.digest(self._secret, label + b"".join(parts), "sha256")

    def _mac(self, method: str, now_us: int, nonce: bytes, caller: NodeId, target: NodeId) -> bytes:
        name = method.encode()
        fields = struct.pack("<HQ", len(name), now_us) + name + nonce + caller + target
        return hmac.digest(self._secret, _CALL + fields, "sha256")


def _gmac(key: bytes, kind: int, number: int, payload: tuple[Buffer, ...]) -> bytes:
    gcm = Cipher(algorithms.AES(key), modes.GCM(struct.pack("<B3xQ", kind, number))).encryptor()
    for piece in payload:
        gcm.authenticate_additional_data(piece)
    gcm.finalize()
    return gcm.tag


def _unbase64(text: bytes) -> bytes:
    try:
        return b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise NotAuthentic("head") from None
