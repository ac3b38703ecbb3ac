"""The data directory: who holds it, the node's identity, generated secrets, and the files that tell others about the running
node.

    lock            held (flock) by the running supervisor
    node-id         32 hex digits, made once: the node's durable identity
    secrets/        encryption_key, jwt_secret, cluster_secret, each made once where the configuration has none (0600)
    credentials     the first app's key pair, as an AWS shared-credentials file (0600)
    run/node.json   pid, endpoint and database URLs of the running node (0600)
    run/*.sock      messages between its processes (0600)
    postgres/       the embedded PostgreSQL      drives/0   the default drive

Invariants: one node per directory; a file is written whole or not at all; an encryption key is never made anew where data
may exist that only the old one opens. Not here: the content of `postgres/` (`meta/embedded.py`) and of drives
(`shards/`).
"""

from __future__ import annotations

import fcntl
import os
import secrets as randomness
from pathlib import Path

import msgspec

from anvil.base.config import Config
from anvil.base.errors import InvalidSetting, Unavailable

SECRET_FILES = {
    "encryption_key": "ANVIL_SECRET_ENCRYPTION_KEY",
    "jwt_secret": "ANVIL_JWT_SECRET",
    "cluster_secret": "ANVIL_CLUSTER_SECRET",
}


class RunningNode(msgspec.Struct, frozen=True):
    """What `run/node.json` says, for `anvil admin` and `anvil doctor` on the same machine."""

    pid: int
    endpoint: str
    global_url: str
    regional_url: str
    tls_endpoint: str = ""  # of TLS beside plaintext


class DataDirectory:
    """The data directory at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def open(self) -> None:
        """Create it where needed and hold its lock. Raises InvalidSetting when it cannot be used, Unavailable when a node
        holds it.
        """
        try:
            if not self.path.exists():
                self.path.mkdir(parents=True, mode=0o700)
            (self.path / "run").mkdir(mode=0o700, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise InvalidSetting(
                f"ANVIL_DATA_DIR={str(self.path)!r} cannot be used ({error.strerror}): choose a folder that this user can write"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._lock, 32, 0).decode(errors="replace").strip()
            os.close(self._lock)
            self._lock = None
            raise Unavailable(
                f"another node (process {holder or 'unknown'}) runs on {str(self.path)!r}: "
                "stop it, or choose another ANVIL_DATA_DIR"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let go of the directory."""
        (self.path / "run" / "node.json").unlink(missing_ok=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def node_id(self) -> bytes:
        """The node's 16-byte identity, made at the first start. Raises InvalidSetting when the file is damaged."""
        file = self.path / "node-id"
        if not file.exists():
            write_private(file, randomness.token_hex(16) + "\n")
        try:
            identity = bytes.fromhex(file.read_text().strip())
        except ValueError:
            identity = b""
        if len(identity) != 16:
            raise InvalidSetting(
                f"{str(file)!r} must hold 32 hex digits: restore it from a backup, the cluster knows this node by it"
            )
        return identity

    def with_secrets(self, config: Config) -> Config:
        """The configuration with absent secrets read from, or made into, the data directory. Raises InvalidSetting when the
        encryption key is gone although the directory holds a database.
        """
        found: dict[str, str] = {}
        folder = self.path / "secrets"
        folder.mkdir(mode=0o700, exist_ok=True)
        for key, env in SECRET_FILES.items():
            if getattr(config.security, key):
                continue
            file = folder / key
            if not file.exists():
                if key == "encryption_key" and (self.path / "postgres").exists():
                    raise InvalidSetting(
                        f"{str(file)!r} is gone, and only this key opens what is stored here: "
                        f"restore it, or set {env} to what it held"
                    )
                write_private(file, randomness.token_hex(32) + "\n")
            found[key] = file.read_text().strip()
        merged = msgspec.structs.replace(config, security=msgspec.structs.replace(config.security, **found))
        _ = merged.security.master_key  # a damaged file is told now, not at the first request
        return merged

    @property
    def credentials(self) -> Path:
        return self.path / "credentials"

    def write_credentials(self, access_key: str, secret: str, region: str) -> None:
        """The AWS shared-credentials file, profile `default`."""
        write_private(
            self.credentials,
            f"[default]\naws_access_key_id = {access_key}\naws_secret_access_key = {secret}\nregion = {region}\n",
        )

    def read_credentials(self) -> tuple[str, str] | None:
        """Access key and secret of profile `default`, if the file is there and readable."""
        import configparser

        parser = configparser.ConfigParser(interpolation=None)
        try:
            parser.read_string(self.credentials.read_text())
            return parser["default"]["aws_access_key_id"], parser["default"]["aws_secret_access_key"]
        except (OSError, KeyError, configparser.Error):
            return None

    def announce(self, running: RunningNode) -> None:
        """Tell commands on this machine where the node is."""
        write_private(self.path / "run" / "node.json", msgspec.json.encode(running).decode())


def running_node(path: Path) -> RunningNode | None:
    """The node that runs on that data directory, or None. Raises Unavailable when this user may not look."""
    try:
        lock = os.open(path / "lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except PermissionError:
        raise Unavailable(f"{str(path)!r} belongs to another user: run this as the user that runs the node") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return None  # nobody held it
    except BlockingIOError:
        pass
    finally:
        os.close(lock)
    try:
        return msgspec.json.decode((path / "run" / "node.json").read_bytes(), type=RunningNode)
    except (OSError, msgspec.DecodeError):
        return None  # still starting


def write_private(file: Path, text: str) -> None:
    """Write a file of mode 0600 whole: to a temporary name, synced, then renamed."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(file)
    folder = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
