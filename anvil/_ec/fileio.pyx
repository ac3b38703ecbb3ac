# cython: language_level=3, boundscheck=False, wraparound=False
"""Positioned file I/O as jobs of the native thread pool: a slow drive blocks a C thread, never the event loop.

Owns: repeating interrupted and short calls until all is done or the kernel says why not. Invariant: buffers stay pinned while
the job object lives. The descriptor does not: its owner keeps it open until the job has been collected (`JobRunner.run_to_end`
waits for that even when its caller is cancelled). Not here: which files and names, what a failure means for a drive (`anvil/shards`).
"""

import os

from libc.errno cimport EINTR, EIO, ENODEV, ENOENT, errno
from libc.stdint cimport int64_t
from libc.stdlib cimport calloc, free
from posix.fcntl cimport O_CLOEXEC, O_DIRECTORY, O_RDONLY, open as posix_open
from posix.stat cimport mkdir as posix_mkdir, stat as posix_stat, struct_stat
from posix.types cimport mode_t, off_t
from posix.unistd cimport close as posix_close, link as posix_link, unlink as posix_unlink

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
    anvil_job *then


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


cdef void read_run(anvil_job *job) noexcept nogil:
    cdef read_state *state = <read_state *> job.arg
    cdef ssize_t n
    state.count = 0
    while state.count < state.room:
        n = pread(state.fd, state.to + state.count, <size_t> (state.room - state.count), state.offset + state.count)
        if n < 0:
            if errno == EINTR:
                continue
            job.status = errno
            return
        if n == 0:
            break
        state.count += n
    job.status = 0
    if state.then != NULL and state.count == state.room:
        state.then.run(state.then)


cdef void reserve_run(anvil_job *job) noexcept nogil:
    cdef const reserve_state *state = <const reserve_state *> job.arg
    cdef int status = EINTR
    while status == EINTR:
        status = posix_fallocate(state.fd, 0, state.length)
    job.status = status


cdef void open_run(anvil_job *job) noexcept nogil:
    cdef name_state *state = <name_state *> job.arg
    job.status = watch(state.guard)
    if job.status == 0:
        state.fd = posix_open(state.path, state.flags, state.mode)
        if state.fd < 0:
            job.status = errno


cdef void sync_folder_run(anvil_job *job) noexcept nogil:
    cdef const name_state *state = <const name_state *> job.arg
    cdef int fd = posix_open(state.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)
    if fd < 0:
        job.status = errno
        return
    job.status = 0 if fsync(fd) == 0 else errno  # never repeated: the pages may be gone with the first report
    posix_close(fd)
    if job.status == 0:
        job.status = watch(state.guard)


cdef void guard_run(anvil_job *job) noexcept nogil:
    cdef const name_state *state = <const name_state *> job.arg
    job.status = watch(state.guard)


cdef void link_run(anvil_job *job) noexcept nogil:
    cdef const name_state *state = <const name_state *> job.arg
    job.status = 0 if posix_link(state.path, state.to) == 0 else errno


cdef void unlink_run(anvil_job *job) noexcept nogil:
    cdef const name_state *state = <const name_state *> job.arg
    job.status = 0 if posix_unlink(state.path) == 0 else errno


cdef void mkdir_run(anvil_job *job) noexcept nogil:
    cdef const name_state *state = <const name_state *> job.arg
    job.status = 0 if posix_mkdir(state.path, state.mode) == 0 else errno


cdef void close_run(anvil_job *job) noexcept nogil:
    cdef const name_state *state = <const name_state *> job.arg
    job.status = 0
    if state.path != NULL and posix_unlink(state.path) != 0 and errno != ENOENT:
        job.status = errno
    posix_close(state.fd)  # the last name and the last descriptor: this frees the blocks, which a disk may take its time for


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
    """Fill `view` from `offset`. `count`: bytes read, short only at the end of the file. `check` raises OSError.

    `then`: a job that runs on the same thread directly after a read that filled `view`, while the bytes are in that core's cache,
    and not after any other. How it ended is asked of it, not of the read.
    """

    cdef read_state state
    cdef Pins pins
    cdef Job then

    def __cinit__(self, fd, offset, view, Job then=None):
        cdef Py_buffer *target
        self.state.fd = descriptor(fd)
        self.state.offset = position(offset)
        pins_open(&self.pins, 1)
        target = pins_add(&self.pins, view, True)
        self.state.to = <char *> target.buf
        self.state.room = target.len
        if then is not None:
            if then.submitted:
                raise RuntimeError("job was submitted before")
            if then.job.run == NULL:
                raise TypeError("job was not prepared")
            then.submitted = True
            self.then = then
            self.state.then = &then.job
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


cdef class NameJob(Job):
    """Base of the jobs that work on names. `check` raises OSError."""

    cdef name_state state
    cdef bytes path, to
    cdef Guard guard

    def __cinit__(self, *args, **kwargs):
        self.state.fd = -1
        self.job.arg = &self.state
        self.job.status = NOT_RUN

    cdef int on(self, str path, Guard guard) except -1:
        self.path = os.fsencode(path)
        self.state.path = self.path
        if guard is not None:
            self.guard = guard
            self.state.guard = &guard.state
        return 0

    def check(self):
        finished(self.job.status)


cdef class OpenJob(NameJob):
    """`open`, where `guard` holds. Who makes it takes the descriptor (`take`); one nobody took is closed with the job."""

    def __init__(self, str path, int flags, int mode=0, Guard guard=None):
        self.on(path, guard)
        self.state.flags = flags
        self.state.mode = mode
        self.job.run = open_run

    def take(self):
        fd, self.state.fd = self.state.fd, -1
        if fd < 0:
            raise RuntimeError("nothing was opened, or it was taken before")
        return fd

    def __dealloc__(self):
        if self.state.fd >= 0:
            posix_close(self.state.fd)


cdef class SyncFolderJob(NameJob):
    """Open a folder, `fsync` it, look at `guard`. As a failed flush of a file, a failed one must not be repeated."""

    def __init__(self, str path, Guard guard=None):
        self.on(path, guard)
        self.job.run = sync_folder_run


cdef class GuardJob(NameJob):
    """Look whether the disk is still there: ENODEV if not."""

    def __init__(self, Guard guard not None):
        self.guard = guard
        self.state.guard = &guard.state
        self.job.run = guard_run


cdef class LinkJob(NameJob):
    """`link`: a second name for `path`, which must be new."""

    def __init__(self, str path, str to):
        self.on(path, None)
        self.to = os.fsencode(to)
        self.state.to = self.to
        self.job.run = link_run


cdef class UnlinkJob(NameJob):
    """`unlink`."""

    def __init__(self, str path):
        self.on(path, None)
        self.job.run = unlink_run


cdef class MakeFolderJob(NameJob):
    """`mkdir`, for the owner alone."""

    def __init__(self, str path):
        self.on(path, None)
        self.state.mode = 0o700
        self.job.run = mkdir_run


cdef class CloseJob(NameJob):
    """Take the name `path` away, if one is given and still there, and `close`. The descriptor is closed in any case."""

    def __init__(self, fd, str path=None):
        if path is not None:
            self.on(path, None)
        self.state.fd = descriptor(fd)
        self.job.run = close_run


def open_cached(str path):
    """A read-only descriptor, or -1 where opening might have to wait for the disk. Never follows a link at the end. Raises OSError."""
    cdef bytes name = os.fsencode(path)
    cdef const char *at = name
    cdef int fd, error
    with nogil:
        fd = anvil_open_cached(at)
        error = errno
    if fd < 0 and error != EAGAIN:
        raise OSError(error, os.strerror(error), path)
    return fd
