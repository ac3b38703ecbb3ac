/* A frame of a single-shard blob (k = 1) opened while it is read, or sealed while it is written: cipher, checksum and the copy from
 * or to the page cache work on one piece while it is in the core's cache, and no frame is ever whole in memory.
 *
 * Owns: a sink and a source over one frame. Invariant: plaintext counts only once the tag has been compared, and is wiped if it does
 * not fit. The checksum is written and not read: the tag says more, but for whether it is the bytes or the key that is wrong. Not here:
 * the jobs on whole frames (`stripe.h`), which say that too; files (`fileio.pyx`).
 */
#ifndef ANVIL_FUSED_H
#define ANVIL_FUSED_H

#include "pieces.h"
#include "stripe.h"

/* One frame; `text`: the plaintext, read or written. */
typedef struct {
    const anvil_blob_key *key;
    uint32_t stripe;
    int last;
    unsigned char *text;
    size_t length, done; /* plaintext bytes; of the unit, the bytes that have gone through */
    int begun, status;
    unsigned char tag[ANVIL_TAG];
    anvil_gcm gcm;
    anvil_xxh3_state hash;
} anvil_frame;

static int anvil_frame_begin(anvil_frame *f, int sealing) {
    f->begun = 1;
    if (sealing)
        anvil_xxh3->begin(&f->hash, anvil_place(f->key->blob_id, 0, f->stripe));
    return anvil_begin(&f->gcm, f->key, f->stripe, f->last, sealing);
}

/* Also for a frame that was given up half-way: drops the key. */
static void anvil_frame_end(anvil_frame *f, int status) {
    if (f->begun)
        anvil_gcm_end(&f->gcm);
    f->begun = 0;
    f->status = status;
    if (status != ANVIL_OK)
        ERR_clear_error();
}

/* The next piece of the unit: a multiple of 16 bytes, as the cipher asks, but for the last, which has the tag with it. */
static size_t anvil_frame_piece(const anvil_frame *f) {
    const size_t left = f->length - f->done;
    return left <= ANVIL_PIECE ? left + ANVIL_TAG : ANVIL_PIECE;
}

static void anvil_open_feed(anvil_sink *sink, const unsigned char *data) {
    anvil_frame *f = (anvil_frame *)sink->arg;
    const size_t piece = anvil_frame_piece(f);
    int ok = 1, status = ANVIL_CRYPTO_FAILED;
    if (!f->done) {
        data += ANVIL_CHECKSUM;
        ok = anvil_frame_begin(f, 0);
    }
    const int over = piece > f->length - f->done;
    const size_t text = over ? piece - ANVIL_TAG : piece;
    ok = ok && anvil_gcm_piece(&f->gcm, f->text + f->done, data, text);
    f->done += text;
    if (ok && !over) {
        sink->want = anvil_frame_piece(f);
        return;
    }
    if (ok) {
        memcpy(f->tag, data + text, ANVIL_TAG);
        status = anvil_gcm_verify(&f->gcm, f->tag) ? ANVIL_OK : ANVIL_SEAL_BROKEN;
    }
    sink->want = 0;
    anvil_frame_end(f, status);
    if (status != ANVIL_OK)
        memset(f->text, 0, f->length); /* nobody sees what was not authenticated */
}

/* The unit from its first piece to its last, then the checksum that stands in front of it. */
static size_t anvil_seal_next(anvil_source *source, unsigned char *room, size_t *at) {
    anvil_frame *f = (anvil_frame *)source->arg;
    if (f->status != ANVIL_NOT_RUN)
        return 0;
    if (f->done == f->length) {
        anvil_put_u64(room, anvil_xxh3->end(&f->hash));
        *at = 0;
        anvil_frame_end(f, ANVIL_OK);
        return ANVIL_CHECKSUM;
    }
    int ok = f->begun || anvil_frame_begin(f, 1);
    const size_t piece = anvil_frame_piece(f);
    const int over = piece > f->length - f->done;
    const size_t text = over ? piece - ANVIL_TAG : piece;
    ok = ok && anvil_gcm_piece(&f->gcm, room, f->text + f->done, text) && (!over || anvil_gcm_tag(&f->gcm, room + text));
    if (!ok) {
        anvil_frame_end(f, ANVIL_CRYPTO_FAILED);
        return 0;
    }
    anvil_xxh3->add(&f->hash, room, piece);
    *at = ANVIL_CHECKSUM + f->done;
    f->done += text;
    return piece;
}

#endif
