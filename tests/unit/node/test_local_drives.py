"""A process's drives: what they share, and what they must not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from anvil.base.config import load
from anvil.base.errors import ShuttingDown
from anvil.meta.migrate import Database
from anvil.node.child import Plan
from anvil.node.local import attach_drives, detach_drives, prepare_drives
from anvil.shards.nativeio import NativeJobs
from tests.contract.shard_samples import SESSION, make_footer, make_frames, make_header
from tests.postgres_fixture import Postgres


def test_no_drive_waits_for_anothers_threads(tmp_path: Path, postgres: Postgres) -> None:
    """A disk that does not answer keeps the thread that asked it. Were threads shared, two requests would stop the whole worker."""
    folders = [tmp_path / f"disk{number}" for number in range(3)]
    config = load({"ANVIL_DATA_DIR": str(tmp_path / "data"), "ANVIL_DRIVES": ",".join(map(str, folders))})
    (tmp_path / "data").mkdir()
    node_id = b"n" * 16
    plan = Plan("worker-0", 0, config, "", postgres.fresh(Database.REGIONAL), node_id, "127.0.0.1", 0)

    async def main() -> None:
        await prepare_drives(config, plan.regional_url, node_id)
        _, attached = await attach_drives(plan, SESSION)
        drives = list(attached.values())
        assert len({id(drive.executor) for drive in drives}) == 3
        for drive in drives:
            header = make_header()
            await drive.put(header, make_frames(header), make_footer())
        await detach_drives(drives)
        for drive in drives:
            with pytest.raises(ShuttingDown):
                await drive.executor.run(NativeJobs().sync_folder("/", None))

    asyncio.run(main())
