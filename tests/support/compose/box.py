"""A process in namespaces of its own: what a container is, made of system calls.

    python -m tests.support.compose.box SPEC.json      prints the process id of the box's process 1, and lasts as long as the box

Owns: the root (a new file system of memory that has the programs of this machine, read-only, and what the box mounts), process 1 (hands
signals on, takes in orphans, notes how the command ended). Invariants: nothing outside is changed, no folder is made there; with process 1
everything in the box ends. Not here: networks (`engine.py`), which are laid before the box begins.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[3]
SYSTEM = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32")
# What programs want of /etc; all of it is public.
ETC = (
    "passwd",
    "group",
    "nsswitch.conf",
    "ld.so.cache",
    "localtime",
    "services",
    "protocols",
    "mime.types",
    "ssl",
    "alternatives",
)
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
HANDED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
NEW_MOUNTS, NEW_HOST, NEW_IPC, NEW_PROCESSES, NEW_NETWORK = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
READ_ONLY, REMOUNT, BIND, RECURSIVE, PRIVATE, DETACH = 1, 32, 4096, 16384, 1 << 18, 2
DIE_WITH_PARENT = 1
GO = b"g"
libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Spec:
    """`mounts`: source, target, read-only. `tmpfs`: options by path. `owners`: user and mode of folders that are made. `files`: text by
    path. `user`: None leaves the command to be root with everything. `exit_file`: where the command's status goes."""

    host: str
    command: tuple[str, ...]
    environment: dict[str, str]
    folder: str = "/"
    user: int | None = None
    capabilities: tuple[str, ...] | None = None
    no_new_privileges: bool = False
    open_files: int | None = None
    shm_bytes: int = 64 << 20
    read_only: bool = False
    mounts: tuple[tuple[str, str, bool], ...] = ()
    tmpfs: dict[str, str] = field(default_factory=dict)
    owners: dict[str, tuple[int, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    scratch: str = "/tmp"
    exit_file: str | None = None

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> Spec:
        return cls(**json.loads(path.read_text()))

    def privileges(self) -> tuple[str, ...]:
        """What a command is preceded by to have the user and the rights of the box."""
        if self.user is None:
            return ()
        words = ["setpriv", f"--reuid={self.user}", f"--regid={self.user}", "--clear-groups"]
        if self.capabilities is not None:
            left = ",".join(["-all", *(f"+{name.lower()}" for name in self.capabilities)])
            words += [f"--bounding-set={left}", "--inh-caps=-all"]
        if self.no_new_privileges:
            words.append("--no-new-privs")
        return (*words, "--")


def checked(result: int, what: str) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str | Path, target: str | Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    arguments = (str(source).encode(), str(target).encode(), kind.encode() or None, flags, options.encode() or None)
    checked(libc.mount(*arguments), f"mount {source} at {target}")


def bind(source: str | Path, target: Path, read_only: bool) -> None:
    """`target` is made."""
    if Path(source).is_dir():
        target.mkdir(parents=True, exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(source, target, flags=BIND | RECURSIVE)
    if read_only:
        mount("none", target, flags=BIND | REMOUNT | READ_ONLY)


# -- the root -----------------------------------------------------------------------------------------------------------------


def enter_root(spec: Spec) -> None:
    """Make the root of the box and be in it."""
    mount("none", "/", flags=RECURSIVE | PRIVATE)
    new = Path(spec.scratch)
    new.mkdir(parents=True, exist_ok=True)
    sources = {target: keep(source) for source, target, _ in spec.mounts}
    kept = [(path, keep(path)) for path in (sys.base_prefix, str(ROOT))]
    mount("tmpfs", new, "tmpfs", options="mode=755")
    for name in SYSTEM:
        system(Path("/", name), new / name)
    etc(spec, new / "etc")
    devices(spec, new / "dev")
    for name, kind in (("proc", "proc"), ("sys", "sysfs")):
        (new / name).mkdir()
        mount(kind, new / name, kind, flags=READ_ONLY if kind == "sysfs" else 0)
    (new / "tmp").mkdir()
    (new / "tmp").chmod(0o1777)
    for path, (uid, mode) in spec.owners.items():
        inside(new, path).mkdir(parents=True, exist_ok=True)
        os.chown(inside(new, path), uid, uid)
        inside(new, path).chmod(mode)
    for path, options in spec.tmpfs.items():
        inside(new, path).mkdir(parents=True, exist_ok=True)
        mount("tmpfs", inside(new, path), "tmpfs", options=options)
    for path, descriptor in kept:
        bind(f"/proc/self/fd/{descriptor}", inside(new, path), True)
    for _, target, read_only in spec.mounts:
        bind(f"/proc/self/fd/{sources[target]}", inside(new, target), read_only)
    for path, target in spec.links.items():
        inside(new, path).parent.mkdir(parents=True, exist_ok=True)
        inside(new, path).symlink_to(target)
    for path, text in spec.files.items():
        inside(new, path).parent.mkdir(parents=True, exist_ok=True)
        inside(new, path).write_text(text)
    for descriptor in [*sources.values(), *(descriptor for _, descriptor in kept)]:
        os.close(descriptor)
    become_root(new)
    if spec.read_only:
        mount("none", "/", flags=BIND | REMOUNT | READ_ONLY)


def keep(path: str) -> int:
    """Held open, so that it is found when something else is mounted over the way to it."""
    return os.open(path, os.O_PATH | os.O_CLOEXEC)


def inside(new: Path, path: str) -> Path:
    return new / path.lstrip("/")


def system(path: Path, target: Path) -> None:
    if path.is_symlink():
        target.symlink_to(path.readlink())
    elif path.is_dir():
        bind(path, target, True)


def etc(spec: Spec, folder: Path) -> None:
    folder.mkdir()
    for name in ETC:
        path = Path("/etc", name)
        if path.is_dir():
            bind(path, folder / name, True)
        elif path.exists():
            shutil.copy(path, folder / name)
    if spec.user:
        for name, line in (("passwd", "anvil:x:{0}:{0}::/:/usr/sbin/nologin\n"), ("group", "anvil:x:{0}:\n")):
            with (folder / name).open("a") as file:
                file.write(line.format(spec.user))


def devices(spec: Spec, folder: Path) -> None:
    folder.mkdir()
    for name in DEVICES:
        bind(f"/dev/{name}", folder / name, False)
    for name, number in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        (folder / name).symlink_to(f"/proc/self/fd{number}")
    (folder / "shm").mkdir()
    mount("tmpfs", folder / "shm", "tmpfs", options=f"mode=1777,size={spec.shm_bytes}")


def become_root(new: Path) -> None:
    """pivot_root(2), the old root stacked below the new one and then let go."""
    os.chdir(new)
    number = {"x86_64": 155, "aarch64": 41}[os.uname().machine]
    checked(libc.syscall(number, b".", b"."), "pivot_root")
    checked(libc.umount2(b".", DETACH), "umount of the old root")
    os.chdir("/")


# -- processes ----------------------------------------------------------------------------------------------------------------


def open_box(spec: Spec, log: Path, ready: Callable[[int], None], *, apart: bool) -> int:
    """Start it, and return the id of its process 1 once its root is there. `ready` is called with that before, to lay its network. `apart`:
    it outlives this process (and belongs to process 1 of the surrounding box); otherwise it ends with it. Raises OSError."""
    told, tell = os.pipe()
    wait, go = os.pipe()
    if os.fork() == 0:
        try:
            os.close(told)
            os.close(go)
            between(spec, log, tell, wait, apart)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
        finally:
            os._exit(1)
    os.close(tell)
    os.close(wait)
    said = os.read(told, 20)
    if said:
        ready(int(said))
        os.write(go, GO)
    os.close(go)
    begun = os.read(told, 1)
    os.close(told)
    if not begun:
        raise OSError(f"{spec.host} did not start: {log.read_text(errors='replace')[-2000:]}")
    return int(said)


def between(spec: Spec, log: Path, tell: int, wait: int, apart: bool) -> None:
    if apart:
        os.setsid()
    else:
        die_with_parent()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for number in (1, 2):
        os.dup2(output, number)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    checked(libc.unshare(NEW_MOUNTS | NEW_HOST | NEW_IPC | NEW_PROCESSES | NEW_NETWORK), "unshare")
    process = os.fork()
    if process == 0:
        if not apart:
            die_with_parent()
        if os.read(wait, 1) == GO:
            first(spec, tell)
        os._exit(1)
    os.write(tell, str(process).encode())
    os.close(tell)
    os.close(wait)
    if not apart:
        os.waitpid(process, 0)
    os._exit(0)


def die_with_parent() -> None:
    checked(libc.prctl(DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0), "prctl")


def first(spec: Spec, tell: int) -> None:
    """Process 1."""
    ended = None if spec.exit_file is None else os.open(spec.exit_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    checked(libc.sethostname(spec.host.encode(), len(spec.host)), "sethostname")
    enter_root(spec)
    os.umask(0o022)
    if spec.open_files is not None:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        files = spec.open_files if most == resource.RLIM_INFINITY else min(spec.open_files, most)  # not every root may raise it
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    os.write(tell, GO)
    os.close(tell)
    command = os.fork()
    if command == 0:
        os.chdir(spec.folder)
        words = (*spec.privileges(), *spec.command)
        os.execvpe(words[0], words, spec.environment)
    for number in HANDED_ON:
        signal.signal(number, lambda number, _: os.kill(command, number))
    while True:
        process, status = os.wait()
        if process == command:
            break
    if ended is not None:
        os.write(ended, str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def main() -> None:
    path = Path(sys.argv[1])

    die_with_parent()
    print(open_box(Spec.read(path), path.with_suffix(".log"), lambda _: None, apart=False), flush=True)
    os.wait()


if __name__ == "__main__":
    main()
