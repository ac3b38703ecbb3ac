# cython: language_level=3, boundscheck=False, wraparound=False
"""The messages of an upload over gRPC, without protobuf: where each chunk's bytes are.

    message: flag (1 byte: 1 = compressed), length (4 bytes, big-endian), then a protobuf message
    chunk:   0x12 (field 2, bytes), its length as a varint, payload: nothing else in the message

Owns: finding the payload of chunk messages and copying it where it is wanted; every other message (the trailer, a compressed one, one with
more fields) is collected whole for protobuf to read. Invariant: payload comes out in order, once, and never beyond a message's length.
Not here: I/O, what the other messages mean (`api.grpc.chunks`). `grpc_reference.py` says the same readably. Source: gRPC over HTTP/2,
"Length-Prefixed-Message"; Protocol Buffers, "Encoding".
"""

from anvil.base.errors import InvalidRequest, MessageTooLarge

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

cdef enum:
    PREFIX_BYTES = 5
    TAG_BYTES_MAX = 6  # 0x12 and a varint of 32 bits
    CHUNK_TAG = 0x12

cdef enum State:
    PREFIX
    TAG
    CHUNK
    OTHER


cdef int varint_bytes(uint32_t value) noexcept nogil:
    cdef int count = 1
    while value >= 0x80:
        value >>= 7
        count += 1
    return count


cdef int write_tag(uint8_t *out, uint32_t size) noexcept nogil:
    """0x12 and the varint of `size`; returns how many bytes that is."""
    cdef int count = 1
    out[0] = CHUNK_TAG
    while size >= 0x80:
        out[count] = (size & 0x7F) | 0x80
        size >>= 7
        count += 1
    out[count] = size
    return count + 1


def chunk_head(size: int) -> bytes:
    """What stands before `size` bytes of payload to make them a chunk message."""
    cdef uint8_t out[PREFIX_BYTES + TAG_BYTES_MAX]
    if not 0 <= size < (1 << 31):
        raise ValueError("a chunk has less than 2 GiB")
    cdef int tag = write_tag(out + PREFIX_BYTES, size)
    cdef uint32_t length = <uint32_t> size + tag
    out[0] = 0
    out[1] = length >> 24
    out[2] = (length >> 16) & 255
    out[3] = (length >> 8) & 255
    out[4] = length & 255
    return out[:PREFIX_BYTES + tag]


cdef class ChunkDecoder:
    """See the `.pyi`, which is the contract."""

    cdef State state
    cdef readonly Py_ssize_t chunk_left
    cdef readonly object message
    cdef readonly bint compressed
    cdef Py_ssize_t message_max
    cdef uint8_t head[TAG_BYTES_MAX]  # prefix or tag so far
    cdef uint8_t tag[TAG_BYTES_MAX]  # the tag that a chunk of this length would have
    cdef Py_ssize_t have, want
    cdef uint32_t length  # of the message
    cdef bytes other
    cdef Py_ssize_t other_have

    def __cinit__(self, Py_ssize_t message_max):
        self.message_max = message_max
        self.state = PREFIX
        self.want = PREFIX_BYTES

    @property
    def collecting(self):
        return self.length if self.state == OTHER else 0

    @property
    def at_boundary(self):
        return self.state == PREFIX and self.have == 0 and self.message is None

    def take_message(self):
        message, self.message = self.message, None
        return message

    def skip(self, Py_ssize_t count):
        if self.state != CHUNK or not 0 <= count <= self.chunk_left:
            raise ValueError("more than is left of the chunk")
        self.chunk_left -= count
        if self.chunk_left == 0:
            self.begin()

    def decode(self, data, view):
        cdef Py_buffer source, target
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(view, &target, PyBUF_SIMPLE | PyBUF_WRITABLE)
            try:
                return self.step(<const uint8_t *> source.buf, source.len, <uint8_t *> target.buf, target.len)
            finally:
                PyBuffer_Release(&target)
        finally:
            PyBuffer_Release(&source)

    cdef tuple step(self, const uint8_t *data, Py_ssize_t size, uint8_t *out, Py_ssize_t room):
        cdef Py_ssize_t used = 0, produced = 0, count
        while self.message is None:
            if self.state == CHUNK:
                count = min(self.chunk_left, size - used, room - produced)
                if count == 0:
                    break
                memcpy(out + produced, data + used, count)
                used += count
                produced += count
                self.chunk_left -= count
                if self.chunk_left == 0:
                    self.begin()
            elif used == size:
                break
            elif self.state == OTHER:
                count = min(<Py_ssize_t> self.length - self.other_have, size - used)
                memcpy(PyBytes_AS_STRING(self.other) + self.other_have, data + used, count)
                used += count
                self.other_have += count
                if self.other_have == <Py_ssize_t> self.length:
                    self.finish_other()
            else:
                count = min(self.want - self.have, size - used)
                memcpy(self.head + self.have, data + used, count)
                used += count
                self.have += count
                if self.have == self.want:
                    if self.state == PREFIX:
                        self.read_prefix()
                    else:
                        self.read_tag()
        return used, produced

    cdef void begin(self) noexcept:
        self.state = PREFIX
        self.have = 0
        self.want = PREFIX_BYTES

    cdef int read_prefix(self) except -1:
        cdef uint8_t *head = self.head
        cdef int size
        self.length = (<uint32_t> head[1] << 24) | (<uint32_t> head[2] << 16) | (<uint32_t> head[3] << 8) | head[4]
        if head[0] > 1:
            raise InvalidRequest("A message of the call has flags that gRPC does not know.")
        if <Py_ssize_t> self.length > self.message_max:
            raise MessageTooLarge(Size=self.length, MaxSizeAllowed=self.message_max)
        self.compressed = head[0] == 1
        self.have = 0
        if not self.compressed:
            for size in range(2, TAG_BYTES_MAX + 1):
                if self.length >= <uint32_t> size and varint_bytes(self.length - size) == size - 1:
                    write_tag(self.tag, self.length - size)
                    self.state = TAG
                    self.want = size
                    return 0
        return self.begin_other()

    cdef int read_tag(self) except -1:
        cdef Py_ssize_t at
        for at in range(self.want):
            if self.head[at] != self.tag[at]:
                return self.begin_other()
        self.chunk_left = <Py_ssize_t> self.length - self.want
        if self.chunk_left:
            self.state = CHUNK
        else:
            self.begin()
        return 0

    cdef int begin_other(self) except -1:
        """Collect the message; of it `head` holds `have` bytes."""
        self.other = PyBytes_FromStringAndSize(NULL, self.length)
        memcpy(PyBytes_AS_STRING(self.other), self.head, self.have)
        self.other_have = self.have
        self.state = OTHER
        if self.other_have == <Py_ssize_t> self.length:
            self.finish_other()
        return 0

    cdef void finish_other(self) noexcept:
        self.message = self.other
        self.other = None
        self.begin()
