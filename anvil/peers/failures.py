"""How a domain error crosses from one node to another: by class name, message and plain fields.

Invariant: what is caught here is what would be caught if the drive were local, with the name that this node has for the drive. Not here:
which errors there are (`base/errors.py`).
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec

from anvil.base import errors
from anvil.base.errors import AnvilError, DriveFailed, StorageFull, Unavailable
from anvil.peers.documents import encode_plain
from anvil.peers.proto import shards_pb2 as pb

log = logging.getLogger(__name__)

_CLASSES: Final = {
    name: value for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, AnvilError)
}
_PLAIN: Final = (str, int, float, bool)


def failure_of(error: Exception) -> pb.Failure:
    """Of what is no domain error nothing is told but that it happened."""
    if not isinstance(error, AnvilError):
        log.error("a call of another node failed", exc_info=error)
        return pb.Failure(error=Unavailable.__name__, message=Unavailable.default)
    fields = {name: value if isinstance(value, _PLAIN) else str(value) for name, value in error.fields.items()}
    name = next(cls.__name__ for cls in type(error).__mro__ if cls.__name__ in _CLASSES)
    return pb.Failure(error=name, message=error.message, fields=encode_plain(fields))


def error_of(failure: pb.Failure, label: str) -> AnvilError:
    """The same error at this end; `label`: of the drive that it is about."""
    cls = _CLASSES.get(failure.error, Unavailable)
    try:
        fields = msgspec.msgpack.decode(failure.fields, type=dict[str, str | int | float | bool]) if failure.fields else {}
    except msgspec.MsgspecError:
        fields = {}
    fields.pop("message", None)
    fields.pop("self", None)
    if issubclass(cls, DriveFailed | StorageFull):
        fields["drive"] = label
    return cls(failure.message, **fields)
