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

typedef uint64_t (*anvil_xxh3_kernel)(const void *data, size_t length, uint64_t seed);

uint64_t anvil_xxh3_baseline(const void *data, size_t length, uint64_t seed);
#ifdef ANVIL_XXH3_X86
uint64_t anvil_xxh3_avx2(const void *data, size_t length, uint64_t seed);
uint64_t anvil_xxh3_avx512(const void *data, size_t length, uint64_t seed);
#endif

#endif
