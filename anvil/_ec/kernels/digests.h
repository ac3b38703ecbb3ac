/* All digests of one stream of bytes, advanced together.
 *
 * Owns: the running state of MD5 (raw, so that lanes.c can advance many streams at once), SHA-1 and SHA-256 (OpenSSL), CRC-32 and
 * CRC-32C (ISA-L) and CRC-64/NVME. Invariant: whoever changes a state holds it (`anvil_digests_take`); nothing here blocks or
 * touches Python. Not here: threads and queues (lanes.c).
 */
#ifndef ANVIL_DIGESTS_H
#define ANVIL_DIGESTS_H

#include <openssl/evp.h>
#include <stddef.h>
#include <stdint.h>

#include "md5.h"

enum {
    ANVIL_MD5 = 1,
    ANVIL_SHA1 = 2,
    ANVIL_SHA256 = 4,
    ANVIL_CRC32 = 8,
    ANVIL_CRC32C = 16,
    ANVIL_CRC64NVME = 32,
};

#define ANVIL_DIGEST_BYTES_MAX 32

/* Bytes worked on by all algorithms in turn before going on: they are then read from memory once. Also how much of a lane runs
 * before new streams are let in (20 us alone, 35 us with 16 lanes). */
#define ANVIL_DIGEST_SLICE (16 * 1024)

struct anvil_digest_job;

typedef struct anvil_digests {
    unsigned algorithms;
    int held; /* atomic */
    uint32_t md5[4];
    uint8_t md5_partial[ANVIL_MD5_BLOCK];
    uint64_t md5_bytes; /* so far; modulo 64: how many are in md5_partial */
    uint32_t crc32, crc32c;
    uint64_t crc64;
    EVP_MD_CTX *sha1, *sha256;

    /* lanes.c's, under its lock: the stream's unfinished jobs, and its place among the streams that wait for a lane */
    struct anvil_digest_job *job_head, *job_tail;
    struct anvil_digests *next_ready;
} anvil_digests;

/* Once per process. 0, or -1 if OpenSSL lacks the algorithms. */
int anvil_digests_init(void);

/* 0, or -1 if OpenSSL refused. A failed or zeroed state can be closed. */
int anvil_digests_open(anvil_digests *d, unsigned algorithms);
void anvil_digests_close(anvil_digests *d);

/* 1 if the state is now the caller's, 0 if somebody else is changing it. */
int anvil_digests_take(anvil_digests *d);
void anvil_digests_release(anvil_digests *d);

/* Everything, on this thread, MD5 by the scalar kernel. 0, or -1 if OpenSSL refused. */
int anvil_digests_update(anvil_digests *d, const uint8_t *data, size_t length);

/* Everything but MD5. */
int anvil_digests_update_others(anvil_digests *d, const uint8_t *data, size_t length);

/* MD5 in three acts, for lanes.c: fill up a partial block (returns the bytes taken), whole blocks by a kernel on d->md5 (the caller
 * counts them with anvil_md5_blocks_done), keep what remains (under 64 bytes). */
size_t anvil_md5_head(anvil_digests *d, const uint8_t *data, size_t length);
void anvil_md5_blocks_done(anvil_digests *d, size_t blocks);
void anvil_md5_tail(anvil_digests *d, const uint8_t *data, size_t length);

/* The digest of everything so far, without ending the stream: its length in bytes, or -1 if OpenSSL refused. */
int anvil_digests_result(const anvil_digests *d, unsigned algorithm, uint8_t out[ANVIL_DIGEST_BYTES_MAX]);

/* Of any length, continuing from `crc` (0 at the start), all inversions included. */
uint32_t anvil_crc32(uint32_t crc, const uint8_t *data, size_t length);
uint32_t anvil_crc32c(uint32_t crc, const uint8_t *data, size_t length);
uint64_t anvil_crc64nvme(uint64_t crc, const uint8_t *data, size_t length);

/* Which kernel anvil_crc64nvme uses. */
const char *anvil_crc64_kernel_name(void);
int anvil_crc64_choose(const char *name); /* 0, or -1 if there is none of that name here */

#endif
