"""Who a drive's folder is, who uses it, and whether it was left cleanly.

Owns: `drive.json` (identity), `running.json` (there while the drive is in use: under which kernel, on which device), a marker for each
process that uses it (`index/*.user`, locked while that process lives) and the lock on the folder itself: shared by every process that
uses the drive, exclusive while the first one recovers it. Invariants: a folder without `drive.json` is never taken for a known drive,
and never initialised unasked; an index is used only while `running.json` says what it said when that index was opened. Not here: what
recovery does.

    drive/  drive.json  running.json  index/  segments/  blobs/ab/cd/  tmp/
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import msgspec

from anvil.base.errors import DriveFailed, InvalidSetting
from anvil.model.records import DriveId
from anvil.shards.format import FORMAT_VERSION

IDENTITY = "drive.json"
RUNNING = "running.json"
CHECKED = "index/checked.json"
FOLDERS = ("index", "segments", "blobs", "tmp")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_BLOCK_DEVICES = Path("/sys/dev/block")
_USER, _UNFINISHED = ".user", ".new"
_IGNORED = frozenset({"lost+found", f"{IDENTITY}.new"})


class Identity(msgspec.Struct, frozen=True):
    drive_id: str  # 32 hex digits
    format: int
    created_us: int


class Running(msgspec.Struct, frozen=True):
    """In whose page cache the index's unsynced pages are. An index is trusted only by who finds the same again. `NOBODY` stands for an
    index that must be rebuilt."""

    boot_id: str
    device: str = ""


NOBODY = Running("")


def boot_id() -> str:
    """Changes whenever the page cache was lost (random(4): one value per boot)."""
    return _BOOT_ID.read_text().strip()


def device_of(folder: Path) -> str:
    """The block device below a folder: `MAJOR:MINOR`, and behind a slash the number of the disk (sysfs `diskseq`, Linux 5.15: never given
    twice within one boot), where there is one. A disk that was pulled out and put back took unsynced pages with it, though nothing was
    booted; it comes back under another number. Raises OSError."""
    device = folder.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        place = (_BLOCK_DEVICES / number).resolve(strict=True)
        disk = place.parent if (place / "partition").exists() else place
        return f"{number}/{(disk / 'diskseq').read_text().strip()}"
    except OSError:
        return number  # tmpfs, overlay, an older kernel


def present_use(folder: Path) -> Running:
    """What `running.json` says of a drive that is in use now. Raises OSError."""
    return Running(boot_id(), device_of(folder))


def write_atomically(path: Path, data: bytes) -> None:
    """Durable and whole, or not there. Blocking. Raises OSError."""
    new = path.with_name(path.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    new.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class FolderLock:
    """An advisory lock on the drive's folder, held as long as this object is open; the kernel drops it when the process dies."""

    def __init__(self, folder: Path) -> None:
        self.fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def alone(self) -> bool:
        """Try to hold it exclusively."""
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def share(self) -> None:
        """Hold it together with others; waits for one who recovers the drive."""
        fcntl.flock(self.fd, fcntl.LOCK_SH)

    def release(self) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self.fd)


def identity_place(folder: Path) -> tuple[int, int] | None:
    """Device and inode of the identity file: another one means another mount, another copy, or none. Asked twice per batch, so
    without pathlib: 3 us instead of 15.

    Whoever finds the place he attached may go on with the files he opened then, also when the folder was unmounted and mounted again in
    between: his descriptors (the folder's lock, the index) keep the old mount's file system alive, and with it its device number, so
    nothing else can have that number. The same number is the same file system in the kernel, with the same page cache and inodes. A disk
    that was pulled out and put back while descriptors are open gets another number, or gives input/output errors to the old ones."""
    try:
        stat = os.stat(f"{folder}/{IDENTITY}")  # noqa: PTH116
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def read_identity(folder: Path, label: str) -> Identity | None:
    """None if the folder or its identity is not there. Raises DriveFailed for one that cannot be read or is too new."""
    try:
        data = (folder / IDENTITY).read_bytes()
        identity = msgspec.json.decode(data, type=Identity)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, msgspec.MsgspecError) as error:
        raise DriveFailed(f"{IDENTITY} of drive {label} cannot be read", drive=label) from error
    if identity.format > FORMAT_VERSION or len(identity.drive_id) != 32:
        raise DriveFailed(f"drive {label} was written by a newer version", drive=label)
    return identity


