# cython: language_level=3, boundscheck=False, wraparound=False
"""What a drive's bytes are fed to as they are read, and what gives bytes as they are written, a piece at a time: the base classes.

Owns: the Python face of `pieces.h`, for drives that are no files. Invariant: a sink has one source of its bytes and a source is drawn
from once. Not here: files (`ReadInto` and `WriteFrom` in `fileio.pyx`), what is done to the bytes (`fused.pxi`).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport free, malloc

PIECE_BYTES = ANVIL_PIECE


cdef class Sink:
    """Takes the bytes of a shard in order."""

    @property
    def wants(self):
        """How many bytes it is to be fed next; 0 when all has come, or no more is of use."""
        return self.sink.want

    def feed(self, const unsigned char[::1] data not None):
        """Hand it the `wants` bytes that come next. Raises ValueError for any other number."""
        if self.sink.want == 0 or <size_t> data.shape[0] != self.sink.want:
            raise ValueError(f"{data.shape[0]} bytes, where {self.sink.want} are wanted")
        with nogil:
            self.sink.feed(&self.sink, &data[0])

    def check(self):
        """Raise if what came is not what it should be. The base class knows no failure."""


cdef class Source:
    """Gives `length` bytes in pieces, each with its place among them."""

    def pieces(self):
        """All of it, as (place, bytes). Raises RuntimeError if it was drawn from before."""
        cdef unsigned char *room
        cdef size_t at = 0, count
        cdef list drawn = []
        if self.source.next == NULL or self.taken:
            raise RuntimeError("the source is not prepared, or was drawn from before")
        self.taken = True
        room = <unsigned char *> malloc(ANVIL_PIECE_MAX)
        if room == NULL:
            raise MemoryError
        try:
            while True:
                with nogil:
                    count = self.source.next(&self.source, room, &at)
                if count == 0:
                    return drawn
                drawn.append((at, PyBytes_FromStringAndSize(<char *> room, <Py_ssize_t> count)))
        finally:
            free(room)

    def check(self):
        """Raise if not all could be made. The base class knows no failure."""
