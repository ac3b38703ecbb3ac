"""One node's cluster port in a process of its own, to be stopped, killed, frozen. With a drive in FOLDER, and one that drops what it gets.

    python -m tests.support.peer_server NODE_ID FOLDER [PORT]

Prints a line: the port, and the ids of both drives.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import uvloop

from anvil.base.types import Buffer
from anvil.ec.buffers import Buffers
from anvil.ec.executor import NativeExecutor
from anvil.engine.ports import LargeShard
from anvil.model.shard import ShardFooter, ShardHeader
from anvil.net.server import serve
from anvil.peers.service import Removals, port_limits, shard_host
from anvil.shards.drive import LocalDrive
from anvil.shards.nativeio import NativeJobs
from anvil.shards.settings import DriveSettings
from tests.contract.memory_drive import MemoryDrive
from tests.support.peers import SECRET, nothing

DROPS = b"drops everything"


class DroppingDrive(MemoryDrive):
    """Takes everything and keeps nothing."""

    async def put(self, header: ShardHeader, frames: Buffer, footer: ShardFooter) -> None:
        return

    async def create(self, header: ShardHeader) -> LargeShard:  # type: ignore[override]
        return DroppedShard()


class DroppedShard:
    async def write(self, frames: Buffer) -> None:
        return

    def begin(self, frames: object, told: object) -> bool:
        return False

    async def write_from(self, source: object) -> None:
        return

    async def publish(self, footer: ShardFooter) -> None:
        return

    async def abort(self) -> None:
        return


async def main(node_id: bytes, folder: Path, port: int) -> None:
    executor = NativeExecutor(asyncio.get_running_loop(), 2)
    drive = await LocalDrive.attach(
        folder,
        expected=None,
        create=True,
        executor=executor,
        jobs=NativeJobs(),
        session=node_id,
        settings=DriveSettings(floor_bytes=0),
    )
    drives = {drive.drive_id: drive, DROPS: DroppingDrive(DROPS)}
    host = shard_host(node_id, SECRET, lambda: drives, Buffers(asyncio.get_running_loop()), Removals())
    server = await serve(nothing, [("127.0.0.1", port)], grpc=host, limits=port_limits())
    print(server.addresses[0][1], drive.drive_id.hex(), DROPS.hex(), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(bytes.fromhex(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0))
