/* AES-256-GCM, 16 blocks at a time, for x86-64 with AVX-512, VAES and VPCLMULQDQ. Empty elsewhere.
 *
 * Sources: NIST SP 800-38D (GCM); Gueron and Kounavis, "Intel Carry-Less Multiplication Instruction and its Usage for Computing
 * the GCM Mode" (aggregated reduction, bit-reflected arithmetic). Invariant: no branch and no address depends on key or text.
 *
 * GHASH works on byte-reversed blocks, in which a carry-less product comes out one bit short of its place (times x). The powers
 * of H are kept multiplied by x^-1, so products need no shift. The modulus in this order is 0xC2 << 120 | 1.
 */
#include "gcm_vaes.h"

#ifdef ANVIL_GCM_X86
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,vaes,vpclmulqdq,aes,pclmul,sse4.1")
#include <immintrin.h>
#include <openssl/crypto.h>
#include <string.h>

#define BLOCKS 16               /* per round of the main loop */
#define WIDE (BLOCKS * 16)      /* bytes of them */

static inline __m128i load(const void *at) { return _mm_loadu_si128((const __m128i *)at); }
static inline void store(void *at, __m128i value) { _mm_storeu_si128((__m128i *)at, value); }

static inline __m128i reversed(__m128i block) {
    return _mm_shuffle_epi8(block, _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

static inline __m512i reversed4(__m512i blocks) {
    const __m128i order = _mm_set_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_shuffle_epi8(blocks, _mm512_broadcast_i32x4(order));
}

/* -- AES-256 (FIPS 197) -------------------------------------------------------------------------------------------- */

static inline __m128i spread(__m128i key) { /* key ^ key << 32 ^ key << 64 ^ key << 96 */
    key = _mm_xor_si128(key, _mm_slli_si128(key, 4));
    return _mm_xor_si128(key, _mm_slli_si128(key, 8));
}

#define EVEN(i, rcon)                                                                                                  \
    even = _mm_xor_si128(spread(even), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(odd, rcon), 0xff));                 \
    store(s->round_key[i], even);
#define ODD(i)                                                                                                         \
    odd = _mm_xor_si128(spread(odd), _mm_shuffle_epi32(_mm_aeskeygenassist_si128(even, 0), 0xaa));                     \
    store(s->round_key[i], odd);

static void expand_key(anvil_gcm_vaes *s, const unsigned char *key) {
    __m128i even = load(key), odd = load(key + 16);
    store(s->round_key[0], even);
    store(s->round_key[1], odd);
    EVEN(2, 0x01) ODD(3)
    EVEN(4, 0x02) ODD(5)
    EVEN(6, 0x04) ODD(7)
    EVEN(8, 0x08) ODD(9)
    EVEN(10, 0x10) ODD(11)
    EVEN(12, 0x20) ODD(13)
    EVEN(14, 0x40)
}

static __m128i encrypt_block(const anvil_gcm_vaes *s, __m128i block) {
    block = _mm_xor_si128(block, load(s->round_key[0]));
    for (int i = 1; i < 14; i++)
        block = _mm_aesenc_si128(block, load(s->round_key[i]));
    return _mm_aesenclast_si128(block, load(s->round_key[14]));
}

static inline __m512i round_key4(const anvil_gcm_vaes *s, int i) { return _mm512_broadcast_i32x4(load(s->round_key[i])); }

static inline __m512i add_to_counters(__m512i counters, int by) {
    return _mm512_add_epi32(counters, _mm512_maskz_set1_epi32(0x1111, by)); /* the low 32 bits of each block */
}

/* Four counters from s->counter on. */
static inline __m512i four_counters(const anvil_gcm_vaes *s) {
    const __m512i steps = _mm512_set_epi32(0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0);
    return _mm512_add_epi32(_mm512_broadcast_i32x4(load(s->counter)), steps);
}

static inline void advance(anvil_gcm_vaes *s, int blocks) {
    store(s->counter, _mm_add_epi32(load(s->counter), _mm_set_epi32(0, 0, 0, blocks)));
}

static inline __m512i encrypt4(const anvil_gcm_vaes *s, __m512i counters) {
    __m512i a = _mm512_xor_si512(reversed4(counters), round_key4(s, 0));
    for (int i = 1; i < 14; i++)
        a = _mm512_aesenc_epi128(a, round_key4(s, i));
    return _mm512_aesenclast_epi128(a, round_key4(s, 14));
}

/* -- GHASH --------------------------------------------------------------------------------------------------------- */

/* A sum of products not reduced yet: four lanes each of the low, middle and high parts. */
typedef struct {
    __m512i low, middle, high;
} sum;

static inline void add_products(sum *t, __m512i blocks, __m512i powers) {
    t->low = _mm512_xor_si512(t->low, _mm512_clmulepi64_epi128(blocks, powers, 0x00));
    t->high = _mm512_xor_si512(t->high, _mm512_clmulepi64_epi128(blocks, powers, 0x11));
    t->middle = _mm512_ternarylogic_epi64(t->middle, _mm512_clmulepi64_epi128(blocks, powers, 0x01),
                                          _mm512_clmulepi64_epi128(blocks, powers, 0x10), 0x96); /* xor of three */
}

static inline __m128i lanes_together(__m512i a) {
    __m256i half = _mm256_xor_si256(_mm512_castsi512_si256(a), _mm512_extracti64x4_epi64(a, 1));
    return _mm_xor_si128(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
}

/* low + middle * 2^64 + high * 2^128, reduced: fold the lowest 64 bits upwards, twice. */
static inline __m128i fold(__m128i low, __m128i middle, __m128i high) {
    const __m128i modulus = _mm_set_epi64x((long long)0xC200000000000000ULL, 1);
    middle = _mm_xor_si128(middle, _mm_xor_si128(_mm_shuffle_epi32(low, 0x4e), _mm_clmulepi64_si128(low, modulus, 0x10)));
    return _mm_xor_si128(high, _mm_xor_si128(_mm_shuffle_epi32(middle, 0x4e), _mm_clmulepi64_si128(middle, modulus, 0x10)));
}

static inline __m128i reduced(const sum *t) {
    return fold(lanes_together(t->low), lanes_together(t->middle), lanes_together(t->high));
}

static __m128i multiply(__m128i a, __m128i b) {
    __m128i middle = _mm_xor_si128(_mm_clmulepi64_si128(a, b, 0x01), _mm_clmulepi64_si128(a, b, 0x10));
    return fold(_mm_clmulepi64_si128(a, b, 0x00), middle, _mm_clmulepi64_si128(a, b, 0x11));
}

/* Up to four blocks of text (zeros behind them) into the hash. */
static inline void hash4(anvil_gcm_vaes *s, __m512i text, int blocks) {
    sum t = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
    __m512i first = _mm512_zextsi128_si512(load(s->hash));
    add_products(&t, _mm512_xor_si512(reversed4(text), first), _mm512_loadu_si512(s->power[BLOCKS - blocks]));
    store(s->hash, reduced(&t));
}

static void make_powers(anvil_gcm_vaes *s) {
    const __m128i h = reversed(encrypt_block(s, _mm_setzero_si128()));
    /* times x^-1: shift left by one bit; the bit that falls out comes back as the modulus */
    const __m128i carry = _mm_srai_epi32(_mm_shuffle_epi32(h, 0xff), 31);
    const __m128i shifted = _mm_or_si128(_mm_slli_epi64(h, 1), _mm_srli_epi64(_mm_slli_si128(h, 8), 63));
    const __m128i one = _mm_xor_si128(shifted, _mm_and_si128(carry, _mm_set_epi64x((long long)0xC200000000000000ULL, 1)));
    __m128i power = one;
    memset(s->power, 0, sizeof s->power);
    for (int i = BLOCKS - 1; i >= 0; i--) {
        store(s->power[i], power);
        power = multiply(power, one);
    }
}

/* -- GCM ----------------------------------------------------------------------------------------------------------- */

static inline __mmask64 bytes_mask(size_t count) { return count >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << count) - 1; }

void anvil_gcm_vaes_begin(anvil_gcm_vaes *s, const unsigned char *key, const unsigned char *nonce,
                          const unsigned char *associated, size_t associated_length) {
    unsigned char first[16] = {0};
    memcpy(first, nonce, 12);
    first[15] = 1;
    expand_key(s, key);
    make_powers(s);
    store(s->first_mask, encrypt_block(s, load(first)));
    store(s->counter, reversed(load(first)));
    advance(s, 1);
    memset(s->hash, 0, sizeof s->hash);
    s->associated_bytes = associated_length;
    s->text_bytes = 0;
    for (size_t at = 0; at < associated_length; at += 64) {
        const size_t here = associated_length - at < 64 ? associated_length - at : 64;
        hash4(s, _mm512_maskz_loadu_epi8(bytes_mask(here), associated + at), (int)((here + 15) / 16));
    }
}

/* The loop of 16 blocks. `sealing` is a constant where this is inlined: GHASH is over what lies in the open, out or in. */
static inline __attribute__((always_inline)) size_t wide(anvil_gcm_vaes *s, unsigned char *out, const unsigned char *in,
                                                         size_t length, const int sealing) {
    __m512i key[15], power[4], counters = four_counters(s);
    __m128i hash = load(s->hash);
    size_t at = 0;
    for (int i = 0; i < 15; i++)
        key[i] = round_key4(s, i);
    for (int i = 0; i < 4; i++)
        power[i] = _mm512_loadu_si512(s->power[4 * i]);
    for (; at + WIDE <= length; at += WIDE) {
        __m512i stream[4], text;
        sum t = {_mm512_setzero_si512(), _mm512_setzero_si512(), _mm512_setzero_si512()};
        for (int j = 0; j < 4; j++) {
            stream[j] = _mm512_xor_si512(reversed4(counters), key[0]);
            counters = add_to_counters(counters, 4);
        }
        for (int i = 1; i < 14; i++)
            for (int j = 0; j < 4; j++)
                stream[j] = _mm512_aesenc_epi128(stream[j], key[i]);
        for (int j = 0; j < 4; j++) {
            text = _mm512_loadu_si512(in + at + 64 * j);
            stream[j] = _mm512_xor_si512(_mm512_aesenclast_epi128(stream[j], key[14]), text);
            _mm512_storeu_si512(out + at + 64 * j, stream[j]);
            text = reversed4(sealing ? stream[j] : text);
            if (j == 0)
                text = _mm512_xor_si512(text, _mm512_zextsi128_si512(hash));
            add_products(&t, text, power[j]);
        }
        hash = reduced(&t);
    }
    store(s->hash, hash);
    advance(s, (int)(at / 16));
    return at;
}

static inline __attribute__((always_inline)) void crypt(anvil_gcm_vaes *s, unsigned char *out, const unsigned char *in,
                                                        size_t length, const int sealing) {
    size_t at = length >= WIDE ? wide(s, out, in, length, sealing) : 0;
    s->text_bytes += length;
    while (at < length) {
        const size_t here = length - at < 64 ? length - at : 64;
        const int blocks = (int)((here + 15) / 16);
        const __mmask64 mask = bytes_mask(here);
        const __m512i text = _mm512_maskz_loadu_epi8(mask, in + at);
        const __m512i result = _mm512_maskz_mov_epi8(mask, _mm512_xor_si512(text, encrypt4(s, four_counters(s))));
        _mm512_mask_storeu_epi8(out + at, mask, result);
        hash4(s, sealing ? result : text, blocks);
        advance(s, blocks);
        at += here;
    }
}

void anvil_gcm_vaes_seal(anvil_gcm_vaes *s, unsigned char *out, const unsigned char *in, size_t length) {
    crypt(s, out, in, length, 1);
}

void anvil_gcm_vaes_open(anvil_gcm_vaes *s, unsigned char *out, const unsigned char *in, size_t length) {
    crypt(s, out, in, length, 0);
}

/* Writes the tag and wipes the state. */
void anvil_gcm_vaes_tag(anvil_gcm_vaes *s, unsigned char *tag) {
    const __m128i lengths = _mm_set_epi64x((long long)(s->associated_bytes * 8), (long long)(s->text_bytes * 8));
    const __m128i hash = multiply(_mm_xor_si128(load(s->hash), lengths), load(s->power[BLOCKS - 1]));
    store(tag, _mm_xor_si128(reversed(hash), load(s->first_mask)));
    OPENSSL_cleanse(s, sizeof *s);
}
#endif
