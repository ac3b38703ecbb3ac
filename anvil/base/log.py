"""Structured logs: one line per event on standard error, as JSON or text, without secrets.

Owns: the format and the redaction. Every line carries the id of the request that is being served. Use the standard library's loggers
with facts in `extra`: `log.warning("worker died", extra={"worker": 3})`. Invariant: a value given to `protect`, a password in a
database URL, a signature or an authorization header never reaches a line. Not here: where lines go (whoever runs the
server collects standard error).
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Any, Final

import msgspec

from anvil.base.config import REDACTED, LogConfig
from anvil.base.underway import UNDERWAY

FIELD_CHARS_MAX: Final = 4096  # of one value; what a client sent cannot fill the disk with a few lines
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_LEAKS = re.compile(
    r"(?P<url>postgres(?:ql)?://[^:/@\s]*:)[^@\s]*(?=@)"
    r"|(?P<signed>(?:X-Amz-Signature|X-Amz-Security-Token|Signature|sig)=)[0-9A-Za-z%+/=]+"
    r"|(?P<bearer>(?:Bearer|Basic) )[^\s\"',]+",
    re.IGNORECASE,
)
_protected: set[str] = set()


def protect(*secrets: str) -> None:
    """From now on, replace these values in every line. Short ones are ignored: they would blot out ordinary text."""
    _protected.update(secret for secret in secrets if len(secret) >= 8)


def redact(text: str) -> str:
    """The text without anything secret."""
    for secret in _protected:
        text = text.replace(secret, REDACTED)
    return _LEAKS.sub(lambda hit: next(part for part in hit.groups() if part is not None) + REDACTED, text)


def setup(config: LogConfig, process: str) -> None:
    """Send this process's log lines to standard error. `process`: its name in every line."""
    as_text = config.format == "text" or (config.format == "auto" and sys.stderr.isatty())
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(TextFormatter(process) if as_text else JsonFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(config.level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    logging.captureWarnings(True)


class JsonFormatter(logging.Formatter):
    """{"time", "level", "process", "logger", "message", ..., "request_id", "exception"}"""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _timestamp(record.created),
            "level": record.levelname.lower(),
            "process": self.process,
            "logger": record.name,
            "message": _cut(record.getMessage()),
        }
        line |= _facts(record)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return redact(msgspec.json.encode(line).decode())


class TextFormatter(logging.Formatter):
    """For people at a terminal."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self.process = process

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f"  {name}={value}" for name, value in _facts(record).items())
        message = _cut(record.getMessage()).replace("\n", "\\n").replace("\r", "\\r")
        line = f"{_timestamp(record.created)} {record.levelname.lower():7} {self.process:10} {message}{facts}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return redact(line)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, value in vars(record).items():
        if name not in _STANDARD and not name.startswith("_"):
            facts[name] = value if isinstance(value, (int, float, bool)) or value is None else _cut(str(value))
    request = UNDERWAY.get()
    if request is not None:
        facts.setdefault("request_id", request.request_id)
    return facts


def _cut(text: str) -> str:
    return text if len(text) <= FIELD_CHARS_MAX else text[:FIELD_CHARS_MAX] + "..."


def _timestamp(created: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created)) + f".{int(created % 1 * 1000):03d}Z"
