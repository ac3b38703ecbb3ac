/* MD5 of one stream, and the choice between the multi-stream kernels. */
#include "md5.h"
#include "md5_steps.h"

#include <string.h>

const uint32_t anvil_md5_start[4] = {0x67452301u, 0xefcdab89u, 0x98badcfeu, 0x10325476u};

static inline uint32_t load_le32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap32(v);
#endif
    return v;
}

static inline uint32_t rotl(uint32_t x, int by) { return (x << by) | (x >> (32 - by)); }

/* Each step waits for b of the step before, so what counts is how many operations lie behind b. G's two halves share no bit:
 * adding them apart, the half without b first, leaves one operation behind b instead of two. */
#define STEP(a, b, w, s, k, f) \
    a += load_le32(block + 4 * (w)) + (k); \
    ANVIL_MD5_KEEP_ORDER("+r", a); \
    a += (f); \
    a = rotl(a, s) + b;
#define F(a, b, c, d, w, s, k) STEP(a, b, w, s, k, d ^ (b & (c ^ d)))
#define G(a, b, c, d, w, s, k) \
    a += load_le32(block + 4 * (w)) + (k) + (~d & c); \
    ANVIL_MD5_KEEP_ORDER("+r", a); \
    a += b & d; \
    a = rotl(a, s) + b;
#define H(a, b, c, d, w, s, k) STEP(a, b, w, s, k, b ^ (c ^ d))
#define I(a, b, c, d, w, s, k) STEP(a, b, w, s, k, c ^ (b | ~d))

void anvil_md5_scalar(uint32_t state[4], const uint8_t *data, size_t blocks) {
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
    for (const uint8_t *block = data, *end = data + blocks * ANVIL_MD5_BLOCK; block < end; block += ANVIL_MD5_BLOCK) {
        const uint32_t a0 = a, b0 = b, c0 = c, d0 = d;
        ANVIL_MD5_STEPS(F, G, H, I)
        a += a0;
        b += b0;
        c += c0;
        d += d0;
    }
    state[0] = a;
    state[1] = b;
    state[2] = c;
    state[3] = d;
}

#if defined(__x86_64__)
static const anvil_md5_kernel AVX2 = {"avx2", anvil_md5_avx2, 8, NULL};
static const anvil_md5_kernel AVX512VL = {"avx512vl", anvil_md5_avx512vl, 8, &AVX2};
static const anvil_md5_kernel AVX512 = {"avx512", anvil_md5_avx512, 16, &AVX512VL};
#endif
static const anvil_md5_kernel SCALAR = {"scalar", NULL, 1, NULL};

const anvil_md5_kernel *anvil_md5_best(void) {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl"))
        return &AVX512;
    if (__builtin_cpu_supports("avx2"))
        return &AVX2;
#endif
    return &SCALAR;
}

const anvil_md5_kernel *anvil_md5_find(const char *name) {
    /* A processor with one kernel's instructions has those of every narrower one. */
    for (const anvil_md5_kernel *kernel = anvil_md5_best(); kernel; kernel = kernel->narrow)
        if (strcmp(kernel->name, name) == 0)
            return kernel;
    return strcmp(name, SCALAR.name) == 0 ? &SCALAR : NULL;
}

void anvil_md5_run(const anvil_md5_kernel *kernel, int streams, uint32_t *state[], const uint8_t *data[], size_t blocks) {
    if (!kernel->run || streams < ANVIL_MD5_CROSSOVER) {
        for (int i = 0; i < streams; i++)
            anvil_md5_scalar(state[i], data[i], blocks);
        return;
    }
    while (kernel->narrow && kernel->narrow->lanes < kernel->lanes && streams <= kernel->narrow->lanes)
        kernel = kernel->narrow;
    /* Idle lanes repeat the first stream's data into a state nobody reads. */
    uint32_t idle[4] = {0, 0, 0, 0};
    uint32_t *states[ANVIL_MD5_LANES_MAX];
    const uint8_t *starts[ANVIL_MD5_LANES_MAX];
    for (int lane = 0; lane < kernel->lanes; lane++) {
        states[lane] = lane < streams ? state[lane] : idle;
        starts[lane] = lane < streams ? data[lane] : data[0];
    }
    kernel->run(states, starts, blocks);
}
