# cython: language_level=3, boundscheck=False, wraparound=False
"""Reed-Solomon codec on ISA-L: k data and m parity units, any k of which give all the others.

Owns: `Codec`, the validation of its arguments, and what `anvil doctor` says about ISA-L. Invariant: systematic code over GF(2^8)
with polynomial 0x11d and ISA-L's Cauchy matrix (matrix id 1), except k = 1, which is copies; `codec_reference.py` says the same
slowly and a test proves both equal. Not here: checksums, sealing, frames (`stripe.pyx`); the C that does the work (`codec.h`).
"""

from libc.stdint cimport uint32_t

from anvil._ec.pins cimport Pins, pins_add, pins_close, pins_open

cdef extern from "isa-l.h":
    enum:
        ISAL_MAJOR_VERSION
        ISAL_MINOR_VERSION
        ISAL_PATCH_VERSION

cdef extern from *:
    """
    #if defined(__x86_64__)
    #include <cpuid.h>
    static int anvil_cpu_has(const char *name) {
        __builtin_cpu_init();
        if (!strcmp(name, "ssse3")) return __builtin_cpu_supports("ssse3") != 0;
        if (!strcmp(name, "avx")) return __builtin_cpu_supports("avx") != 0;
        if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") != 0;
        if (!strcmp(name, "avx512")) return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
                                            && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
                                            && __builtin_cpu_supports("avx512cd");
        if (!strcmp(name, "gfni")) {
            unsigned a, b, c, d;
            return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (c >> 8 & 1);
        }
        return 0;
    }
    #else
    static int anvil_cpu_has(const char *name) { (void)name; return 0; }
    #endif
    """
    int anvil_cpu_has(const char *name)

cdef Py_ssize_t UNIT_BYTES_MAX = 1 << 30  # ISA-L counts bytes in an int; a stripe is 1 MiB
cdef unsigned char NOTHING = 0  # stands for a unit of no bytes, whose buffer may be at NULL
cdef Py_ssize_t INLINE_BYTES = 32 * 1024  # below this (1 us), giving up the GIL and taking it back costs too much beside the work


class NotEnoughUnits(ValueError):
    """Fewer than k good units are there to decode from."""


cdef int decode(anvil_codec *codec, Py_ssize_t unit, unsigned char **source, uint32_t wanted, unsigned char **target) noexcept:
    """target[i] for each wanted i; packed here in ascending order as the C function wants it."""
    cdef unsigned char *packed[24]
    cdef int i, count = 0, status
    if unit < 0:
        return ANVIL_NOT_ENOUGH_UNITS
    for i in range(codec.k + codec.m):
        if wanted >> i & 1:
            packed[count] = target[i]
            count += 1
    if codec.k * unit < INLINE_BYTES:
        return anvil_codec_decode(codec, unit, source, wanted, packed)
    with nogil:
        status = anvil_codec_decode(codec, unit, source, wanted, packed)
    return status


