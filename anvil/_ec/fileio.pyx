# cython: language_level=3, boundscheck=False, wraparound=False
"""Positioned file I/O as jobs of the native thread pool: a slow drive blocks a C thread, never the event loop.

Owns: repeating interrupted and short calls until all is done or the kernel says why not. Invariant: buffers stay pinned while
the job object lives. The descriptor does not: its owner keeps it open until the job has been collected (`JobRunner.run_to_end`
waits for that even when its caller is cancelled; `begin` tells its `over`, `start` its `told`). Not here: which files and names, what a
failure means for a drive (`anvil/shards`).
"""

import os

from libc.errno cimport EINTR, EIO, ENODEV, ENOENT, errno
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from posix.fcntl cimport O_CLOEXEC, O_DIRECTORY, O_RDONLY, open as posix_open
from posix.stat cimport mkdir as posix_mkdir, stat as posix_stat, struct_stat
from posix.types cimport mode_t, off_t
from posix.unistd cimport close as posix_close, link as posix_link, unlink as posix_unlink

from anvil._ec.pieces cimport ANVIL_PIECE_MAX, Sink, Source, anvil_sink, anvil_source
from anvil._ec.pins cimport Pins, pins_add, pins_close, pins_open
from anvil._ec.pool cimport Job, anvil_job

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t pwritev(int fd, const iovec *iov, int count, off_t offset)

cdef extern from "<unistd.h>" nogil:
    ssize_t pread(int fd, void *buf, size_t count, off_t offset)
    int fdatasync(int fd)
    int fsync(int fd)

cdef extern from "<fcntl.h>" nogil:
    int posix_fallocate(int fd, off_t offset, off_t length)

