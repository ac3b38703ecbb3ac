"""TLS on one socket: the protocol of the socket towards the loop, and the transport of the HTTP connection inside it.

Owns: handshake, encryption, the alert that ends each direction. Invariants: a socket counts against the caps from the moment it is
accepted, not from the end of its handshake; nothing is kept here: what is written is encrypted and handed on at once, so that the
socket's own buffer is the only one, and while nobody can take bytes the socket is not read. Not here: HTTP (`connection`, `http2`),
certificates (`tls`).

The loop has a TLS of its own. It is not used, because there an unfinished handshake counts as nothing and holds 256 KiB, what was handed
to the socket counts as delivered (slow readers are then cut by the wrong time-out, or not at all), a paused reader still takes in half
a megabyte, and a close cuts what has not left within 30 s.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable
from typing import Any, Final, cast

from anvil.base.limits import TLS_FIRST_READ_BYTES, TLS_JOIN_BYTES, TLS_REPLY_BYTES_MAX, TLS_SLICE_BYTES
from anvil.base.types import Buffer
from anvil.net.connection import Connection
from anvil.net.fixed import HTTP_TO_TLS
from anvil.net.port import Port, address_key

log = logging.getLogger("anvil.net")


class TlsConnection(asyncio.BufferedProtocol, asyncio.Transport):
    """One accepted socket. Until the handshake is done it is the port's connection, then the HTTP connection takes its place there."""

    def __init__(self, port: Port, context: ssl.SSLContext) -> None:
        super().__init__()
        self._port: Final = port
        self._incoming: Final = ssl.MemoryBIO()
        self._outgoing: Final = ssl.MemoryBIO()
        self._tls: Final = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._transport: asyncio.Transport
        self._inner: asyncio.BufferedProtocol | None = None
        self._peer = self._address = ""
        self._refused: str | None = None
        self._since_s = port.now_s
        self._paused = False  # nobody can take bytes
        self._reading = False  # in `_read`
        self._read_due = False
        self._closing = False
        self._shut = False  # our direction has ended; what comes is dropped
        self._eof = False  # the client's has
        self._told_eof = False
        self._content = 0  # bytes
        self._flowing = False  # most of what was decrypted last was content
        self._dropped = 0  # bytes that came after the end of the client's direction
        self._replied = 0  # bytes that the client made us send without a request of it

    # -- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._peer, self._address = address_key(transport.get_extra_info("peername"))
        self._port.keep_near(transport, self._peer)
        self._refused = self._port.admit(self, self._address)
        if self._refused == "flood" or self._port.draining:
            self.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._port.sealed if self._flowing else self._port.sealed_first

    def buffer_updated(self, nbytes: int) -> None:
        if self._shut:
            if self._inner is not None:
                self._inner.buffer_updated(min(nbytes, len(self._port.scratch)))  # which only counts what it drops
            return
        if self._eof:
            self._drop(nbytes)
            return
        self._incoming.write(self._port.sealed[:nbytes])
        if self._inner is None:
            self._transport.pause_reading()  # until it is its turn
            self._port.handshakes.take(self.shake)
            return
        self._read()
        if nbytes == TLS_FIRST_READ_BYTES and not (self._flowing or self._paused or self._closing):
            self._transport.pause_reading()  # the loop would read on, up to 32 times in one turn
            self._port.hollow_reads.take(self._next_turn)

    def eof_received(self) -> bool:
        self._eof = True
        if self._inner is None:
            return False
        self._read()
        return True  # `_tell_eof` closes, if it is to be

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.connection_lost(exc)
        else:
            self._port.forget(self, self._address, self._refused)

    def pause_writing(self) -> None:
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._inner is not None:
            self._inner.resume_writing()

    # -- called by the port, during the handshake

    def shake(self) -> None:
        """Go on with the handshake."""
        if self.is_closing():
            return
        self._transport.resume_reading()
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send_out()
            return
        except OSError as error:
            self._fail_handshake(error)
            return
        self._send_out()
        inner = self._inner = Connection(self._port)
        inner.begin(self, (self._peer, self._address), self._refused)
        self._port.replace(self, inner)
        self._read()

    def sweep(self, now_s: float, elapsed_s: float) -> None:
        """End a handshake that takes too long."""
        if now_s - self._since_s > self._port.limits.handshake_s:
            self._port.stats.timeouts["handshake"] += not self._closing
            self.abort()

    def drain(self) -> None:
        """Nothing was asked yet, so nothing is lost."""
        self.abort()

    def cut(self) -> None:
        self.abort()

    # -- called by the HTTP connection (`asyncio.Transport`)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`ssl_object`, or what the socket's transport has."""
        return self._tls if name == "ssl_object" else self._transport.get_extra_info(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._inner = cast(asyncio.BufferedProtocol, protocol)

    def is_closing(self) -> bool:
        return self._closing or self._transport.is_closing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size()

    def write(self, data: Buffer) -> None:
        self.writelines((data,))

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        """Encrypt, and hand on in one system call. Small pieces share a record: each record costs 29 bytes and a call at both ends."""
        if self._shut or self.is_closing():
            return
        sealed: list[bytes] = []
        small: list[Buffer] = []
        for piece in list_of_data:
            if len(piece) < TLS_JOIN_BYTES:
                small.append(piece)
                continue
            if small:
                self._seal(b"".join(small), sealed)
                small = []
            self._seal(piece, sealed)
        if small:
            self._seal(small[0] if len(small) == 1 else b"".join(small), sealed)
        if len(sealed) == 1:
            self._transport.write(sealed[0])
        elif sealed:
            self._transport.writelines(sealed)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """End our direction: an alert to TLS, then the end of the stream to TCP. From now on what comes is not decrypted any more."""
        self._shut = True
        self._say_end()
        self._transport.write_eof()

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            if not self._shut:
                self._say_end()
            self._transport.close()

    def abort(self) -> None:
        """Without the alert: to the client the answer was cut."""
        self._closing = True
        self._transport.abort()

    def pause_reading(self) -> None:
        self._paused = True
        if not self._eof:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if not self._eof:
            self._transport.resume_reading()
        if not self._read_due and (self._eof or self._incoming.pending or self._tls.pending()):
            self._read_due = True
            self._port.loop.call_soon(self._read_on)  # not now: the caller is in the middle of something

    # -- inside

    def _fail_handshake(self, error: OSError) -> None:
        self._port.stats.rejected["handshake"] += 1
        log.debug("TLS handshake of %s failed: %s", self._peer, error)
        if getattr(error, "reason", None) == "HTTP_REQUEST":
            self._transport.write(HTTP_TO_TLS)
        else:
            self._send_out()  # the alert that says why
        self._closing = True
        self._transport.close()

    def _drop(self, nbytes: int) -> None:
        """After the client's closing alert nothing counts any more (RFC 8446, 6.1); TLS would not even take it in."""
        self._dropped += nbytes
        if self._dropped > self._port.limits.drain_body_bytes:
            self._refuse()

    def _next_turn(self) -> None:
        if not self._paused and not self._eof and not self.is_closing():
            self._transport.resume_reading()

    def _read_on(self) -> None:
        self._read_due = False
        self._read()

    def _read(self) -> None:
        """Decrypt what came, as long as somebody can take it. Not from inside itself: who takes the bytes may ask for more."""
        if self._reading:
            return
        self._reading = True
        waiting, content = self._incoming.pending, self._content
        try:
            more = True
            while more and not (self._paused or self._shut or self._closing) and (self._incoming.pending or self._tls.pending()):
                more = self._read_once()
        except OSError as error:
            log.debug("TLS connection of %s broke: %s", self._peer, error)
            self._refuse()
            return
        finally:
            self._reading = False
        if taken := waiting - self._incoming.pending:
            self._flowing = 2 * (self._content - content) >= taken
        if self._outgoing.pending:
            self._reply()
        if self._eof and not self._paused:
            self._tell_eof()

    def _read_once(self) -> bool:
        """Fill one buffer of the HTTP connection, as far as what came reaches. False once that needs more from the socket. Raises
        OSError."""
        inner = self._inner
        if inner is None:
            return False
        buffer = cast(memoryview, inner.get_buffer(-1))
        size, filled, more = len(buffer), 0, True
        try:
            while filled < size and (self._incoming.pending or self._tls.pending()):
                count = cast(int, self._tls.read(size - filled, buffer[filled:] if filled else buffer))
                if not count:  # the client's closing alert
                    self._eof, more = True, False
                    break
                filled += count
        except ssl.SSLWantReadError:  # part of a record
            more = False
        if filled:
            self._content += filled
            inner.buffer_updated(filled)
        return more

    def _tell_eof(self) -> None:
        if not self._told_eof and self._inner is not None:
            self._told_eof = True
            if not self._inner.eof_received():
                self.close()

    def _reply(self) -> None:
        """Send what TLS itself answers to what came. Nobody waits for the socket here, so it is a bounded number of bytes."""
        self._replied += self._outgoing.pending
        if self._replied > TLS_REPLY_BYTES_MAX:
            self._refuse()
        else:
            self._send_out()

    def _refuse(self) -> None:
        """What no honest client does."""
        if not self._closing:
            self._port.stats.refusals["Tls"] += 1
            self.abort()

    def _seal(self, data: Buffer, sealed: list[bytes]) -> None:
        """In slices: the buffers of a TLS connection keep the size they once needed."""
        if len(data) <= TLS_SLICE_BYTES:
            if not data:
                return
            self._tls.write(data)
            sealed.append(self._outgoing.read())
            return
        view = memoryview(data)
        for start in range(0, len(view), TLS_SLICE_BYTES):
            self._tls.write(view[start : start + TLS_SLICE_BYTES])
            sealed.append(self._outgoing.read())

    def _say_end(self) -> None:
        """The closing alert. That the client has not sent its own is no error."""
        try:
            self._tls.unwrap()
        except OSError:
            pass
        self._send_out()

    def _send_out(self) -> None:
        if self._outgoing.pending and not self._transport.is_closing():
            self._transport.write(self._outgoing.read())
