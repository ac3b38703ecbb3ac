"""What every piece of the engine works with, and the narrow contracts to the native side.

Owns: where shards may be, by all layouts there are (`Placement`), and which layouts writes still go by. Everything else it is handed by
`node/assemble.py`. Not here: any other rule.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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

    `drives` are all the drives this process can reach; `layouts` all that are not retired, oldest first: writers go by the last one. A
    drive that a layout names and nobody can reach shows as None, so that indexes keep their places. It follows its region in place: who
    holds it and waits for anything in between may meet another layout at its next question.
    """

    layouts: tuple[Layout, ...]
    drives: dict[DriveId, Drive]

    def __init__(self, layouts: Sequence[Layout], drives: Mapping[DriveId, Drive]) -> None:
        self.follow(layouts, drives)

    def follow(self, layouts: Sequence[Layout], drives: Mapping[DriveId, Drive]) -> None:
        """Use these from now on."""
        if not layouts:
            raise ValueError("a placement needs at least one layout")
        self.layouts = tuple(layouts)
        self.drives = dict(drives)
        self.remote = any(not drive.local for drive in drives.values())
        self._current = frozenset(drive.drive_id for drive in self.layout.drives)
        self._nodes = {drive.drive_id: drive.node_id for layout in layouts for drive in layout.drives}
        self._by_index = [tuple(self.drives.get(drive.drive_id) for drive in layout.drives) for layout in self.layouts]

    @property
    def layout(self) -> Layout:
        """The one that writers go by."""
        return self.layouts[-1]

    def order(self, blob_id: BlobId) -> list[Drive | None]:
        """Primaries first, then spares: where a new blob goes."""
        by_index = self._by_index[-1]
        return [by_index[index] for index in self.layouts[-1].order(blob_id)]

    def belongs(self, blob_id: BlobId, width: int) -> list[Drive | None]:
        """By index, the drives on which a blob's `width` shards belong: index i on the i-th of its row. Of a blob that is wider than the
        row (it was written when there were more drives) the row begins again, so that every shard has a home."""
        order = self.order(blob_id)
        return [order[index % len(order)] for index in range(width)]

    def listed(self, number: int) -> set[Drive]:
        """The drives that any layout lists for that partition, as far as they are known."""
        rows = zip(self.layouts, self._by_index, strict=True)
        return {drive for layout, by_index in rows for index in layout.row(number) if (drive := by_index[index]) is not None}

    def primaries(self, number: int) -> set[DriveId]:
        """The drives that shards of that partition belong on by the layout that writers go by."""
        layout = self.layout
        return {layout.drives[index].drive_id for index in layout.row(number)[: layout.primaries or None]}

    def homes(self, blob_id: BlobId, index: int) -> list[Drive | None]:
        """Where that shard belongs by each layout, the newest first. It is missing only if all of them were asked: while one cannot be, it
        may be there. Wide blobs: see `belongs`."""
        found: list[Drive | None] = []
        for layout, by_index in zip(reversed(self.layouts), reversed(self._by_index), strict=True):
            row = layout.order(blob_id)
            found.append(by_index[row[index % len(row)]])
        return found

    def near(self, blob_id: BlobId, index: int) -> list[Drive]:
        """Where to look for that shard when it is not on its own drive: its places in older layouts, then the other drives of the
        partition, which hold what was written or rebuilt while its own was away. Local drives before remote ones, all of them reachable."""
        order = self.order(blob_id)
        nominal = order[index % len(order)]
        older = [drive for drive in self.homes(blob_id, index)[1:] if drive is not None]
        others = [drive for drive in order if drive is not None]
        seen = dict.fromkeys([*_local_first(older), *_local_first(others)])
        return [drive for drive in seen if drive is not nominal]

    def far(self, blob_id: BlobId, index: int) -> list[Drive]:
        """All other reachable drives, where nothing of the blob is expected: local ones first."""
        looked = {*self.near(blob_id, index), *self.order(blob_id)}
        return _local_first(drive for drive in self.drives.values() if drive not in looked)

    def current(self, drive: Drive) -> bool:
        """Whether the layout that writers go by has it: else it comes or leaves, and is no place for anything new."""
        return drive.drive_id in self._current

    def named(self, drive: Drive) -> bool:
        """Whether any layout that is not retired has it."""
        return drive.drive_id in self._nodes

    @property
    def leaving(self) -> bool:
        """Whether there are drives that no layout names: what is left on them is to be brought home."""
        return any(drive.readable and drive.drive_id not in self._nodes for drive in self.drives.values())

    def node(self, drive: Drive) -> bytes:
        """The node it belongs to; where no layout tells, it stands for itself."""
        return self._nodes.get(drive.drive_id, drive.drive_id)

    def elsewhere(self, blob_id: BlobId, index: int) -> list[Drive]:
        """Every place but its own, in the order in which to look."""
        return [*self.near(blob_id, index), *self.far(blob_id, index)]


def _local_first(drives: Iterable[Drive]) -> list[Drive]:
    return sorted(drives, key=lambda drive: not drive.local)


class LayoutsInUse:
    """The layouts that the writes of this process go by. A write counts from before its drives are chosen until its commit was answered, or
    until it is certain that there will be none: whoever moves shards by a newer layout waits for that, else a blob could be committed to
    places that nobody looks at any more. (Where nobody learns the outcome, the wait ends too: such a blob is found by the survey.)"""

    def __init__(self) -> None:
        self._writes: dict[int, int] = {}

    def begin(self, version: int) -> None:
        self._writes[version] = self._writes.get(version, 0) + 1

    def end(self, version: int) -> None:
        left = self._writes[version] - 1
        if left:
            self._writes[version] = left
        else:
            del self._writes[version]

    def writing(self, version: int) -> _Writing:
        """To be entered: begins, and ends however it is left."""
        return _Writing(self, version)

    def oldest(self, current: int) -> int:
        """What the writer session has to report, where new writes go by `current`."""
        return min([current, *self._writes])


class _Writing:
    """A generator of contextlib costs three times as much, and there is one for each write."""

    __slots__ = ("_layouts", "_version")

    def __init__(self, layouts: LayoutsInUse, version: int) -> None:
        self._layouts = layouts
        self._version = version

    def __enter__(self) -> None:
        self._layouts.begin(self._version)

    def __exit__(self, *raised: object) -> None:
        self._layouts.end(self._version)


async def _nothing_newer() -> bool:
    return False


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
    layouts: LayoutsInUse = field(default_factory=LayoutsInUse)
    refresh: Callable[[], Awaitable[bool]] = _nothing_newer
    """Read layouts and drives anew, before something is declared lost. True: the placement is newer than before."""


Undo = Callable[[], Awaitable[None]]
