/* Stripe jobs in C: seal + code + checksum, verify + rebuild + open, regenerate. Each runs on any thread without the GIL.
 *
 * Owns: the layout of frames and what a job does to it. Invariant: a job writes only its output and its own struct, and makes its
 * own cipher state, so any number run at once. Formats: docs/FORMATS.md. Not here: Python, checks of lengths (`stripe.pyx`).
 */
#ifndef ANVIL_STRIPE_H
#define ANVIL_STRIPE_H

#include <openssl/err.h>
#include <openssl/hmac.h>

#include "codec.h"
#include "gcm.h"
#include "pool.h"
#include "xxh3.h"

#define ANVIL_CHECKSUM 8
#define ANVIL_UNIT_ALIGN 64
#define ANVIL_NOT_RUN (-1)

typedef struct {
    unsigned char blob_id[16], key[32];
} anvil_blob_key;

typedef struct {
    anvil_codec *codec;
    const anvil_blob_key *key;
    uint32_t stripe;
    int last;
    const unsigned char *plain;
    size_t length, unit;
    unsigned char *out;
} anvil_encode;

typedef struct {
    anvil_codec *codec;
    const anvil_blob_key *key;
    uint32_t stripe;
    int last;
    size_t length, unit;
    const unsigned char *frames[ANVIL_WIDTH_MAX]; /* NULL: not read */
    unsigned char *out;
    uint32_t corrupt; /* out: bit i = frame i failed its checksum */
} anvil_decode;

typedef struct {
    anvil_codec *codec;
    unsigned char blob_id[16];
    uint32_t stripe;
    size_t unit;
    const unsigned char *frames[ANVIL_WIDTH_MAX];
    int missing[ANVIL_M_MAX], missing_count;
    unsigned char *out;
    uint32_t corrupt;
} anvil_rebuild;

static const anvil_xxh3_kernel *anvil_xxh3 = &anvil_xxh3_baseline;

static void anvil_put_u32(unsigned char *to, uint32_t value) {
    for (int i = 0; i < 4; i++)
        to[i] = (unsigned char)(value >> 8 * i);
}

static void anvil_put_u64(unsigned char *to, uint64_t value) {
    for (int i = 0; i < 8; i++)
        to[i] = (unsigned char)(value >> 8 * i);
}

static uint64_t anvil_get_u64(const unsigned char *from) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value |= (uint64_t)from[i] << 8 * i;
    return value;
}

/* anvil/model/scheme.py, unit_len */
static size_t anvil_unit_len(int k, size_t plain) {
    const size_t sealed = plain + ANVIL_TAG, step = (size_t)k * ANVIL_UNIT_ALIGN;
    return k == 1 ? sealed : (sealed + step - 1) / step * ANVIL_UNIT_ALIGN;
}

/* What the checksum of a unit is seeded with, so that a unit in another's place does not pass. */
static uint64_t anvil_place(const unsigned char *blob_id, uint32_t index, uint32_t stripe) {
    unsigned char place[24];
    memcpy(place, blob_id, 16);
    anvil_put_u32(place + 16, index);
    anvil_put_u32(place + 20, stripe);
    return anvil_xxh3_baseline.whole(place, sizeof place, 0);
}

static uint64_t anvil_checksum(const unsigned char *blob_id, uint32_t index, uint32_t stripe, const unsigned char *unit,
                               size_t length) {
    return anvil_xxh3->whole(unit, length, anvil_place(blob_id, index, stripe));
}

/* Writes the checksum in front of the unit of that frame. */
static void anvil_stamp(const unsigned char *blob_id, uint32_t index, uint32_t stripe, unsigned char *frame, size_t unit) {
    anvil_put_u64(frame, anvil_checksum(blob_id, index, stripe, frame + ANVIL_CHECKSUM, unit));
}

/* HKDF-SHA256 (RFC 5869) with an output of one block: extract, then expand with the counter 1. */
static int anvil_derive(const unsigned char *bucket_key, anvil_blob_key *key) {
    static const unsigned char info[] = "anvil blob v1\x01"; /* sizeof less the terminating zero */
    unsigned char prk[32];
    unsigned int n = 0;
    int ok = HMAC(EVP_sha256(), key->blob_id, 16, bucket_key, 32, prk, &n) != NULL &&
             HMAC(EVP_sha256(), prk, 32, info, sizeof info - 1, key->key, &n) != NULL;
    OPENSSL_cleanse(prk, sizeof prk);
    return ok ? ANVIL_OK : ANVIL_CRYPTO_FAILED;
}

/* Nonce: the stripe as 12 bytes, big-endian. Associated data: blob id, stripe, last flag. */
static int anvil_begin(anvil_gcm *g, const anvil_blob_key *key, uint32_t stripe, int last, int sealing) {
    unsigned char nonce[12] = {0}, bound[21];
    for (int i = 0; i < 4; i++)
        nonce[11 - i] = (unsigned char)(stripe >> 8 * i);
    memcpy(bound, key->blob_id, 16);
    anvil_put_u32(bound + 16, stripe);
    bound[20] = last ? 1 : 0;
    return anvil_gcm_begin(g, key->key, nonce, bound, sizeof bound, sealing);
}

