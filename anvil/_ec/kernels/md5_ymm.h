/* MD5 of eight streams at once in 256-bit registers, written once for AVX2 and for AVX-512VL.
 *
 * The including file defines TARGET, NAME and the steps F, G, H and I (md5_steps.h) over a, b, c, d and words[16]. */
#include <immintrin.h>

#define LANES 8
#define ADD _mm256_add_epi32
#define PLUS_WORD(a, w, k) ADD(a, ADD(words[w], _mm256_set1_epi32((int)(k))))

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

TARGET void NAME(uint32_t *const state[], const uint8_t *const data[], size_t blocks) {
    uint32_t word[4][LANES] __attribute__((aligned(32)));
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++)
            word[i][lane] = state[lane][i];
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
