# cython: language_level=3, boundscheck=False, wraparound=False
"""Stripe jobs: seal and encode, verify and decode, regenerate; and the key of a blob.

Owns: the Python face of `stripe.h`: it validates lengths and indexes, pins every buffer for the life of the job, and turns a
job's status into an exception. Invariant: nothing a job touches can move or be freed while the job object lives, whoever runs it.
`stripe_reference.py` says the same slowly. Not here: the thread pool (`pool.pyx`), lengths of blobs (`anvil/model/scheme.py`).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from anvil._ec.codec cimport (
    ANVIL_NO_MEMORY, ANVIL_NOT_ENOUGH_UNITS, ANVIL_OK, ANVIL_SEAL_BROKEN, Codec, anvil_codec,
)
from anvil._ec.pins cimport Pins, pins_add, pins_close, pins_open
from anvil._ec.pool cimport Job, anvil_job
from anvil._ec.pieces cimport Sink, Source, anvil_sink, anvil_source

from anvil._ec.codec import NotEnoughUnits

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_CIPHER:
        pass
    EVP_CIPHER *EVP_CIPHER_fetch(void *ctx, const char *algorithm, const char *properties)
    void OPENSSL_cleanse(void *ptr, size_t len)

cdef extern from "xxh3.h" nogil:
    ctypedef struct anvil_xxh3_kernel:
        pass

cdef extern from "stripe.h" nogil:
    enum:
        ANVIL_NOT_RUN
        ANVIL_TAG
        ANVIL_CHECKSUM

    ctypedef struct anvil_blob_key:
        unsigned char *blob_id
        unsigned char *key

    ctypedef struct anvil_encode:
        anvil_codec *codec
        const anvil_blob_key *key
        uint32_t stripe
        int last
        const unsigned char *plain
        size_t length
        size_t unit
        unsigned char *out

    ctypedef struct anvil_decode:
        anvil_codec *codec
        const anvil_blob_key *key
        uint32_t stripe
        int last
        size_t length
        size_t unit
        const unsigned char **frames
        unsigned char *out
        uint32_t corrupt

    ctypedef struct anvil_rebuild:
        anvil_codec *codec
        unsigned char *blob_id
        uint32_t stripe
        size_t unit
        const unsigned char **frames
        int *missing
        int missing_count
        unsigned char *out
        uint32_t corrupt

    EVP_CIPHER *anvil_gcm_cipher
    int anvil_gcm_use_vaes
    const anvil_xxh3_kernel *anvil_xxh3
    size_t anvil_unit_len(int k, size_t plain)
    uint64_t anvil_checksum(
        const unsigned char *blob_id, uint32_t index, uint32_t stripe, const unsigned char *unit, size_t length)
    int anvil_derive(const unsigned char *bucket_key, anvil_blob_key *key)
    int anvil_seal(
        const anvil_blob_key *key, uint32_t stripe, int last, const unsigned char *plain, size_t length, unsigned char *out)
    int anvil_open(
        const anvil_blob_key *key, uint32_t stripe, int last, const unsigned char *sealed, size_t length, unsigned char *out)
    void anvil_encode_run(anvil_job *job) noexcept
    void anvil_decode_run(anvil_job *job) noexcept
    void anvil_rebuild_run(anvil_job *job) noexcept

cdef extern from *:
    """
    #ifdef ANVIL_GCM_X86
    #include <cpuid.h>
    #endif

    static const char *const anvil_xxh3_names[] = {"baseline", "avx2", "avx512"};

    /* The kernel of that number, or NULL if it is not built in or this processor lacks the instructions. */
    static const anvil_xxh3_kernel *anvil_xxh3_named(int which) {
    #ifdef ANVIL_XXH3_X86
        __builtin_cpu_init();
        if (which == 1 && __builtin_cpu_supports("avx2")) return &anvil_xxh3_avx2;
        if (which == 2 && __builtin_cpu_supports("avx512f")) return &anvil_xxh3_avx512;
    #endif
        return which == 0 ? &anvil_xxh3_baseline : NULL;
    }

    static int anvil_gcm_vaes_here(void) {
    #ifdef ANVIL_GCM_X86
        unsigned a, b, c, d;
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
            && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("aes") && __builtin_cpu_supports("pclmul")
            && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 9 & 1) && (c >> 10 & 1); /* VAES, VPCLMULQDQ */
    #else
        return 0;
    #endif
    }

    static int anvil_gcm_openssl_is_slow(void) { return OpenSSL_version_num() < 0x30100000UL; }
    """
    const char **anvil_xxh3_names
    const anvil_xxh3_kernel *anvil_xxh3_named(int which)
    int anvil_gcm_vaes_here()
    int anvil_gcm_openssl_is_slow()

cdef Py_ssize_t STRIPE_BYTES_MAX = 1 << 30  # OpenSSL and ISA-L count bytes in an int; a stripe is 1 MiB
cdef Py_ssize_t INLINE_BYTES = 8 * 1024  # below this, giving up the GIL and taking it back costs more than the work


class SealBroken(ValueError):
    """The authentication tag does not fit: other data, another key, blob, stripe or last flag."""


cdef uint32_t stripe_number(object stripe) except? 0xFFFFFFFF:
    if not 0 <= stripe <= 0xFFFFFFFF:
        raise ValueError(f"stripe number {stripe} is out of range")
    return <uint32_t> stripe


cdef int apart(Py_buffer *view, const void *out, Py_ssize_t length) except -1:
    """Raise ValueError if the buffer overlaps out[:length]."""
    if <const char *> view.buf < <const char *> out + length and <const char *> out < <const char *> view.buf + view.len:
        raise ValueError("input and output overlap")
    return 0


cdef int finished(int status, int k) except -1:
    """Turn a job's status into an exception."""
    if status == ANVIL_OK:
        return 0
    if status == ANVIL_NOT_ENOUGH_UNITS:
        raise NotEnoughUnits(f"fewer than {k} good units were given")
    if status == ANVIL_SEAL_BROKEN:
        raise SealBroken("the stripe's authentication tag does not fit")
    if status == ANVIL_NO_MEMORY:
        raise MemoryError
    if status == ANVIL_NOT_RUN:
        raise RuntimeError("the job has not run yet")
    raise RuntimeError(f"native job failed with status {status}")


