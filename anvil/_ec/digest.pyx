# cython: language_level=3, boundscheck=False, wraparound=False
"""Checksums and digests of a stream of bytes: CRC-32, CRC-32C, CRC-64/NVME, SHA-1, SHA-256 and MD5, all advanced by one call.

S3 needs MD5 for ETags, and one stream of MD5 is slower than everything else a server does to a byte. Its block function cannot be
parallel within a stream, so `DigestLanes` advances many streams side by side in the lanes of vector registers, on C threads.

Owns: the running states, the threads of the lanes, the references that keep submitted jobs and their buffers alive. Invariant: a
state is changed by one thread at a time, and by the jobs of its stream in the order they were submitted. Not here: the kernels
(`kernels/*.c`), their readable references (`digest_reference.py`), asyncio, and what a digest must be equal to.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from anvil._ec.pool cimport Job, anvil_job


cdef extern from "kernels/digests.h" nogil:
    enum:
        ANVIL_MD5
        ANVIL_SHA1
        ANVIL_SHA256
        ANVIL_CRC32
        ANVIL_CRC32C
        ANVIL_CRC64NVME
        ANVIL_DIGEST_BYTES_MAX

    ctypedef struct anvil_digests:
        unsigned algorithms

    int anvil_digests_init()
    int anvil_digests_open(anvil_digests *d, unsigned algorithms)
    void anvil_digests_close(anvil_digests *d)
    int anvil_digests_take(anvil_digests *d)
    void anvil_digests_release(anvil_digests *d)
    int anvil_digests_update(anvil_digests *d, const uint8_t *data, size_t length)
    int anvil_digests_result(const anvil_digests *d, unsigned algorithm, uint8_t *out)
    uint32_t anvil_crc32(uint32_t crc, const uint8_t *data, size_t length)
    uint32_t anvil_crc32c(uint32_t crc, const uint8_t *data, size_t length)
    uint64_t anvil_crc64nvme(uint64_t crc, const uint8_t *data, size_t length)
    const char *anvil_crc64_kernel_name()
    int anvil_crc64_choose(const char *name)

cdef extern from "kernels/crc64.h" nogil:
    uint64_t ANVIL_CRC64NVME_POLYNOMIAL
    const void *anvil_crc64_find(const char *name)
    uint64_t anvil_crc_shift(uint64_t polynomial, int width, uint64_t crc, uint64_t length)

cdef extern from "kernels/md5.h" nogil:
    enum:
        ANVIL_MD5_LANES_MAX
        ANVIL_MD5_BLOCK

    ctypedef void (*anvil_md5_lanes_fn)(uint32_t **state, const uint8_t **data, size_t blocks)

    ctypedef struct anvil_md5_kernel:
        const char *name
        anvil_md5_lanes_fn run
        int lanes

    const anvil_md5_kernel *anvil_md5_best()
    const anvil_md5_kernel *anvil_md5_find(const char *name)
    void anvil_md5_scalar(uint32_t *state, const uint8_t *data, size_t blocks)

cdef extern from "kernels/lanes.h" nogil:
    enum:
        ANVIL_DIGEST_REFUSED
        ANVIL_DIGEST_HELD

    ctypedef struct anvil_digest_job:
        anvil_job *job
        anvil_digests *stream
        const uint8_t *data
        size_t length

    ctypedef struct anvil_lanes:
        int event_fd

    int anvil_lanes_open(anvil_lanes *l, const anvil_md5_kernel *kernel, int threads)
    int anvil_lanes_submit(anvil_lanes *l, anvil_digest_job *work)
    anvil_job *anvil_lanes_collect(anvil_lanes *l)
    void anvil_lanes_stop(anvil_lanes *l)
    void anvil_lanes_free(anvil_lanes *l)
    void anvil_digest_job_run(anvil_job *job) noexcept


if anvil_digests_init() != 0:
    raise ImportError("OpenSSL offers no SHA-1 or SHA-256")

cdef dict ALGORITHMS = {
    "md5": ANVIL_MD5,
    "sha1": ANVIL_SHA1,
    "sha256": ANVIL_SHA256,
    "crc32": ANVIL_CRC32,
    "crc32c": ANVIL_CRC32C,
    "crc64nvme": ANVIL_CRC64NVME,
}

# Below this many bytes, releasing and taking the GIL back costs more than it gives others.
cdef enum:
    GIL_RELEASE_BYTES = 4096

cdef const anvil_md5_kernel *_md5_kernel = anvil_md5_best()

_BUSY = "the digests are being updated elsewhere, or a job of theirs is in flight"


cdef class Digests:
    """Running digests of one stream. `algorithms`: any of md5, sha1, sha256, crc32, crc32c, crc64nvme. Raises ValueError for others."""

    cdef anvil_digests state
    cdef tuple names
    cdef int in_flight  # jobs submitted to `lanes` and not collected
    cdef object lanes

    def __cinit__(self, algorithms):
        cdef unsigned wanted = 0
        self.names = tuple(algorithms)
        for name in self.names:
            if name not in ALGORITHMS:
                raise ValueError(f"unknown digest algorithm {name!r}")
            wanted |= <unsigned> ALGORITHMS[name]
        if anvil_digests_open(&self.state, wanted) != 0:
            raise RuntimeError("OpenSSL could not start a digest")

    def __dealloc__(self):
        # Jobs in flight hold a reference, so nobody works on the state any more.
        anvil_digests_close(&self.state)

    def update(self, data):
        """Advance every digest by `data`, on this thread. Raises RuntimeError while another thread does so or a job is in flight."""
        cdef Py_buffer view
        cdef int failed
        self.take()
        try:
            PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
            try:
                if view.len >= GIL_RELEASE_BYTES:
                    with nogil:
                        failed = anvil_digests_update(&self.state, <const uint8_t *> view.buf, view.len)
                else:
                    failed = anvil_digests_update(&self.state, <const uint8_t *> view.buf, view.len)
            finally:
                PyBuffer_Release(&view)
        finally:
            anvil_digests_release(&self.state)
        if failed:
            raise RuntimeError("OpenSSL refused to update a digest")

    def results(self):
        """{name: digest bytes} of everything so far, CRCs big-endian; the stream may go on. Raises RuntimeError as `update` does."""
        cdef uint8_t out[ANVIL_DIGEST_BYTES_MAX]
        cdef int length
        cdef dict results = {}
        self.take()
        try:
            for name in self.names:
                length = anvil_digests_result(&self.state, <unsigned> ALGORITHMS[name], out)
                if length < 0:
                    raise RuntimeError("OpenSSL refused to finish a digest")
                results[name] = PyBytes_FromStringAndSize(<char *> out, length)
        finally:
            anvil_digests_release(&self.state)
        return results

    cdef int take(self) except -1:
        if self.in_flight or not anvil_digests_take(&self.state):
            raise RuntimeError(_BUSY)
        return 0


cdef class DigestJob(Job):
    """Advance `digests` by data[:length]. The buffer must not change until the job has been collected."""

    cdef anvil_digest_job work
    cdef readonly Digests digests
    cdef Py_buffer view
    cdef bint viewing

    def __cinit__(self, Digests digests not None, data, Py_ssize_t length):
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        self.viewing = True
        if length < 0 or length > self.view.len:
            raise ValueError(f"length {length} does not fit a buffer of {self.view.len} bytes")
        self.digests = digests
        self.work.job = &self.job
        self.work.stream = &digests.state
        self.work.data = <const uint8_t *> self.view.buf
        self.work.length = length
        self.job.run = anvil_digest_job_run
        self.job.arg = &self.work

    def __dealloc__(self):
        if self.viewing:
            PyBuffer_Release(&self.view)

    def run(self):
        """Inline, on this thread. Raises RuntimeError while a job of the same stream is in flight, for that one comes first."""
        if self.digests.in_flight:
            raise RuntimeError(_BUSY)
        Job.run(self)

    def check(self):
        """Raises RuntimeError if the digests could not be updated; they are void then."""
        if self.job.status == ANVIL_DIGEST_HELD:
            raise RuntimeError(_BUSY)
        if self.job.status == ANVIL_DIGEST_REFUSED:
            raise RuntimeError("OpenSSL refused to update a digest")


cdef class DigestLanes:
    """`threads` C threads that digest up to `lanes` distinct streams side by side each. Completion works like `Pool`'s."""

    cdef anvil_lanes state
    cdef bint open
    cdef readonly int lanes
    cdef readonly int in_flight

    def __cinit__(self, int threads=1):
        if threads < 1:
            raise ValueError("lanes need at least one thread")
        if anvil_lanes_open(&self.state, _md5_kernel, threads) != 0:
            raise OSError("could not start the digest threads")
        self.open = True
        self.lanes = _md5_kernel.lanes

    def fileno(self):
        """The eventfd: readable when `collect` has something to return (and, seldom, once more)."""
        return self.state.event_fd

    def submit(self, DigestJob job not None):
        """Queue a job behind those of the same stream. Returns at once. Raises RuntimeError if closed, submitted twice, or if its
        digests are being updated elsewhere."""
        cdef Digests digests = job.digests
        if not self.open:
            raise RuntimeError("lanes are closed")
        if job.submitted:
            raise RuntimeError("job was submitted before")
        if digests.in_flight and digests.lanes is not self:
            raise RuntimeError(_BUSY)
        job.job.owner = <void *> job
        job.job.status = 0
        # The job's reference and the counts are taken first: its thread may finish it before the next line.
        if anvil_lanes_submit(&self.state, &job.work) != 0:
            raise RuntimeError(_BUSY)
        Py_INCREF(job)  # collect, which drops it, needs the GIL that is held here
        job.submitted = True
        digests.lanes = self
        digests.in_flight += 1
        self.in_flight += 1

    def collect(self):
        """All jobs that finished since the last call, oldest first."""
        return self.owners(anvil_lanes_collect(&self.state))

    cdef list owners(self, anvil_job *item):
        cdef anvil_job *following
        cdef DigestJob job
        cdef list jobs = []
        while item != NULL:
            following = item.next
            job = <DigestJob> item.owner
            jobs.append(job)
            Py_DECREF(job)  # the reference taken by submit
            job.digests.in_flight -= 1
            if job.digests.in_flight == 0:
                job.digests.lanes = None
            item = following
        self.in_flight -= len(jobs)
        return jobs

    def close(self):
        """Wait for every submitted job, stop the threads, return the jobs nobody had collected."""
        if not self.open:
            return []
        self.open = False
        with nogil:
            anvil_lanes_stop(&self.state)
        jobs = self.owners(anvil_lanes_collect(&self.state))
        anvil_lanes_free(&self.state)
        return jobs

    def __dealloc__(self):
        # Reached only with nothing in flight: digests of uncollected jobs refer to these lanes.
        if self.open:
            with nogil:
                anvil_lanes_stop(&self.state)
            anvil_lanes_free(&self.state)


