cdef extern from "pieces.h" nogil:
    enum:
        ANVIL_PIECE
        ANVIL_PIECE_MAX

    ctypedef struct anvil_sink:
        void (*feed)(anvil_sink *sink, const unsigned char *data) noexcept nogil
        size_t want
        void *arg

    ctypedef struct anvil_source:
        size_t (*next)(anvil_source *source, unsigned char *room, size_t *at) noexcept nogil
        void *arg


cdef class Sink:
    """Subclasses set sink.feed, sink.arg and sink.want in __cinit__, hold their buffers, and override `check`."""

    cdef anvil_sink sink
    cdef bint taken


cdef class Source:
    """Subclasses set source.next, source.arg and length in __cinit__, hold their buffers, and override `check`."""

    cdef anvil_source source
    cdef bint taken
    cdef readonly Py_ssize_t length
