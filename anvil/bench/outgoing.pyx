# cython: language_level=3, boundscheck=False, wraparound=False
"""What a client sends, in C: contents of objects, and heads of signed requests. The `.pyi` is the contract, `exchange_reference.py` says
the same readably.

Owns: how a key becomes bytes, and a request's signature. Invariants: contents are compared where they lie, and copied only where they
are short; what is signed is what is sent. Everything here keeps the GIL: the longest call compares or copies 256 KiB. Sources: Amazon S3
API Reference, "Signature Calculations for the Authorization Header"; RFC 2104. Not here: answers (`exchange.pyx`).
"""

from anvil.base.limits import BENCH_PATTERN_BYTES, BENCH_PIECE_BYTES

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memcmp, memcpy

cdef extern from "openssl/sha.h" nogil:
    ctypedef struct SHA256_CTX:
        pass
    int SHA256_Init(SHA256_CTX *ctx)
    int SHA256_Update(SHA256_CTX *ctx, const void *data, size_t count)
    int SHA256_Final(unsigned char *out, SHA256_CTX *ctx)

cdef enum:
    HASH = 32
    BLOCK = 64

STAMP_BYTES = STAMP
cdef const char *HEX = b"0123456789abcdef"
cdef Py_ssize_t PATTERN = BENCH_PATTERN_BYTES
cdef Py_ssize_t PIECE = BENCH_PIECE_BYTES


# -- contents ---------------------------------------------------------------------------------------------------------------


