/* XXH3 for processors with AVX2. Empty elsewhere. */
#include "xxh3.h"

#ifdef ANVIL_XXH3_X86
#pragma GCC target("avx2")
#define XXH_VECTOR XXH_AVX2
#define XXH_INLINE_ALL
#include <xxhash.h>

uint64_t anvil_xxh3_avx2(const void *data, size_t length, uint64_t seed) { return XXH3_64bits_withSeed(data, length, seed); }
#endif
