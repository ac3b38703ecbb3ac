/* CRC-64/NVME (NVM Express, "64b CRC"): reflected polynomial 0x9a6c9329ac4bc9b5, initial value and final inversion all ones. */
#ifndef ANVIL_CRC64_H
#define ANVIL_CRC64_H

#include <stddef.h>
#include <stdint.h>

#define ANVIL_CRC64NVME_POLYNOMIAL 0x9a6c9329ac4bc9b5ull

typedef uint64_t (*anvil_crc64_fn)(uint64_t remainder, const uint8_t *data, size_t length);

typedef struct {
    const char *name;
    anvil_crc64_fn run; /* on the bare remainder, without the inversions */
} anvil_crc64_kernel;

/* Builds tables and folding constants; call once before anything else here. */
void anvil_crc64_init(void);

/* The best kernel of this machine, or the one of that name; NULL if unknown or not offered by the processor. */
const anvil_crc64_kernel *anvil_crc64_best(void);
const anvil_crc64_kernel *anvil_crc64_find(const char *name);

/* What `crc` of a message becomes when `length` zero bytes follow it, by repeated squaring modulo the reflected polynomial of
 * `width` bits (32 or 64). combine(first, second) = shift(first, length of second) ^ second: the inversions cancel out. */
uint64_t anvil_crc_shift(uint64_t polynomial, int width, uint64_t crc, uint64_t length);

#endif
