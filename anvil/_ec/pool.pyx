# cython: language_level=3, boundscheck=False, wraparound=False
"""A pool of C threads for native jobs, with completion through an eventfd (measured in `bench/micro`: threads that need the
GIL starve beside a busy event loop; these do not).

Owns: the threads, the queue, the references that keep submitted jobs and their buffers alive until they are collected.
Invariant: a submitted job is collected exactly once, whatever became of who waited for it. Not here: asyncio (`anvil/ec/executor.py`).
"""

from cpython.ref cimport Py_DECREF, Py_INCREF


cdef class Job:
    """One native call. `run()` runs it here and now with the GIL released; `Pool.submit` runs it on a C thread."""

    def run(self):
        """Run inline on this thread, then raise what `check` raises."""
        if self.job.run == NULL:
            raise TypeError("job was not prepared")
        with nogil:
            self.job.run(&self.job)
        self.check()

    def check(self):
        """Raise if the finished job failed. The base class knows no failure."""


cdef class Pool:
    """`threads` C threads that take jobs first in, first out. With one thread, jobs also finish in that order."""

    def __cinit__(self, int threads):
        if threads < 1:
            raise ValueError("a pool needs at least one thread")
        if anvil_pool_open(&self.pool, threads) != 0:
            raise OSError("could not start the native thread pool")
        self.open = True
        self.threads = threads
        self.in_flight = 0

    def fileno(self):
        """The eventfd: readable when `collect` has something to return (and, seldom, once more)."""
        return self.pool.event_fd

    def submit(self, Job job not None):
        """Queue a job. The pool holds a reference until it is collected. Raises RuntimeError if closed or submitted twice."""
        if not self.open:
            raise RuntimeError("pool is closed")
        if job.submitted:
            raise RuntimeError("job was submitted before")
        if job.job.run == NULL:
            raise TypeError("job was not prepared")
        job.submitted = True
        job.job.owner = <void *> job
        Py_INCREF(job)
        self.in_flight += 1
        anvil_pool_submit(&self.pool, &job.job)

    def collect(self):
        """All jobs that finished since the last call, oldest first."""
        return self._owners(anvil_pool_collect(&self.pool))

    cdef list _owners(self, anvil_job *item):
        cdef anvil_job *following
        cdef list jobs = []
        while item != NULL:
            following = item.next
            job = <object> item.owner
            jobs.append(job)
            Py_DECREF(job)  # the reference taken by submit
            item = following
        self.in_flight -= len(jobs)
        return jobs

    def close(self):
        """Wait for every submitted job, stop the threads, return the jobs nobody had collected."""
        if not self.open:
            return []
        self.open = False
        with nogil:
            anvil_pool_stop(&self.pool)
        jobs = self._owners(anvil_pool_collect(&self.pool))
        anvil_pool_free(&self.pool)
        return jobs

    def __dealloc__(self):
        # Jobs in flight hold no reference to the pool, so it may be dropped with some unfinished: wait for them.
        if self.open:
            with nogil:
                anvil_pool_stop(&self.pool)
            anvil_pool_free(&self.pool)
