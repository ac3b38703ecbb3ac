"""A sector that cannot be read under an index: on a real node the worker dies of it, once, and nothing that was acknowledged is lost."""

from __future__ import annotations

import os
from pathlib import Path

from anvil.base.limits import DRIVE_PROBE_S
from tests.support.load import assert_readable, put_some, rows
from tests.support.node import AnvilNode, wait_until


def test_the_index_of_the_only_drive_goes_under_a_running_node(tmp_path: Path) -> None:
    with AnvilNode(tmp_path / "data", env={"ANVIL_DRIVES": str(tmp_path / "drive"), "ANVIL_WORKERS": "2"}) as node:
        node.s3().create_bucket(Bucket="lost")
        objects = put_some(node.s3(), "lost")
        os.truncate(tmp_path / "drive/index/data.mdb", 8192)  # what lies behind is SIGBUS, as an unreadable sector is

        def all_there() -> bool:
            try:
                assert_readable(node.s3(), "lost", objects)
            except Exception:
                return False
            return all(row["ok"] for row in node.readiness()["checks"].values())

        wait_until("every object is read again", all_there, 60 + 10 * DRIVE_PROBE_S)
        assert "died; starting it again" in node.log_text()
        assert "it is rebuilt from the segments" in node.log_text()
        for _ in range(3):
            objects |= put_some(node.s3(), "lost")
        assert_readable(node.s3(), "lost", objects)
        assert rows(node, "SELECT count(*) FROM degraded") == [(0,)]
        seen = node.log_text().count("died; starting it again")
        node.stop()
        node.start()
        assert_readable(node.s3(), "lost", objects)
        assert node.log_text().count("died; starting it again") == seen
