/* See digests.h. */
#include "digests.h"
#include "crc64.h"

#include <isa-l/crc.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static EVP_MD *sha1_method, *sha256_method; /* fetched once: looking them up costs more than a small update */
static const anvil_crc64_kernel *crc64_kernel;

int anvil_digests_init(void) {
    anvil_crc64_init();
    crc64_kernel = anvil_crc64_best();
    sha1_method = EVP_MD_fetch(NULL, "SHA1", NULL);
    sha256_method = EVP_MD_fetch(NULL, "SHA256", NULL);
    return sha1_method && sha256_method ? 0 : -1;
}

const char *anvil_crc64_kernel_name(void) { return crc64_kernel->name; }

int anvil_crc64_choose(const char *name) {
    const anvil_crc64_kernel *kernel = anvil_crc64_find(name);
    if (!kernel)
        return -1;
    crc64_kernel = kernel;
    return 0;
}

#if defined(__x86_64__)
__attribute__((target("avx"))) static void zero_upper_halves(void) { _mm256_zeroupper(); }

/* ISA-L 2.30's AVX-512 CRCs return with the upper halves of the vector registers dirty, and until they are zeroed every old-style
 * SSE instruction of the thread pays for it: OpenSSL's SHA-256 fell from 1.81 to 1.36 GB/s after one CRC. */
static void leave_isal(void) {
    if (__builtin_cpu_supports("avx"))
        zero_upper_halves();
}
#else
static void leave_isal(void) {}
#endif

uint32_t anvil_crc32(uint32_t crc, const uint8_t *data, size_t length) {
    crc = crc32_gzip_refl(crc, data, length);
    leave_isal();
    return crc;
}

uint32_t anvil_crc32c(uint32_t crc, const uint8_t *data, size_t length) {
    crc = ~crc; /* ISA-L's iSCSI function works on the bare remainder */
    while (length) {
        int part = length > (1u << 30) ? 1 << 30 : (int)length; /* and takes an int */
        crc = crc32_iscsi((unsigned char *)data, part, crc);
        data += part;
        length -= (size_t)part;
    }
    leave_isal();
    return ~crc;
}

uint64_t anvil_crc64nvme(uint64_t crc, const uint8_t *data, size_t length) { return ~crc64_kernel->run(~crc, data, length); }

int anvil_digests_open(anvil_digests *d, unsigned algorithms) {
    memset(d, 0, sizeof *d);
    d->algorithms = algorithms;
    memcpy(d->md5, anvil_md5_start, sizeof d->md5);
    if (algorithms & ANVIL_SHA1) {
        d->sha1 = EVP_MD_CTX_new();
        if (!d->sha1 || EVP_DigestInit_ex(d->sha1, sha1_method, NULL) != 1)
            return -1;
    }
    if (algorithms & ANVIL_SHA256) {
        d->sha256 = EVP_MD_CTX_new();
        if (!d->sha256 || EVP_DigestInit_ex(d->sha256, sha256_method, NULL) != 1)
            return -1;
    }
    return 0;
}

void anvil_digests_close(anvil_digests *d) {
    EVP_MD_CTX_free(d->sha1);
    EVP_MD_CTX_free(d->sha256);
    d->sha1 = d->sha256 = NULL;
}

int anvil_digests_take(anvil_digests *d) { return __atomic_exchange_n(&d->held, 1, __ATOMIC_ACQUIRE) == 0; }
void anvil_digests_release(anvil_digests *d) { __atomic_store_n(&d->held, 0, __ATOMIC_RELEASE); }

int anvil_digests_update_others(anvil_digests *d, const uint8_t *data, size_t length) {
    if (!length)
        return 0;
    if (d->algorithms & ANVIL_CRC32)
        d->crc32 = anvil_crc32(d->crc32, data, length);
    if (d->algorithms & ANVIL_CRC32C)
        d->crc32c = anvil_crc32c(d->crc32c, data, length);
    if (d->algorithms & ANVIL_CRC64NVME)
        d->crc64 = anvil_crc64nvme(d->crc64, data, length);
    if (d->sha1 && EVP_DigestUpdate(d->sha1, data, length) != 1)
        return -1;
    if (d->sha256 && EVP_DigestUpdate(d->sha256, data, length) != 1)
        return -1;
    return 0;
}