def crc32(data, uint32_t value=0):
    """CRC-32 of zlib and PNG (reflected 0xEDB88320), continuing from `value`."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len >= GIL_RELEASE_BYTES:
            with nogil:
                value = anvil_crc32(value, <const uint8_t *> view.buf, view.len)
        else:
            value = anvil_crc32(value, <const uint8_t *> view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return value


def crc32c(data, uint32_t value=0):
    """CRC-32C (Castagnoli, RFC 3720), continuing from `value`."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len >= GIL_RELEASE_BYTES:
            with nogil:
                value = anvil_crc32c(value, <const uint8_t *> view.buf, view.len)
        else:
            value = anvil_crc32c(value, <const uint8_t *> view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return value


def crc64nvme(data, uint64_t value=0):
    """CRC-64/NVME (NVM Express NVM Command Set, "64b CRC"), continuing from `value`."""
    cdef Py_buffer view
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        if view.len >= GIL_RELEASE_BYTES:
            with nogil:
                value = anvil_crc64nvme(value, <const uint8_t *> view.buf, view.len)
        else:
            value = anvil_crc64nvme(value, <const uint8_t *> view.buf, view.len)
    finally:
        PyBuffer_Release(&view)
    return value


def crc_combine(str algorithm not None, uint64_t first, uint64_t second, uint64_t second_len):
    """CRC of A + B from first = CRC(A), second = CRC(B) and the length of B in bytes (below 2^61).

    `algorithm`: crc32, crc32c or crc64nvme. Raises ValueError for others and for values that are too wide.
    """
    cdef uint64_t polynomial
    cdef int width = 32
    if algorithm == "crc32":
        polynomial = 0xEDB88320
    elif algorithm == "crc32c":
        polynomial = 0x82F63B78
    elif algorithm == "crc64nvme":
        polynomial = ANVIL_CRC64NVME_POLYNOMIAL
        width = 64
    else:
        raise ValueError(f"{algorithm!r} is not a CRC")
    if width == 32 and (first | second) >> 32:
        raise ValueError("a 32-bit CRC was expected")
    if second_len >> 61:
        raise ValueError("length too large")
    return anvil_crc_shift(polynomial, width, first, second_len) ^ second


def md5_kernel():
    """What new `DigestLanes` use on this machine: avx512 (avx512vl for up to 8 streams), avx2 or scalar."""
    return _md5_kernel.name.decode()


def md5_kernels():
    """Every kernel this machine offers, the best one first."""
    return tuple(name for name in ("avx512", "avx512vl", "avx2", "scalar") if anvil_md5_find(name.encode()) != NULL)


def set_md5_kernel(str name not None):
    """For tests. Raises ValueError where this machine has none of that name."""
    global _md5_kernel
    cdef const anvil_md5_kernel *kernel = anvil_md5_find(name.encode())
    if kernel == NULL:
        raise ValueError(f"no MD5 kernel {name!r} on this machine")
    _md5_kernel = kernel


def crc64_kernel():
    """What `crc64nvme` uses: vpclmul, pclmul or table."""
    return anvil_crc64_kernel_name().decode()


def crc64_kernels():
    """Every kernel this machine offers, the best one first."""
    return tuple(name for name in ("vpclmul", "pclmul", "table") if anvil_crc64_find(name.encode()) != NULL)


def set_crc64_kernel(str name not None):
    """For tests. Raises ValueError where this machine has none of that name."""
    if anvil_crc64_choose(name.encode()) != 0:
        raise ValueError(f"no CRC-64 kernel {name!r} on this machine")


def md5_advance(str kernel not None, states, data):
    """For tests and benchmarks: the raw states after whole blocks of `data`, by exactly that kernel, never a narrower one.

    states: (a, b, c, d) per stream, as many as there are lanes at most; data: a buffer per stream, all of one length, a multiple of 64.
    """
    cdef const anvil_md5_kernel *chosen = anvil_md5_find(kernel.encode())
    cdef uint32_t words[ANVIL_MD5_LANES_MAX][4]
    cdef uint32_t *state[ANVIL_MD5_LANES_MAX]
    cdef const uint8_t *start[ANVIL_MD5_LANES_MAX]
    cdef Py_ssize_t count = len(states), length = len(data[0]), blocks = length // ANVIL_MD5_BLOCK, lane, word
    cdef const unsigned char[::1] view
    if chosen == NULL:
        raise ValueError(f"no MD5 kernel {kernel!r} on this machine")
    if not 0 < count <= chosen.lanes or len(data) != count:
        raise ValueError(f"{kernel} takes 1 to {chosen.lanes} streams")
    if length == 0 or length % ANVIL_MD5_BLOCK:
        raise ValueError("whole blocks only")
    for lane in range(chosen.lanes):
        view = data[lane if lane < count else 0]
        if view.shape[0] != length:
            raise ValueError("streams of one length only")
        start[lane] = &view[0]  # `data` keeps the buffer alive
        state[lane] = words[lane]
        for word in range(4):
            words[lane][word] = states[lane if lane < count else 0][word]
    with nogil:
        if chosen.run == NULL:
            anvil_md5_scalar(state[0], start[0], blocks)
        else:
            chosen.run(state, start, blocks)
    return [(words[lane][0], words[lane][1], words[lane][2], words[lane][3]) for lane in range(count)]