cdef tuple bits(uint32_t mask):
    return tuple([i for i in range(32) if mask >> i & 1])


cdef class BlobKey:
    """AES-256-GCM key of one blob: HKDF-SHA256 (RFC 5869) of `bucket_key` (32 bytes) with salt `blob_id` (16)."""

    cdef anvil_blob_key key

    def __cinit__(self, bytes bucket_key not None, bytes blob_id not None):
        if len(bucket_key) != 32 or len(blob_id) != 16:
            raise ValueError("a bucket key has 32 bytes and a blob id 16")
        memcpy(self.key.blob_id, <const char *> blob_id, 16)
        if anvil_derive(<const unsigned char *> <const char *> bucket_key, &self.key) != ANVIL_OK:
            raise RuntimeError("OpenSSL could not derive the key of a blob")

    def __dealloc__(self):
        OPENSSL_cleanse(&self.key, sizeof(self.key))

    def __reduce__(self):
        raise TypeError("keys are not pickled")

    @property
    def blob_id(self):
        return <bytes> (<char *> self.key.blob_id)[:16]

    def seal(self, stripe, bint last, plain):
        """Ciphertext + 16-byte tag. Nonce = stripe as 12 bytes, big-endian; associated data = blob id + stripe u32 LE + last u8.

        The caller seals a (blob, stripe) once: a second seal of other bytes under the same nonce would give both away.
        """
        cdef uint32_t number = stripe_number(stripe)
        cdef Pins pins = Pins(NULL, 0, 0)
        cdef Py_buffer *view
        cdef bytes sealed
        pins_open(&pins, 1)
        try:
            view = pins_add(&pins, plain, False)
            if view.len > STRIPE_BYTES_MAX:
                raise ValueError(f"{view.len} bytes are too many for one stripe")
            sealed = PyBytes_FromStringAndSize(NULL, view.len + ANVIL_TAG)
            status = self._run(number, last, view, view.len, <unsigned char *> <char *> sealed, True)
        finally:
            pins_close(&pins)
        finished(status, 1)
        return sealed

    def open(self, stripe, bint last, sealed):
        """The plaintext. Raises SealBroken."""
        cdef uint32_t number = stripe_number(stripe)
        cdef Pins pins = Pins(NULL, 0, 0)
        cdef Py_buffer *view
        cdef bytes plain
        pins_open(&pins, 1)
        try:
            view = pins_add(&pins, sealed, False)
            if not ANVIL_TAG <= view.len <= STRIPE_BYTES_MAX:
                raise SealBroken(f"{view.len} bytes are no sealed stripe")
            plain = PyBytes_FromStringAndSize(NULL, view.len - ANVIL_TAG)
            status = self._run(number, last, view, view.len - ANVIL_TAG, <unsigned char *> <char *> plain, False)
        finally:
            pins_close(&pins)
        finished(status, 1)
        return plain

    cdef int _run(self, uint32_t stripe, bint last, Py_buffer *view, Py_ssize_t length, unsigned char *out, bint sealing):
        cdef const unsigned char *data = <const unsigned char *> view.buf
        cdef int status
        if length < INLINE_BYTES:
            return (anvil_seal if sealing else anvil_open)(&self.key, stripe, last, data, length, out)
        with nogil:
            status = (anvil_seal if sealing else anvil_open)(&self.key, stripe, last, data, length, out)
        return status


