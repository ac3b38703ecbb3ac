"""How programs of PostgreSQL are told where a database is."""

from __future__ import annotations

import pytest

from anvil.base.errors import InvalidSetting
from anvil.meta.tools import environment


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
