"""The certificate of the port: loaded, judged, and loaded again when its files change.

Owns: how TLS is spoken (versions, ciphers, ALPN), the certificate in use. Invariant: what is in use was loaded whole and fits its key;
a pair that does not leaves the one before in use. Connections keep the certificate that they began with. Not here: TLS on a socket
(`tls_connection`), which files (`base.settings`).
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path
from typing import Final, NoReturn

import msgspec
from cryptography import x509

from anvil.base import instruments
from anvil.base.clock import SYSTEM_CLOCK
from anvil.base.errors import InvalidSetting
from anvil.base.limits import TLS_LOOK_S

log = logging.getLogger("anvil.net")

# For TLS 1.2; those of 1.3 are all of this kind. Forward secrecy and authenticated encryption (RFC 9325, 4.2).
CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
PROTOCOLS: Final = ("h2", "http/1.1")
State = tuple[tuple[int, int, int, int], ...]


class Loaded(msgspec.Struct, frozen=True):
    """A certificate and its key, ready for use."""

    context: ssl.SSLContext
    expires_s: float  # Unix time at which the certificate ends
    state: State  # of the files it came from, before they were read


def load(cert: str, key: str) -> Loaded:
    """Read the PEM files: the chain, leaf first, and the leaf's private key. Blocks. Raises InvalidSetting, in one line that shows
    nothing of the content."""
    state = look(cert, key)
    _read("ANVIL_TLS_KEY", key)
    try:
        chain = x509.load_pem_x509_certificates(_read("ANVIL_TLS_CERT", cert))
    except ValueError:
        raise InvalidSetting(
            f"ANVIL_TLS_CERT={cert!r} holds no certificate in PEM form: name the file with the whole chain, the node's own first"
        ) from None
    context = make_context()
    try:
        context.load_cert_chain(cert, key, _refuse_password)
    except OSError as error:
        raise InvalidSetting(_why(cert, key, error)) from None
    return Loaded(context, chain[0].not_valid_after_utc.timestamp(), state)


def make_context() -> ssl.SSLContext:
    """How this port speaks TLS, without a certificate yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(list(PROTOCOLS))
    return context


def look(cert: str, key: str) -> State:
    """What tells one state of the files from another, following symbolic links. Blocks. Raises InvalidSetting."""
    found = []
    for name, path in (("ANVIL_TLS_CERT", cert), ("ANVIL_TLS_KEY", key)):
        try:
            stat = Path(path).stat()
        except OSError as error:
            _unreadable(name, path, error)
        found.append((stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns))
    return tuple(found)


class Certificate:
    """The certificate in use."""

    def __init__(self, cert: str, key: str, loaded: Loaded) -> None:
        self._cert = cert
        self._key = key
        self._loaded = loaded
        self._refused: State | None = None  # what was found unfit, and said so
        self._said = ""
        self._now = asyncio.Event()
        self._show()

    @classmethod
    async def open(cls, cert: str, key: str) -> Certificate:
        """Raises InvalidSetting."""
        return cls(cert, key, await asyncio.to_thread(load, cert, key))

    def context(self) -> ssl.SSLContext:
        """For the next connection."""
        return self._loaded.context

    def reload(self) -> None:
        """Read the files now, even if they look the same."""
        self._now.set()

    async def keep(self, every_s: float = TLS_LOOK_S) -> None:
        """Look at the files for ever, in a thread: the disk may hang."""
        while True:
            try:
                async with asyncio.timeout(every_s):
                    await self._now.wait()
            except TimeoutError:
                pass
            asked = self._now.is_set()
            self._now.clear()
            try:
                loaded = await asyncio.to_thread(self._changed, asked)
            except InvalidSetting as error:
                self._refuse(error)
            else:
                if loaded is not None:
                    self._use(loaded)

    def _changed(self, asked: bool) -> Loaded | None:
        """The pair in the files, if it is another one. Raises InvalidSetting."""
        state = look(self._cert, self._key)
        if not asked and state in (self._loaded.state, self._refused):
            if state == self._loaded.state:
                self._said = ""  # put back as it was: what breaks next is news
            return None
        self._refused = state  # unless it turns out well
        return load(self._cert, self._key)

    def _use(self, loaded: Loaded) -> None:
        self._loaded, self._refused, self._said = loaded, None, ""
        instruments.TLS_RELOADS.labels("ok").inc()
        log.info("the TLS certificate was loaded again", extra={"expires_s": int(loaded.expires_s)})
        self._show()

    def _refuse(self, error: InvalidSetting) -> None:
        if error.message != self._said:
            self._said = error.message
            instruments.TLS_RELOADS.labels("refused").inc()
            log.error("the new TLS certificate is not used, the one before still is: %s", error.message)

    def _show(self) -> None:
        instruments.TLS_EXPIRY.set(self._loaded.expires_s)
        if self._loaded.expires_s < SYSTEM_CLOCK.now_us() / 1e6:
            log.warning("the TLS certificate has expired", extra={"expires_s": int(self._loaded.expires_s)})


def _read(name: str, path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        _unreadable(name, path, error)


def _unreadable(name: str, path: str, error: OSError) -> NoReturn:
    raise InvalidSetting(
        f"{name}={path!r} cannot be read ({error.strerror}): name a PEM file that the node's user can read"
    ) from None


def _refuse_password() -> str:
    """The node starts without anybody at its terminal, where OpenSSL would otherwise ask."""
    raise PermissionError("encrypted")


def _why(cert: str, key: str, error: OSError) -> str:
    if isinstance(error, PermissionError) and error.args == ("encrypted",):
        return f"ANVIL_TLS_KEY={key!r} is encrypted: give the key without a password (openssl pkey -in KEY -out PLAIN)"
    reason = getattr(error, "reason", None) or "not PEM"
    if reason == "KEY_VALUES_MISMATCH":
        return f"ANVIL_TLS_KEY={key!r} is not the key of the first certificate in ANVIL_TLS_CERT={cert!r}: give both of one pair"
    return (
        f"ANVIL_TLS_CERT={cert!r} and ANVIL_TLS_KEY={key!r} cannot be used ({str(reason).lower().replace('_', ' ')}): "
        "the first must hold the chain, the node's own certificate first, the second its private key, both in PEM form"
    )