/* One piece of memory: `out` takes length + 16 bytes. */
static int anvil_seal(const anvil_blob_key *key, uint32_t stripe, int last, const unsigned char *plain, size_t length,
                      unsigned char *out) {
    anvil_gcm g;
    int ok = anvil_begin(&g, key, stripe, last, 1) && anvil_gcm_piece(&g, out, plain, length) && anvil_gcm_tag(&g, out + length);
    anvil_gcm_end(&g);
    return ok ? ANVIL_OK : ANVIL_CRYPTO_FAILED;
}

/* `sealed` holds length + 16 bytes. What does not verify is wiped. */
static int anvil_open(const anvil_blob_key *key, uint32_t stripe, int last, const unsigned char *sealed, size_t length,
                      unsigned char *out) {
    anvil_gcm g;
    unsigned char tag[ANVIL_TAG];
    int ok = anvil_begin(&g, key, stripe, last, 0) && anvil_gcm_piece(&g, out, sealed, length);
    int status = ok ? ANVIL_OK : ANVIL_CRYPTO_FAILED;
    memcpy(tag, sealed + length, sizeof tag);
    if (ok && !anvil_gcm_verify(&g, tag))
        status = ANVIL_SEAL_BROKEN;
    if (status != ANVIL_OK) {
        memset(out, 0, length);
        ERR_clear_error();
    }
    anvil_gcm_end(&g);
    return status;
}

/* Seals straight into the k data units. Those that the plaintext fills are stamped at once, while they are in the cache. */
static int anvil_encode_seal(const anvil_encode *e) {
    const size_t frame = ANVIL_CHECKSUM + e->unit;
    const int k = e->codec->k;
    unsigned char tag[ANVIL_TAG];
    anvil_gcm g;
    int ok = anvil_begin(&g, e->key, e->stripe, e->last, 1), full = 0;
    for (size_t done = 0; ok && done < e->length; full++) {
        const size_t piece = e->length - done < e->unit ? e->length - done : e->unit;
        unsigned char *at = e->out + (size_t)full * frame;
        ok = anvil_gcm_piece(&g, at + ANVIL_CHECKSUM, e->plain + done, piece);
        done += piece;
        if (piece < e->unit)
            break;
        anvil_stamp(e->key->blob_id, (uint32_t)full, e->stripe, at, e->unit);
    }
    ok = ok && anvil_gcm_tag(&g, tag);
    anvil_gcm_end(&g);
    if (!ok)
        return ANVIL_CRYPTO_FAILED;
    /* the tag, which may lie across two units, and zeros up to the end of the last one */
    for (int i = full; i < k; i++) {
        const size_t start = (size_t)i * e->unit;
        unsigned char *unit = e->out + (size_t)i * frame + ANVIL_CHECKSUM;
        size_t from = e->length > start ? e->length - start : 0;
        for (size_t t = start + from - e->length; from < e->unit && t < ANVIL_TAG;)
            unit[from++] = tag[t++];
        memset(unit + from, 0, e->unit - from);
        anvil_stamp(e->key->blob_id, (uint32_t)i, e->stripe, e->out + (size_t)i * frame, e->unit);
    }
    return ANVIL_OK;
}

static void anvil_encode_run(anvil_job *job) {
    const anvil_encode *e = (const anvil_encode *)job->arg;
    const size_t frame = ANVIL_CHECKSUM + e->unit;
    const int k = e->codec->k, width = k + e->codec->m;
    unsigned char *unit[ANVIL_WIDTH_MAX];
    for (int i = 0; i < width; i++)
        unit[i] = e->out + (size_t)i * frame + ANVIL_CHECKSUM;
    int status = anvil_encode_seal(e);
    if (status == ANVIL_OK) {
        anvil_codec_encode(e->codec, e->unit, unit, unit + k);
        for (int i = k; i < width; i++)
            anvil_stamp(e->key->blob_id, (uint32_t)i, e->stripe, unit[i] - ANVIL_CHECKSUM, e->unit);
    } else {
        ERR_clear_error();
    }
    job->status = status;
}

/* units[i] = the unit of frame i if it is among the first k good ones, else NULL. Frames of `skip` are not looked at. */
static int anvil_pick(const anvil_codec *c, const unsigned char *blob_id, uint32_t stripe, size_t unit,
                      const unsigned char *const *frames, uint32_t skip, unsigned char **units, uint32_t *corrupt) {
    int good = 0;
    *corrupt = 0;
    for (int i = 0; i < c->k + c->m; i++) {
        units[i] = NULL;
        if (good == c->k || !frames[i] || skip >> i & 1)
            continue;
        if (anvil_get_u64(frames[i]) == anvil_checksum(blob_id, (uint32_t)i, stripe, frames[i] + ANVIL_CHECKSUM, unit)) {
            units[i] = (unsigned char *)frames[i] + ANVIL_CHECKSUM; /* only ever read */
            good++;
        } else {
            *corrupt |= (uint32_t)1 << i;
        }
    }
    return good == c->k ? ANVIL_OK : ANVIL_NOT_ENOUGH_UNITS;
}