cdef class EncodeJob(Job):
    """Seal a stripe, pad it to k units, code k+m units, write the frames of all shards into `out`.

    `out` (at least (k+m) * frame_len bytes, apart from `plain`) holds the frames one after another: frame i at i * frame_len =
    checksum (8 bytes LE) + unit. Checksum = XXH3_64(unit, seed = XXH3_64(blob id + index u32 LE + stripe u32 LE)).
    Raises ValueError for lengths that do not fit, BufferError for a read-only `out`.
    """

    cdef anvil_encode state
    cdef Pins pins
    cdef object codec, key, out
    cdef readonly Py_ssize_t frame_len

    def __cinit__(self, Codec codec not None, BlobKey key not None, stripe, bint last, plain, Py_ssize_t length, out):
        cdef Py_buffer *source
        cdef Py_buffer *target
        cdef Py_ssize_t needed
        self.state.stripe = stripe_number(stripe)
        if not 0 <= length <= STRIPE_BYTES_MAX:
            raise ValueError(f"stripe length {length} is out of range")
        pins_open(&self.pins, 2)
        source = pins_add(&self.pins, plain, False)
        target = pins_add(&self.pins, out, True)
        self.state.unit = anvil_unit_len(codec.k, length)
        self.frame_len = ANVIL_CHECKSUM + self.state.unit
        needed = self.frame_len * (codec.k + codec.m)
        if source.len < length:
            raise ValueError(f"plain has {source.len} bytes, length says {length}")
        if target.len < needed:
            raise ValueError(f"out has {target.len} bytes, {codec.k + codec.m} frames need {needed}")
        apart(source, target.buf, needed)
        self.state.codec = &codec.codec
        self.state.key = &key.key
        self.state.last = last
        self.state.plain = <const unsigned char *> source.buf
        self.state.length = length
        self.state.out = <unsigned char *> target.buf
        self.codec, self.key, self.out = codec, key, memoryview(out).cast("B")
        self.job.arg = &self.state
        self.job.run = anvil_encode_run
        self.job.status = ANVIL_NOT_RUN

    def __dealloc__(self):
        pins_close(&self.pins)

    def frame(self, int index):
        """Shard `index`'s frame: a view into `out`, which it keeps alive."""
        if not 0 <= index < self.state.codec.k + self.state.codec.m:
            raise IndexError(f"no shard {index}")
        return self.out[index * self.frame_len : (index + 1) * self.frame_len]

    def check(self):
        finished(self.job.status, self.state.codec.k)


