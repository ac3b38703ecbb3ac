/* Reed-Solomon over GF(2^8) on ISA-L: the state of one code, and encode/decode that need no GIL.
 *
 * Owns: the coding matrix, the expanded encode tables, and a bounded cache of decode tables, one entry per erasure pattern.
 * Invariant: a cached table is only touched under the lock; callers get a copy (4 KiB at most), so an entry may be evicted
 * while another thread still decodes with it. Not here: Python, buffers, checksums.
 */
#ifndef ANVIL_CODEC_H
#define ANVIL_CODEC_H

#include <isa-l.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ANVIL_K_MAX 16
#define ANVIL_M_MAX 8
#define ANVIL_WIDTH_MAX (ANVIL_K_MAX + ANVIL_M_MAX)
#define ANVIL_TABLES_BYTES (32 * ANVIL_K_MAX * ANVIL_M_MAX) /* ISA-L expands each coefficient to 32 bytes */
#define ANVIL_DECODE_CACHE 64                               /* patterns kept: all C(6,2)+6 of 4+2; 264 KiB at the very most */

enum { ANVIL_OK = 0, ANVIL_NOT_ENOUGH_UNITS, ANVIL_SEAL_BROKEN, ANVIL_CRYPTO_FAILED, ANVIL_NO_MEMORY, ANVIL_SINGULAR };

typedef struct {
    uint32_t used, wanted; /* bit i = unit i; used == 0: entry is empty */
    uint64_t tick;         /* of the last use */
    unsigned char tables[ANVIL_TABLES_BYTES];
} anvil_decode_entry;

typedef struct {
    int k, m;
    unsigned char matrix[ANVIL_WIDTH_MAX * ANVIL_K_MAX]; /* (k+m) rows of k coefficients, identity on top */
    unsigned char encode_tables[ANVIL_TABLES_BYTES];
    pthread_mutex_t lock;
    uint64_t tick, hits, misses;
    anvil_decode_entry *cache; /* ANVIL_DECODE_CACHE entries; pages are touched only as patterns turn up */
} anvil_codec;

/* 0, or ANVIL_NO_MEMORY. k 1..16 and m 0..8 were checked by the caller. */
static int anvil_codec_open(anvil_codec *c, int k, int m) {
    memset(c, 0, sizeof *c);
    c->k = k;
    c->m = m;
    c->cache = (anvil_decode_entry *)calloc(ANVIL_DECODE_CACHE, sizeof *c->cache);
    if (!c->cache)
        return ANVIL_NO_MEMORY;
    pthread_mutex_init(&c->lock, NULL);
    gf_gen_cauchy1_matrix(c->matrix, k + m, k);
    if (k == 1)
        memset(c->matrix, 1, (size_t)(1 + m)); /* copies: the code of one unit is the unit itself */
    if (m > 0)
        ec_init_tables(k, m, c->matrix + k * k, c->encode_tables);
    return ANVIL_OK;
}

static void anvil_codec_close(anvil_codec *c) {
    if (!c->cache)
        return;
    free(c->cache);
    c->cache = NULL;
    pthread_mutex_destroy(&c->lock);
}

/* Writes parity unit i to parity[i]. Sources and targets must not overlap. `unit` fits an int. */
static void anvil_codec_encode(const anvil_codec *c, size_t unit, unsigned char **data, unsigned char **parity) {
    if (unit == 0 || c->m == 0)
        return;
    if (c->k == 1) {
        for (int i = 0; i < c->m; i++)
            memcpy(parity[i], data[0], unit);
        return;
    }
    ec_encode_data((int)unit, c->k, c->m, (unsigned char *)c->encode_tables, data, parity);
}

/* Computes tables that turn the k units of `used` into those of `wanted`: rows of E times the inverse of the used rows of E. */
static int anvil_codec_solve(const anvil_codec *c, uint32_t used, uint32_t wanted, unsigned char *tables) {
    unsigned char rows[ANVIL_K_MAX * ANVIL_K_MAX], inverse[ANVIL_K_MAX * ANVIL_K_MAX];
    unsigned char wanted_rows[ANVIL_M_MAX * ANVIL_K_MAX];
    const int k = c->k;
    int n = 0, count = 0;
    for (int i = 0; i < k + c->m; i++)
        if (used >> i & 1)
            memcpy(rows + k * n++, c->matrix + k * i, (size_t)k);
    if (gf_invert_matrix(rows, inverse, k) != 0)
        return ANVIL_SINGULAR; /* impossible for a Cauchy matrix */
    for (int i = 0; i < k + c->m; i++) {
        if (!(wanted >> i & 1))
            continue;
        for (int column = 0; column < k; column++) {
            unsigned char sum = 0;
            for (int j = 0; j < k; j++)
                sum ^= gf_mul(c->matrix[k * i + j], inverse[k * j + column]);
            wanted_rows[k * count + column] = sum;
        }
        count++;
    }
    ec_init_tables(k, count, wanted_rows, tables);
    return ANVIL_OK;
}

/* The same through the cache (least recently used pattern goes). */
static int anvil_codec_tables(anvil_codec *c, uint32_t used, uint32_t wanted, int rows, unsigned char *tables) {
    const size_t bytes = 32 * (size_t)c->k * (size_t)rows;
    pthread_mutex_lock(&c->lock);
    anvil_decode_entry *oldest = c->cache;
    for (int i = 0; i < ANVIL_DECODE_CACHE; i++) {
        anvil_decode_entry *entry = c->cache + i;
        if (entry->used == used && entry->wanted == wanted) {
            entry->tick = ++c->tick;
            c->hits++;
            memcpy(tables, entry->tables, bytes);
            pthread_mutex_unlock(&c->lock);
            return ANVIL_OK;
        }
        if (entry->tick < oldest->tick)
            oldest = entry;
    }
    c->misses++;
    int status = anvil_codec_solve(c, used, wanted, tables);
    if (status == ANVIL_OK) {
        oldest->used = used;
        oldest->wanted = wanted;
        oldest->tick = ++c->tick;
        memcpy(oldest->tables, tables, bytes);
    }
    pthread_mutex_unlock(&c->lock);
    return status;
}

/* Rebuilds the units of `wanted`, in ascending order, into out[0], out[1] ... from any k of units[] that are not NULL.
 * units[] has k+m entries; a wanted one is never read. Returns ANVIL_NOT_ENOUGH_UNITS when fewer than k can be used. */
static int anvil_codec_decode(anvil_codec *c, size_t unit, unsigned char *const *units, uint32_t wanted, unsigned char **out) {
    unsigned char *source[ANVIL_K_MAX], tables[ANVIL_TABLES_BYTES];
    uint32_t used = 0;
    int found = 0;
    const int rows = __builtin_popcount(wanted);
    for (int i = 0; i < c->k + c->m && found < c->k; i++) {
        if (!units[i] || wanted >> i & 1)
            continue;
        source[found++] = units[i];
        used |= (uint32_t)1 << i;
    }
    if (found < c->k)
        return ANVIL_NOT_ENOUGH_UNITS;
    if (rows == 0 || unit == 0)
        return ANVIL_OK;
    if (c->k == 1) {
        for (int i = 0; i < rows; i++)
            memcpy(out[i], source[0], unit);
        return ANVIL_OK;
    }
    int status = anvil_codec_tables(c, used, wanted, rows, tables);
    if (status == ANVIL_OK)
        ec_encode_data((int)unit, c->k, rows, tables, source, out);
    return status;
}

#endif