cdef class Contents:
    """See the `.pyi`."""

    cdef bytes salt, pattern
    cdef object view, size_of
    cdef long long fixed

    def __init__(self, seed: int, pattern: bytes, size: object) -> None:
        if len(pattern) != PATTERN + PIECE:
            raise ValueError("the pattern has another length")
        self.salt = seed.to_bytes(8, "little")
        self.pattern = pattern
        self.view = memoryview(pattern)
        self.fixed = -1
        self.size_of = None
        if isinstance(size, int):
            self.fixed = size
        else:
            self.size_of = size

    def of(self, bytes key not None):
        cdef unsigned char digest[HASH]
        cdef unsigned long long number = 0, start = 0
        cdef SHA256_CTX ctx
        cdef Content made = Content.__new__(Content)
        SHA256_Init(&ctx)
        SHA256_Update(&ctx, PyBytes_AS_STRING(self.salt), PyBytes_GET_SIZE(self.salt))
        SHA256_Update(&ctx, PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        SHA256_Final(digest, &ctx)
        memcpy(made.stamp, digest, STAMP)
        memcpy(&start, digest + STAMP, 8)
        memcpy(&number, digest + STAMP + 8, 7)
        made.start = <Py_ssize_t> (start % <unsigned long long> PATTERN)
        made.size = self.fixed if self.fixed >= 0 else self.size_of(number / 72057594037927936.0)
        made.pattern = self.pattern
        made.view = self.view
        return made


cdef class Content:
    """See the `.pyi`."""

    def pieces(self, begin: int = 0, end: int | None = None):
        cdef Py_ssize_t at = begin, until = self.size if end is None else end, place, count
        if at < min(until, STAMP):
            yield memoryview(PyBytes_FromStringAndSize(<char *> self.stamp + at, min(until, STAMP) - at))
            at = STAMP
        while at < until:
            place = (self.start + at) % PATTERN
            count = min(PIECE, until - at)
            yield self.view[place:place + count]
            at += count

    cdef bytes joined(self, bytes head):
        """The head and all of it: for at most PIECE bytes."""
        cdef Py_ssize_t front = PyBytes_GET_SIZE(head), first = min(self.size, STAMP)
        cdef bytes made = PyBytes_FromStringAndSize(NULL, front + self.size)
        cdef char *to = PyBytes_AS_STRING(made)
        memcpy(to, PyBytes_AS_STRING(head), front)
        memcpy(to + front, self.stamp, first)
        if self.size > STAMP:
            memcpy(to + front + STAMP, PyBytes_AS_STRING(self.pattern) + (self.start + STAMP) % PATTERN, self.size - STAMP)
        return made

    def whole(self):
        return self.joined(b"") if self.size <= PIECE else b"".join(self.pieces())

    cdef bint is_at(self, long long at, const char *data, Py_ssize_t count) noexcept:
        cdef Py_ssize_t head
        if at + count > self.size:
            return False
        if at < STAMP:
            head = min(count, STAMP - at)
            if memcmp(self.stamp + at, data, head) != 0:
                return False
            at += head
            data += head
            count -= head
        return count == 0 or memcmp(PyBytes_AS_STRING(self.pattern) + (self.start + at) % PATTERN, data, count) == 0

    def matches(self, at: int, data: object):
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if at < 0 or view.len > PIECE:
                raise ValueError("compared are at most BENCH_PIECE_BYTES at a time")
            return self.is_at(at, <const char *> view.buf, view.len)
        finally:
            PyBuffer_Release(&view)


# -- heads ------------------------------------------------------------------------------------------------------------------


cdef class HeadSigner:
    """See the `.pyi`."""

    cdef SHA256_CTX inner, outer  # of the HMAC, after the key's block
    cdef bytes prefix

    def __init__(self, key: bytes, prefix: bytes) -> None:
        cdef unsigned char pad[BLOCK]
        cdef int i
        if len(key) != HASH:
            raise ValueError("a signing key has 32 bytes")
        cdef const unsigned char *raw = <const unsigned char *> PyBytes_AS_STRING(key)
        for i in range(BLOCK):
            pad[i] = (raw[i] if i < HASH else 0) ^ 0x36
        SHA256_Init(&self.inner)
        SHA256_Update(&self.inner, pad, BLOCK)
        for i in range(BLOCK):
            pad[i] ^= 0x36 ^ 0x5C
        SHA256_Init(&self.outer)
        SHA256_Update(&self.outer, pad, BLOCK)
        self.prefix = prefix

    cdef void sign(self, bytes method, bytes path, bytes query, bytes tail, char *out) noexcept:
        """64 hex digits."""
        cdef SHA256_CTX ctx
        cdef unsigned char digest[HASH]
        cdef char text[2 * HASH]
        SHA256_Init(&ctx)
        SHA256_Update(&ctx, PyBytes_AS_STRING(method), PyBytes_GET_SIZE(method))
        SHA256_Update(&ctx, b"\n", 1)
        SHA256_Update(&ctx, PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path))
        SHA256_Update(&ctx, b"\n", 1)
        SHA256_Update(&ctx, PyBytes_AS_STRING(query), PyBytes_GET_SIZE(query))
        SHA256_Update(&ctx, b"\n", 1)
        SHA256_Update(&ctx, PyBytes_AS_STRING(tail), PyBytes_GET_SIZE(tail))
        SHA256_Final(digest, &ctx)
        hex_of(digest, text)
        ctx = self.inner
        SHA256_Update(&ctx, PyBytes_AS_STRING(self.prefix), PyBytes_GET_SIZE(self.prefix))
        SHA256_Update(&ctx, text, 2 * HASH)
        SHA256_Final(digest, &ctx)
        ctx = self.outer
        SHA256_Update(&ctx, digest, HASH)
        SHA256_Final(digest, &ctx)
        hex_of(digest, out)

    def head(self, bytes method not None, bytes path not None, bytes query not None, bytes tail not None, bytes lines not None,
             length: int = -1):
        cdef char proof[2 * HASH]
        self.sign(method, path, query, tail, proof)
        cdef bytes last = b"\r\n\r\n" if length < 0 else b"\r\ncontent-length: %d\r\n\r\n" % length
        cdef Py_ssize_t count = PyBytes_GET_SIZE(method) + PyBytes_GET_SIZE(path) + PyBytes_GET_SIZE(query) + 12
        count += PyBytes_GET_SIZE(lines) + 2 * HASH + PyBytes_GET_SIZE(last) + (PyBytes_GET_SIZE(query) > 0)
        cdef bytes made = PyBytes_FromStringAndSize(NULL, count)
        cdef char *to = put(PyBytes_AS_STRING(made), method)
        to = put_raw(to, b" ", 1)
        to = put(to, path)
        if PyBytes_GET_SIZE(query):
            to = put(put_raw(to, b"?", 1), query)
        to = put(put_raw(to, b" HTTP/1.1\r\n", 11), lines)
        put(put_raw(to, proof, 2 * HASH), last)
        return made


cdef void hex_of(const unsigned char *digest, char *out) noexcept:
    cdef int i
    for i in range(HASH):
        out[2 * i] = HEX[digest[i] >> 4]
        out[2 * i + 1] = HEX[digest[i] & 15]


cdef inline char *put_raw(char *to, const char *data, Py_ssize_t count) noexcept:
    memcpy(to, data, count)
    return to + count


cdef inline char *put(char *to, bytes data) noexcept:
    return put_raw(to, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