def ensure_identity(folder: Path, label: str, expected: DriveId | None, create: bool, now_us: int) -> Identity:
    """The identity of the folder, which is initialised only if asked to (`create`), not expected to be a known drive, and empty.
    Blocking. Raises DriveFailed (missing, or another drive), InvalidSetting (will not be initialised)."""
    identity = read_identity(folder, label)
    if identity is None:
        if expected is not None:
            raise DriveFailed(f"drive {label} is missing: its folder holds no {IDENTITY} (not mounted?)", drive=label)
        if not create:
            raise InvalidSetting(f"{label} is not a drive yet")
        identity = _initialise(folder, label, now_us)
    if expected is not None and bytes.fromhex(identity.drive_id) != expected:
        raise DriveFailed(f"folder {label} holds another drive than expected", drive=label)
    return identity


def _initialise(folder: Path, label: str, now_us: int) -> Identity:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = FolderLock(folder)
    try:
        if not lock.alone():
            lock.share()  # another process initialises it, or uses it already
        found = read_identity(folder, label)
        if found is not None:
            return found
        strange = sorted({entry.name for entry in folder.iterdir()} - _IGNORED - set(FOLDERS))
        # Folders left by an initialisation that died are empty; shards without an identity are somebody's data.
        strange += [name for name in FOLDERS if (folder / name).is_dir() and any((folder / name).iterdir())]
        if strange:
            raise InvalidSetting(f"drive folder {label} is not empty ({strange[0]}): name an empty folder")
        for name in FOLDERS:
            (folder / name).mkdir(mode=0o700, exist_ok=True)
        identity = Identity(drive_id=os.urandom(16).hex(), format=FORMAT_VERSION, created_us=now_us)
        write_atomically(folder / IDENTITY, msgspec.json.encode(identity))
        sync_folder(folder.parent)
        return identity
    finally:
        lock.close()


def read_running(folder: Path) -> Running | None:
    """The marker of a drive in use (or left uncleanly). Unreadable counts as another boot: the safe side."""
    return _read_use(folder / RUNNING)


def _read_use(path: Path) -> Running | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Running)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError:
        return NOBODY


def mark_running(folder: Path, use: Running) -> None:
    write_atomically(folder / RUNNING, msgspec.json.encode(use))


def distrust_index(folder: Path) -> None:
    """Let nobody use this index any more: who has it open lets go at his next probe, and who is then first builds another."""
    mark_running(folder, NOBODY)


def mark_clean(folder: Path) -> None:
    (folder / RUNNING).unlink(missing_ok=True)
    sync_folder(folder)


def index_checked(folder: Path) -> Running | None:
    """Under which boot and on which device the index was last read from end to end."""
    return _read_use(folder / CHECKED)


def note_index_checked(folder: Path, use: Running) -> None:
    write_atomically(folder / CHECKED, msgspec.json.encode(use))


class UserMark:
    """This process's own marker: a locked file that is there as long as it uses the drive. One that is there unlocked was left by a
    process that died. Made under the folder's lock."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "index" / f"{os.getpid()}-{os.urandom(6).hex()}{_USER}"
        new = self._path.with_suffix(_UNFINISHED)
        self._fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            new.rename(self._path)  # locked before anybody can see it
        except BaseException:
            os.close(self._fd)
            raise

    def close(self) -> None:
        """Leave in order."""
        try:
            self._path.unlink(missing_ok=True)
        finally:
            os.close(self._fd)


def dead_users(folder: Path) -> list[Path]:
    """The markers of processes that ended without leaving. Raises OSError."""
    return [path for path in (folder / "index").glob(f"*{_USER}") if _unlocked(path)]


def forget_users(folder: Path) -> None:
    """Remove all markers. For who holds the folder's lock alone. Raises OSError."""
    for path in (folder / "index").iterdir():
        if path.suffix in (_USER, _UNFINISHED):
            path.unlink(missing_ok=True)


def _unlocked(path: Path) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False  # it is just leaving
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def touch_medium(path: Path) -> None:
    """Write and flush a file without a name. Blocking: a disk that hangs shows here, and not in what may rightly take long. Says
    nothing about any other trouble: a folder that is no drive yet, a file system without such files."""
    try:
        fd = os.open(path / "tmp", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    except OSError:
        return
    try:
        os.write(fd, b"\0")
        os.fsync(fd)
    except OSError:
        return
    finally:
        os.close(fd)
