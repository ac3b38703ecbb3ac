# cython: language_level=3, boundscheck=False, wraparound=False
"""The aws-chunked content coding of S3: payload in chunks, each with a signature if the mode is a signed one, then trailers.

    signed:    (HEX-SIZE ";chunk-signature=" SIGNATURE CRLF  payload CRLF)*  "0;chunk-signature=" SIGNATURE CRLF  end
    unsigned:  (HEX-SIZE CRLF  payload CRLF)*  "0" CRLF  end
    end:       CRLF without a trailer section, else (name ":" value LINE-END)*  ["x-amz-trailer-signature:" ...]  LINE-END

Owns: framing, chunk and trailer signatures, the limits on both. Invariant: what is written to a target is exactly the payload,
in order, once; `finished` is true only if every length and every signature was right, and an error is final. Not here: I/O, which
mode a request is in (`auth`), and whether a checksum in a trailer is the payload's (`api.s3`). `awschunked_reference.py` says the
same readably. Source: Amazon S3 API Reference, "Signature Calculations for the Authorization Header: Transferring Payload in
Multiple Chunks" and the page on trailing headers that follows it.

Liberal in three places, because the body is delimited by HTTP and nothing can be smuggled past its end:
- Lines of the trailer section end with CRLF or with LF alone. The S3 documentation signs trailers with LF, and minio-go sends them so.
- One empty line may stand before x-amz-trailer-signature (minio-go).
- One CRLF may follow the end of a body with a trailer section (minio-go, unsigned mode).
A chunk under 8 KiB that is not the last is tolerated, although S3 refuses it.
"""

import hmac
from hashlib import sha256

from anvil.base.errors import IncompleteBody, InvalidRequest, SignatureMismatch
from anvil.base.limits import CHUNK_HEADER_BYTES_MAX, OBJECT_BYTES_MAX, TRAILER_BYTES_MAX

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy, memmove


cdef extern from "<openssl/evp.h>" nogil:
    ctypedef struct EVP_MD
    ctypedef struct EVP_MD_CTX
    EVP_MD *EVP_MD_fetch(void *context, const char *name, const char *properties)
    EVP_MD_CTX *EVP_MD_CTX_new()
    void EVP_MD_CTX_free(EVP_MD_CTX *context)
    int EVP_DigestInit_ex(EVP_MD_CTX *context, const EVP_MD *method, void *engine)
    int EVP_DigestUpdate(EVP_MD_CTX *context, const void *data, size_t length)
    int EVP_DigestFinal_ex(EVP_MD_CTX *context, uint8_t *out, unsigned *length)

cdef extern from "<openssl/hmac.h>" nogil:
    uint8_t *HMAC(const EVP_MD *method, const void *key, int key_len, const uint8_t *data, size_t length, uint8_t *out, unsigned *out_len)

cdef extern from "<openssl/crypto.h>" nogil:
    int CRYPTO_memcmp(const void *a, const void *b, size_t length)


cdef enum:
    SIGNATURE_CHARS = 64
    EXTENSION_CHARS = 17  # ";chunk-signature="
    PASS_BYTES = 16384  # hashed, then copied, while it is in the first-level cache
    GIL_RELEASE_BYTES = 4096  # below, giving the GIL away costs more than it gives others

cdef enum State:
    HEADER
    PAYLOAD
    PAYLOAD_CR
    PAYLOAD_LF
    END_CR  # the empty line of a body without a trailer section
    END_LF
    TRAILER
    DONE
    EXTRA_LF  # inside of the one CRLF that may follow
    EXTRA_DONE
    FAILED

cdef enum Outcome:
    STOPPED  # the source is exhausted or the target full
    TRAILER_LINE  # a line of the trailer section lies in `line`
    BAD_HEADER
    LONG_HEADER
    BAD_CHUNK_END
    TOO_MUCH
    TOO_LITTLE
    BAD_SIGNATURE
    LONG_TRAILER
    AFTER_END
    REFUSED

