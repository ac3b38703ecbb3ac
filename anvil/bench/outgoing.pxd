cdef enum:
    STAMP = 16


cdef class Content:
    cdef unsigned char stamp[STAMP]
    cdef Py_ssize_t start
    cdef bytes pattern
    cdef object view
    cdef readonly long long size

    cdef bytes joined(self, bytes head)
    cdef bint is_at(self, long long at, const char *data, Py_ssize_t count) noexcept
