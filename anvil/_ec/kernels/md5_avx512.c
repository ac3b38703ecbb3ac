/* MD5 of sixteen streams at once with AVX-512F. */
#if defined(__x86_64__)
#include "md5.h"
#include "md5_steps.h"

#include <immintrin.h>

#define LANES 16
#define TARGET __attribute__((target("avx512f")))

/* rows[lane] = 16 words of one lane's block  ->  rows[word] = that word of all 16 lanes. Three rounds of pairing: words, double
 * words, then 128-bit quarters. */
TARGET static inline void transpose(__m512i rows[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    /* u[4 * group + w]: in each quarter q, word 4q + w of the lanes 4 * group .. 4 * group + 3 */
    __m512i u[16];
    for (int group = 0; group < 16; group += 4) {
        u[group + 0] = _mm512_unpacklo_epi64(t[group], t[group + 2]);
        u[group + 1] = _mm512_unpackhi_epi64(t[group], t[group + 2]);
        u[group + 2] = _mm512_unpacklo_epi64(t[group + 1], t[group + 3]);
        u[group + 3] = _mm512_unpackhi_epi64(t[group + 1], t[group + 3]);
    }
    for (int w = 0; w < 4; w++) {
        __m512i even01 = _mm512_shuffle_i32x4(u[w], u[4 + w], 0x88); /* quarters 0, 2 of lanes 0-3, then of 4-7 */
        __m512i odd01 = _mm512_shuffle_i32x4(u[w], u[4 + w], 0xdd);
        __m512i even23 = _mm512_shuffle_i32x4(u[8 + w], u[12 + w], 0x88);
        __m512i odd23 = _mm512_shuffle_i32x4(u[8 + w], u[12 + w], 0xdd);
        rows[w] = _mm512_shuffle_i32x4(even01, even23, 0x88);
        rows[8 + w] = _mm512_shuffle_i32x4(even01, even23, 0xdd);
        rows[4 + w] = _mm512_shuffle_i32x4(odd01, odd23, 0x88);
        rows[12 + w] = _mm512_shuffle_i32x4(odd01, odd23, 0xdd);
    }
}

/* The round functions are single ternary-logic operations; the last argument is the truth table over (b, c, d). */
#define STEP(a, b, c, d, w, s, k, first, second, third, table) \
    a = _mm512_add_epi32(a, _mm512_add_epi32(rows[w], _mm512_set1_epi32((int)(k)))); \
    ANVIL_MD5_KEEP_ORDER("+v", a); \
    a = _mm512_add_epi32(a, _mm512_ternarylogic_epi32(first, second, third, table)); \
    a = _mm512_add_epi32(_mm512_rol_epi32(a, s), b);
#define F(a, b, c, d, w, s, k) STEP(a, b, c, d, w, s, k, b, c, d, 0xca) /* b ? c : d */
#define G(a, b, c, d, w, s, k) STEP(a, b, c, d, w, s, k, d, b, c, 0xca) /* d ? b : c */
#define H(a, b, c, d, w, s, k) STEP(a, b, c, d, w, s, k, b, c, d, 0x96) /* b ^ c ^ d */
#define I(a, b, c, d, w, s, k) STEP(a, b, c, d, w, s, k, b, c, d, 0x39) /* c ^ (b | ~d) */

TARGET void anvil_md5_avx512(uint32_t *const state[], const uint8_t *const data[], size_t blocks) {
    uint32_t word[4][LANES] __attribute__((aligned(64)));
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++)
            word[i][lane] = state[lane][i];
    __m512i a = _mm512_load_si512(word[0]), b = _mm512_load_si512(word[1]);
    __m512i c = _mm512_load_si512(word[2]), d = _mm512_load_si512(word[3]);
    for (size_t block = 0; block < blocks; block++) {
        __m512i rows[16];
        for (int lane = 0; lane < LANES; lane++)
            rows[lane] = _mm512_loadu_si512(data[lane] + block * ANVIL_MD5_BLOCK);
        transpose(rows);
        const __m512i a0 = a, b0 = b, c0 = c, d0 = d;
        ANVIL_MD5_STEPS(F, G, H, I)
        a = _mm512_add_epi32(a, a0);
        b = _mm512_add_epi32(b, b0);
        c = _mm512_add_epi32(c, c0);
        d = _mm512_add_epi32(d, d0);
    }
    _mm512_store_si512(word[0], a);
    _mm512_store_si512(word[1], b);
    _mm512_store_si512(word[2], c);
    _mm512_store_si512(word[3], d);
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++)
            state[lane][i] = word[i][lane];
}
#else
typedef int anvil_md5_avx512_is_for_x86_64;
#endif