/* Decrypts the data units into out, one after another (in place where a unit was rebuilt there), and checks the tag. */
static int anvil_decode_open(const anvil_decode *d, unsigned char *const *units) {
    unsigned char tag[ANVIL_TAG];
    for (size_t t = 0; t < ANVIL_TAG; t++)
        tag[t] = units[(d->length + t) / d->unit][(d->length + t) % d->unit];
    anvil_gcm g;
    int ok = anvil_begin(&g, d->key, d->stripe, d->last, 0);
    for (size_t done = 0, i = 0; ok && done < d->length; i++) {
        const size_t piece = d->length - done < d->unit ? d->length - done : d->unit;
        ok = anvil_gcm_piece(&g, d->out + done, units[i], piece);
        done += piece;
    }
    int status = ok ? ANVIL_OK : ANVIL_CRYPTO_FAILED;
    if (ok && !anvil_gcm_verify(&g, tag))
        status = ANVIL_SEAL_BROKEN;
    anvil_gcm_end(&g);
    return status;
}

/* Rebuilds the data units that are not there: in their own place in `out` where they fit, else in *scratch (caller frees). */
static int anvil_decode_rebuild(const anvil_decode *d, unsigned char **units, unsigned char **scratch) {
    unsigned char *target[ANVIL_K_MAX], *rebuilt[ANVIL_K_MAX] = {NULL};
    uint32_t wanted = 0;
    int count = 0, outside = 0;
    for (int i = 0; i < d->codec->k; i++) {
        if (units[i] || (size_t)i * d->unit >= d->length + ANVIL_TAG)
            continue; /* there, or nothing but padding */
        wanted |= (uint32_t)1 << i;
        if ((size_t)(i + 1) * d->unit > d->length)
            outside++;
    }
    if (!wanted)
        return ANVIL_OK;
    if (outside && !(*scratch = (unsigned char *)malloc((size_t)outside * d->unit)))
        return ANVIL_NO_MEMORY;
    outside = 0;
    for (int i = 0; i < d->codec->k; i++) {
        if (!(wanted >> i & 1))
            continue;
        const int fits = (size_t)(i + 1) * d->unit <= d->length;
        rebuilt[i] = target[count++] = fits ? d->out + (size_t)i * d->unit : *scratch + (size_t)outside++ * d->unit;
    }
    int status = anvil_codec_decode(d->codec, d->unit, units, wanted, target);
    for (int i = 0; i < d->codec->k; i++)
        if (rebuilt[i])
            units[i] = rebuilt[i];
    return status;
}

static void anvil_decode_run(anvil_job *job) {
    anvil_decode *d = (anvil_decode *)job->arg;
    unsigned char *units[ANVIL_WIDTH_MAX], *scratch = NULL;
    int status = anvil_pick(d->codec, d->key->blob_id, d->stripe, d->unit, d->frames, 0, units, &d->corrupt);
    if (status == ANVIL_OK)
        status = d->codec->k == 1 ? ANVIL_OK : anvil_decode_rebuild(d, units, &scratch);
    if (status == ANVIL_OK) {
        for (int i = 1; d->codec->k == 1 && !units[0]; i++)
            units[0] = units[i]; /* any copy will do, and one was picked */
        status = anvil_decode_open(d, units);
        if (status != ANVIL_OK) {
            ERR_clear_error();
            if (d->length)
                memset(d->out, 0, d->length); /* nobody sees what was not authenticated */
        }
    }
    free(scratch);
    job->status = status;
}

static void anvil_rebuild_run(anvil_job *job) {
    anvil_rebuild *r = (anvil_rebuild *)job->arg;
    const size_t frame = ANVIL_CHECKSUM + r->unit;
    unsigned char *units[ANVIL_WIDTH_MAX], *by_index[ANVIL_WIDTH_MAX], *target[ANVIL_M_MAX];
    uint32_t wanted = 0;
    int count = 0;
    for (int j = 0; j < r->missing_count; j++) {
        wanted |= (uint32_t)1 << r->missing[j];
        by_index[r->missing[j]] = r->out + (size_t)j * frame + ANVIL_CHECKSUM;
    }
    for (int i = 0; i < r->codec->k + r->codec->m; i++)
        if (wanted >> i & 1)
            target[count++] = by_index[i];
    int status = anvil_pick(r->codec, r->blob_id, r->stripe, r->unit, r->frames, wanted, units, &r->corrupt);
    if (status == ANVIL_OK)
        status = anvil_codec_decode(r->codec, r->unit, units, wanted, target);
    if (status == ANVIL_OK)
        for (int j = 0; j < r->missing_count; j++)
            anvil_stamp(r->blob_id, (uint32_t)r->missing[j], r->stripe, r->out + (size_t)j * frame, r->unit);
    job->status = status;
}

#endif
