/* CRC-64/NVME by tables, by carry-less multiplication of 128 bits (PCLMULQDQ), and of four times 128 bits (VPCLMULQDQ).
 *
 * The folding method is that of Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel,
 * 2009), in its reflected form. Bits are reflected, so bit n of a 128-bit register stands for x^(127-n): its low half A is the
 * more significant one. To move a register D bits further on, A * (x^(D+64) mod P) + B * (x^D mod P); a product of reflected
 * operands comes out one power too high, so the constants are x^(D+63) and x^(D-1). What the registers hold at the end is itself a
 * short message with the same remainder: it is stored and handed to the next simpler kernel, so no kernel needs a reduction of its own.
 */
#include "crc64.h"

#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static uint64_t table[8][256]; /* table[n][byte]: the remainder of byte followed by n zero bytes */

static uint64_t table_run(uint64_t remainder, const uint8_t *data, size_t length) {
    for (; length >= 8; data += 8, length -= 8) {
        uint64_t word;
        memcpy(&word, data, sizeof word);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
        word = __builtin_bswap64(word);
#endif
        word ^= remainder;
        remainder = 0;
        for (int byte = 0; byte < 8; byte++)
            remainder ^= table[7 - byte][(word >> (8 * byte)) & 0xff];
    }
    while (length--)
        remainder = table[0][(remainder ^ *data++) & 0xff] ^ (remainder >> 8);
    return remainder;
}

/* Product of two reflected polynomials modulo a reflected polynomial of `width` bits. The top bit of a word is x^0. */
static uint64_t multiply(uint64_t polynomial, int width, uint64_t a, uint64_t b) {
    uint64_t product = 0;
    for (int i = width - 1; i >= 0; i--) {
        if ((a >> i) & 1)
            product ^= b;
        b = (b >> 1) ^ ((b & 1) ? polynomial : 0);
    }
    return product;
}

/* x^exponent modulo the polynomial. */
static uint64_t power(uint64_t polynomial, int width, uint64_t exponent) {
    uint64_t result = 1ull << (width - 1), square = 1ull << (width - 2);
    for (; exponent; exponent >>= 1) {
        if (exponent & 1)
            result = multiply(polynomial, width, result, square);
        square = multiply(polynomial, width, square, square);
    }
    return result;
}

uint64_t anvil_crc_shift(uint64_t polynomial, int width, uint64_t crc, uint64_t length) {
    return multiply(polynomial, width, crc, power(polynomial, width, length * 8));
}

#if defined(__x86_64__)

#define NARROW_REGISTERS 8 /* enough to hide the latency of a multiplication */
#define WIDE_REGISTERS 8

/* [0] multiplies the low half (x^(D+63)), [1] the high half (x^(D-1)). */
static uint64_t fold_128[2], fold_narrow[2], fold_wide[2];

static void fold_constants(uint64_t constants[2], uint64_t distance_bits) {
    constants[0] = power(ANVIL_CRC64NVME_POLYNOMIAL, 64, distance_bits + 63);
    constants[1] = power(ANVIL_CRC64NVME_POLYNOMIAL, 64, distance_bits - 1);
}

/* AVX for its encoding: old-style SSE instructions run at half the speed while some caller has left the upper halves dirty. */
#define NARROW __attribute__((target("avx,pclmul")))
#define WIDE __attribute__((target("avx512f,vpclmulqdq")))

NARROW static inline __m128i fold_narrow_step(__m128i x, __m128i k, __m128i next) {
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(x, k, 0x00), _mm_clmulepi64_si128(x, k, 0x11)), next);
}

