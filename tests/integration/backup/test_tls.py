"""Dumps of databases that are reached over TLS: encrypted as well, or not made."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from anvil.base.errors import InvalidSetting
from anvil.meta import dumps, embedded, tools
from anvil.meta.embedded import DATABASE_GLOBAL, EmbeddedPostgres
from anvil.meta.migrate import Database
from tests.support.ports import free_port

SERVERS = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
pytestmark = pytest.mark.skipif(
    not SERVERS or shutil.which("openssl") is None, reason="takes a PostgreSQL that was compiled with TLS, as Debian's"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Host, port and database of a server that lets nobody in without TLS."""
    folder = tmp_path_factory.mktemp("tls")
    server, port = EmbeddedPostgres(folder, fsync=False), free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded, "_find_binaries", lambda cluster: SERVERS[-1].parent)
        server.start()
        cluster = server._cluster
        certificate = [
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=localhost",
            "-keyout",
            "server.key",
            "-out",
            "server.crt",
        ]
        subprocess.run(["openssl", "req", *certificate], cwd=cluster, check=True, capture_output=True)
        (cluster / "server.key").chmod(0o600)
        for name in ("server.key", "server.crt"):
            os.chown(cluster / name, cluster.stat().st_uid, -1)
        (cluster / "anvil-local.conf").write_text(f"listen_addresses = '127.0.0.1'\nport = {port}\nssl = on\n")
        (cluster / "pg_hba.conf").write_text("local all all trust\nhostssl all all 127.0.0.1/32 trust\n")
        patch.setattr(embedded, "SOCKET_NAME", f".s.PGSQL.{port}")
        patch.setattr(EmbeddedPostgres, "_ensure_database", lambda self, name: None)
        server.stop()
        server.start()
        yield f"anvil@127.0.0.1:{port}/{DATABASE_GLOBAL}"
        server.stop()


@pytest.mark.parametrize("mode", ["require", "prefer", ""])
def test_what_cannot_do_tls_is_not_taken(place: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://{place}{f'?sslmode={mode}' if mode else ''}"

    async def main() -> None:
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE IF NOT EXISTS schema_migrations AS SELECT 7 AS number")
        await connection.close()
        tool = await dumps.dump_tool(url, Database.GLOBAL)
        assert tool.encrypts and not any(tool.path.is_relative_to(folder) for folder in embedded.installed())
        assert await dumps.dump_global(url, tool, tmp_path / "dump") == (tool.major, 7)
        bundled = [(folder / "pg_dump", False) for folder in embedded.installed()]
        monkeypatch.setattr(tools, "_candidates", lambda program: iter(bundled))
        with pytest.raises(InvalidSetting, match=rf"with TLS is needed.*without TLS.*Debian: postgresql-client-{tool.major}\)"):
            await dumps.dump_tool(url, Database.GLOBAL)

    asyncio.run(main())
