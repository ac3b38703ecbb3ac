/* XXH3 64-bit for the instruction sets a processor may have, chosen at run time.
 *
 * xxhash.h is compiled once per instruction set, each in a file of its own (kernels/xxh3_*.c), so that a build for plain x86-64
 * still runs at full speed where AVX2 or AVX-512 is there. Other processors use what their compiler's baseline gives (NEON, VSX).
 */
#ifndef ANVIL_XXH3_H
#define ANVIL_XXH3_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ANVIL_XXH3_X86 1 /* clang has no `#pragma GCC target`: it gets the baseline */
#endif

/* State of a hash that is fed in pieces. Stays where it is while it is fed; of any alignment, as it lives in Python objects. */
typedef struct {
    unsigned char opaque[640 + 64];
} anvil_xxh3_state;

/* All at once, or in pieces of any length; both give the same. */
typedef struct {
    uint64_t (*whole)(const void *data, size_t length, uint64_t seed);
    void (*begin)(anvil_xxh3_state *state, uint64_t seed);
    void (*add)(anvil_xxh3_state *state, const void *data, size_t length);
    uint64_t (*end)(const anvil_xxh3_state *state);
} anvil_xxh3_kernel;

extern const anvil_xxh3_kernel anvil_xxh3_baseline;
#ifdef ANVIL_XXH3_X86
extern const anvil_xxh3_kernel anvil_xxh3_avx2, anvil_xxh3_avx512;
#endif

#endif