cdef dict ERRORS = {
    BAD_HEADER: (InvalidRequest, "A chunk header of the aws-chunked body is malformed."),
    LONG_HEADER: (InvalidRequest, "A chunk header of the aws-chunked body is too long."),
    BAD_CHUNK_END: (InvalidRequest, "A chunk of the aws-chunked body does not end with CRLF."),
    TOO_MUCH: (IncompleteBody, "The chunks hold more bytes than x-amz-decoded-content-length says."),
    TOO_LITTLE: (IncompleteBody, "The chunks hold fewer bytes than x-amz-decoded-content-length says."),
    BAD_SIGNATURE: (SignatureMismatch, None),
    LONG_TRAILER: (InvalidRequest, "The trailers of the aws-chunked body are too long."),
    AFTER_END: (InvalidRequest, "Data follows the end of the aws-chunked body."),
}

cdef frozenset TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")  # RFC 9110, 5.6.2, in lower case
cdef bytes EMPTY_SHA256 = sha256(b"").hexdigest().encode()

cdef Py_ssize_t HEADER_MAX = CHUNK_HEADER_BYTES_MAX
cdef Py_ssize_t TRAILERS_MAX = TRAILER_BYTES_MAX
cdef const char *EXTENSION = b";chunk-signature="
cdef const EVP_MD *SHA256 = EVP_MD_fetch(NULL, b"SHA256", NULL)
if SHA256 == NULL:
    raise ImportError("OpenSSL offers no SHA-256")


cdef int hex_value(uint8_t char) noexcept nogil:
    if c"0" <= char <= c"9":
        return char - c"0"
    if c"a" <= char <= c"f":
        return char - c"a" + 10
    if c"A" <= char <= c"F":
        return char - c"A" + 10
    return -1


cdef void to_hex(const uint8_t *raw, Py_ssize_t length, uint8_t *out) noexcept nogil:
    cdef const char *digits = b"0123456789abcdef"
    cdef Py_ssize_t i
    for i in range(length):
        out[2 * i] = digits[raw[i] >> 4]
        out[2 * i + 1] = digits[raw[i] & 15]


