"""What every piece of the engine works with, and the narrow contracts to the native side.

Owns: nothing; it is handed its parts by `node/assemble.py`. Not here: any rule.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from anvil._ec.buffers import StripeBuffer
from anvil._ec.codec import Codec
from anvil._ec.digest import DigestJob
from anvil._ec.pool import Job
from anvil.base.owned import OwnedTasks
from anvil.engine.ports import Drive, Metadata
from anvil.model.layout import Layout
from anvil.model.records import BlobId, DriveId, SessionId
from anvil.model.scheme import Scheme


class Executor(Protocol):
    """Runs native jobs without holding up the event loop (`anvil/ec/executor.py`)."""

    async def run(self, job: Job) -> None: ...


class Lanes(Protocol):
    """Runs digest jobs, many streams at a time; those of one stream end in the order they came."""

    def begin(self, job: DigestJob) -> Awaitable[None]:
        """Queued on return; the result says when it has ended. Cancelling leaves the job to finish by itself."""
        ...


class Buffers(Protocol):
    """Accounted memory for stripes (`anvil/ec/buffers.py`). The memory returns when its last view is gone."""

    async def acquire(self, nbytes: int) -> StripeBuffer:
        """Raises SlowDown when none comes free in time."""
        ...

    def try_acquire(self, nbytes: int) -> StripeBuffer | None:
        """None where somebody has to wait."""
        ...


class Codecs(Protocol):
    def __call__(self, scheme: Scheme) -> Codec: ...


class Events(Protocol):
    """What the engine tells the metrics and the log. Must be cheap and must not raise."""

    def damage(self, kind: str, drive: str, blob_id: BlobId, index: int) -> None:
        """A shard was found `missing` or `corrupt`."""
        ...

    def write_short(self, blob_id: BlobId, missing: int) -> None:
        """A blob was acknowledged with that mask of shards still to be repaired."""
        ...


class Session(Protocol):
    """This worker's writer session (`engine/session.py`)."""

    @property
    def current(self) -> SessionId:
        """Raises WriterFenced while there is none."""
        ...


class Placement:
    """Which drives a blob's shards go to, and where to look for them.

    `drives` are all the drives this process can reach; `layout` decides order. A drive the layout names and nobody can reach shows as
    None in `order`, so that indexes keep their places.
    """

    def __init__(self, layout: Layout, drives: Mapping[DriveId, Drive]) -> None:
        self.layout = layout
        self.drives = dict(drives)
        self._by_index = tuple(self.drives.get(drive.drive_id) for drive in layout.drives)

    def order(self, blob_id: BlobId) -> list[Drive | None]:
        """Primaries first, then spares; index i of a blob belongs on the i-th."""
        return [self._by_index[index] for index in self.layout.order(blob_id)]

    def others(self, tried: Sequence[Drive | None]) -> list[Drive]:
        """Every reachable drive not in `tried`: where older layouts or repairs may have put a shard."""
        return [drive for drive in self.drives.values() if drive not in tried]


@dataclass(frozen=True, slots=True)
class Context:
    metadata: Metadata
    placement: Callable[[], Placement]
    scheme: Callable[[], Scheme]
    native: Executor
    lanes: Lanes
    buffers: Buffers
    codecs: Codecs
    session: Session
    events: Events
    owned: OwnedTasks
    new_id: Callable[[], bytes]
    now_us: Callable[[], int]


Undo = Callable[[], Awaitable[None]]
