# cython: language_level=3, boundscheck=False, wraparound=False
"""What a client does for every request, in C: the answer's head and where its body ends, and the step from an answer to the next request
of a script. The `.pyi` is the contract, `exchange_reference.py` says the same of answers readably.

Owns: one request and its answer at a time, and the counts of a process. Invariants: a script is sent exactly one Answer for each
Request; what was read is compared where it lies; nothing is copied but heads and bodies that are kept. Not here: what is sent
(`outgoing.pyx`), sockets, and all that is rare (`http.py`). Everything here keeps the GIL. Source: RFC 9112, 6.3.
"""

import re

from anvil.base.errors import InvalidRequest
from anvil.base.limits import BENCH_BODY_BYTES_MAX, BENCH_HEAD_BYTES_MAX, BENCH_JOIN_BYTES, BENCH_LATENCY_NS_MAX
from anvil.wire.http1_chunked import TransferDecoder

from anvil.bench.outgoing cimport Content
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcmp

cdef extern from "string.h" nogil:
    void *memmem(const void *haystack, size_t haystack_len, const void *needle, size_t needle_len)
    int strncasecmp(const char *one, const char *other, size_t count)

cdef extern from "time.h" nogil:
    ctypedef long time_t
    struct timespec:
        time_t tv_sec
        long tv_nsec
    int clock_gettime(int clock, timespec *now)
    int CLOCK_MONOTONIC

cdef enum:
    HEAD_MAX = 65536
    UNIT_BITS = 9
    HALF_BITS = 10

cdef enum State:
    IN_HEAD
    IN_LENGTH
    IN_CHUNKS
    UNTIL_CLOSE
    DONE

cdef Py_ssize_t JOIN = BENCH_JOIN_BYTES
cdef Py_ssize_t BODY_MAX = BENCH_BODY_BYTES_MAX
cdef long long LATENCY_MAX = BENCH_LATENCY_NS_MAX
cdef long long FOREVER = 1LL << 62
cdef object CODE = re.compile(rb"<Code>([A-Za-z0-9_.-]{1,64})</Code>")
assert BENCH_HEAD_BYTES_MAX == HEAD_MAX


class BadAnswer(Exception):
    """What came is no answer of HTTP/1.1; the connection is of no further use."""


def now_ns() -> int:
    """As time.perf_counter_ns."""
    return monotonic()


cdef long long monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return now.tv_sec * 1000000000LL + now.tv_nsec


# -- answers ----------------------------------------------------------------------------------------------------------------


