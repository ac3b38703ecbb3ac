"""A process's drives: what they share, and what they must not."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import cast

import pytest

from anvil.base.config import load
from anvil.base.errors import ShuttingDown
from anvil.node.local import attach_drives, detach_drives, prepare_drives
from anvil.shards.drive import LocalDrive
from anvil.shards.nativeio import NativeJobs
from tests.contract.shard_samples import SESSION, make_footer, make_frames, make_header


def test_no_drive_waits_for_anothers_threads(tmp_path: Path) -> None:
    """A disk that does not answer keeps the thread that asked it. Were threads shared, two requests would stop the whole worker."""
    folders = [tmp_path / f"disk{number}" for number in range(3)]
    config = load({"ANVIL_DATA_DIR": str(tmp_path / "data"), "ANVIL_DRIVES": ",".join(map(str, folders))})
    (tmp_path / "data").mkdir()

    async def main() -> None:
        await prepare_drives(config, b"n" * 16)
        placement = await attach_drives(config, SESSION)
        drives = [cast(LocalDrive, drive) for drive in placement.drives.values()]
        assert len({id(drive.executor) for drive in drives}) == 3
        for drive in drives:
            header = make_header()
            await drive.put(header, make_frames(header), make_footer())
        await detach_drives(placement)
        for drive in drives:
            with pytest.raises(ShuttingDown):
                await drive.executor.run(NativeJobs().sync(0, False))

    asyncio.run(main())
