cdef extern from "pool.h" nogil:
    ctypedef struct anvil_job:
        void (*run)(anvil_job *job) noexcept nogil
        void *arg
        void *owner
        int status
        anvil_job *next

    ctypedef struct anvil_pool:
        int event_fd

    int anvil_pool_open(anvil_pool *p, int threads)
    void anvil_pool_submit(anvil_pool *p, anvil_job *job)
    anvil_job *anvil_pool_collect(anvil_pool *p)
    void anvil_pool_stop(anvil_pool *p)
    void anvil_pool_free(anvil_pool *p)


cdef class Job:
    """Subclasses set job.run and job.arg in __cinit__/__init__, hold their buffers, and override `check`."""

    cdef anvil_job job
    cdef bint submitted


cdef class Pool:
    cdef anvil_pool pool
    cdef bint open
    cdef readonly int threads
    cdef readonly int in_flight
    cdef list _owners(self, anvil_job *item)
