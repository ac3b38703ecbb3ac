"""Profiles of the client commands: which server, as which app.

    ~/.config/anvil/profiles.toml    default = "NAME", and a table [profiles.NAME] for each
    ~/.config/anvil/tokens.json      access tokens, so that not every command needs a new one

Owns: both files. Invariants: they are readable by their owner alone, written whole or not at all, and neither secret nor token is ever
printed. Not here: what a profile is used for (`client.py`).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
import stat
import time
import tomllib
from pathlib import Path

import click
import msgspec

from anvil.base.config import nearest
from anvil.base.errors import InvalidSetting
from anvil.base.limits import CLIENT_PROFILE_FILE_BYTES_MAX
from anvil.client.types import Token

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
FIRST = "default"


class Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`ca`: a file with the PEM certificates to trust, where they are not the usual ones."""

    host: str
    client_id: str
    client_secret: str
    ca: str = ""

    def __repr__(self) -> str:
        return f"Profile({self.host!r}, {self.client_id!r})"


class Profiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    profiles: dict[str, Profile] = {}
    default: str = ""

    def named(self, name: str | None) -> tuple[str, Profile]:
        """By name, or the default one. Raises InvalidSetting that says what to do."""
        name = name or self.default
        if not name:
            raise InvalidSetting("there is no profile yet: `anvil configure` makes one")
        if name not in self.profiles:
            raise InvalidSetting(f"there is no profile {name!r}.{nearest(name, list(self.profiles))} `anvil configure` makes one")
        return name, self.profiles[name]

    def with_profile(self, name: str, profile: Profile, default: bool) -> Profiles:
        """The first one is the default."""
        if not NAME.fullmatch(name):
            raise InvalidSetting(f"{name!r} cannot be a profile's name: up to 64 letters, digits, `_`, `.`, `-`")
        chosen = name if default or not self.default else self.default
        return Profiles(self.profiles | {name: profile}, chosen)


def folder() -> Path:
    """Where both files are: XDG_CONFIG_HOME/anvil."""
    return Path(click.get_app_dir("anvil"))


def load() -> Profiles:
    """Says on standard error when others may read the secrets. Raises InvalidSetting."""
    path = folder() / "profiles.toml"
    text = _read(path)
    if text is None:
        return Profiles()
    try:
        return msgspec.convert(tomllib.loads(text), Profiles)
    except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise InvalidSetting(f"{path}: {error}") from None


def save(profiles: Profiles) -> Path:
    """Returns the path of the file."""
    lines = [f"default = {_quoted(profiles.default)}", ""]
    for name, profile in sorted(profiles.profiles.items()):
        lines.append(f"[profiles.{_quoted(name)}]")
        lines += [f"{key} = {_quoted(value)}" for key, value in msgspec.to_builtins(profile).items()]
        lines.append("")
    return _write("profiles.toml", "\n".join(lines))


class TokenCache:
    """A `TokenStore` in tokens.json. The entry is found by a keyed hash of host and app with the secret as key: after a change of any
    of them it is another one."""

    def __init__(self, profile: Profile) -> None:
        named = f"{profile.host}\n{profile.client_id}".encode()
        self._key = hmac.new(profile.client_secret.encode(), named, hashlib.sha256).hexdigest()

    def load(self) -> Token | None:
        return self._all().get(self._key)

    def save(self, token: Token | None) -> None:
        """Forgets those that have expired, too. A folder that cannot be written only costs a call the next time."""
        now_s = time.time()
        tokens = {key: one for key, one in self._all().items() if one.expires_at_s > now_s and key != self._key}
        if token is not None:
            tokens[self._key] = token
        try:
            _write("tokens.json", json.dumps(msgspec.to_builtins(tokens)))
        except InvalidSetting as error:
            click.echo(f"anvil: {error.message}", err=True)

    def _all(self) -> dict[str, Token]:
        try:
            return msgspec.json.decode(_read(folder() / "tokens.json") or "{}", type=dict[str, Token])
        except msgspec.DecodeError:
            return {}  # it is only a cache


def _quoted(text: str) -> str:
    """A basic string of TOML, whose escapes are those of JSON; only U+007F needs one more."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _read(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                click.echo(f"anvil: {path} can be read by others: chmod 600 {path}", err=True)
            data = file.read(CLIENT_PROFILE_FILE_BYTES_MAX + 1)
        if len(data) > CLIENT_PROFILE_FILE_BYTES_MAX:
            raise InvalidSetting(f"{path} is no such file: it is larger than {CLIENT_PROFILE_FILE_BYTES_MAX} bytes")
        return data.decode()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InvalidSetting(f"{path} cannot be read: {reason}") from None


def _write(name: str, text: str) -> Path:
    path = folder() / name
    temporary = path.with_name(f".{name}.{secrets.token_hex(8)}")
    try:
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InvalidSetting(f"{path} cannot be written: {error.strerror}") from None
    return path
