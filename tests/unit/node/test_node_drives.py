"""What `anvil admin drive` says of a node's drives, and which one it lets go."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest

from anvil.base.config import Config, load
from anvil.base.errors import Conflict, UnknownName
from anvil.meta.migrate import Database
from anvil.node.admin import NodeDrives
from anvil.node.datadir import DataDirectory
from anvil.node.local import prepare_drives
from anvil.shards.identity import IDENTITY, Identity
from tests.postgres_fixture import Postgres


class Node:
    def __init__(self, postgres: Postgres, folder: Path) -> None:
        self.disks = [folder / f"disk{number}" for number in range(3)]
        (folder / "data").mkdir()
        names = {"ANVIL_DATA_DIR": str(folder / "data"), "ANVIL_DRIVES": ",".join(map(str, self.disks))}
        self.config: Config = load(names)
        self.url = postgres.fresh(Database.REGIONAL)
        self.node_id = DataDirectory(folder / "data").node_id()
        self.audited: list[tuple[str, str, str]] = []
        self.drives = NodeDrives(self.config, self.url, self.audit)

    async def audit(self, action: str, resource: str, result: str) -> None:
        self.audited.append((action, resource, result))

    def start(self) -> None:
        """What a start does with its drives."""
        asyncio.run(prepare_drives(self.config, self.url, self.node_id))

    def states(self) -> list[str]:
        found = asyncio.run(self.drives.list())
        assert [info.path for info in found] == [str(disk) for disk in self.disks][: len(found)]
        return [info.state for info in found]

    def identity(self, number: int) -> str:
        return msgspec.json.decode((self.disks[number] / IDENTITY).read_bytes(), type=Identity).drive_id


@pytest.fixture
def node(postgres: Postgres, tmp_path: Path) -> Node:
    made = Node(postgres, tmp_path)
    made.start()
    return made


def test_what_is_there_and_what_is_not(node: Node) -> None:
    assert node.states() == ["active"] * 3
    shutil.rmtree(node.disks[0])
    (node.disks[1] / IDENTITY).write_bytes(msgspec.json.encode(Identity("ab" * 16, 1, 1)))
    (node.disks[2] / IDENTITY).write_bytes(b"scratched")
    assert node.states() == ["absent", "other", "absent"]


def test_only_one_that_is_not_there_is_given_up(node: Node) -> None:
    with pytest.raises(Conflict):
        asyncio.run(node.drives.replace(str(node.disks[1])))
    with pytest.raises(UnknownName):
        asyncio.run(node.drives.replace("/nowhere"))
    assert node.states() == ["active"] * 3

    was = node.identity(2)
    shutil.rmtree(node.disks[2])
    node.start()
    assert node.states() == ["active", "active", "absent"], "a lost drive is not made anew"
    assert not (node.disks[2] / IDENTITY).exists()
    gone = asyncio.run(node.drives.replace(str(node.disks[2])))
    assert (gone.drive, gone.state) == (was, "gone")
    assert node.audited == [("drive:replace", f"{was} at {node.disks[2]}", "ok")], "and not those that were refused"
    assert node.states() == ["active", "active"]
    with pytest.raises(UnknownName):
        asyncio.run(node.drives.replace(str(node.disks[2])))
    node.start()
    assert node.states() == ["active"] * 3
    assert node.identity(2) != was


def test_a_stranger_in_its_place_may_be_the_reason(node: Node) -> None:
    (node.disks[0] / IDENTITY).write_bytes(msgspec.json.encode(Identity("ab" * 16, 1, 1)))
    assert asyncio.run(node.drives.replace(str(node.disks[0]))).state == "gone"
    assert node.identity(0) == "ab" * 16, "nothing is written there by that"