cdef int take_frames(
    Pins *pins, object frames, Py_ssize_t frame_len, const unsigned char **place, int width, Py_buffer *out
) except -1:
    """Pin each frame that is not None. Raises ValueError for a wrong number or length, or an overlap with `out`."""
    cdef Py_buffer *view
    cdef int i
    if len(frames) != width:
        raise ValueError(f"{len(frames)} frames given, the code has {width}")
    for i in range(width):
        place[i] = NULL
        if frames[i] is None:
            continue
        view = pins_add(pins, frames[i], False)
        if view.len != frame_len:
            raise ValueError(f"frame {i} has {view.len} bytes, not {frame_len}")
        apart(view, out.buf, out.len)
        place[i] = <const unsigned char *> view.buf
    return 0


cdef class DecodeJob(Job):
    """Verify frames, rebuild data units that are missing or bad, open the seal into `out[:length]`.

    `frames`: k+m entries of the exact frame length (a short read is no frame: pass None). They are verified in the order of their
    index until k are good, so data units come first. `corrupt`: those whose checksum failed. `check` raises NotEnoughUnits
    (fetch others, make a new job) or SealBroken; `out` then holds nothing of the stripe.
    """

    cdef anvil_decode state
    cdef Pins pins
    cdef object codec, key

    def __cinit__(self, Codec codec not None, BlobKey key not None, stripe, bint last, Py_ssize_t length, frames, out):
        cdef Py_buffer *target
        cdef int width = codec.k + codec.m
        self.state.stripe = stripe_number(stripe)
        if not 0 <= length <= STRIPE_BYTES_MAX:
            raise ValueError(f"stripe length {length} is out of range")
        pins_open(&self.pins, width + 1)
        target = pins_add(&self.pins, out, True)
        if target.len < length:
            raise ValueError(f"out has {target.len} bytes, length says {length}")
        self.state.unit = anvil_unit_len(codec.k, length)
        take_frames(&self.pins, frames, ANVIL_CHECKSUM + self.state.unit, self.state.frames, width, target)
        self.state.codec = &codec.codec
        self.state.key = &key.key
        self.state.last = last
        self.state.length = length
        self.state.out = <unsigned char *> target.buf
        self.codec, self.key = codec, key
        self.job.arg = &self.state
        self.job.run = anvil_decode_run
        self.job.status = ANVIL_NOT_RUN

    def __dealloc__(self):
        pins_close(&self.pins)

    @property
    def corrupt(self):
        return bits(self.state.corrupt)

    def check(self):
        finished(self.job.status, self.state.codec.k)


