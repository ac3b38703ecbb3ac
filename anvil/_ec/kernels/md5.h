/* MD5's block function over raw states, for one stream or for several at once (RFC 1321).
 *
 * A kernel advances `lanes` independent states by the same number of whole 64-byte blocks. Padding, partial blocks and the choice
 * of what runs together are the callers' (digests.c, lanes.c). Kernels are chosen at run time by what the processor offers; none
 * needs the file to be compiled for a special machine.
 */
#ifndef ANVIL_MD5_H
#define ANVIL_MD5_H

#include <stddef.h>
#include <stdint.h>

#define ANVIL_MD5_LANES_MAX 16
#define ANVIL_MD5_BLOCK 64

/* state[lane] points to the lane's four words, data[lane] to blocks * 64 bytes. Both arrays have as many entries as the kernel has
 * lanes, all of them valid. */
typedef void (*anvil_md5_lanes_fn)(uint32_t *const state[], const uint8_t *const data[], size_t blocks);

typedef struct anvil_md5_kernel {
    const char *name;
    anvil_md5_lanes_fn run; /* NULL: this kernel knows one stream only */
    int lanes;
    const struct anvil_md5_kernel *narrow; /* the next best that such a machine has; it runs where it has fewer lanes and they suffice */
} anvil_md5_kernel;

/* From this many streams on, a vector kernel with most lanes idle beats the scalar one on one stream after the other. Measured per
 * lane: scalar 0.81 GB/s, AVX2 0.56, AVX-512VL 0.63, AVX-512 0.48; so two lanes already win (bench/micro/digests.py prints these). */
#define ANVIL_MD5_CROSSOVER 2

extern const uint32_t anvil_md5_start[4];

void anvil_md5_scalar(uint32_t state[4], const uint8_t *data, size_t blocks);

/* Advance any number of streams up to kernel->lanes, by the fastest way for that number. */
void anvil_md5_run(const anvil_md5_kernel *kernel, int streams, uint32_t *state[], const uint8_t *data[], size_t blocks);

/* The best kernel of this machine, or the one of that name; NULL if there is none of that name or the processor lacks it. */
const anvil_md5_kernel *anvil_md5_best(void);
const anvil_md5_kernel *anvil_md5_find(const char *name);

#if defined(__x86_64__)
void anvil_md5_avx2(uint32_t *const state[], const uint8_t *const data[], size_t blocks);
void anvil_md5_avx512vl(uint32_t *const state[], const uint8_t *const data[], size_t blocks);
void anvil_md5_avx512(uint32_t *const state[], const uint8_t *const data[], size_t blocks);
#endif

#endif
