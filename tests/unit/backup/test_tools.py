"""Which programs of PostgreSQL are taken, and how they are told where a database is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from anvil.base.errors import InvalidSetting
from anvil.meta import tools
from anvil.meta.tools import Tool, environment, find


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        (
            "postgresql://anvil:p%40ss%2F%20w@db.example:5433/anvil_regional?sslmode=verify-full&sslrootcert=/ca.pem",
            {
                "PGUSER": "anvil",
                "PGPASSWORD": "p@ss/ w",
                "PGHOST": "db.example",
                "PGPORT": "5433",
                "PGDATABASE": "anvil_regional",
                "PGSSLMODE": "verify-full",
                "PGSSLROOTCERT": "/ca.pem",
            },
        ),
        (
            "postgres://u@a:1,b:2/d?target_session_attrs=read-write",
            {"PGUSER": "u", "PGHOST": "a,b", "PGPORT": "1,2", "PGDATABASE": "d", "PGTARGETSESSIONATTRS": "read-write"},
        ),
        (
            "postgresql://anvil@/anvil_global?host=/run/anvil",
            {"PGUSER": "anvil", "PGHOST": "/run/anvil", "PGDATABASE": "anvil_global"},
        ),
        (
            "postgresql://[::1]:7/d?work_mem=8 MB",
            {"PGHOST": "::1", "PGPORT": "7", "PGDATABASE": "d", "PGOPTIONS": "-c work_mem=8\\ MB"},
        ),
    ],
)
def test_a_url_becomes_variables(url: str, wanted: dict[str, str]) -> None:
    found = environment(url)
    assert {name: value for name, value in found.items() if name.startswith("PG")} == {
        "PGAPPNAME": "anvil backup",
        "PGCONNECT_TIMEOUT": found["PGCONNECT_TIMEOUT"],
        **wanted,
    }


def test_nothing_of_ours_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANVIL_SECRET_ENCRYPTION_KEY", "secret")
    monkeypatch.setenv("PGHOST", "elsewhere")
    found = environment("postgresql:///d")
    assert "secret" not in found.values() and "PGHOST" not in found


def test_a_host_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(InvalidSetting, match="host"):
        environment("postgresql://u@a:b:c/d")


def program(folder: Path, major: int) -> Path:
    folder.mkdir()
    path = folder / "pg_dump"
    path.write_text(f"#!/bin/sh\necho 'pg_dump (PostgreSQL) {major}.1'\n")
    path.chmod(0o755)
    return path


def test_the_wheel_s_programs_are_last_and_not_for_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, newest = program(tmp_path / "ours", 16), program(tmp_path / "18", 18)
    machine, path = program(tmp_path / "16", 16), program(tmp_path / "bin", 17)
    monkeypatch.setattr(tools, "installed", lambda: [newest.parent, ours.parent])
    monkeypatch.setattr(tools, "_DEBIAN", tmp_path / "debian")
    (tmp_path / "debian" / "16").mkdir(parents=True)
    machine.parent.rename(tmp_path / "debian" / "16" / "bin")
    machine = tmp_path / "debian" / "16" / "bin" / "pg_dump"
    monkeypatch.setattr("shutil.which", lambda name: str(path))

    async def main() -> None:
        assert await find("pg_dump", 16) == Tool(machine, 16)
        assert await find("pg_dump", 16, 17) == Tool(path, 17)
        assert await find("pg_dump", 18) == Tool(newest, 18, encrypts=False)
        assert await find("pg_dump", 17, encrypted=True) == Tool(path, 17)
        with pytest.raises(InvalidSetting, match=r"18 or later with TLS.*18 \(.*, without TLS\).*postgresql-client-18"):
            await find("pg_dump", 18, encrypted=True)
        machine.unlink()
        assert await find("pg_dump", 16) == Tool(ours, 16, encrypts=False)
        assert await find("pg_dump", 16, encrypted=True) == Tool(path, 17)

    asyncio.run(main())