cdef class RebuildJob(Job):
    """Regenerate whole frames of the shards in `missing` from k good others. Works on ciphertext, so it needs no key.

    `out` (apart from all frames) takes len(missing) frames in the order of `missing`. Frames of missing shards are not looked at.
    `corrupt`: frames whose checksum failed. `check` raises NotEnoughUnits.
    """

    cdef anvil_rebuild state
    cdef Pins pins
    cdef object codec

    def __cinit__(self, Codec codec not None, bytes blob_id not None, stripe, Py_ssize_t unit, frames, missing, out):
        cdef Py_buffer *target
        cdef int width = codec.k + codec.m
        cdef uint32_t seen = 0
        self.state.stripe = stripe_number(stripe)
        if len(blob_id) != 16:
            raise ValueError("a blob id has 16 bytes")
        if not 0 < unit <= STRIPE_BYTES_MAX:
            raise ValueError(f"unit length {unit} is out of range")
        if len(missing) > codec.m:
            raise NotEnoughUnits(f"{len(missing)} shards are missing, the code survives {codec.m}")
        for index in missing:
            if not 0 <= index < width or seen >> <int> index & 1:
                raise ValueError(f"shard {index} is out of range or named twice")
            seen |= <uint32_t> 1 << <int> index
            self.state.missing[self.state.missing_count] = index
            self.state.missing_count += 1
        pins_open(&self.pins, width + 1)
        target = pins_add(&self.pins, out, True)
        if target.len < len(missing) * (ANVIL_CHECKSUM + unit):
            raise ValueError(f"out has {target.len} bytes, which do not hold {len(missing)} frames of {ANVIL_CHECKSUM + unit}")
        take_frames(&self.pins, frames, ANVIL_CHECKSUM + unit, self.state.frames, width, target)
        memcpy(self.state.blob_id, <const char *> blob_id, 16)
        self.state.codec = &codec.codec
        self.state.unit = unit
        self.state.out = <unsigned char *> target.buf
        self.codec = codec
        self.job.arg = &self.state
        self.job.run = anvil_rebuild_run
        self.job.status = ANVIL_NOT_RUN

    def __dealloc__(self):
        pins_close(&self.pins)

    @property
    def corrupt(self):
        return bits(self.state.corrupt)

    def check(self):
        finished(self.job.status, self.state.codec.k)


include "fused.pxi"


def frame_checksum(bytes blob_id not None, index, stripe, unit):
    """The checksum in front of a unit, as an integer (see EncodeJob). For scrubbing a shard without its siblings."""
    cdef Pins pins = Pins(NULL, 0, 0)
    cdef Py_buffer *view
    cdef uint32_t place = stripe_number(index), number = stripe_number(stripe)
    cdef const unsigned char *blob = <const unsigned char *> <const char *> blob_id
    cdef uint64_t value
    if len(blob_id) != 16:
        raise ValueError("a blob id has 16 bytes")
    pins_open(&pins, 1)
    try:
        view = pins_add(&pins, unit, False)
        if view.len < INLINE_BYTES:
            value = anvil_checksum(blob, place, number, <const unsigned char *> view.buf, view.len)
        else:
            with nogil:
                value = anvil_checksum(blob, place, number, <const unsigned char *> view.buf, view.len)
    finally:
        pins_close(&pins)
    return value


def checksum_kernels():
    """The XXH3 kernels this processor can run, slowest first; the last one is in use unless another was forced."""
    return [(<bytes> anvil_xxh3_names[i]).decode() for i in range(3) if anvil_xxh3_named(i) != NULL]


def use_checksum_kernel(str name not None):
    """Force a kernel, for tests and measurements. Raises ValueError if this processor cannot run it. Not while jobs run."""
    global anvil_xxh3
    for i in range(3):
        if (<bytes> anvil_xxh3_names[i]).decode() == name and anvil_xxh3_named(i) != NULL:
            anvil_xxh3 = anvil_xxh3_named(i)
            return
    raise ValueError(f"checksum kernel {name!r} cannot run here, only {', '.join(checksum_kernels())}")


def seal_kernels():
    """What can seal here: "openssl", and "vaes" where the processor has it. The last is in use unless another was forced."""
    if not anvil_gcm_vaes_here():
        return ["openssl"]
    return ["openssl", "vaes"] if anvil_gcm_openssl_is_slow() else ["vaes", "openssl"]


def use_seal_kernel(str name not None):
    """Force one, for tests and measurements. Raises ValueError if it cannot run here. Not while jobs run."""
    global anvil_gcm_use_vaes
    if name not in seal_kernels():
        raise ValueError(f"seal kernel {name!r} cannot run here, only {', '.join(seal_kernels())}")
    anvil_gcm_use_vaes = name == "vaes"


anvil_gcm_cipher = EVP_CIPHER_fetch(NULL, b"AES-256-GCM", NULL)
if anvil_gcm_cipher == NULL:
    raise ImportError("OpenSSL offers no AES-256-GCM")
*_, fastest = seal_kernels()
use_seal_kernel(fastest)
*_, fastest = checksum_kernels()
use_checksum_kernel(fastest)