cdef class AnswerParser:
    """See the `.pyi`."""

    cdef State state
    cdef bint head_only, chunked
    cdef bytes held, scratch
    cdef long long left
    cdef object chunks
    cdef readonly int status
    cdef readonly bint keep_alive
    cdef readonly bytes head

    def __init__(self) -> None:
        self.start(False)

    def begin(self, head_only: bool) -> None:
        self.start(head_only)

    cdef void start(self, bint head_only) noexcept:
        self.head_only = head_only
        self.state = IN_HEAD
        self.held = b""
        self.left = 0
        self.status = 0
        self.head = b""
        self.keep_alive = False

    def closed(self):
        return self.state == UNTIL_CLOSE

    def feed(self, data: bytes):
        cdef const char *body = NULL
        cdef Py_ssize_t count = 0
        cdef bint complete = self.take(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), &body, &count)
        return complete, (PyBytes_FromStringAndSize(body, count) if count else b"")

    cdef int take(self, const char *data, Py_ssize_t count, const char **body, Py_ssize_t *body_count) except -1:
        """1 once the answer is complete. `body`: what of it is in this, valid until the next call."""
        cdef Py_ssize_t used
        body_count[0] = 0
        if self.state == IN_HEAD:
            used = self.take_head(data, count)
            if used < 0:
                return 0
            data += used
            count -= used
        if self.state == IN_LENGTH:
            if count > self.left:
                raise BadAnswer("bytes behind the end of an answer")
            body[0] = data
            body_count[0] = count
            self.left -= count
            if self.left:
                return 0
            self.state = DONE
            return 1
        if self.state == IN_CHUNKS:
            return self.take_chunks(data[:count], body, body_count)
        if self.state == UNTIL_CLOSE:
            body[0] = data
            body_count[0] = count
            return 0
        raise BadAnswer("bytes behind the end of an answer")

    cdef Py_ssize_t take_head(self, const char *data, Py_ssize_t count) except -2:
        """How many bytes of `data` the head takes, interim answers before it included; -1 while it is not whole."""
        cdef Py_ssize_t before = PyBytes_GET_SIZE(self.held), at = 0, end
        cdef bytes joined
        cdef const char *raw = data
        cdef Py_ssize_t size = count
        cdef const char *found
        if before:
            joined = self.held + data[:min(count, HEAD_MAX)]
            raw = PyBytes_AS_STRING(joined)
            size = PyBytes_GET_SIZE(joined)
        while True:
            found = <const char *> memmem(raw + at, min(size - at, HEAD_MAX), b"\r\n\r\n", 4)
            if found == NULL:
                if size - at >= HEAD_MAX:
                    raise BadAnswer("the head of an answer is too long")
                if memcmp(raw + at, b"HTTP/1.", min(size - at, 7)) != 0:
                    raise BadAnswer("no answer of HTTP/1.1")
                self.held = raw[at:size]
                return -1
            end = found - raw
            self.read_status(raw + at, end - at)
            if self.status >= 200:
                self.held = b""
                self.head = raw[at:end + 2]
                self.frame(raw + at, end + 2 - at)
                return end + 4 - before
            if self.status == 101:
                raise BadAnswer("the protocol was changed, which nobody asked for")
            at = end + 4  # 100 Continue, 103 Early Hints

    cdef int read_status(self, const char *line, Py_ssize_t count) except -1:
        cdef int i
        if count < 12 or memcmp(line, b"HTTP/1.", 7) != 0 or not (line[7] == 48 or line[7] == 49) or line[8] != 32:
            raise BadAnswer("no answer of HTTP/1.1")
        self.status = 0
        for i in range(9, 12):
            if not 48 <= line[i] <= 57:
                raise BadAnswer("no answer of HTTP/1.1")
            self.status = 10 * self.status + line[i] - 48
        if self.status < 100 or (count > 12 and line[12] != 32 and line[12] != 13):
            raise BadAnswer("no answer of HTTP/1.1")
        return 0

    cdef int frame(self, const char *head, Py_ssize_t count) except -1:
        """Where the body ends, by a head that ends with a line's end."""
        cdef const char *line = <const char *> memmem(head, count, b"\r\n", 2) + 2
        cdef const char *last = head + count
        cdef const char *stop
        cdef bytes length = b"", coding = b"", connection = b""
        while line < last:
            stop = <const char *> memmem(line, last - line, b"\r\n", 2)
            if strncasecmp(line, b"content-length:", 15) == 0:
                if length and length != line[15:stop - line].strip():
                    raise BadAnswer("two lengths of one answer")
                length = line[15:stop - line].strip()
                if not length.isdigit() or len(length) > 18:
                    raise BadAnswer("a malformed Content-Length")
            elif strncasecmp(line, b"transfer-encoding:", 18) == 0:
                coding += line[18:stop - line].strip().lower()
            elif strncasecmp(line, b"connection:", 11) == 0:
                connection += line[11:stop - line].lower()
            line = stop + 2
        self.keep_alive = b"close" not in connection and (head[7] == 49 or b"keep-alive" in connection)
        self.state = IN_LENGTH
        self.left = 0
        if self.head_only or self.status == 204 or self.status == 304:
            return 0
        if coding:
            if coding != b"chunked":
                raise BadAnswer("a transfer coding other than chunked")
            self.state = IN_CHUNKS
            self.chunks = TransferDecoder()
        elif length:
            self.left = int(length)
        else:
            self.state = UNTIL_CLOSE
            self.keep_alive = False
        return 0

    cdef int take_chunks(self, bytes data, const char **body, Py_ssize_t *body_count) except -1:
        out = bytearray(max(1, len(data)))  # the payload is never more than what carries it
        try:
            consumed, produced = self.chunks.decode(memoryview(data), memoryview(out))
        except InvalidRequest as error:
            raise BadAnswer(error.message) from None
        self.scratch = bytes(out[:produced])
        body[0] = PyBytes_AS_STRING(self.scratch)
        body_count[0] = produced
        if consumed < PyBytes_GET_SIZE(data):
            raise BadAnswer("bytes behind the end of an answer")
        if not self.chunks.finished:
            return 0
        self.state = DONE
        return 1


