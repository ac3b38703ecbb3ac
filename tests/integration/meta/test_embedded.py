"""The embedded PostgreSQL: found again, restarted when it dies, taken over from a killed supervisor."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from anvil.base.errors import DatabaseUnavailable
from anvil.meta.embedded import EmbeddedPostgres


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="anvil-embedded-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def ask(url: str, sql: str) -> object:
    async def run() -> object:
        connection = await asyncpg.connect(url, timeout=5)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    return asyncio.run(run())


def wait_for_answer(url: str, deadline_s: float = 30.0) -> None:
    end = time.monotonic() + deadline_s
    while True:
        try:
            assert ask(url, "SELECT 1") == 1
            return
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, TimeoutError):
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def test_settings_durability_and_second_start(folder: Path) -> None:
    cluster = EmbeddedPostgres(folder)
    global_url, regional_url = cluster.start()
    try:
        assert ask(global_url, "SELECT current_database()") == "anvil_global"
        assert ask(regional_url, "SELECT current_database()") == "anvil_regional"
        for setting, value in {
            "fsync": "on",
            "synchronous_commit": "on",
            "full_page_writes": "on",
            "data_checksums": "on",
        }.items():
            assert ask(global_url, f"SHOW {setting}") == value
        assert ask(global_url, "SHOW listen_addresses") == ""
        assert (folder / "socket").stat().st_mode & 0o777 == 0o700
        if os.geteuid() == 0:
            assert (folder / "cluster").stat().st_uid != 0
        ask(regional_url, "CREATE TABLE kept AS SELECT 7 AS n")
    finally:
        cluster.stop()
    assert cluster.pid is None
    again = EmbeddedPostgres(folder)
    _, regional_url = again.start()
    try:
        assert ask(regional_url, "SELECT n FROM kept") == 7
    finally:
        again.stop()


def test_restarts_when_it_dies(folder: Path) -> None:
    cluster = EmbeddedPostgres(folder, fsync=False)
    url, _ = cluster.start()
    try:
        first = cluster.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_for_answer(url)
        assert cluster.restarts >= 1
        assert cluster.pid not in (None, first)
    finally:
        cluster.stop()


def test_takes_over_from_a_killed_supervisor(folder: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from anvil.meta.embedded import EmbeddedPostgres\n"
        "cluster = EmbeddedPostgres(Path(sys.argv[1]), fsync=False); cluster.start()\n"
        "print(cluster.pid, flush=True); time.sleep(600)"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", program, str(folder)], stdout=subprocess.PIPE, text=True)
    assert supervisor.stdout is not None
    old = int(supervisor.stdout.readline())
    supervisor.kill()
    supervisor.wait()
    assert Path(f"/proc/{old}").exists(), "the postmaster outlives its supervisor, which is what this test is about"
    cluster = EmbeddedPostgres(folder, fsync=False)
    url, _ = cluster.start()
    try:
        assert cluster.pid != old
        assert ask(url, "SELECT 1") == 1
    finally:
        cluster.stop()


def test_long_path_still_gets_a_socket(folder: Path) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    cluster = EmbeddedPostgres(deep, fsync=False)
    url, _ = cluster.start()
    try:
        assert ask(url, "SELECT 1") == 1
    finally:
        cluster.stop()


def test_a_broken_setting_is_named(folder: Path) -> None:
    cluster = EmbeddedPostgres(folder, fsync=False)
    cluster.start()
    cluster.stop()
    (folder / "cluster" / "anvil-local.conf").write_text("shared_buffers = 'a lot'\n")
    with pytest.raises(DatabaseUnavailable, match="PostgreSQL did not start"):
        EmbeddedPostgres(folder, fsync=False).start()


@pytest.mark.skipif(
    os.geteuid() != 0 or subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode != 0,
    reason="needs process ids of its own, as a container has",
)
def test_a_killed_container_s_pid_file_is_not_taken_for_the_new_postmaster_s(folder: Path) -> None:
    """Process ids begin anew in each container. After one was killed, the next postmaster has the pid of the file that says "ready"."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom anvil.meta.embedded import EmbeddedPostgres\n"
        "postgres = EmbeddedPostgres(Path(sys.argv[1]), fsync=False)\npostgres.start()\nprint(postgres.pid, flush=True)\nsys.stdin.read()"
    )
    pids = []
    for _ in range(3):
        with subprocess.Popen(
            ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c", script, str(folder / "pg")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        ) as container:
            assert container.stdout is not None
            said = container.stdout.readline()
            container.kill()  # and with its first process everything in it
        assert said.strip(), "it did not start"
        pids.append(int(said))
    assert pids[1] == pids[2], "this test is about equal pids"


def test_a_pid_file_whose_pid_is_somebody_else_s_is_in_nobody_s_way(folder: Path) -> None:
    """In the next container on a volume the pid of a killed postmaster is mostly taken."""
    cluster = EmbeddedPostgres(folder / "pg", fsync=False)
    cluster.start()
    [lock] = Path(re.search(r"host=([^&]+)", cluster.url("x"))[1]).glob(".s.PGSQL.*.lock")  # type: ignore[index]
    files = {file: file.read_text() for file in (folder / "pg" / "cluster" / "postmaster.pid", lock)}
    cluster.stop()
    owner = (folder / "pg" / "cluster").stat()
    # Of the same user: of another one's processes PostgreSQL knows that they are none of its own.
    with subprocess.Popen(["sleep", "60"], user=owner.st_uid, group=owner.st_gid, extra_groups=[]) as somebody:
        for file, left in files.items():
            file.parent.mkdir(exist_ok=True)
            file.write_text(f"{somebody.pid}\n{left.partition(chr(10))[2]}")
            os.chown(file, owner.st_uid, owner.st_gid)
        try:
            cluster.start()
            assert cluster.pid is not None
        finally:
            somebody.kill()
            cluster.stop()