cdef class ChunkedDecoder:
    """See the `.pyi`, which is the contract. Raises ValueError for arguments that name no mode."""

    cdef State state
    cdef int64_t payload_left  # of the body
    cdef int64_t chunk_left
    cdef readonly int64_t produced
    cdef readonly dict trailers
    cdef bint running

    cdef bint signed
    cdef bytes key
    cdef const char *key_data  # of `key`
    cdef int key_len
    cdef EVP_MD_CTX *hash  # of the present chunk
    cdef uint8_t *to_sign  # "AWS4-HMAC-SHA256-PAYLOAD\n" date "\n" scope "\n", then previous signature, hashes
    cdef Py_ssize_t prefix
    cdef uint8_t claimed[SIGNATURE_CHARS]

    cdef uint8_t *line  # of a chunk header or a trailer, as far as it has arrived
    cdef Py_ssize_t line_len
    cdef Py_ssize_t trailers_len  # of the whole section so far

    cdef bint with_trailers
    cdef frozenset announced
    cdef bytes trailer_prefix
    cdef str canonical_trailers
    cdef bint trailers_signed
    cdef bint empty_line_seen
    cdef object error

    def __cinit__(self, decoded_length, *, signing_key=None, str seed_signature="", str amz_date="", str scope="", trailer_names=None):
        if not 0 <= decoded_length <= OBJECT_BYTES_MAX:
            raise ValueError("no object has this length")
        if signing_key is None and trailer_names is None:
            raise ValueError("an unsigned body has a trailer section")
        self.state = HEADER
        self.payload_left = decoded_length
        self.trailers = {}
        self.canonical_trailers = ""
        self.with_trailers = trailer_names is not None
        self.announced = frozenset(trailer_names or ())
        self.signed = signing_key is not None
        self.line = <uint8_t *> malloc(max(HEADER_MAX, TRAILERS_MAX))
        if self.line == NULL:
            raise MemoryError
        if self.signed:
            self.prepare_signatures(signing_key, seed_signature, f"{amz_date}\n{scope}\n")

    cdef prepare_signatures(self, bytes signing_key, str seed_signature, str dated_scope):
        cdef bytes start = b"AWS4-HMAC-SHA256-PAYLOAD\n" + dated_scope.encode()
        cdef bytes seed = seed_signature.encode()
        cdef bytes empty = b"\n" + EMPTY_SHA256 + b"\n"
        if len(seed) != SIGNATURE_CHARS:
            raise ValueError("the seed signature is not 64 characters long")
        self.key = signing_key
        self.key_data = self.key
        self.key_len = <int> len(self.key)
        self.trailer_prefix = b"AWS4-HMAC-SHA256-TRAILER\n" + dated_scope.encode()
        self.prefix = len(start)
        self.hash = EVP_MD_CTX_new()
        self.to_sign = <uint8_t *> malloc(self.prefix + 2 * SIGNATURE_CHARS + len(empty))
        if self.hash == NULL or self.to_sign == NULL:
            raise MemoryError
        memcpy(self.to_sign, <const char *> start, self.prefix)
        memcpy(self.to_sign + self.prefix, <const char *> seed, SIGNATURE_CHARS)
        memcpy(self.to_sign + self.prefix + SIGNATURE_CHARS, <const char *> empty, len(empty))

    def __dealloc__(self):
        EVP_MD_CTX_free(self.hash)
        free(self.to_sign)
        free(self.line)

    @property
    def finished(self):
        return self.state in (DONE, EXTRA_LF, EXTRA_DONE)

    def end(self):
        """The input is over. Raises IncompleteBody unless the body was finished, or what `decode` raised."""
        if self.error is not None:
            raise self.error[0](self.error[1])
        if not self.finished:
            raise self.failed(IncompleteBody, "The aws-chunked body ends early.")

    def decode(self, source, target):
        """Consume from `source`, write payload into `target`; returns (consumed, produced)."""
        cdef Py_buffer src, dst
        if self.error is not None:
            raise self.error[0](self.error[1])
        if self.running:
            raise RuntimeError("decode is running in another thread")
        PyObject_GetBuffer(source, &src, PyBUF_SIMPLE)
        try:
            PyObject_GetBuffer(target, &dst, PyBUF_WRITABLE)
            self.running = True
            try:
                return self.decode_into(<const uint8_t *> src.buf, src.len, <uint8_t *> dst.buf, dst.len)
            finally:
                self.running = False
                PyBuffer_Release(&dst)
        finally:
            PyBuffer_Release(&src)

    cdef tuple decode_into(self, const uint8_t *source, Py_ssize_t length, uint8_t *target, Py_ssize_t room):
        cdef Py_ssize_t consumed = 0, written = 0
        cdef Outcome outcome
        while True:
            if length - consumed >= GIL_RELEASE_BYTES:
                with nogil:
                    outcome = self.advance(source, length, &consumed, target, room, &written)
            else:
                outcome = self.advance(source, length, &consumed, target, room, &written)
            if outcome == TRAILER_LINE:
                self.trailer_line(self.line[: self.line_len])
                self.line_len = 0
            elif outcome == STOPPED:
                self.produced += written
                return consumed, written
            elif outcome == REFUSED:
                raise self.failed(RuntimeError, "OpenSSL refused to compute a chunk signature")
            else:
                kind, message = ERRORS[outcome]
                raise self.failed(kind, message)

    cdef object failed(self, kind, message):
        """The error to raise, which from now on every call raises."""
        self.state = FAILED
        self.error = (kind, message)
        return kind(message)

    cdef Outcome advance(
        self, const uint8_t *source, Py_ssize_t length, Py_ssize_t *consumed, uint8_t *target, Py_ssize_t room, Py_ssize_t *written
    ) noexcept nogil:
        """Until something stops it. Every branch consumes, or leaves the loop."""
        cdef Outcome outcome
        cdef Py_ssize_t part
        cdef uint8_t char
        while consumed[0] < length:
            if self.state == PAYLOAD:
                part = min(length - consumed[0], room - written[0], self.chunk_left)
                if part == 0:
                    return STOPPED  # the target is full
                outcome = self.payload(source + consumed[0], target + written[0], part)
                consumed[0] += part
                written[0] += part
            elif self.state == HEADER:
                outcome = self.take_line(source, length, consumed, HEADER_MAX, LONG_HEADER)
                if outcome == TRAILER_LINE:
                    outcome = self.header()
                    self.line_len = 0
            elif self.state == TRAILER:
                outcome = self.take_line(source, length, consumed, TRAILERS_MAX - self.trailers_len, LONG_TRAILER)
                if outcome == TRAILER_LINE:
                    self.trailers_len += self.line_len
            else:
                char = source[consumed[0]]
                consumed[0] += 1
                outcome = self.single(char)
            if outcome != STOPPED:
                return outcome
        return STOPPED

    cdef Outcome single(self, uint8_t char) noexcept nogil:
        """The states that expect one certain character."""
        if self.state == PAYLOAD_CR and char == c"\r":
            self.state = PAYLOAD_LF
        elif self.state == PAYLOAD_LF and char == c"\n":
            self.state = HEADER
        elif self.state == END_CR and char == c"\r":
            self.state = END_LF
        elif self.state == END_LF and char == c"\n":
            self.state = EXTRA_DONE
        elif self.state == DONE and char == c"\r":
            self.state = EXTRA_LF
        elif self.state == EXTRA_LF and char == c"\n":
            self.state = EXTRA_DONE
        elif self.state in (PAYLOAD_CR, PAYLOAD_LF, END_CR, END_LF):
            return BAD_CHUNK_END
        else:
            return AFTER_END
        return STOPPED

    cdef Outcome take_line(
        self, const uint8_t *source, Py_ssize_t length, Py_ssize_t *consumed, Py_ssize_t limit, Outcome too_long
    ) noexcept nogil:
        """Add to `line`, up to and with LF. TRAILER_LINE: it is whole. `limit`: bytes of it, line end included."""
        cdef const uint8_t *start = source + consumed[0]
        cdef const uint8_t *line_end = <const uint8_t *> memchr(start, c"\n", length - consumed[0])
        cdef Py_ssize_t part = length - consumed[0] if line_end == NULL else line_end - start + 1
        if self.line_len + part > limit:
            return too_long
        memcpy(self.line + self.line_len, start, part)
        self.line_len += part
        consumed[0] += part
        return STOPPED if line_end == NULL else TRAILER_LINE

    cdef Outcome header(self) noexcept nogil:
        """Parse the chunk header in `line`."""
        cdef Py_ssize_t at = 0, end = self.line_len - 2
        cdef int64_t size = 0
        cdef int digit
        if end < 1 or self.line[end] != c"\r":
            return BAD_HEADER
        while at < end:
            digit = hex_value(self.line[at])
            if digit < 0:
                break
            # Once more than is left, the size stays so: that stops it from overflowing.
            if size <= self.payload_left:
                size = size * 16 + digit
            at += 1
        if at == 0:
            return BAD_HEADER
        if self.signed:
            if end - at != EXTENSION_CHARS + SIGNATURE_CHARS or memcmp(self.line + at, EXTENSION, EXTENSION_CHARS) != 0:
                return BAD_HEADER
            memcpy(self.claimed, self.line + at + EXTENSION_CHARS, SIGNATURE_CHARS)
            if EVP_DigestInit_ex(self.hash, SHA256, NULL) != 1:
                return REFUSED
        elif at != end:
            return BAD_HEADER
        if size > self.payload_left:
            return TOO_MUCH
        if size > 0:
            self.chunk_left = size
            self.state = PAYLOAD
            return STOPPED
        if self.payload_left > 0:
            return TOO_LITTLE
        self.state = TRAILER if self.with_trailers else END_CR
        return self.verify() if self.signed else STOPPED

    cdef Outcome payload(self, const uint8_t *source, uint8_t *target, Py_ssize_t length) noexcept nogil:
        """Hash and move in one pass; at the end of the chunk, verify its signature."""
        cdef Py_ssize_t part, done = 0
        while done < length:
            part = min(length - done, PASS_BYTES)
            if self.signed and EVP_DigestUpdate(self.hash, source + done, part) != 1:
                return REFUSED
            memmove(target + done, source + done, part)
            done += part
        self.chunk_left -= length
        self.payload_left -= length
        if self.chunk_left > 0:
            return STOPPED
        self.state = PAYLOAD_CR
        return self.verify() if self.signed else STOPPED

    cdef Outcome verify(self) noexcept nogil:
        """The claimed signature of the chunk that was hashed; if right, it is the next chunk's previous one."""
        cdef uint8_t raw[32]
        cdef uint8_t signature[SIGNATURE_CHARS]
        cdef uint8_t *previous = self.to_sign + self.prefix
        cdef uint8_t *chunk_hash = previous + 2 * SIGNATURE_CHARS + 2
        if EVP_DigestFinal_ex(self.hash, raw, NULL) != 1:
            return REFUSED
        to_hex(raw, 32, chunk_hash)
        if HMAC(SHA256, self.key_data, self.key_len, self.to_sign, self.prefix + 3 * SIGNATURE_CHARS + 2, raw, NULL) == NULL:
            return REFUSED
        to_hex(raw, 32, signature)
        if CRYPTO_memcmp(signature, self.claimed, SIGNATURE_CHARS) != 0:
            return BAD_SIGNATURE
        memcpy(previous, signature, SIGNATURE_CHARS)
        return STOPPED

    cdef trailer_line(self, bytes raw):
        """One line of the trailer section, with its line end."""
        cdef bytes line = raw.removesuffix(b"\n").removesuffix(b"\r")
        if not line:
            if not self.signed or self.trailers_signed:
                self.state = DONE
            elif self.empty_line_seen:
                raise self.failed(InvalidRequest, "The trailer signature is missing.")
            else:
                self.empty_line_seen = True
            return
        raw_name, colon, raw_value = line.partition(b":")
        name = raw_name.decode("latin-1").lower()
        value = raw_value.decode("latin-1").strip(" \t")
        if not colon or not name or not TOKEN.issuperset(name) or not all(" " <= char <= "~" for char in value):
            raise self.failed(InvalidRequest, "A trailer is malformed.")
        if self.trailers_signed:
            raise self.failed(InvalidRequest, "A trailer follows the trailer signature.")
        if self.signed and name == "x-amz-trailer-signature":
            self.verify_trailers(value)
        elif name not in self.announced:
            raise self.failed(InvalidRequest, "A trailer was not announced in x-amz-trailer.")
        elif name in self.trailers:
            raise self.failed(InvalidRequest, "A trailer is there twice.")
        else:
            self.trailers[name] = value
            self.canonical_trailers += f"{name}:{value}\n"

    cdef verify_trailers(self, str claimed):
        cdef bytes previous = self.to_sign[self.prefix : self.prefix + SIGNATURE_CHARS]
        cdef bytes trailer_hash = sha256(self.canonical_trailers.encode()).hexdigest().encode()
        signature = hmac.digest(self.key, self.trailer_prefix + previous + b"\n" + trailer_hash, "sha256").hex()
        if not hmac.compare_digest(signature, claimed):
            raise self.failed(SignatureMismatch, None)
        self.trailers_signed = True