# -- an exchange --------------------------------------------------------------------------------------------------------------


cdef class Request:
    """See the `.pyi`."""

    cdef readonly bytes method, path, query, body
    cdef readonly Content content, expect
    cdef readonly long long begin, end, due_ns
    cdef readonly tuple extra

    def __init__(self, bytes method not None, bytes path not None, bytes query not None=b"", *, bytes body=None,
                 Content content=None, begin: int = 0, end: int = -1, Content expect=None, tuple extra not None=(),
                 due_ns: int = 0) -> None:
        self.method = method
        self.path = path
        self.query = query
        self.body = body
        self.content = content
        self.begin = begin
        self.end = content.size if content is not None and end < 0 else end
        self.expect = expect
        self.extra = extra
        self.due_ns = due_ns


cdef class Answer:
    """See the `.pyi`."""

    cdef readonly int status
    cdef readonly str code, damage
    cdef readonly bytes head, body
    cdef readonly long long begun_ns, ended_ns


cdef class Exchange:
    """See the `.pyi`."""

    cdef readonly AnswerParser parser
    cdef readonly Request request
    cdef public object pieces, write
    cdef public long long begun_ns, moved_ns
    cdef object signer, buffer, resume, body
    cdef char *raw
    cdef long long body_bytes
    cdef str damage

    def __init__(self, signer: object, buffer: bytearray) -> None:
        self.parser = AnswerParser()
        self.signer = signer
        self.buffer = memoryview(buffer)
        self.raw = buffer
        self.body = None
        self.damage = ""

    def start(self, script: object) -> None:
        self.resume = script.send

    def step(self, Answer answer) -> None:
        self.go_on(answer)

    cdef int go_on(self, Answer answer) except -1:
        if self.resume is None:
            return 0
        try:
            wanted = self.resume(answer)
        except StopIteration:
            self.resume = None
            self.script_ended(None)
        except Exception as error:
            self.resume = None
            self.script_ended(error)
        else:
            if type(wanted) is Request:
                self.transmit(wanted)
            else:
                self.wait_for(wanted)
        return 0

    def send_again(self) -> None:
        self.transmit(self.request)

    cdef int transmit(self, Request request) except -1:
        self.request = request
        if self.write is None:
            self.reconnect()
            return 0
        self.parser.start(request.method == b"HEAD")
        self.body = None
        self.body_bytes = 0
        self.damage = ""
        cdef bytes head = self.signer(request)
        if request.content is None:
            if request.body is not None:
                head += request.body
        elif request.content.size <= JOIN and request.end - request.begin == request.content.size:
            head = request.content.joined(head)
        else:
            self.pieces = request.content.pieces(request.begin, request.end)
        self.begun_ns = self.moved_ns = monotonic()
        self.write(head)
        if self.pieces is not None:
            self.pump()
        return 0

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, Py_ssize_t nbytes) -> None:
        cdef const char *body = NULL
        cdef Py_ssize_t count = 0
        cdef int complete
        if self.request is None:
            self.drop()  # nobody asked: this connection is of no use
            return
        try:
            complete = self.parser.take(self.raw, nbytes, &body, &count)
        except BadAnswer:
            self.malformed()
            return
        if count:
            self.take_body(body, count)
        self.moved_ns = monotonic()
        if complete:
            self.complete()

    cdef int take_body(self, const char *data, Py_ssize_t count) except -1:
        cdef long long at = self.body_bytes
        cdef Content expect = self.request.expect
        self.body_bytes = at + count
        if expect is not None and self.parser.status == 200:
            if not self.damage and not expect.is_at(at, data, count):
                if self.body_bytes > expect.size:
                    self.damage = f"more than {expect.size} bytes"
                else:
                    self.damage = f"other bytes between {at} and {self.body_bytes}"
        elif self.body_bytes <= BODY_MAX:
            if self.body is None:
                self.body = []
            self.body.append(data[:count])
        return 0

    def complete(self) -> None:
        cdef Request request = self.request
        cdef AnswerParser parser = self.parser
        cdef bytes body = b"" if self.body is None else b"".join(self.body)
        cdef str code = "", damage = self.damage
        self.request = None
        if not parser.keep_alive or self.pieces is not None:  # an answer before the end of the body: the rest is not sent
            self.pieces = None
            self.drop()
        if parser.status >= 300:
            found = CODE.search(body)
            code = found[1].decode() if found else f"HTTP {parser.status}"
        elif request.expect is not None and not damage and parser.status != 200:
            damage = f"status {parser.status} instead of 200"
        elif request.expect is not None and not damage and self.body_bytes != request.expect.size:
            damage = f"{self.body_bytes} bytes instead of {request.expect.size}"
        self.answer(request, parser.status, code, parser.head, body, damage)

    def fail(self, kind: str) -> None:
        cdef Request request = self.request
        self.request = None
        self.pieces = None
        self.moved_ns = monotonic()
        self.answer(request, 0, kind, b"", b"", "")

    cdef int answer(self, Request request, int status, str code, bytes head, bytes body, str damage) except -1:
        cdef Answer made = Answer.__new__(Answer)
        made.status = status
        made.code = code
        made.head = head
        made.body = body
        made.damage = damage
        made.begun_ns = request.due_ns if request.due_ns else self.begun_ns
        made.ended_ns = self.moved_ns
        return self.go_on(made)

    def forget(self) -> None:
        self.request = self.pieces = self.resume = None


