/* The functions of an XXH3 kernel, compiled once per instruction set: the including file has chosen it, and ANVIL_XXH3_NAME. */
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "xxh3.h"

_Static_assert(sizeof(XXH3_state_t) + 63 <= sizeof(anvil_xxh3_state), "it must hold the library's state, which is aligned");

static XXH3_state_t *ANVIL_XXH3_NAME(aligned)(const anvil_xxh3_state *state) {
    return (XXH3_state_t *)(((uintptr_t)state->opaque + 63) & ~(uintptr_t)63);
}

static uint64_t ANVIL_XXH3_NAME(whole)(const void *data, size_t length, uint64_t seed) {
    return XXH3_64bits_withSeed(data, length, seed);
}

static void ANVIL_XXH3_NAME(begin)(anvil_xxh3_state *state, uint64_t seed) {
    memset(state, 0, sizeof *state); /* the library compares the seed with the one that is there, to keep its secret */
    XXH3_64bits_reset_withSeed(ANVIL_XXH3_NAME(aligned)(state), seed);
}

static void ANVIL_XXH3_NAME(add)(anvil_xxh3_state *state, const void *data, size_t length) {
    XXH3_64bits_update(ANVIL_XXH3_NAME(aligned)(state), data, length);
}

static uint64_t ANVIL_XXH3_NAME(end)(const anvil_xxh3_state *state) { return XXH3_64bits_digest(ANVIL_XXH3_NAME(aligned)(state)); }

#define ANVIL_XXH3_KERNEL \
    { ANVIL_XXH3_NAME(whole), ANVIL_XXH3_NAME(begin), ANVIL_XXH3_NAME(add), ANVIL_XXH3_NAME(end) }
