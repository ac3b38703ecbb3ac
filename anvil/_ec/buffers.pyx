# cython: language_level=3, boundscheck=False, wraparound=False
"""Stripe buffers that are reused without page faults, and never while somebody still looks at them.

Owns: the memory, its accounting, a bounded free list per size class. Invariant: memory returns to the free list only from the
deallocation of its `StripeBuffer`, and every view (a memoryview queued in a transport, a job's pin) holds a reference to that
object, so no live view ever sees another stripe's bytes appear. used + idle <= bytes_max, always.
All bookkeeping happens under the GIL. Not here: waiting for a buffer (`anvil/ec/buffers.py`).

A reused buffer still holds what was last in it: who gets one writes before he reads.
"""

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdlib cimport free

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS
    void *MAP_FAILED

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memory, size_t alignment, size_t size)

cdef extern from "<malloc.h>" nogil:
    int mallopt(int parameter, int value)
    int M_MMAP_THRESHOLD, M_TRIM_THRESHOLD

cdef enum:
    SMALL_BYTES = 65536  # up to here: powers of two from 4 KiB, from the heap; above: 8 sizes per doubling, mapped, page-aligned
    SMALLEST_BYTES = 4096
    CLASSES = 101  # 5 small ones (0-4), then 12 doublings of 8 sizes each, up to BUFFER_BYTES_MAX
    CACHE_LINE = 64
    BUFFER_BYTES_MAX = 268435456


ctypedef struct free_block:  # lies at the start of an idle block
    free_block *next


cdef int size_class(size_t nbytes, size_t *capacity) noexcept nogil:
    """The number of the smallest class that holds `nbytes` (at most BUFFER_BYTES_MAX), and its capacity."""
    cdef size_t size = SMALLEST_BYTES, step
    cdef int number = 0
    while size < nbytes and size < SMALL_BYTES:
        size *= 2
        number += 1
    if size >= nbytes:
        capacity[0] = size
        return number
    while size * 2 < nbytes:
        size *= 2
        number += 8
    step = size // 8  # 8 KiB at the least: whole pages
    capacity[0] = size + (nbytes - size + step - 1) // step * step
    return number + <int> ((capacity[0] - size) // step)


@cython.no_gc_clear
cdef class StripeBuffer:
    """Writable memory of `len(buffer)` bytes, 64-byte aligned (page-aligned above 64 KiB), used through `memoryview(buffer)`.

    Only a pool makes these. Dropping the last reference and view gives the memory back.
    """

    cdef BufferPool pool
    cdef char *memory
    cdef Py_ssize_t nbytes
    cdef size_t size
    cdef int number

    def __init__(self):
        raise TypeError("stripe buffers come from BufferPool.try_acquire")

    def __len__(self):
        return self.nbytes

    @property
    def capacity(self):
        """Bytes this buffer counts for in the pool."""
        return self.size

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.memory, self.nbytes, 0, flags)

    def __dealloc__(self):
        if self.memory != NULL:
            self.pool._give_back(self.memory, self.number, self.size)


cdef class BufferPool:
    """Buffers of at most `bytes_max` bytes in total, counted in whole size classes, in use and idle together.

    `idle_bytes_max`: what may wait in the free lists for reuse (a quarter of `bytes_max` unless said); the rest goes back to the
    system. `on_free`: called without arguments, with the GIL, after a buffer came back, on whichever thread dropped it, possibly
    in the middle of a garbage collection: it must only schedule. An exception it raises is printed, not propagated.
    """

    cdef free_block *idle_list[CLASSES]
    cdef size_t class_size[CLASSES]
    cdef readonly size_t bytes_max
    cdef readonly size_t idle_bytes_max
    cdef readonly size_t used
    cdef readonly size_t idle
    cdef public object on_free

    def __cinit__(self, size_t bytes_max, idle_bytes_max=None):
        self.bytes_max = bytes_max
        self.idle_bytes_max = bytes_max // 4 if idle_bytes_max is None else idle_bytes_max
        self.on_free = None

    def __dealloc__(self):
        self._shrink(0)

    @staticmethod
    def capacity(Py_ssize_t nbytes):
        """What a buffer of `nbytes` counts for: its size class. Raises ValueError above 256 MiB or below 0."""
        cdef size_t size
        if not 0 <= nbytes <= BUFFER_BYTES_MAX:
            raise ValueError(f"a buffer of {nbytes} bytes cannot be had")
        size_class(nbytes, &size)
        return size

    def try_acquire(self, Py_ssize_t nbytes):
        """A StripeBuffer of `nbytes`, or None if that would exceed `bytes_max`. Raises ValueError as `capacity`, MemoryError."""
        cdef size_t size
        cdef StripeBuffer buffer
        cdef int number
        if not 0 <= nbytes <= BUFFER_BYTES_MAX:
            raise ValueError(f"a buffer of {nbytes} bytes cannot be had")
        number = size_class(nbytes, &size)
        if self.used + size > self.bytes_max:
            return None
        buffer = StripeBuffer.__new__(StripeBuffer)
        buffer.pool = self
        buffer.memory = self._take(number, size)
        buffer.nbytes = nbytes
        buffer.size = size
        buffer.number = number
        self.used += size
        return buffer

    cdef char *_take(self, int number, size_t size) except NULL:
        """From the free list, else from the system; idle blocks of other classes make room first."""
        cdef free_block *block = self.idle_list[number]
        cdef void *memory = NULL
        if block != NULL:
            self.idle_list[number] = block.next
            self.idle -= size
            return <char *> block
        if self.used + self.idle + size > self.bytes_max:
            self._shrink(self.bytes_max - self.used - size)
        if size > SMALL_BYTES:
            memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
            if memory == MAP_FAILED:
                raise MemoryError
        elif posix_memalign(&memory, CACHE_LINE, size) != 0:
            raise MemoryError
        self.class_size[number] = size
        return <char *> memory

    cdef void _give_back(self, char *memory, int number, size_t size) noexcept:
        cdef free_block *block = <free_block *> memory
        self.used -= size
        if self.idle + size <= self.idle_bytes_max:
            block.next = self.idle_list[number]
            self.idle_list[number] = block
            self.idle += size
        else:
            release(memory, size)
        if self.on_free is not None:
            self.on_free()

    cdef void _shrink(self, size_t target) noexcept:
        """Give idle blocks back to the system, the largest first, until at most `target` bytes are idle."""
        cdef int number
        cdef free_block *block
        for number in range(CLASSES - 1, -1, -1):
            while self.idle > target and self.idle_list[number] != NULL:
                block = self.idle_list[number]
                self.idle_list[number] = block.next
                self.idle -= self.class_size[number]
                release(<char *> block, self.class_size[number])

    def trim(self):
        """Give all idle memory back to the system (after a burst, or before a measurement)."""
        self._shrink(0)


def keep_freed(int piece_bytes, int spare_bytes):
    """See the `.pyi`."""
    return bool(mallopt(M_MMAP_THRESHOLD, piece_bytes) and mallopt(M_TRIM_THRESHOLD, spare_bytes))


cdef void release(char *memory, size_t size) noexcept nogil:
    if size > SMALL_BYTES:
        munmap(memory, size)
    else:
        free(memory)