NARROW static uint64_t pclmul_run(uint64_t remainder, const uint8_t *data, size_t length) {
    const size_t stride = NARROW_REGISTERS * 16;
    if (length < 32)
        return table_run(remainder, data, length);
    __m128i x[NARROW_REGISTERS];
    const __m128i k128 = _mm_loadu_si128((const __m128i *)fold_128);
    __m128i first = _mm_xor_si128(_mm_loadu_si128((const __m128i *)data), _mm_cvtsi64_si128((long long)remainder));
    data += 16;
    length -= 16;
    if (length >= 2 * stride) {
        const __m128i k = _mm_loadu_si128((const __m128i *)fold_narrow);
        x[0] = first;
        for (int i = 1; i < NARROW_REGISTERS; i++, data += 16)
            x[i] = _mm_loadu_si128((const __m128i *)data);
        length -= stride - 16;
        for (; length >= stride; data += stride, length -= stride)
            for (int i = 0; i < NARROW_REGISTERS; i++)
                x[i] = fold_narrow_step(x[i], k, _mm_loadu_si128((const __m128i *)(data + 16 * i)));
        first = x[0];
        for (int i = 1; i < NARROW_REGISTERS; i++)
            first = fold_narrow_step(first, k128, x[i]);
    }
    for (; length >= 16; data += 16, length -= 16)
        first = fold_narrow_step(first, k128, _mm_loadu_si128((const __m128i *)data));
    uint8_t rest[16];
    _mm_storeu_si128((__m128i *)rest, first);
    return table_run(table_run(0, rest, sizeof rest), data, length);
}

WIDE static inline __m512i fold_wide_step(__m512i x, __m512i k, __m512i next) {
    return _mm512_ternarylogic_epi64(_mm512_clmulepi64_epi128(x, k, 0x00), _mm512_clmulepi64_epi128(x, k, 0x11), next, 0x96);
}

WIDE static uint64_t vpclmul_run(uint64_t remainder, const uint8_t *data, size_t length) {
    const size_t stride = WIDE_REGISTERS * 64;
    if (length < 2 * stride)
        return pclmul_run(remainder, data, length);
    const __m512i k = _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)fold_wide));
    __m512i x[WIDE_REGISTERS];
    for (int i = 0; i < WIDE_REGISTERS; i++)
        x[i] = _mm512_loadu_si512(data + 64 * i);
    x[0] = _mm512_xor_si512(x[0], _mm512_zextsi128_si512(_mm_cvtsi64_si128((long long)remainder)));
    data += stride;
    length -= stride;
    for (; length >= stride; data += stride, length -= stride)
        for (int i = 0; i < WIDE_REGISTERS; i++)
            x[i] = fold_wide_step(x[i], k, _mm512_loadu_si512(data + 64 * i));
    uint8_t rest[WIDE_REGISTERS * 64];
    for (int i = 0; i < WIDE_REGISTERS; i++)
        _mm512_storeu_si512(rest + 64 * i, x[i]);
    return pclmul_run(pclmul_run(0, rest, sizeof rest), data, length);
}

#endif

void anvil_crc64_init(void) {
    for (int byte = 0; byte < 256; byte++) {
        uint64_t remainder = (uint64_t)byte;
        for (int bit = 0; bit < 8; bit++)
            remainder = (remainder >> 1) ^ ((remainder & 1) ? ANVIL_CRC64NVME_POLYNOMIAL : 0);
        table[0][byte] = remainder;
    }
    for (int zeros = 1; zeros < 8; zeros++)
        for (int byte = 0; byte < 256; byte++)
            table[zeros][byte] = table[0][table[zeros - 1][byte] & 0xff] ^ (table[zeros - 1][byte] >> 8);
#if defined(__x86_64__)
    fold_constants(fold_128, 128);
    fold_constants(fold_narrow, NARROW_REGISTERS * 128);
    fold_constants(fold_wide, WIDE_REGISTERS * 512);
#endif
}

/* In order of preference. */
static const anvil_crc64_kernel KERNELS[] = {
#if defined(__x86_64__)
    {"vpclmul", vpclmul_run},
    {"pclmul", pclmul_run},
#endif
    {"table", table_run},
};
#define KERNEL_COUNT (sizeof KERNELS / sizeof KERNELS[0])

static int offered(const anvil_crc64_kernel *kernel) {
#if defined(__x86_64__)
    if (kernel->run == vpclmul_run)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("vpclmulqdq");
    if (kernel->run == pclmul_run)
        return __builtin_cpu_supports("avx") && __builtin_cpu_supports("pclmul");
#endif
    return kernel->run == table_run;
}

const anvil_crc64_kernel *anvil_crc64_best(void) {
    size_t i = 0;
    while (!offered(&KERNELS[i]))
        i++; /* ends at the table */
    return &KERNELS[i];
}

const anvil_crc64_kernel *anvil_crc64_find(const char *name) {
    for (size_t i = 0; i < KERNEL_COUNT; i++)
        if (strcmp(KERNELS[i].name, name) == 0 && offered(&KERNELS[i]))
            return &KERNELS[i];
    return NULL;
}
