from libc.stdint cimport uint32_t, uint64_t


cdef extern from "codec.h" nogil:
    enum:
        ANVIL_K_MAX
        ANVIL_M_MAX
        ANVIL_WIDTH_MAX
        ANVIL_DECODE_CACHE
        ANVIL_OK
        ANVIL_NOT_ENOUGH_UNITS
        ANVIL_SEAL_BROKEN
        ANVIL_CRYPTO_FAILED
        ANVIL_NO_MEMORY
        ANVIL_SINGULAR

    ctypedef struct anvil_codec:
        int k
        int m
        unsigned char *matrix
        uint64_t hits
        uint64_t misses

    int anvil_codec_open(anvil_codec *c, int k, int m)
    void anvil_codec_close(anvil_codec *c)
    void anvil_codec_encode(const anvil_codec *c, size_t unit, unsigned char **data, unsigned char **parity)
    int anvil_codec_decode(
        anvil_codec *c, size_t unit, unsigned char **units, uint32_t wanted, unsigned char **out)


cdef class Codec:
    """Its address is handed to jobs, which keep a reference to the object."""

    cdef anvil_codec codec
    cdef readonly int k
    cdef readonly int m
