"""This node's drives and the layout over them: made by the supervisor before anything serves, read by every process.

Owns: `inventory` in the data directory (which drive belongs at which folder, and the layout). Invariants: a folder that
should hold a known drive and does not is a lost drive, never a new one; the layout changes only when the set of drives
does, with the present one as its predecessor, so that nothing moves without need. Not here: what a drive does (`shards/`),
how a layout is computed (`model/layout.py`).
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from anvil.base.config import Config, StorageConfig
from anvil.base.errors import DriveFailed, InvalidSetting
from anvil.base.limits import DRIVE_THREADS, SPARE_DRIVES
from anvil.ec.executor import NativeExecutor
from anvil.engine.context import Placement
from anvil.model.layout import Layout, LayoutDrive, compute
from anvil.model.records import DriveId, SessionId
from anvil.model.scheme import Scheme, default_scheme
from anvil.node.datadir import write_private
from anvil.shards.drive import LocalDrive
from anvil.shards.nativeio import NativeJobs

log = logging.getLogger(__name__)
NO_SESSION = bytes(16)


class KnownDrive(msgspec.Struct, frozen=True):
    """A drive and the folder it belongs at. Ids in hex."""

    path: str
    drive_id: str
    capacity_bytes: int


class Inventory(msgspec.Struct, frozen=True):
    """`layout`: `Layout.pack()`."""

    drives: tuple[KnownDrive, ...]
    layout: bytes


def scheme_of(storage: StorageConfig) -> Scheme:
    """The configured scheme, or the one that the number of drives suggests."""
    return Scheme.parse(storage.scheme) if storage.scheme else default_scheme(len(storage.drives))


def read_inventory(data_dir: Path) -> Inventory | None:
    """None before the first start. Raises InvalidSetting when the file is damaged."""
    try:
        return msgspec.json.decode((data_dir / "inventory").read_bytes(), type=Inventory)
    except FileNotFoundError:
        return None
    except msgspec.DecodeError:
        raise InvalidSetting(f"{str(data_dir / 'inventory')!r} is damaged: restore it, it says which drive is which") from None


async def prepare_drives(config: Config, node_id: bytes) -> Inventory:
    """Recover the drives that are there, initialise new ones, and bring the inventory up to date. Raises InvalidSetting,
    DriveFailed.
    """
    storage, data_dir = config.storage, config.node.data_path
    before = read_inventory(data_dir)
    expected = {known.path: known for known in before.drives} if before is not None else {}
    executor = NativeExecutor(asyncio.get_running_loop(), 1)
    drives: list[KnownDrive] = []
    try:
        for path, label in zip(storage.drives, storage.labels, strict=True):
            drives.append(await _prepare_drive(Path(path), label, expected.get(path), executor))
    finally:
        await executor.close()
    if len({known.drive_id for known in drives}) != len(drives):
        raise InvalidSetting("two folders of ANVIL_DRIVES hold the same drive: one is a copy of the other, take it out")
    known_ids = {known.drive_id for known in drives}
    for gone in expected.values():
        if gone.drive_id not in known_ids:
            log.warning("a drive is no longer configured; what was on it is rebuilt from the others", extra={"folder": gone.path})
    inventory = Inventory(tuple(drives), _layout(before, drives, scheme_of(storage), node_id).pack())
    if inventory != before:
        write_private(data_dir / "inventory", msgspec.json.encode(inventory).decode())
    return inventory


async def _prepare_drive(path: Path, label: str, known: KnownDrive | None, executor: NativeExecutor) -> KnownDrive:
    if known is None:
        _make_folder(path)
    expected = bytes.fromhex(known.drive_id) if known is not None else None
    drive = await LocalDrive.attach(
        path, expected=expected, create=known is None, executor=executor, jobs=NativeJobs(), session=NO_SESSION, label=label
    )
    try:
        if known is not None and not drive.readable:
            log.error(
                "the drive %s is not there; starting without it", label, extra={"folder": str(path), "reason": drive.reason}
            )
            return known
        return KnownDrive(str(path), drive.drive_id.hex(), known.capacity_bytes if known is not None else drive.capacity_bytes)
    finally:
        await drive.close()


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidSetting(f"the drive {str(path)!r} cannot be made ({error.strerror}): name a folder that can") from None


def _layout(before: Inventory | None, drives: list[KnownDrive], scheme: Scheme, node_id: bytes) -> Layout:
    wanted = [LayoutDrive(bytes.fromhex(known.drive_id), node_id, known.capacity_bytes) for known in drives]
    previous = Layout.unpack(before.layout) if before is not None else None
    if (
        previous is not None
        and set(previous.drives) == set(wanted)
        and previous.width == min(scheme.width + SPARE_DRIVES, len(wanted))
    ):
        return previous
    return compute(wanted, scheme.width, SPARE_DRIVES, previous)


async def attach_drives(config: Config, session: SessionId) -> Placement:
    """This process's drives, in the layout of the inventory. Those that are not there are neither readable nor writable
    until they are. Each has threads of its own, so that one that hangs holds up nobody else's jobs. Raises DriveFailed when the
    node was not prepared.
    """
    inventory = read_inventory(config.node.data_path)
    if inventory is None:
        raise DriveFailed("the drives of this node were not prepared")
    labels = dict(zip(config.storage.drives, config.storage.labels, strict=True))
    drives: dict[DriveId, LocalDrive] = {}
    for known in inventory.drives:
        expected = bytes.fromhex(known.drive_id)
        drives[expected] = await LocalDrive.attach(
            Path(known.path),
            expected=expected,
            create=False,
            executor=NativeExecutor(asyncio.get_running_loop(), DRIVE_THREADS),
            jobs=NativeJobs(),
            session=session,
            label=labels[known.path],
        )
    return Placement(Layout.unpack(inventory.layout), drives)


async def detach_drives(placement: Placement) -> None:
    """Leave every drive cleanly."""
    for drive in placement.drives.values():
        if isinstance(drive, LocalDrive):
            await drive.close()
            if isinstance(drive.executor, NativeExecutor):
                await drive.executor.close()
