"""Migrations only add: the release before goes on running beside the one that has applied them, until its nodes are upgraded too.

Not here: that they are applied once, in order and under a lock (tests/integration/meta/test_catalog.py).
"""

from __future__ import annotations

import re

import pytest

from anvil.meta.migrate import Database, Migration, migrations

# What a statement of the release before could stumble over. Dropping what nobody uses any more is for the release after.
FORBIDDEN = {
    "drops a table or column": r"\bDROP\s+(TABLE|COLUMN|VIEW|TYPE|SEQUENCE|SCHEMA)\b",
    "renames": r"\bRENAME\b",
    "changes the type of a column": r"\bALTER\s+COLUMN\s+\w+\s+(SET\s+DATA\s+)?TYPE\b",
    "makes a column mandatory": r"\bSET\s+NOT\s+NULL\b",
    "drops a default": r"\bDROP\s+DEFAULT\b",
    "drops a function with other parameters than it had": r"\bDROP\s+FUNCTION\b",
    "empties a table": r"\bTRUNCATE\b",
}
MANDATORY = re.compile(r"\bADD\s+COLUMN\s+(?:IF\s+NOT\s+EXISTS\s+)?(?P<column>\w+)\s+(?P<rest>[^;,]*)", re.IGNORECASE)


def code(migration: Migration) -> str:
    """Without comments."""
    return re.sub(r"--[^\n]*", "", migration.sql)


@pytest.mark.parametrize("database", list(Database))
def test_numbers_have_no_doubles_and_name_the_file(database: Database) -> None:
    found = migrations(database)
    numbers = [migration.number for migration in found]
    assert numbers == sorted(set(numbers))
    assert all(re.fullmatch(rf"{migration.number:04d}_[a-z_]+\.sql", migration.name) for migration in found)


@pytest.mark.parametrize("database", list(Database))
def test_migrations_only_add(database: Database) -> None:
    troubles = []
    for migration in migrations(database)[1:]:
        text = code(migration)
        troubles += [f"{migration.name} {what}" for what, pattern in FORBIDDEN.items() if re.search(pattern, text, re.IGNORECASE)]
        troubles += [
            f"{migration.name} adds the mandatory column {added['column']} without a default"
            for added in MANDATORY.finditer(text)
            if re.search(r"\bNOT\s+NULL\b", added["rest"], re.IGNORECASE)
            and not re.search(r"\bDEFAULT\b", added["rest"], re.IGNORECASE)
        ]
    assert not troubles


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE objects DROP COLUMN etag;",
        "ALTER TABLE objects RENAME COLUMN etag TO tag;",
        "ALTER TABLE objects ALTER COLUMN etag TYPE bytea USING etag::bytea;",
        "ALTER TABLE objects ALTER COLUMN attributes SET NOT NULL;",
        "DROP FUNCTION retire(retired[], bigint[], bytea[]);",
    ],
)
def test_the_rule_sees_what_it_forbids(statement: str) -> None:
    assert any(re.search(pattern, statement, re.IGNORECASE) for pattern in FORBIDDEN.values())
