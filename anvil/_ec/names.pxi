# Jobs on names: open, link, unlink, make and flush folders, close. Included by fileio.pyx, whose C types and helpers they share.

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