cdef class Codec:
    """The code of k data and m parity units of equal length. Immutable, usable by any number of threads at once.

    k 1..16, m 0..8, `matrix` 1 (Cauchy). k = 1 makes m copies. Raises ValueError for anything else.
    """

    def __cinit__(self, int k, int m, int matrix=1):
        if not 1 <= k <= ANVIL_K_MAX or not 0 <= m <= ANVIL_M_MAX:
            raise ValueError(f"a code needs k of 1 to {ANVIL_K_MAX} and m of 0 to {ANVIL_M_MAX}, not {k}+{m}")
        if matrix != 1:
            raise ValueError(f"coding matrix {matrix} is not known to this version")
        if anvil_codec_open(&self.codec, k, m) != ANVIL_OK:
            raise MemoryError
        self.k = k
        self.m = m

    def __dealloc__(self):
        anvil_codec_close(&self.codec)

    def __repr__(self):
        return f"Codec({self.k}, {self.m})"

    @property
    def matrix(self):
        """The (k+m) x k coding matrix, row after row; identity on top."""
        return <bytes> (<char *> self.codec.matrix)[:(self.k + self.m) * self.k]

    @property
    def cache(self):
        """(hits, misses) of the cache of decode tables."""
        return self.codec.hits, self.codec.misses

    def encode(self, units, Py_ssize_t unit):
        """Compute parity. `units`: writable, at least (k+m)*unit bytes: k data units, and room for the parity behind them.

        Raises ValueError if it is too short, BufferError if it is read-only or not contiguous.
        """
        cdef Pins pins = Pins(NULL, 0, 0)
        cdef Py_buffer *view
        cdef unsigned char *place[24]
        cdef int i
        if not 0 <= unit <= UNIT_BYTES_MAX:
            raise ValueError("unit length is out of range")
        pins_open(&pins, 1)
        try:
            view = pins_add(&pins, units, True)
            if view.len < (self.k + self.m) * unit:
                raise ValueError(f"{view.len} bytes do not hold {self.k + self.m} units of {unit}")
            for i in range(self.k + self.m):
                place[i] = <unsigned char *> view.buf + i * unit
            if self.k * unit < INLINE_BYTES:
                anvil_codec_encode(&self.codec, unit, place, place + self.k)
            else:
                with nogil:
                    anvil_codec_encode(&self.codec, unit, place, place + self.k)
        finally:
            pins_close(&pins)

    def decode(self, units, missing, out):
        """Rebuild the units whose indexes are in `missing` (data or parity, no duplicates) into `out`, in the order of `missing`.

        `units`: k+m entries, each a buffer of one common length or None; those in `missing` are not read. `out`: writable buffers
        of that length, apart from all `units`. Raises NotEnoughUnits, or ValueError for lengths and indexes that do not fit.
        """
        cdef Pins pins = Pins(NULL, 0, 0)
        cdef Py_buffer *view
        cdef unsigned char *source[24]
        cdef unsigned char *target[24]
        cdef int width = self.k + self.m, i, status
        cdef Py_ssize_t unit = -1
        cdef uint32_t wanted = 0
        if len(units) != width:
            raise ValueError(f"{len(units)} units given, the code has {width}")
        if len(missing) != len(out) or len(missing) > width:
            raise ValueError(f"{len(missing)} units to rebuild into {len(out)} buffers")
        pins_open(&pins, width + len(out))
        try:
            for i in range(width):
                source[i] = NULL
                target[i] = NULL
                if units[i] is None:
                    continue
                view = pins_add(&pins, units[i], False)
                unit = view.len if unit < 0 else unit
                if view.len != unit or unit > UNIT_BYTES_MAX:
                    raise ValueError("units differ in length")
                source[i] = <unsigned char *> view.buf if unit > 0 else &NOTHING
            for index, buffer in zip(missing, out):
                if not 0 <= index < width or wanted >> <int> index & 1:
                    raise ValueError(f"index {index} is out of range or named twice")
                wanted |= <uint32_t> 1 << <int> index
                view = pins_add(&pins, buffer, True)
                if unit >= 0 and view.len != unit:
                    raise ValueError("an output differs in length from the units")
                target[<int> index] = <unsigned char *> view.buf
            status = decode(&self.codec, unit, source, wanted, target)
        finally:
            pins_close(&pins)
        if status == ANVIL_NOT_ENOUGH_UNITS:
            raise NotEnoughUnits(f"fewer than {self.k} units are left to decode from")
        if status != ANVIL_OK:
            raise RuntimeError(f"decoding failed with status {status}")


def isal_version():
    """Version of the ISA-L headers this was built with, such as "2.30.0"."""
    return f"{ISAL_MAJOR_VERSION}.{ISAL_MINOR_VERSION}.{ISAL_PATCH_VERSION}"


def kernels():
    """For `anvil doctor`: what the processor offers and which Reed-Solomon kernel ISA-L takes by its own dispatch."""
    offered = [name for name in ("ssse3", "avx", "avx2", "avx512", "gfni") if anvil_cpu_has(name.encode())]
    gfni = ISAL_MAJOR_VERSION * 100 + ISAL_MINOR_VERSION >= 231 and "gfni" in offered and "avx512" in offered
    chosen = "avx512+gfni" if gfni else next((name for name in ("avx512", "avx2", "avx", "ssse3") if name in offered), "portable")
    return {"isal": isal_version(), "processor": " ".join(offered) or "portable", "reed_solomon": chosen}
