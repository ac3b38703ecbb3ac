/* MD5 of eight streams at once with AVX2. */
#if defined(__x86_64__)
#include "md5.h"
#include "md5_steps.h"

#include <immintrin.h>

#define LANES 8
#define TARGET __attribute__((target("avx2")))

/* rows[lane] = 8 words of one lane  ->  rows[word] = that word of all 8 lanes. */
TARGET static inline void transpose(__m256i rows[8]) {
    __m256i t[8], u[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int group = 0; group < 8; group += 4) {
        u[group + 0] = _mm256_unpacklo_epi64(t[group], t[group + 2]);
        u[group + 1] = _mm256_unpackhi_epi64(t[group], t[group + 2]);
        u[group + 2] = _mm256_unpacklo_epi64(t[group + 1], t[group + 3]);
        u[group + 3] = _mm256_unpackhi_epi64(t[group + 1], t[group + 3]);
    }
    for (int w = 0; w < 4; w++) {
        rows[w] = _mm256_permute2x128_si256(u[w], u[4 + w], 0x20);
        rows[4 + w] = _mm256_permute2x128_si256(u[w], u[4 + w], 0x31);
    }
}

#define ADD _mm256_add_epi32
#define AND _mm256_and_si256
#define OR _mm256_or_si256
#define XOR _mm256_xor_si256
#define ROTL(x, s) OR(_mm256_slli_epi32(x, s), _mm256_srli_epi32(x, 32 - (s)))
#define PLUS_WORD(a, w, k) ADD(a, ADD(words[w], _mm256_set1_epi32((int)(k))))
#define STEP(a, b, w, s, k, f) \
    a = PLUS_WORD(a, w, k); \
    ANVIL_MD5_KEEP_ORDER("+x", a); \
    a = ADD(a, f); \
    a = ADD(ROTL(a, s), b);
#define F(a, b, c, d, w, s, k) STEP(a, b, w, s, k, XOR(d, AND(b, XOR(c, d))))
/* As in the scalar kernel: the halves of G share no bit, so the one without b is added first. */
#define G(a, b, c, d, w, s, k) \
    a = ADD(PLUS_WORD(a, w, k), _mm256_andnot_si256(d, c)); \
    ANVIL_MD5_KEEP_ORDER("+x", a); \
    a = ADD(a, AND(b, d)); \
    a = ADD(ROTL(a, s), b);
#define H(a, b, c, d, w, s, k) STEP(a, b, w, s, k, XOR(b, XOR(c, d)))
#define I(a, b, c, d, w, s, k) STEP(a, b, w, s, k, XOR(c, OR(b, XOR(d, ones))))

TARGET void anvil_md5_avx2(uint32_t *const state[], const uint8_t *const data[], size_t blocks) {
    uint32_t word[4][LANES] __attribute__((aligned(32)));
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++)
            word[i][lane] = state[lane][i];
    const __m256i ones = _mm256_set1_epi32(-1);
    __m256i a = _mm256_load_si256((const __m256i *)word[0]), b = _mm256_load_si256((const __m256i *)word[1]);
    __m256i c = _mm256_load_si256((const __m256i *)word[2]), d = _mm256_load_si256((const __m256i *)word[3]);
    for (size_t block = 0; block < blocks; block++) {
        __m256i words[16];
        for (int half = 0; half < 2; half++) {
            for (int lane = 0; lane < LANES; lane++) {
                const uint8_t *at = data[lane] + block * ANVIL_MD5_BLOCK + half * 32;
                words[8 * half + lane] = _mm256_loadu_si256((const __m256i *)at);
            }
            transpose(words + 8 * half);
        }
        const __m256i a0 = a, b0 = b, c0 = c, d0 = d;
        ANVIL_MD5_STEPS(F, G, H, I)
        a = ADD(a, a0);
        b = ADD(b, b0);
        c = ADD(c, c0);
        d = ADD(d, d0);
    }
    _mm256_store_si256((__m256i *)word[0], a);
    _mm256_store_si256((__m256i *)word[1], b);
    _mm256_store_si256((__m256i *)word[2], c);
    _mm256_store_si256((__m256i *)word[3], d);
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++)
            state[lane][i] = word[i][lane];
}
#else
typedef int anvil_md5_avx2_is_for_x86_64;
#endif
