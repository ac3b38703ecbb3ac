/* XXH3 for processors with AVX2. Empty elsewhere. */
#include "xxh3.h"

#ifdef ANVIL_XXH3_X86
#pragma GCC target("avx2")
#define XXH_VECTOR XXH_AVX2
#define ANVIL_XXH3_NAME(what) anvil_xxh3_avx2_##what
#include "xxh3_body.h"

const anvil_xxh3_kernel anvil_xxh3_avx2 = ANVIL_XXH3_KERNEL;
#endif
