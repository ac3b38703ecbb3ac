/* XXH3 for processors with AVX-512. Empty elsewhere. */
#include "xxh3.h"

#ifdef ANVIL_XXH3_X86
#pragma GCC target("avx512f")
#define XXH_VECTOR XXH_AVX512
#define ANVIL_XXH3_NAME(what) anvil_xxh3_avx512_##what
#include "xxh3_body.h"

const anvil_xxh3_kernel anvil_xxh3_avx512 = ANVIL_XXH3_KERNEL;
#endif
