"""A list of pinned buffers. A job pins what it reads and writes when it is made and releases it when it is dropped, so memory
stays where it is however long the job waits. Header only: `cdef inline` functions for the extensions of this package."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdlib cimport calloc, free


ctypedef struct Pins:
    Py_buffer *view
    Py_ssize_t count
    Py_ssize_t room


cdef inline int pins_open(Pins *pins, Py_ssize_t room) except -1:
    """Make room for that many buffers. Called once."""
    if pins.view != NULL:
        raise RuntimeError("a job is initialised once")
    pins.view = <Py_buffer *> calloc(<size_t> (room if room > 0 else 1), sizeof(Py_buffer))
    if pins.view == NULL:
        raise MemoryError
    pins.room = room
    pins.count = 0
    return 0


cdef inline Py_buffer *pins_add(Pins *pins, object obj, bint writable) except NULL:
    """Pin one more contiguous buffer. Raises BufferError or TypeError if it is not one, or is read-only and must not be."""
    cdef Py_buffer *view = pins.view + pins.count
    if pins.count >= pins.room:
        raise IndexError("more buffers than announced")
    PyObject_GetBuffer(obj, view, PyBUF_WRITABLE if writable else PyBUF_SIMPLE)
    pins.count += 1
    return view


cdef inline void pins_close(Pins *pins) noexcept:
    """Release all. Safe on a structure that was never opened (all zero) and when called twice."""
    cdef Py_ssize_t i
    for i in range(pins.count):
        PyBuffer_Release(pins.view + i)
    free(pins.view)
    pins.view = NULL
    pins.count = 0
