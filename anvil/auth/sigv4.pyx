# cython: language_level=3, autotestdict=False
"""AWS Signature Version 4 as S3 uses it: the canonical request, the string to sign, the signature (hot path).

Owns: canonicalization, written into one C buffer without intermediate Python objects, and the HMACs through OpenSSL. Invariant: equal,
byte for byte, to `sigv4_reference.py`, which explains each rule; `tests/unit/auth/test_sigv4.py` proves it. Not here: parsing of
credentials, clocks, scopes, keys of apps (`credentials.py`, `authenticate.py`). A call takes a few microseconds and keeps the GIL.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdlib cimport free, malloc, qsort, realloc
from libc.string cimport memcmp, memcpy

cdef extern from "openssl/evp.h" nogil:
    ctypedef struct EVP_MD:
        pass
    ctypedef struct ENGINE:
        pass
    const EVP_MD* EVP_sha256()
    int EVP_Digest(const void* data, size_t count, unsigned char* md, unsigned int* size, const EVP_MD* type, ENGINE* impl)

cdef extern from "openssl/hmac.h" nogil:
    unsigned char* HMAC(const EVP_MD* md, const void* key, int key_len, const unsigned char* data, size_t count,
                        unsigned char* out, unsigned int* out_len)

PRESIGNED = 1
VERBATIM = 2

cdef enum:
    F_PRESIGNED = 1
    F_VERBATIM = 2
    SHA256_BYTES = 32
    FIRST_BYTES = 2048  # holds a typical canonical request; grows when it must

ctypedef unsigned char byte


cdef struct Out:
    byte* data
    size_t len
    size_t cap


cdef struct Param:
    const byte* name
    size_t name_len
    const byte* value
    size_t value_len


cdef bint[256] UNRESERVED
cdef signed char[256] HEX_VALUE
cdef const char* HEX_UPPER = b"0123456789ABCDEF"
cdef const char* HEX_LOWER = b"0123456789abcdef"


cdef void fill_tables() noexcept:
    cdef int i
    for i in range(256):
        UNRESERVED[i] = (48 <= i <= 57) or (65 <= i <= 90) or (97 <= i <= 122) or i == c"-" or i == c"." or i == c"_" or i == c"~"
        HEX_VALUE[i] = -1
        if 48 <= i <= 57:
            HEX_VALUE[i] = <signed char>(i - 48)
        elif 65 <= i <= 70:
            HEX_VALUE[i] = <signed char>(i - 55)
        elif 97 <= i <= 102:
            HEX_VALUE[i] = <signed char>(i - 87)


fill_tables()


# -- one growing buffer -------------------------------------------------------------------------------------------------


cdef int reserve(Out* out, size_t more) except -1:
    cdef size_t cap
    cdef byte* data
    if out.len + more <= out.cap:
        return 0
    cap = out.cap if out.cap else FIRST_BYTES
    while cap < out.len + more:
        cap *= 2
    data = <byte*>realloc(out.data, cap)
    if data == NULL:
        raise MemoryError()
    out.data = data
    out.cap = cap
    return 0


cdef int put(Out* out, const void* data, size_t n) except -1:
    reserve(out, n)
    if n:
        memcpy(out.data + out.len, data, n)
        out.len += n
    return 0


cdef int put_byte(Out* out, byte c) except -1:
    reserve(out, 1)
    out.data[out.len] = c
    out.len += 1
    return 0


cdef inline byte* percent(byte* to, byte c) noexcept:
    to[0] = c"%"
    to[1] = HEX_UPPER[c >> 4]
    to[2] = HEX_UPPER[c & 15]
    return to + 3


cdef inline int escape(const byte* p, const byte* end) noexcept:
    """The byte that `%XX` at p stands for, or -1."""
    if end - p < 3 or p[0] != c"%" or HEX_VALUE[p[1]] < 0 or HEX_VALUE[p[2]] < 0:
        return -1
    return HEX_VALUE[p[1]] << 4 | HEX_VALUE[p[2]]


cdef int put_encoded(Out* out, const byte* p, size_t n, bint path) except -1:
    """Decode, then encode once. In a path `/` stays and `%2F` stays `%2F`; in a query `+` is a space."""
    reserve(out, 3 * n)
    cdef byte* to = out.data + out.len
    cdef const byte* end = p + n
    cdef int c
    while p < end:
        c = escape(p, end)
        if c >= 0:
            p += 3
        else:
            c = p[0]
            p += 1
            if path and c == c"/":
                to[0] = c"/"
                to += 1
                continue
            if not path and c == c"+":
                c = c" "
        if UNRESERVED[c]:
            to[0] = <byte>c
            to += 1
        else:
            to = percent(to, <byte>c)
    out.len = to - out.data
    return 0


# -- query --------------------------------------------------------------------------------------------------------------


cdef int compare_bytes(const byte* a, size_t a_len, const byte* b, size_t b_len) noexcept nogil:
    cdef size_t n = a_len if a_len < b_len else b_len
    cdef int order = memcmp(a, b, n) if n else 0
    if order:
        return order
    return (a_len > b_len) - (a_len < b_len)


cdef int compare_params(const void* left, const void* right) noexcept nogil:
    cdef const Param* a = <const Param*>left
    cdef const Param* b = <const Param*>right
    cdef int order = compare_bytes(a.name, a.name_len, b.name, b.name_len)
    return order if order else compare_bytes(a.value, a.value_len, b.value, b.value_len)


cdef int put_query(Out* out, bytes query, int flags) except -1:
    cdef const byte* p = <const byte*>PyBytes_AS_STRING(query)
    cdef size_t size = PyBytes_GET_SIZE(query)
    cdef const byte* end = p + size
    cdef const byte* stop
    cdef const byte* equals
    cdef size_t count = 0, slots = 1, i
    cdef bint first = True
    cdef Param* params
    cdef Out scratch
    if size == 0:
        return 0
    for i in range(size):
        slots += p[i] == c"&"
    scratch.data = NULL
    scratch.len = scratch.cap = 0
    params = <Param*>malloc(slots * sizeof(Param))
    if params == NULL:
        raise MemoryError()
    try:
        reserve(&scratch, 3 * size)  # so that it never moves: params point into it
        while p <= end:
            stop = p
            while stop < end and stop[0] != c"&":
                stop += 1
            equals = p
            while equals < stop and equals[0] != c"=":
                equals += 1
            if stop > p or flags & F_VERBATIM:
                put_param(&scratch, &params[count], p, equals, stop, flags)
                count += 1
            p = stop + 1
        qsort(params, count, sizeof(Param), compare_params)
        for i in range(count):
            if flags & F_PRESIGNED and params[i].name_len == 15 and memcmp(params[i].name, b"X-Amz-Signature", 15) == 0:
                continue
            if not first:
                put_byte(out, c"&")
            first = False
            put(out, params[i].name, params[i].name_len)
            put_byte(out, c"=")
            put(out, params[i].value, params[i].value_len)
    finally:
        free(params)
        free(scratch.data)
    return 0


cdef int put_param(Out* scratch, Param* param, const byte* p, const byte* equals, const byte* stop, int flags) except -1:
    """One `name=value` (from p to stop, its first "=" at `equals`) into scratch, and where it went into param."""
    cdef const byte* value = equals + 1 if equals < stop else stop
    cdef size_t start = scratch.len
    if flags & F_VERBATIM:
        put(scratch, p, equals - p)
    else:
        put_encoded(scratch, p, equals - p, False)
    param.name = scratch.data + start
    param.name_len = scratch.len - start
    start = scratch.len
    if flags & F_VERBATIM:
        put(scratch, value, stop - value)
    else:
        put_encoded(scratch, value, stop - value, False)
    param.value = scratch.data + start
    param.value_len = scratch.len - start
    return 0


# -- headers ------------------------------------------------------------------------------------------------------------


cdef int put_trimmed(Out* out, const byte* p, size_t n) except -1:
    """A header value: outer white space removed, inner runs of it made one space."""
    reserve(out, n)
    cdef byte* start = out.data + out.len
    cdef byte* to = start
    cdef const byte* end = p + n
    cdef bint gap = False
    while p < end:
        if p[0] == c" " or p[0] == c"\t":
            gap = True
        else:
            if gap and to > start:
                to[0] = c" "
                to += 1
            gap = False
            to[0] = p[0]
            to += 1
        p += 1
    out.len = to - out.data
    return 0


cdef int put_header(Out* out, const byte* name, size_t n, tuple headers, bytes host) except -1:
    """`name:value,value...` and a line feed."""
    cdef tuple pair
    cdef bytes key, value
    cdef bint first = True
    put(out, name, n)
    put_byte(out, c":")
    if n == 4 and memcmp(name, b"host", 4) == 0:
        put_trimmed(out, <const byte*>PyBytes_AS_STRING(host), PyBytes_GET_SIZE(host))
    else:
        for pair in headers:
            key, value = pair
            if <size_t>PyBytes_GET_SIZE(key) == n and memcmp(PyBytes_AS_STRING(key), name, n) == 0:
                if not first:
                    put_byte(out, c",")
                first = False
                put_trimmed(out, <const byte*>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))
    put_byte(out, c"\n")
    return 0


cdef int put_headers(Out* out, tuple headers, bytes signed_headers, bytes host) except -1:
    cdef const byte* p = <const byte*>PyBytes_AS_STRING(signed_headers)
    cdef const byte* end = p + PyBytes_GET_SIZE(signed_headers)
    cdef const byte* stop
    while p <= end:
        stop = p
        while stop < end and stop[0] != c";":
            stop += 1
        put_header(out, p, stop - p, headers, host)
        p = stop + 1
    return 0


cdef int put_request(Out* out, str method, bytes path, bytes query, tuple headers, bytes signed_headers, bytes host,
                     bytes payload_hash, int flags) except -1:
    cdef Py_ssize_t n = 0
    cdef const char* text = PyUnicode_AsUTF8AndSize(method, &n)
    put(out, text, n)
    put_byte(out, c"\n")
    if PyBytes_GET_SIZE(path) == 0:
        put_byte(out, c"/")
    elif flags & F_VERBATIM:
        put(out, PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path))
    else:
        put_encoded(out, <const byte*>PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), True)
    put_byte(out, c"\n")
    put_query(out, query, flags)
    put_byte(out, c"\n")
    put_headers(out, headers, signed_headers, host)
    put_byte(out, c"\n")
    put(out, PyBytes_AS_STRING(signed_headers), PyBytes_GET_SIZE(signed_headers))
    put_byte(out, c"\n")
    put(out, PyBytes_AS_STRING(payload_hash), PyBytes_GET_SIZE(payload_hash))
    return 0


# -- digests ------------------------------------------------------------------------------------------------------------


cdef void hex_of(const byte* digest, byte* to) noexcept:
    cdef int i
    for i in range(SHA256_BYTES):
        to[2 * i] = HEX_LOWER[digest[i] >> 4]
        to[2 * i + 1] = HEX_LOWER[digest[i] & 15]


cdef int sha256_hex(const byte* data, size_t n, byte* to) except -1:
    cdef byte[SHA256_BYTES] digest
    if EVP_Digest(data, n, digest, NULL, EVP_sha256(), NULL) != 1:
        raise RuntimeError("OpenSSL could not compute SHA-256")
    hex_of(digest, to)
    return 0


cdef int hmac(const void* key, size_t key_len, const byte* data, size_t n, byte* to) except -1:
    if HMAC(EVP_sha256(), key, <int>key_len, data, n, to, NULL) == NULL:
        raise RuntimeError("OpenSSL could not compute HMAC-SHA-256")
    return 0


cdef int put_string_to_sign(Out* out, bytes amz_date, bytes scope, const byte* request_hash) except -1:
    put(out, b"AWS4-HMAC-SHA256\n", 17)
    put(out, PyBytes_AS_STRING(amz_date), PyBytes_GET_SIZE(amz_date))
    put_byte(out, c"\n")
    put(out, PyBytes_AS_STRING(scope), PyBytes_GET_SIZE(scope))
    put_byte(out, c"\n")
    put(out, request_hash, 2 * SHA256_BYTES)
    return 0


# -- public -------------------------------------------------------------------------------------------------------------


def canonical_path(bytes path not None):
    """The path as SigV4 for S3 writes it; see the reference."""
    cdef Out out = Out(NULL, 0, 0)
    try:
        put_encoded(&out, <const byte*>PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), True)
        return PyBytes_FromStringAndSize(<char*>out.data, out.len) if out.len else b"/"
    finally:
        free(out.data)


def canonical_query(bytes query not None, int flags=0):
    """The query as SigV4 writes it: decoded, encoded once, sorted by name, then value."""
    cdef Out out = Out(NULL, 0, 0)
    try:
        put_query(&out, query, flags)
        return PyBytes_FromStringAndSize(<char*>out.data, out.len) if out.len else b""
    finally:
        free(out.data)


def canonical_request(str method not None, bytes path not None, bytes query not None, tuple headers not None,
                      bytes signed_headers not None, bytes host not None, bytes payload_hash not None, int flags=0):
    """The canonical request; see the reference for what each argument is."""
    cdef Out out = Out(NULL, 0, 0)
    try:
        put_request(&out, method, path, query, headers, signed_headers, host, payload_hash, flags)
        return PyBytes_FromStringAndSize(<char*>out.data, out.len)
    finally:
        free(out.data)


def string_to_sign(bytes amz_date not None, bytes scope not None, bytes canonical not None):
    """Algorithm, time, scope and the hash of the canonical request, one per line."""
    cdef Out out = Out(NULL, 0, 0)
    cdef byte[2 * SHA256_BYTES] request_hash
    try:
        sha256_hex(<const byte*>PyBytes_AS_STRING(canonical), PyBytes_GET_SIZE(canonical), request_hash)
        put_string_to_sign(&out, amz_date, scope, request_hash)
        return PyBytes_FromStringAndSize(<char*>out.data, out.len)
    finally:
        free(out.data)


def signature(bytes key not None, bytes amz_date not None, bytes scope not None, str method not None, bytes path not None,
              bytes query not None, tuple headers not None, bytes signed_headers not None, bytes host not None,
              bytes payload_hash not None, int flags=0):
    """The signature of a request, 64 lower-case hex digits; all in one buffer."""
    cdef Out out = Out(NULL, 0, 0)
    cdef byte[2 * SHA256_BYTES] text
    cdef byte[SHA256_BYTES] digest
    try:
        put_request(&out, method, path, query, headers, signed_headers, host, payload_hash, flags)
        sha256_hex(out.data, out.len, text)
        out.len = 0
        put_string_to_sign(&out, amz_date, scope, text)
        hmac(PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key), out.data, out.len, digest)
        hex_of(digest, text)
        return PyBytes_FromStringAndSize(<char*>text, 2 * SHA256_BYTES)
    finally:
        free(out.data)


def derive_key(str secret not None, bytes date not None, bytes region not None, bytes service not None):
    """The signing key of a secret for a day, a region and a service: 32 bytes."""
    cdef bytes first = b"AWS4" + secret.encode()
    cdef byte[SHA256_BYTES] key
    hmac(PyBytes_AS_STRING(first), PyBytes_GET_SIZE(first), <const byte*>PyBytes_AS_STRING(date), PyBytes_GET_SIZE(date), key)
    hmac(key, SHA256_BYTES, <const byte*>PyBytes_AS_STRING(region), PyBytes_GET_SIZE(region), key)
    hmac(key, SHA256_BYTES, <const byte*>PyBytes_AS_STRING(service), PyBytes_GET_SIZE(service), key)
    hmac(key, SHA256_BYTES, b"aws4_request", 12, key)
    return PyBytes_FromStringAndSize(<char*>key, SHA256_BYTES)


def signed_headers_valid(bytes signed_headers not None):
    """Whether a SignedHeaders list is lower case, strictly ascending and without empty or odd names."""
    cdef const byte* p = <const byte*>PyBytes_AS_STRING(signed_headers)
    cdef const byte* end = p + PyBytes_GET_SIZE(signed_headers)
    cdef const byte* stop
    cdef const byte* before = NULL
    cdef size_t before_len = 0
    while p <= end:
        stop = p
        while stop < end and stop[0] != c";":
            if stop[0] <= 32 or stop[0] >= 127 or 65 <= stop[0] <= 90 or stop[0] == c":" or stop[0] == c",":
                return False
            stop += 1
        if stop == p or (before != NULL and compare_bytes(before, before_len, p, stop - p) >= 0):
            return False
        before = p
        before_len = stop - p
        p = stop + 1
    return True


cdef bint listed(bytes signed_headers, const byte* name, size_t n) noexcept:
    cdef const byte* p = <const byte*>PyBytes_AS_STRING(signed_headers)
    cdef const byte* end = p + PyBytes_GET_SIZE(signed_headers)
    cdef const byte* stop
    while p <= end:
        stop = p
        while stop < end and stop[0] != c";":
            stop += 1
        if <size_t>(stop - p) == n and memcmp(p, name, n) == 0:
            return True
        p = stop + 1
    return False


def unsigned_headers(tuple headers not None, bytes signed_headers not None):
    """Names that had to be in SignedHeaders and are not: `host` and every `x-amz-*` header of the request."""
    cdef list missing = []
    cdef tuple pair
    cdef bytes key, value
    if not listed(signed_headers, b"host", 4):
        missing.append(b"host")
    for pair in headers:
        key, value = pair
        if PyBytes_GET_SIZE(key) >= 6 and memcmp(PyBytes_AS_STRING(key), b"x-amz-", 6) == 0:
            if not listed(signed_headers, <const byte*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)) and key not in missing:
                missing.append(key)
    return missing
