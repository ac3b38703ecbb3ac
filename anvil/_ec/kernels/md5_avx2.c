/* MD5 of eight streams at once with AVX2. */
#if defined(__x86_64__)
#include "md5.h"
#include "md5_steps.h"

#define NAME anvil_md5_avx2
#define TARGET __attribute__((target("avx2")))
#define AND _mm256_and_si256
#define OR _mm256_or_si256
#define XOR _mm256_xor_si256
#define ROTL(x, s) OR(_mm256_slli_epi32(x, s), _mm256_srli_epi32(x, 32 - (s)))
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
#define I(a, b, c, d, w, s, k) STEP(a, b, w, s, k, XOR(c, OR(b, XOR(d, _mm256_set1_epi32(-1)))))

#include "md5_ymm.h"
#else
typedef int anvil_md5_avx2_is_for_x86_64;
#endif
