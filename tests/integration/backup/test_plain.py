"""Backups without `anvil admin backup`: pg_dump with copied drives, and a base backup with continuous archiving. As docs/BACKUP.md says."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from anvil.meta.embedded import DATABASE_GLOBAL, DATABASE_REGIONAL, EmbeddedPostgres
from tests.support.backups import KEY, assert_same, fill, said
from tests.support.load import Load, blobs_held
from tests.support.node import AnvilNode, wait_until

GRACE_S = 4.0


def program(postgres: EmbeddedPostgres, name: str, *arguments: str) -> None:
    done = subprocess.run([str(postgres.bin_dir / name), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{name}: {done.stderr}"


def settings(tmp_path: Path, urls: tuple[str, str], grace_s: float) -> dict[str, str]:
    return {
        "ANVIL_GLOBAL_DATABASE_URL": urls[0],
        "ANVIL_REGIONAL_DATABASE_URL": urls[1],
        "ANVIL_DRIVES": ",".join(str(tmp_path / f"drive{number}") for number in range(3)),
        "ANVIL_SCHEME": "2+1",
        "ANVIL_WORKERS": "1",
        "ANVIL_GC_GRACE_S": str(grace_s),
        "ANVIL_SECRET_ENCRYPTION_KEY": KEY,
    }


async def new_databases(server: EmbeddedPostgres) -> tuple[str, str]:
    """On the same server, so that nothing but `recovery begin` tells that the history branched."""
    for name in ("new_g", "new_r"):
        connection = await asyncpg.connect(server.url("postgres"))
        await connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C'")
        await connection.close()
    return server.url("new_g"), server.url("new_r")


async def ask(url: str, sql: str) -> list[tuple[object, ...]]:
    connection = await asyncpg.connect(url)
    try:
        return [tuple(row) for row in await connection.fetch(sql)]
    finally:
        await connection.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """That keeps what it says: a node refuses one without fsync."""
    running = EmbeddedPostgres(tmp_path / "postgres")
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.slow  # a minute and more: `make drill`
def test_dumps_and_copied_drives(server: EmbeddedPostgres, tmp_path: Path) -> None:
    old_urls = server.url(DATABASE_GLOBAL), server.url(DATABASE_REGIONAL)
    new_urls = asyncio.run(new_databases(server))
    copies = tmp_path / "copies"
    copies.mkdir()
    with AnvilNode(tmp_path / "data", env=settings(tmp_path, old_urls, 0.0)) as node:
        objects = fill(node.s3(), "kept", random.Random(6))
        node.s3().create_bucket(Bucket="busy")
        with Load(node, "busy", writers=2) as load:
            load.wait_for(20)
            said(node, "backup", "hold", "--hours", "1")
            assert said(node, "recovery", "status")["holds"][0]["by"] == "an operator"
            program(server, "pg_dump", "-Fc", "-f", str(copies / "regional.dump"), old_urls[1])
            program(server, "pg_dump", "-Fc", "-f", str(copies / "global.dump"), old_urls[0])
            load.wait_for(20)  # overwritten and deleted blobs stay, segments are not rewritten
            for number in range(3):
                shutil.copytree(
                    tmp_path / f"drive{number}",
                    copies / f"drive{number}",
                    ignore=shutil.ignore_patterns("index", "tmp", "running.json", ".anvil-ready"),
                )
            said(node, "backup", "release")
        shutil.copy(tmp_path / "data" / "node-id", copies)
    for number in range(3):
        shutil.rmtree(tmp_path / f"drive{number}")
    shutil.rmtree(tmp_path / "data")

    program(server, "pg_restore", "--no-owner", "--exit-on-error", "-d", new_urls[1], str(copies / "regional.dump"))
    program(server, "pg_restore", "--no-owner", "--exit-on-error", "-d", new_urls[0], str(copies / "global.dump"))
    (tmp_path / "data").mkdir()
    shutil.copy(copies / "node-id", tmp_path / "data")
    for number in range(3):
        shutil.copytree(copies / f"drive{number}", tmp_path / f"drive{number}")
    node = AnvilNode(tmp_path / "data", env=settings(tmp_path, new_urls, 0.0))
    assert said(node, "recovery", "begin")["begun"]
    with node:
        assert_same(node.s3(), "kept", objects)
        found = said(node, "fsck", "--deep", code=1)  # what was written after the dump belongs to nobody
        assert {name: found[name] for name in ("missing", "corrupt", "lost", "dangling", "unseen", "debts")} == dict.fromkeys(
            ("missing", "corrupt", "lost", "dangling", "unseen", "debts"), 0
        )
        assert found["orphans"] > 0
        refused = node.anvil("admin", "recovery", "end")
        assert refused.returncode == 5 and "belong to no row" in refused.stderr
        assert said(node, "recovery", "end", "--force")["ended"]
        said(node, "scrub", "--shallow")
        wait_until("what nobody wants goes", lambda: node.anvil("admin", "fsck").returncode == 0, 60)
        assert_same(node.s3(), "kept", objects)


def archive(server: EmbeddedPostgres, folder: Path) -> None:
    """What docs/BACKUP.md has an operator set, and a restart."""
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    (server._cluster / "anvil-local.conf").write_text(
        f"archive_mode = on\narchive_command = 'test ! -f {folder}/%f && cp %p {folder}/%f'\n"
    )
    server.stop()
    server.start()


def test_a_lost_regional_database_from_its_archive(server: EmbeddedPostgres, tmp_path: Path) -> None:
    kept = tmp_path / "postgres" / "archive"
    archive(server, kept)
    urls = server.url(DATABASE_GLOBAL), server.url(DATABASE_REGIONAL)
    drives = [tmp_path / f"drive{number}" for number in range(3)]
    with AnvilNode(tmp_path / "data", env=settings(tmp_path, urls, GRACE_S)) as node:
        s3 = node.s3()
        objects = fill(s3, "kept", random.Random(7))
        base = tmp_path / "base"
        host = urls[0].rsplit("host=", 1)[1]
        program(server, "pg_basebackup", "-h", host, "-U", "anvil", "-D", str(base), "-X", "none", "-c", "fast")
        for number in range(20):
            key, data = f"after/{number}", os.urandom(3_000 + 20_000 * number)
            s3.put_object(Bucket="kept", Key=key, Body=data, ContentType="text/x-odd", Metadata={"of": "mine"})
            objects[key] = data
        said(node, "backup", "hold", "--hours", "1")
        s3.delete_object(Bucket="kept", Key="after/19")
        gone = objects.pop("after/19")
        garbage = set().union(*map(blobs_held, drives))
        before = asyncio.run(ask(urls[1], "SELECT timeline_id FROM pg_control_checkpoint()"))
        asyncio.run(ask(urls[1], "SELECT pg_switch_wal()"))
        [(segment,)] = asyncio.run(ask(urls[1], "SELECT pg_walfile_name(pg_current_wal_lsn() - 1)"))
        asyncio.run(ask(urls[1], "SELECT pg_switch_wal() FROM (SELECT txid_current()) AS t"))
        wait_until("the last change is archived", lambda: _archived(urls[1], str(segment)), 60)
        wait_until("the garbage is old enough", lambda: _garbage_s(urls[1]) > GRACE_S, 60)

        server.stop()
        shutil.rmtree(server._cluster)
        shutil.copytree(base, server._cluster)
        (server._cluster / "recovery.signal").touch()
        with (server._cluster / "anvil-local.conf").open("a") as settings_file:
            settings_file.write(f"restore_command = 'cp {kept}/%f %p'\nrecovery_target_action = promote\n")
        server.start()
        wait_until("it is promoted", lambda: asyncio.run(ask(urls[1], "SELECT pg_is_in_recovery()")) == [(False,)], 60)
        came_back = time.monotonic()
        assert asyncio.run(ask(urls[1], "SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)")) != [(f"{before[0][0]:08X}",)]
        wait_until("the node is ready again", node.is_ready, 60)
        said(node, "backup", "release")
        assert_same(node.s3(), "kept", objects)
        assert said(node, "fsck", "--deep")["clean"]
        if time.monotonic() - came_back < GRACE_S - 1:
            assert set().union(*map(blobs_held, drives)) == garbage
        wait_until("garbage goes", lambda: len(set().union(*map(blobs_held, drives))) < len(garbage), 60)
        assert time.monotonic() - came_back >= GRACE_S, "nothing is collected for gc_grace after a failover"
        assert len(gone) > 0
        assert_same(node.s3(), "kept", objects)


def _archived(url: str, segment: str) -> bool:
    [(last,)] = asyncio.run(ask(url, "SELECT last_archived_wal FROM pg_stat_archiver"))
    return last is not None and str(last) >= segment


def _garbage_s(url: str) -> float:
    [(age,)] = asyncio.run(ask(url, "SELECT coalesce(min(now_us() - since_us), 0) / 1e6 FROM outbox"))
    return float(str(age))