cdef extern from *:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdint.h>
    #include <sys/syscall.h>
    #include <unistd.h>

    /* open(2) that never waits for a disk: openat2(2) with RESOLVE_CACHED (Linux 5.12), which fails with EAGAIN unless every
     * component of the path is in the kernel's cache. EAGAIN also where the kernel, or a sandbox, does not have it. */
    static int anvil_open_cached(const char *path) {
    #ifdef SYS_openat2
        struct { uint64_t flags, mode, resolve; } how = {O_RDONLY | O_CLOEXEC | O_NOFOLLOW, 0, 0x20};
        long fd = syscall(SYS_openat2, AT_FDCWD, path, &how, sizeof how);
        if (fd >= 0) return (int)fd;
        if (errno == ENOSYS || errno == EPERM || errno == EINVAL || errno == E2BIG) errno = EAGAIN;
        return -1;
    #else
        (void)path;
        errno = EAGAIN;
        return -1;
    #endif
    }
    """
    int anvil_open_cached(const char *path) nogil
    int EAGAIN

cdef enum:
    NOT_RUN = -1
    BATCH = 64  # buffers handed to one pwritev, well under IOV_MAX


ctypedef struct guard_state:
    const char *path
    unsigned long long device
    unsigned long long inode


ctypedef struct write_state:
    int fd
    bint sync
    const guard_state *guard
    off_t offset
    Py_ssize_t count
    iovec *piece


ctypedef struct read_state:
    int fd
    off_t offset
    char *to
    Py_ssize_t room
    Py_ssize_t count


ctypedef struct into_state:
    int fd
    off_t offset
    Py_ssize_t count
    anvil_sink *sink


ctypedef struct from_state:
    int fd
    off_t offset
    iovec head
    anvil_source *source
    bint sync


ctypedef struct reserve_state:
    int fd
    off_t length


ctypedef struct name_state:
    const char *path
    const char *to
    int flags
    mode_t mode
    int fd
    const guard_state *guard


cdef int watch(const guard_state *guard) noexcept nogil:
    """0 while the guarded file is the one it was, else ENODEV."""
    cdef struct_stat found
    if guard == NULL:
        return 0
    if posix_stat(guard.path, &found) != 0:
        return ENODEV
    if <unsigned long long> found.st_dev != guard.device or <unsigned long long> found.st_ino != guard.inode:
        return ENODEV
    return 0


cdef int write_all(const write_state *state) noexcept nogil:
    """0 or an errno. The pieces are left as they are; `at` and `skip` say how far writing has come."""
    cdef iovec batch[64]
    cdef Py_ssize_t at = 0, n, i
    cdef size_t skip = 0
    cdef off_t offset = state.offset
    while True:
        while at < state.count and skip == state.piece[at].iov_len:
            at += 1
            skip = 0
        if at == state.count:
            return 0
        n = state.count - at if state.count - at < BATCH else BATCH
        for i in range(n):
            batch[i] = state.piece[at + i]
        batch[0].iov_base = <char *> batch[0].iov_base + skip
        batch[0].iov_len -= skip
        n = pwritev(state.fd, batch, <int> n, offset)
        if n < 0:
            if errno == EINTR:
                continue
            return errno
        if n == 0:
            return EIO  # nothing written and no reason given: never seen on a disk, and no loop may wait for it
        offset += n
        skip += <size_t> n
        while at < state.count and skip >= state.piece[at].iov_len:
            skip -= state.piece[at].iov_len
            at += 1


cdef void write_run(anvil_job *job) noexcept nogil:
    cdef const write_state *state = <const write_state *> job.arg
    cdef int status = watch(state.guard)
    if status == 0:
        status = write_all(state)
    if status == 0 and state.sync and fdatasync(state.fd) != 0:
        status = errno
    # Again: the folder may have gone while its open file still took the bytes.
    job.status = status if status != 0 else watch(state.guard)


cdef int read_all(int fd, off_t offset, char *to, Py_ssize_t room, Py_ssize_t *count) noexcept nogil:
    """0 or an errno. `count`: bytes read, short only at the end of the file."""
    cdef ssize_t n
    count[0] = 0
    while count[0] < room:
        n = pread(fd, to + count[0], <size_t> (room - count[0]), offset + count[0])
        if n < 0:
            if errno == EINTR:
                continue
            return errno
        if n == 0:
            break
        count[0] += n
    return 0


cdef void read_run(anvil_job *job) noexcept nogil:
    cdef read_state *state = <read_state *> job.arg
    job.status = read_all(state.fd, state.offset, state.to, state.room, &state.count)


cdef inline char *aligned(char *piece) noexcept nogil:
    """The first address from `piece` on that begins a cache line."""
    return piece + (64 - (<size_t> piece) % 64) % 64


cdef void into_run(anvil_job *job) noexcept nogil:
    cdef into_state *state = <into_state *> job.arg
    cdef char room[ANVIL_PIECE_MAX + 64]
    cdef char *piece = aligned(room)
    cdef Py_ssize_t want, count
    job.status = 0
    while state.sink.want:
        want = <Py_ssize_t> state.sink.want
        job.status = read_all(state.fd, state.offset + state.count, piece, want, &count)
        state.count += count
        if job.status != 0 or count < want:
            return
        state.sink.feed(state.sink, <unsigned char *> piece)


cdef void from_run(anvil_job *job) noexcept nogil:
    cdef from_state *state = <from_state *> job.arg
    cdef char room[ANVIL_PIECE_MAX + 64]
    cdef write_state piece
    cdef iovec bytes_of_it
    cdef size_t at
    piece.fd = state.fd
    piece.sync = False
    piece.count = 1
    piece.offset = state.offset
    piece.piece = &state.head
    job.status = write_all(&piece)
    piece.piece = &bytes_of_it
    bytes_of_it.iov_base = aligned(room)
    while job.status == 0:
        bytes_of_it.iov_len = state.source.next(state.source, <unsigned char *> bytes_of_it.iov_base, &at)
        if bytes_of_it.iov_len == 0:
            break
        piece.offset = state.offset + <off_t> (state.head.iov_len + at)
        job.status = write_all(&piece)
    if job.status == 0 and state.sync and fdatasync(state.fd) != 0:
        job.status = errno


cdef void reserve_run(anvil_job *job) noexcept nogil:
    cdef const reserve_state *state = <const reserve_state *> job.arg
    cdef int status = EINTR
    while status == EINTR:
        status = posix_fallocate(state.fd, 0, state.length)
    job.status = status


cdef int finished(int status) except -1:
    if status == NOT_RUN:
        raise RuntimeError("the job has not run yet")
    if status != 0:
        raise OSError(status, os.strerror(status))
    return 0


cdef int descriptor(object fd) except -1:
    if not 0 <= fd <= 0x7FFFFFFF:
        raise ValueError(f"{fd} is no file descriptor")
    return <int> fd


cdef off_t position(object offset) except -1:
    if not 0 <= offset <= 0x7FFFFFFFFFFFFFFF:
        raise ValueError(f"file offset {offset} is out of range")
    return <off_t> <int64_t> offset


cdef class Guard:
    """A file that says which disk is there: another device or inode at `path` means another mount, another copy, or none."""

    cdef readonly str path
    cdef readonly object place
    cdef bytes name
    cdef guard_state state

    def __cinit__(self, str path, place):
        self.path = path
        self.place = place
        self.name = os.fsencode(path)
        self.state.path = self.name
        self.state.device, self.state.inode = place


cdef class WriteJob(Job):
    """Write all `buffers` one after another at `offset`, and `fdatasync` afterwards if `sync`. With a `guard`, which is looked at before
    and after: ENODEV if another disk is there.

    `check` raises OSError with the errno of the call that failed; what was written before it stays written.
    """

    cdef write_state state
    cdef Pins pins
    cdef Guard guard

    def __cinit__(self, fd, offset, buffers, bint sync=False, Guard guard=None):
        cdef Py_buffer *view
        cdef Py_ssize_t count = len(buffers), i
        self.state.fd = descriptor(fd)
        self.state.offset = position(offset)
        self.state.sync = sync
        if guard is not None:
            self.guard = guard
            self.state.guard = &guard.state
        pins_open(&self.pins, count)
        self.state.piece = <iovec *> calloc(<size_t> (count if count > 0 else 1), sizeof(iovec))
        if self.state.piece == NULL:
            raise MemoryError
        for i in range(count):
            view = pins_add(&self.pins, buffers[i], False)
            self.state.piece[i].iov_base = view.buf
            self.state.piece[i].iov_len = <size_t> view.len
        self.state.count = count
        self.job.arg = &self.state
        self.job.run = write_run
        self.job.status = NOT_RUN

    def __dealloc__(self):
        free(self.state.piece)
        pins_close(&self.pins)

    def check(self):
        finished(self.job.status)


cdef class ReadJob(Job):
    """Fill `view` from `offset`. `count`: bytes read, short only at the end of the file. `check` raises OSError."""

    cdef read_state state
    cdef Pins pins

    def __cinit__(self, fd, offset, view):
        cdef Py_buffer *target
        self.state.fd = descriptor(fd)
        self.state.offset = position(offset)
        pins_open(&self.pins, 1)
        target = pins_add(&self.pins, view, True)
        self.state.to = <char *> target.buf
        self.state.room = target.len
        self.job.arg = &self.state
        self.job.run = read_run
        self.job.status = NOT_RUN

    def __dealloc__(self):
        pins_close(&self.pins)

    @property
    def count(self):
        return self.state.count

    def check(self):
        finished(self.job.status)


cdef class ReadInto(Job):
    """Feed `sink` from `offset` on until it wants no more, a piece at a time, while the piece is in the core's cache.

    `count`: bytes read; the file ended early if the sink still wants some. `check` raises OSError; how the sink likes what it was
    fed is asked of the sink.
    """

    cdef into_state state
    cdef Sink sink

    def __cinit__(self, fd, offset, Sink sink not None):
        self.state.fd = descriptor(fd)
        self.state.offset = position(offset)
        if sink.sink.feed == NULL or sink.taken:
            raise RuntimeError("the sink is not prepared, or has another source")
        sink.taken = True
        self.sink = sink
        self.state.sink = &sink.sink
        self.job.arg = &self.state
        self.job.run = into_run
        self.job.status = NOT_RUN

    @property
    def count(self):
        return self.state.count

    def check(self):
        finished(self.job.status)


cdef class WriteFrom(Job):
    """Write `head` at `offset` and all that `source` gives behind it, each piece while it is in the core's cache; `fdatasync`
    afterwards if `sync`.

    `check` raises OSError of the write that failed, or what the source's `check` raises.
    """

    cdef from_state state
    cdef Source source
    cdef Pins pins

    def __cinit__(self, fd, offset, Source source not None, head=b"", bint sync=False):
        cdef Py_buffer *view
        self.state.fd = descriptor(fd)
        self.state.offset = position(offset)
        if source.source.next == NULL or source.taken:
            raise RuntimeError("the source is not prepared, or was drawn from before")
        source.taken = True
        pins_open(&self.pins, 1)
        view = pins_add(&self.pins, head, False)
        self.state.head.iov_base = view.buf
        self.state.head.iov_len = <size_t> view.len
        self.source = source
        self.state.source = &source.source
        self.state.sync = sync
        self.job.arg = &self.state
        self.job.run = from_run
        self.job.status = NOT_RUN

    def __dealloc__(self):
        pins_close(&self.pins)

    def check(self):
        finished(self.job.status)
        self.source.check()


cdef class ReserveJob(Job):
    """`posix_fallocate` of the first `length` bytes. `check` raises OSError, ENOSPC among them."""

    cdef reserve_state state

    def __cinit__(self, fd, length):
        self.state.fd = descriptor(fd)
        self.state.length = position(length)
        self.job.arg = &self.state
        self.job.run = reserve_run
        self.job.status = NOT_RUN

    def check(self):
        finished(self.job.status)


include "names.pxi"
