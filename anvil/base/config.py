"""The configuration: parsed once, frozen, refused with one line when something is wrong. The only reader of the environment.

Owns: the order defaults < TOML file < `ANVIL_*` environment (`*_FILE` for secrets) < command-line flags. Invariant: a
`Config` that `load` returned is valid as a whole, with absolute paths. Not here: the settings themselves
(`base/settings.py`), generating secrets (`node/datadir.py`), what the settings do.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from anvil.base.config_checks import check
from anvil.base.errors import InvalidSetting
from anvil.base.setting_values import Address
from anvil.base.settings import (
    REDACTED,
    ApiConfig,
    ClusterConfig,
    Config,
    DatabaseConfig,
    LogConfig,
    MetricsConfig,
    NodeConfig,
    SecurityConfig,
    Setting,
    StorageConfig,
    settings,
)

__all__ = [
    "REDACTED",
    "Address",
    "ApiConfig",
    "ClusterConfig",
    "Config",
    "DatabaseConfig",
    "LogConfig",
    "MetricsConfig",
    "NodeConfig",
    "SecurityConfig",
    "StorageConfig",
    "child_environment",
    "forget_environment",
    "load",
]

CONFIG_FILE = "ANVIL_CONFIG_FILE"
# Read by setup.py, and by the commands that speak to a server from afar; no settings of a node, and harmless here.
OTHER_NAMES = frozenset({"ANVIL_STRICT", "ANVIL_SANITIZE", "ANVIL_PROFILE"})


def load(
    environ: Mapping[str, str] | None = None, *, config_file: str | None = None, flags: Mapping[str, str | None] | None = None
) -> Config:
    """The configuration of this process.

    `environ`: os.environ unless given. `flags`: values from the command line by environment name; None = not given.
    Raises InvalidSetting, whose message is one line: what is wrong and how to mend it.
    """
    environ = os.environ if environ is None else environ
    values: dict[tuple[str, str], Any] = {}
    path = config_file or environ.get(CONFIG_FILE)
    if path:
        values |= _from_file(path)
    values |= _from_environment(environ)
    for env, value in (flags or {}).items():
        if value is not None:
            item = _by_env()[env]
            values[item.section, item.key] = _convert(item, value, f"{env} (command line)")
    sections: dict[str, Any] = {}
    for section in msgspec.structs.fields(Config):
        given = {key: value for (name, key), value in values.items() if name == section.name}
        sections[section.name] = section.type(**given)
    config = resolved(Config(**sections))
    check(config)
    return config


def child_environment() -> dict[str, str]:
    """The environment for child processes: without any Anvil setting, so that no secret is inherited, and with this process's
    import path (children run with `python -P`, so that the current folder is not on it)."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANVIL_")}
    package = str(Path(__file__).parents[2])
    paths = [str(Path(path).absolute()) for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    return environment | {"PYTHONPATH": os.pathsep.join(dict.fromkeys([package, *paths]))}


def forget_environment(retitle: Callable[[], None]) -> None:
    """Take the settings out of this process's own environment: secrets may be among them, and it starts programs. `retitle`: gives the
    process a title by setproctitle, which is written over what it was started with, its environment included. That is found by the first
    variable, and so has to come first."""
    retitle()
    for name in [name for name in os.environ if name.startswith("ANVIL_")]:
        del os.environ[name]


def resolved(config: Config) -> Config:
    """The same with absolute paths and the default drive filled in."""
    data = Path(os.path.abspath(os.path.expanduser(config.node.data_dir)))  # noqa: PTH100, PTH111 - keeps symbolic links
    drives = tuple(os.path.abspath(os.path.expanduser(drive)) for drive in config.storage.drives) or (str(data / "drives" / "0"),)  # noqa: PTH100, PTH111
    tls = {name: getattr(config.api, name) for name in ("tls_cert", "tls_key")}
    tls = {name: os.path.abspath(os.path.expanduser(path)) if path else "" for name, path in tls.items()}  # noqa: PTH100, PTH111
    return msgspec.structs.replace(
        config,
        node=msgspec.structs.replace(config.node, data_dir=str(data)),
        api=msgspec.structs.replace(config.api, **tls),
        storage=msgspec.structs.replace(config.storage, drives=drives),
    )


def nearest(name: str, known: list[str]) -> str:
    """`" Did you mean X?"`, or nothing when no name is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""


def _by_env() -> dict[str, Setting]:
    return {item.env: item for item in settings()}


def _from_environment(environ: Mapping[str, str]) -> dict[tuple[str, str], Any]:
    known = _by_env()
    files = {f"{env}_FILE": item for env, item in known.items() if item.secret}
    values: dict[tuple[str, str], Any] = {}
    for name, value in environ.items():
        if not name.startswith("ANVIL_") or name == CONFIG_FILE or name in OTHER_NAMES:
            continue
        if name in files:
            item = files[name]
            if environ.get(item.env):
                raise InvalidSetting(f"{item.env} and {name} are both set: keep one of them")
            text = _secret_file(name, value) if value else ""
        elif name in known:
            item, text = known[name], value
        else:
            hint = nearest(name, [*known, *files, CONFIG_FILE])
            raise InvalidSetting(f"{name} is not a setting.{hint} `anvil config` lists all of them")
        if text:  # an empty variable is an unset one, as container tools pass them
            values[item.section, item.key] = _convert(item, text, item.env)
    return values


def _secret_file(name: str, path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise InvalidSetting(f"{name}={path!r} cannot be read ({reason}): name a file that holds only the secret") from None


def _from_file(path: str) -> dict[tuple[str, str], Any]:
    try:
        document = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidSetting(f"the configuration file {path!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"the configuration file {path!r} is not TOML: {error}") from None
    known = {item.toml: item for item in settings()}
    values: dict[tuple[str, str], Any] = {}
    for section, table in document.items():
        if not isinstance(table, dict):
            hint = nearest(section, [item.key for item in settings()])
            raise InvalidSetting(f"{section!r} stands outside of any table in {path!r}: write it under its [section].{hint}")
        for key, value in table.items():
            item = known.get(f"{section}.{key}")
            if item is None:
                raise InvalidSetting(f"{section}.{key} in {path!r} is not a setting.{nearest(f'{section}.{key}', list(known))}")
            values[section, key] = _convert(item, value, f"{section}.{key} in {path!r}")
    return values


def _convert(item: Setting, value: Any, where: str) -> Any:
    if get_origin(item.type) is tuple and isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if item.type is bool and isinstance(value, str):
        value = {"yes": "true", "on": "true", "no": "false", "off": "false"}.get(value.lower(), value.lower())
    try:
        converted = msgspec.convert(value, item.annotated, strict=False)
        if isinstance(converted, float) and not math.isfinite(converted):
            raise msgspec.ValidationError("not finite")
    except msgspec.ValidationError:
        shown = REDACTED if item.secret else repr(value)
        remedy = f", for instance {item.example}" if item.example else ""
        raise InvalidSetting(f"{where} = {shown} is wrong: it must be {kind(item)}{remedy}") from None
    return converted


def kind(item: Setting) -> str:
    """What a setting takes, in words."""
    if get_origin(item.type) is Literal:
        return "one of " + ", ".join(get_args(item.type))
    if get_origin(item.type) is tuple:
        return "a list"
    meta: msgspec.Meta = get_args(item.annotated)[1]
    bounds = f" from {meta.ge} to {meta.le}" if meta.le is not None else f" of at least {meta.ge}" if meta.ge is not None else ""
    return {str: "text", int: "a whole number", float: "a number", bool: "true or false"}[item.type] + bounds
