/* XXH3 with the instructions every processor of the architecture has. */
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "xxh3.h"

uint64_t anvil_xxh3_baseline(const void *data, size_t length, uint64_t seed) { return XXH3_64bits_withSeed(data, length, seed); }
