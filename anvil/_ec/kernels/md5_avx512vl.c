/* MD5 of eight streams at once with AVX-512VL: a step is four operations behind another instead of six or seven. */
#if defined(__x86_64__)
#include "md5.h"
#include "md5_steps.h"

#define NAME anvil_md5_avx512vl
#define TARGET __attribute__((target("avx2,avx512f,avx512vl")))
/* As in md5_avx512.c: the last argument is the truth table over (b, c, d). */
#define STEP(a, b, w, s, k, first, second, third, table) \
    a = PLUS_WORD(a, w, k); \
    ANVIL_MD5_KEEP_ORDER("+v", a); \
    a = ADD(a, _mm256_ternarylogic_epi32(first, second, third, table)); \
    a = ADD(_mm256_rol_epi32(a, s), b);
#define F(a, b, c, d, w, s, k) STEP(a, b, w, s, k, b, c, d, 0xca) /* b ? c : d */
#define G(a, b, c, d, w, s, k) STEP(a, b, w, s, k, d, b, c, 0xca) /* d ? b : c */
#define H(a, b, c, d, w, s, k) STEP(a, b, w, s, k, b, c, d, 0x96) /* b ^ c ^ d */
#define I(a, b, c, d, w, s, k) STEP(a, b, w, s, k, b, c, d, 0x39) /* c ^ (b | ~d) */

#include "md5_ymm.h"
#else
typedef int anvil_md5_avx512vl_is_for_x86_64;
#endif
