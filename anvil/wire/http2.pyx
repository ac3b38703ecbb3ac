# cython: language_level=3, boundscheck=False, wraparound=False
"""HTTP/2 for a server, sans I/O, on libnghttp2: bytes in and events out, answers in and buffers out.

Owns: one session's frames, header compression, flow control and the state of its streams. Invariants: body bytes are copied once on
their way in, from the socket's buffer to where the reader wants them (or into the stream's bounded store while nobody reads), and never
on their way out; what a stream may send ahead of its reader is bounded by its window, and the window opens only as the reader takes;
no exception leaves a C callback. What a hostile peer can make the session do for free is counted, and ends it (`SessionFailed`).
Not here: sockets, time, what a request means (`anvil/net/http2.py`).

Reference: RFC 9113 (HTTP/2), RFC 7541 (HPACK, all of it in libnghttp2).
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int32_t, uint8_t, uint32_t
from libc.string cimport memcpy

from anvil.wire.nghttp2 cimport *

from collections import deque

cdef enum:
    FIELDS_MAX = 256  # header fields handed to libnghttp2 at a time
    FRAME_HEADER = 9
    OUTBOUND_MAX = 2000  # frames that wait because the peer does not read; those of STREAMS_MAX answers are far fewer
    PAID_BYTES = 1024  # of bodies, for one more free action
    RESETS_MAX = 1 << 30  # at once and per second, as libnghttp2 counts them: no limit

# What `take_events` reports about a stream.
REQUEST = 0  # its head is complete
FILLED = 1  # the view given to `Exchange.read` is full, or the body has ended
CLOSED = 2  # it is over; `Exchange.reset_code` tells how

NO_ERROR = 0
PROTOCOL_ERROR = 1
INTERNAL_ERROR = 2
REFUSED_STREAM = 7
CANCEL = 8
ENHANCE_YOUR_CALM = 11


class SessionFailed(Exception):
    """The connection is of no more use: `collect` what is left (a GOAWAY), then close it."""


cdef class Exchange:
    """One stream: a request and its answer. Made by the session."""

    cdef readonly int32_t stream_id
    cdef readonly list headers  # (name, value), pseudo-headers too, as they came
    cdef readonly bint malformed  # a field that HTTP does not allow
    cdef readonly bint oversized  # more header bytes or fields than allowed: the rest was dropped
    cdef readonly bint ended  # no more of the body will come
    cdef readonly bint closed
    cdef readonly uint32_t reset_code  # of the RST_STREAM that closed it, from either side
    cdef readonly Py_ssize_t received  # body bytes
    cdef readonly Py_ssize_t queued  # body bytes of the answer that wait
    cdef readonly Py_ssize_t sent  # body bytes of the answer that were collected
    cdef public object owner
    cdef Session session
    cdef Py_ssize_t header_bytes, fields  # of the head and of trailers
    cdef bytearray store  # body bytes that nobody has asked for yet
    cdef bint reading, discarding
    cdef Py_buffer view
    cdef Py_ssize_t filled
    cdef object out  # deque of memoryview
    cdef object current  # the one being sent: `at` of its `length` bytes are gone
    cdef Py_ssize_t at, length
    cdef bint out_ended, deferred
    cdef bint answered, leaving  # the answer has gone out; the stream ends with it
    cdef list trailers

    def __cinit__(self, Session session, int32_t stream_id):
        self.session = session
        self.stream_id = stream_id
        self.headers = []
        self.store = bytearray()
        self.out = deque()

    def __dealloc__(self):
        if self.reading:
            PyBuffer_Release(&self.view)

    @property
    def stored(self):
        """Body bytes received that nobody has asked for."""
        return PyByteArray_GET_SIZE(self.store)

    def read(self, view):
        """Fill `view` with body bytes. Returns how many, if that is all of it or the body has ended; else -1: FILLED is reported when it
        is done, and `stop_reading` then says how many. One view at a time."""
        if self.reading:
            raise RuntimeError("a stream has one reader")
        PyObject_GetBuffer(view, &self.view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        self.reading = True
        self.filled = 0
        cdef Py_ssize_t count = PyByteArray_GET_SIZE(self.store)
        if count > self.view.len:
            count = self.view.len
        if count:
            memcpy(self.view.buf, PyByteArray_AS_STRING(self.store), count)
            self.filled = count
            del self.store[:count]
            self.session.consume(self, count)
        if self.filled == self.view.len or self.ended or self.closed:
            return self.stop_reading()
        return -1

    def stop_reading(self):
        """Let go of the view; returns how many bytes are in it."""
        if self.reading:
            self.reading = False
            PyBuffer_Release(&self.view)
        return self.filled

    def discard(self):
        """Nobody wants the rest of the body: take it off the wire and forget it."""
        cdef Py_ssize_t count = PyByteArray_GET_SIZE(self.store)
        self.stop_reading()
        self.discarding = True
        self.store = bytearray()
        if count:
            self.session.consume(self, count)

    cdef int drop(self) except -1:
        """Forget what waits to be sent."""
        self.out.clear()
        self.current = None
        self.session.queued -= self.queued
        self.at = self.length = self.queued = 0
        return 0

    cdef void take(self, const uint8_t *data, size_t length) noexcept:
        cdef Py_ssize_t count = 0, left
        self.received += length
        if self.discarding:
            self.session.consume(self, length)
            return
        if self.reading:
            count = self.view.len - self.filled
            if count > <Py_ssize_t> length:
                count = length
            memcpy(<char *> self.view.buf + self.filled, data, count)
            self.filled += count
            self.session.consume(self, count)
            if count and self.filled == self.view.len:
                self.session.report(FILLED, self)
        left = <Py_ssize_t> length - count
        if left:
            try:
                self.store += PyBytes_FromStringAndSize(<const char *> data + count, left)
            except BaseException:
                self.session.broken = True


cdef class Session:
    """One connection's. `streams_shown`: SETTINGS_MAX_CONCURRENT_STREAMS; up to `streams_max` are served all the same, as a peer may
    open them before it has read that; those beyond are refused (REFUSED_STREAM: they may be repeated). `window`: of each stream, to begin
    with. `header_bytes_max`, `header_fields_max`: of one head. `free_actions`: resets, pings, empty frames and dropped fields that a peer
    may cause before the session fails; `forgive` gives back, and so does each frame of a body."""

    cdef nghttp2_session *session
    cdef dict exchanges
    cdef list events
    cdef list batch
    cdef Py_ssize_t batch_bytes, batch_max
    cdef bint broken, terminated
    cdef int streams_shown  # 0 once the client has been told
    cdef int header_bytes_max, header_fields_max, streams_max, continuations, continuations_max
    cdef readonly double free_actions
    cdef bint dead
    cdef size_t preface_left, frame_left, paid
    cdef uint8_t frame_head[9]
    cdef int frame_head_bytes
    cdef bint block_open
    cdef readonly Py_ssize_t queued  # body bytes of answers that wait, of all streams
    cdef double free_actions_max

    def __cinit__(
        self,
        *,
        int streams_shown,
        int streams_max,
        int window,
        int connection_window,
        int header_bytes_max,
        int header_fields_max,
        double free_actions,
        int continuations_max=8,
    ):
        cdef nghttp2_session_callbacks *callbacks = NULL
        cdef nghttp2_option *option = NULL
        cdef nghttp2_settings_entry settings[4]
        self.exchanges = {}
        self.events = []
        self.batch = []
        self.streams_max = streams_max
        self.streams_shown = streams_shown
        self.preface_left = 24
        self.header_bytes_max = header_bytes_max
        self.header_fields_max = header_fields_max
        self.continuations_max = continuations_max
        self.free_actions = self.free_actions_max = free_actions
        if nghttp2_session_callbacks_new(&callbacks) != 0 or nghttp2_option_new(&option) != 0:
            nghttp2_session_callbacks_del(callbacks)
            raise MemoryError
        nghttp2_option_set_no_auto_window_update(option, 1)
        nghttp2_option_set_no_closed_streams(option, 1)
        # Resets are free actions; libnghttp2's own count of them knows nothing of bodies that pay for them, and ends the session untold.
        nghttp2_option_set_stream_reset_rate_limit(option, RESETS_MAX, RESETS_MAX)
        nghttp2_session_callbacks_set_on_begin_frame_callback(callbacks, <void *> on_begin_frame)
        nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, <void *> on_begin_headers)
        nghttp2_session_callbacks_set_on_header_callback(callbacks, <void *> on_header)
        nghttp2_session_callbacks_set_on_invalid_header_callback(callbacks, <void *> on_invalid_header)
        nghttp2_session_callbacks_set_on_invalid_frame_recv_callback(callbacks, <void *> on_invalid_frame)
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, <void *> on_frame_recv)
        nghttp2_session_callbacks_set_on_frame_send_callback(callbacks, <void *> on_frame_send)
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, <void *> on_data)
        nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, <void *> on_close)
        nghttp2_session_callbacks_set_send_data_callback(callbacks, <void *> on_send_data)
        nghttp2_session_callbacks_set_data_source_read_length_callback(callbacks, <void *> on_read_length)
        status = nghttp2_session_server_new2(&self.session, callbacks, <void *> self, option)
        nghttp2_session_callbacks_del(callbacks)
        nghttp2_option_del(option)
        if status != 0:
            raise MemoryError
        settings[0] = nghttp2_settings_entry(NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, streams_max)
        settings[1] = nghttp2_settings_entry(NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, window)
        settings[2] = nghttp2_settings_entry(NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, header_bytes_max + 32 * header_fields_max)
        settings[3] = nghttp2_settings_entry(NGHTTP2_SETTINGS_MAX_FRAME_SIZE, 65536)
        self._check(nghttp2_submit_settings(self.session, NGHTTP2_FLAG_NONE, settings, 4))
        self._check(nghttp2_session_set_local_window_size(self.session, NGHTTP2_FLAG_NONE, 0, connection_window))

    def __dealloc__(self):
        if self.session != NULL:
            nghttp2_session_del(self.session)

    # -- in

    def receive(self, data):
        """Bytes from the peer; `take_events` tells what they bring. Raises SessionFailed."""
        cdef Py_buffer view
        cdef ssize_t used
        if self.dead:
            return
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.scan(<const uint8_t *> view.buf, view.len)
            used = nghttp2_session_mem_recv(self.session, <const uint8_t *> view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        if self.broken:
            self.terminate(INTERNAL_ERROR)
            raise SessionFailed("out of memory")
        if nghttp2_session_get_outbound_queue_size(self.session) > OUTBOUND_MAX:
            self.free_actions = -1  # it causes frames and does not take them
        if self.free_actions < 0 or (used < 0 and self.continuations >= self.continuations_max):
            self.terminate(ENHANCE_YOUR_CALM)
            raise SessionFailed("the peer causes too many resets, pings, continuations, empty frames or dropped fields")
        if used < 0:
            self.terminate(PROTOCOL_ERROR)
            raise SessionFailed(nghttp2_strerror(<int> used).decode())

    def take_events(self):
        """What has happened since the last call, through `receive` or `collect`, in order: (kind, Exchange)."""
        events, self.events = self.events, []
        return events

    @property
    def in_head(self):
        """Whether a header block has begun and not ended."""
        kind = self.frame_head[3]
        return self.block_open or (self.frame_left > 0 and (kind == NGHTTP2_HEADERS or kind == NGHTTP2_CONTINUATION))

    def forgive(self, double actions):
        """Time has passed: the peer may do so many things for free again."""
        self.free_actions = min(self.free_actions + actions, self.free_actions_max)

    def widen(self, Exchange exchange, int window):
        """A reader has come: from now on the stream may send so much ahead of it."""
        if not exchange.closed and not exchange.ended:
            self._check(nghttp2_session_set_local_window_size(self.session, NGHTTP2_FLAG_NONE, exchange.stream_id, window))

    @property
    def streams(self):
        """Those that are open."""
        return len(self.exchanges)

    @property
    def alive(self):
        """Whether anything is to be expected of it: else the connection is to be closed."""
        return bool(nghttp2_session_want_read(self.session) or nghttp2_session_want_write(self.session))

    # -- out

    def inform(self, Exchange exchange, list headers):
        """An interim answer (1xx)."""
        cdef nghttp2_nv fields[FIELDS_MAX]
        if not exchange.closed:
            count = fill_fields(fields, headers)
            self._check(nghttp2_submit_headers(self.session, NGHTTP2_FLAG_NONE, exchange.stream_id, NULL, fields, count, NULL))

    def respond(self, Exchange exchange, list headers, bint body):
        """The head of an answer; `headers` begins with `:status`. With `body` what is `push`ed follows, until `end`. Nothing happens on a
        stream that is closed."""
        cdef nghttp2_nv fields[FIELDS_MAX]
        cdef nghttp2_data_provider provider
        if exchange.closed:
            return
        count = fill_fields(fields, headers)
        provider.source.ptr = <void *> exchange
        provider.read_callback = on_read
        self._check(nghttp2_submit_response(self.session, exchange.stream_id, fields, count, &provider if body else NULL))

    def push(self, Exchange exchange, data):
        """Body bytes of the answer; they must not change until they have been collected and written."""
        if exchange.closed:
            return
        view = memoryview(data)
        exchange.out.append(view)
        exchange.queued += len(view)
        self.queued += len(view)
        self._resume(exchange)

    def end(self, Exchange exchange, list trailers=None):
        """No more of the body comes; `trailers` follow it."""
        if not exchange.closed:
            exchange.out_ended = True
            exchange.trailers = trailers
            self._resume(exchange)

    def reset(self, Exchange exchange, uint32_t code):
        """End a stream at once; what waits to be sent on it is dropped."""
        if not exchange.closed:
            self._check(nghttp2_submit_rst_stream(self.session, NGHTTP2_FLAG_NONE, exchange.stream_id, code))

    def leave(self, Exchange exchange):
        """Reset a stream (NO_ERROR) as soon as its answer has gone out: what the peer still sends is not wanted (RFC 9113, 8.1)."""
        if exchange.answered:
            self.reset(exchange, NO_ERROR)
        else:
            exchange.leaving = True

    def notice(self):
        """Ask the peer to open no more streams (GOAWAY that still accepts those under way)."""
        if not self.terminated:
            self._check(nghttp2_submit_shutdown_notice(self.session))

    def goaway(self, uint32_t code=0):
        """Open streams end, new ones are refused."""
        cdef int32_t last = nghttp2_session_get_last_proc_stream_id(self.session)
        if not self.terminated:
            self._check(nghttp2_submit_goaway(self.session, NGHTTP2_FLAG_NONE, last, code, NULL, 0))

    def terminate(self, uint32_t code):
        """GOAWAY, and no more."""
        if not self.terminated:
            self.terminated = True
            nghttp2_session_terminate_session(self.session, code)

    def collect(self, Py_ssize_t batch_max):
        """(buffers, bytes) that are to go out next, in order: about `batch_max` bytes, or what there is. Raises SessionFailed."""
        cdef const uint8_t *data
        cdef ssize_t count
        if self.dead:
            return [], 0
        self.batch = []
        self.batch_bytes = 0
        self.batch_max = batch_max
        while self.batch_bytes < batch_max:
            count = nghttp2_session_mem_send(self.session, &data)
            if count < 0 or self.broken:
                self.terminate(INTERNAL_ERROR)
                raise SessionFailed(nghttp2_strerror(<int> count).decode() if count < 0 else "out of memory")
            if count == 0:
                break
            self.batch.append(self._show_less(data, count) if self.streams_shown else PyBytes_FromStringAndSize(<const char *> data, count))
            self.batch_bytes += count
        batch, self.batch = self.batch, []
        return batch, self.batch_bytes

    def abandon(self):
        """The connection is gone: every stream is over. Returns those that were open."""
        cdef Exchange exchange
        self.terminated = self.dead = True
        left = list(self.exchanges.values())
        self.exchanges.clear()
        for exchange in left:
            exchange.closed = True
            exchange.stop_reading()
            exchange.drop()
        return left

    # -- inside

    cdef int _check(self, int status) except -1:
        if status == NGHTTP2_ERR_NOMEM:
            raise MemoryError
        if status < 0:
            raise ValueError(nghttp2_strerror(status).decode())
        return 0

    cdef bytes _show_less(self, const uint8_t *data, Py_ssize_t count):
        """The first frame, our SETTINGS, with `streams_shown` in the place of what libnghttp2 was told to hold us to."""
        cdef Py_ssize_t at
        frame = bytearray(data[:count])
        assert frame[3] == NGHTTP2_SETTINGS, "a server's first frame"
        for at in range(FRAME_HEADER, count - 5, 6):
            if frame[at] == 0 and frame[at + 1] == NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS:
                frame[at + 2 : at + 6] = int(self.streams_shown).to_bytes(4, "big")
        self.streams_shown = 0
        return bytes(frame)

    cdef int _resume(self, Exchange exchange) except -1:
        if exchange.deferred:
            exchange.deferred = False
            nghttp2_session_resume_data(self.session, exchange.stream_id)
        return 0

    cdef void consume(self, Exchange exchange, size_t count) noexcept:
        if not exchange.closed:
            nghttp2_session_consume_stream(self.session, exchange.stream_id, count)

    cdef void report(self, object kind, Exchange exchange) noexcept:
        try:
            self.events.append((kind, exchange))
        except BaseException:
            self.broken = True

    cdef void pay(self, size_t nbytes) noexcept:
        """Body bytes were moved: clients that measure the path send pings with them."""
        self.paid += nbytes
        if self.paid >= PAID_BYTES:
            self.paid = 0
            if self.free_actions < self.free_actions_max:
                self.free_actions += 1

    cdef void scan(self, const uint8_t *data, size_t left) noexcept:
        """Where frames and header blocks begin and end: libnghttp2 does not say so of those that it rejects or ignores."""
        cdef size_t count
        while left:
            if self.preface_left or self.frame_left:
                count = self.preface_left if self.preface_left else self.frame_left
                if count > left:
                    count = left
                if self.preface_left:
                    self.preface_left -= count
                else:
                    self.frame_left -= count
            else:
                count = 1
                self.frame_head[self.frame_head_bytes] = data[0]
                self.frame_head_bytes += 1
                if self.frame_head_bytes == FRAME_HEADER:
                    self.frame_head_bytes = 0
                    self.frame_left = (self.frame_head[0] << 16) | (self.frame_head[1] << 8) | self.frame_head[2]
                    if self.frame_head[3] == NGHTTP2_HEADERS or self.frame_head[3] == NGHTTP2_CONTINUATION:
                        self.block_open = not self.frame_head[4] & NGHTTP2_FLAG_END_HEADERS
            data += count
            left -= count

    cdef int free_action(self) noexcept:
        self.free_actions -= 1
        return NGHTTP2_ERR_CALLBACK_FAILURE if self.free_actions < 0 else 0


cdef size_t fill_fields(nghttp2_nv *fields, list headers) except? 0:
    """The headers, which must stay alive until libnghttp2 has copied them, in its own form."""
    cdef size_t count = 0
    cdef bytes name, value
    if len(headers) > FIELDS_MAX:
        raise ValueError("too many header fields")
    for name, value in headers:
        fields[count].name = <uint8_t *> PyBytes_AS_STRING(name)
        fields[count].value = <uint8_t *> PyBytes_AS_STRING(value)
        fields[count].namelen = PyBytes_GET_SIZE(name)
        fields[count].valuelen = PyBytes_GET_SIZE(value)
        fields[count].flags = NGHTTP2_NV_FLAG_NONE
        count += 1
    return count


include "http2_callbacks.pxi"