# -- counting -----------------------------------------------------------------------------------------------------------------


cdef class Slot:
    """See the `.pyi`."""

    cdef readonly long long requests, bytes, failed
    cdef readonly dict latency

    def __init__(self) -> None:
        self.latency = {}


cdef inline long long bucket(long long value) noexcept:
    """`histogram.index_of`."""
    cdef int shift = 0
    if value < 0:
        value = 0
    elif value > LATENCY_MAX:
        value = LATENCY_MAX
    while (value >> (shift + UNIT_BITS + HALF_BITS + 1)) > 0:
        shift += 1
    return (shift << HALF_BITS) + (value >> (shift + UNIT_BITS))


cdef class Tally:
    """See the `.pyi`."""

    cdef public long long begin_ns, end_ns, last_ns, answered_ns, requests, bytes, failed
    cdef public int broken
    cdef readonly dict seconds, late

    def __init__(self) -> None:
        self.begin_ns = self.end_ns = FOREVER
        self.seconds, self.late = {}, {}

    def add(self, str operation not None, Answer answer not None, long long nbytes, bytes key not None=b"",
            str damage not None=""):
        if answer.status:
            self.answered_ns = answer.ended_ns
            self.broken = 0
        else:
            self.broken += 1
        if answer.code or damage or answer.damage:
            self.refused(operation, answer, key, damage or answer.damage)
            return False
        self.count(operation, answer.begun_ns, answer.ended_ns, nbytes, False)
        return True

    def note(self, str operation not None, long long begun_ns, long long ended_ns, long long nbytes, bint failed) -> None:
        self.count(operation, begun_ns, ended_ns, nbytes, failed)

    cdef int count(self, str operation, long long begun_ns, long long ended_ns, long long nbytes, bint failed) except -1:
        cdef list slots
        cdef Slot slot
        cdef dict latency
        cdef Py_ssize_t at
        if ended_ns < self.begin_ns:
            return 0
        slots = <list> self.seconds.get(operation)
        if slots is None:
            slots = self.seconds[operation] = []
            self.late[operation] = {}
        if ended_ns >= self.end_ns:
            if failed:
                return 0
            latency = self.late[operation]
        else:
            at = (ended_ns - self.begin_ns) // 1000000000
            while at >= len(slots):
                slots.append(Slot())
            slot = slots[at]
            self.last_ns = max(self.last_ns, ended_ns - self.begin_ns)
            if failed:
                slot.failed += 1
                self.failed += 1
                return 0
            slot.requests += 1
            slot.bytes += nbytes
            self.requests += 1
            self.bytes += nbytes
            latency = slot.latency
        if self.begin_ns <= begun_ns < self.end_ns:
            index = bucket(ended_ns - begun_ns)
            latency[index] = latency.get(index, 0) + 1
        return 0