size_t anvil_md5_head(anvil_digests *d, const uint8_t *data, size_t length) {
    size_t kept = d->md5_bytes % ANVIL_MD5_BLOCK;
    if (kept == 0 || length == 0)
        return 0;
    size_t taken = ANVIL_MD5_BLOCK - kept;
    if (taken > length)
        taken = length;
    memcpy(d->md5_partial + kept, data, taken);
    d->md5_bytes += taken;
    if (kept + taken == ANVIL_MD5_BLOCK)
        anvil_md5_scalar(d->md5, d->md5_partial, 1);
    return taken;
}

void anvil_md5_blocks_done(anvil_digests *d, size_t blocks) { d->md5_bytes += blocks * ANVIL_MD5_BLOCK; }

void anvil_md5_tail(anvil_digests *d, const uint8_t *data, size_t length) {
    if (length)
        memcpy(d->md5_partial, data, length);
    d->md5_bytes += length;
}

static void md5_update(anvil_digests *d, const uint8_t *data, size_t length) {
    size_t taken = anvil_md5_head(d, data, length);
    data += taken;
    length -= taken;
    if (length == 0)
        return; /* the head may have left a partial block that must stay */
    size_t blocks = length / ANVIL_MD5_BLOCK;
    anvil_md5_scalar(d->md5, data, blocks);
    anvil_md5_blocks_done(d, blocks);
    anvil_md5_tail(d, data + blocks * ANVIL_MD5_BLOCK, length % ANVIL_MD5_BLOCK);
}

int anvil_digests_update(anvil_digests *d, const uint8_t *data, size_t length) {
    while (length) {
        size_t part = length < ANVIL_DIGEST_SLICE ? length : ANVIL_DIGEST_SLICE;
        if (d->algorithms & ANVIL_MD5)
            md5_update(d, data, part);
        if (anvil_digests_update_others(d, data, part) != 0)
            return -1;
        data += part;
        length -= part;
    }
    return 0;
}

static void store_be(uint8_t *out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
}

static void store_le(uint8_t *out, uint64_t value, int bytes) {
    for (int i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> (8 * i));
}

/* Padding: a one bit, zeros, the length in bits (RFC 1321, 3.1 and 3.2). */
static void md5_result(const anvil_digests *d, uint8_t out[16]) {
    uint32_t state[4];
    uint8_t last[2 * ANVIL_MD5_BLOCK] = {0};
    size_t kept = d->md5_bytes % ANVIL_MD5_BLOCK;
    size_t blocks = kept + 1 + 8 > ANVIL_MD5_BLOCK ? 2 : 1;
    memcpy(state, d->md5, sizeof state);
    memcpy(last, d->md5_partial, kept);
    last[kept] = 0x80;
    store_le(last + blocks * ANVIL_MD5_BLOCK - 8, d->md5_bytes * 8, 8);
    anvil_md5_scalar(state, last, blocks);
    for (int i = 0; i < 4; i++)
        store_le(out + 4 * i, state[i], 4);
}

static int sha_result(const EVP_MD_CTX *running, uint8_t *out) {
    unsigned length = 0;
    EVP_MD_CTX *copy = EVP_MD_CTX_new();
    int done = copy && EVP_MD_CTX_copy_ex(copy, running) == 1 && EVP_DigestFinal_ex(copy, out, &length) == 1;
    EVP_MD_CTX_free(copy);
    return done ? (int)length : -1;
}

int anvil_digests_result(const anvil_digests *d, unsigned algorithm, uint8_t out[ANVIL_DIGEST_BYTES_MAX]) {
    switch (algorithm) {
    case ANVIL_MD5:
        md5_result(d, out);
        return 16;
    case ANVIL_SHA1:
        return sha_result(d->sha1, out);
    case ANVIL_SHA256:
        return sha_result(d->sha256, out);
    case ANVIL_CRC32:
        store_be(out, d->crc32, 4);
        return 4;
    case ANVIL_CRC32C:
        store_be(out, d->crc32c, 4);
        return 4;
    default:
        store_be(out, d->crc64, 8);
        return 8;
    }
}
