# A frame opened while it is read, or sealed while it is written. Included by stripe.pyx: both share one choice of kernels.

cdef extern from "fused.h" nogil:
    ctypedef struct anvil_frame:
        const anvil_blob_key *key
        uint32_t stripe
        int last
        unsigned char *text
        size_t length
        int status

    size_t anvil_frame_piece(const anvil_frame *f)
    void anvil_frame_end(anvil_frame *f, int status)
    void anvil_open_feed(anvil_sink *sink, const unsigned char *data) noexcept
    size_t anvil_seal_next(anvil_source *source, unsigned char *room, size_t *at) noexcept


cdef int frame_of(
    anvil_frame *frame, BlobKey key, object stripe, bint last, Py_ssize_t length, Pins *pins, object text, bint writable
) except -1:
    cdef Py_buffer *view
    if not 0 < length <= STRIPE_BYTES_MAX:
        raise ValueError(f"stripe length {length} is out of range")
    frame.stripe = stripe_number(stripe)
    pins_open(pins, 1)
    view = pins_add(pins, text, writable)
    if view.len < length:
        raise ValueError(f"the text has {view.len} bytes, length says {length}")
    frame.key = &key.key
    frame.last = last
    frame.text = <unsigned char *> view.buf
    frame.length = length
    frame.status = ANVIL_NOT_RUN
    return 0


cdef class OpenFrame(Sink):
    """Opens the frame of a stripe of a 1+0 blob as it comes, into `out[:length]`. It wants `length` + 24 bytes in all.

    `check` raises SealBroken, whether the frame is damaged or another's: `out` then holds nothing. RuntimeError while not all has come.
    The frame's checksum is not looked at; a `DecodeJob` on the whole frame does, and tells the two apart.
    """

    cdef anvil_frame state
    cdef Pins pins
    cdef object key

    def __cinit__(self, BlobKey key not None, stripe, bint last, Py_ssize_t length, out):
        frame_of(&self.state, key, stripe, last, length, &self.pins, out, True)
        self.key = key
        self.sink.arg = &self.state
        self.sink.feed = anvil_open_feed
        self.sink.want = ANVIL_CHECKSUM + anvil_frame_piece(&self.state)

    def __dealloc__(self):
        anvil_frame_end(&self.state, ANVIL_NOT_RUN)
        pins_close(&self.pins)

    def check(self):
        finished(self.state.status, 1)


cdef class SealFrame(Source):
    """Seals a stripe of a 1+0 blob, `plain[:length]`, as it is drawn: the frame that `EncodeJob` would write.

    A (blob, stripe) is sealed once: who fails to write it makes a new blob.
    """

    cdef anvil_frame state
    cdef Pins pins
    cdef object key

    def __cinit__(self, BlobKey key not None, stripe, bint last, plain, Py_ssize_t length):
        frame_of(&self.state, key, stripe, last, length, &self.pins, plain, False)
        self.key = key
        self.source.arg = &self.state
        self.source.next = anvil_seal_next
        self.length = ANVIL_CHECKSUM + length + ANVIL_TAG

    def __dealloc__(self):
        anvil_frame_end(&self.state, ANVIL_NOT_RUN)
        pins_close(&self.pins)

    def check(self):
        finished(self.state.status, 1)
