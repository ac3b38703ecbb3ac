/* AES-256-GCM with 12-byte nonces (NIST SP 800-38D), in pieces: by OpenSSL, or by a kernel for processors with VAES and AVX-512.
 *
 * OpenSSL before 3.1 has no VAES code and seals 4-5 GB/s a core where 10 are possible; Debian 12 and Ubuntu 24.04 ship it. There
 * the kernel takes over; from 3.1 on OpenSSL does it all. Both are tested against a third implementation, either can be forced.
 * Invariant: a stream belongs to one job; nothing is shared but the cipher. Not here: what is sealed (`stripe.h`).
 */
#ifndef ANVIL_GCM_H
#define ANVIL_GCM_H

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include "gcm_vaes.h"

#define ANVIL_TAG 16

typedef struct {
    int sealing;
    EVP_CIPHER_CTX *ctx; /* NULL: the kernel works */
#ifdef ANVIL_GCM_X86
    anvil_gcm_vaes vaes;
#endif
} anvil_gcm;

static EVP_CIPHER *anvil_gcm_cipher; /* fetched once: looking it up costs more than sealing a small object */
static int anvil_gcm_use_vaes;

/* Returns 1, or 0 when OpenSSL failed. Whatever it returns, anvil_gcm_end follows. */
static int anvil_gcm_begin(anvil_gcm *g, const unsigned char *key, const unsigned char *nonce, const unsigned char *associated,
                           size_t associated_length, int sealing) {
    int n;
    g->sealing = sealing;
    g->ctx = NULL;
#ifdef ANVIL_GCM_X86
    if (anvil_gcm_use_vaes) {
        anvil_gcm_vaes_begin(&g->vaes, key, nonce, associated, associated_length);
        return 1;
    }
#endif
    g->ctx = EVP_CIPHER_CTX_new();
    return g->ctx && EVP_CipherInit_ex2(g->ctx, anvil_gcm_cipher, key, nonce, sealing, NULL) == 1 &&
           EVP_CipherUpdate(g->ctx, NULL, &n, associated, (int)associated_length) == 1;
}

/* Every piece but the last is a multiple of 16 bytes; out == in is allowed. `length` fits an int. */
static int anvil_gcm_piece(anvil_gcm *g, unsigned char *out, const unsigned char *in, size_t length) {
    int n;
    if (length == 0)
        return 1;
#ifdef ANVIL_GCM_X86
    if (!g->ctx) {
        (g->sealing ? anvil_gcm_vaes_seal : anvil_gcm_vaes_open)(&g->vaes, out, in, length);
        return 1;
    }
#endif
    return EVP_CipherUpdate(g->ctx, out, &n, in, (int)length) == 1;
}

/* After the last piece of a seal. */
static int anvil_gcm_tag(anvil_gcm *g, unsigned char *tag) {
    int n;
    unsigned char none[ANVIL_TAG];
#ifdef ANVIL_GCM_X86
    if (!g->ctx) {
        anvil_gcm_vaes_tag(&g->vaes, tag);
        return 1;
    }
#endif
    return EVP_CipherFinal_ex(g->ctx, none, &n) == 1 && EVP_CIPHER_CTX_ctrl(g->ctx, EVP_CTRL_AEAD_GET_TAG, ANVIL_TAG, tag) == 1;
}

/* After the last piece of an opening: 1 if `tag` fits. Compared in constant time. */
static int anvil_gcm_verify(anvil_gcm *g, unsigned char *tag) {
    int n;
    unsigned char other[ANVIL_TAG];
#ifdef ANVIL_GCM_X86
    if (!g->ctx) {
        anvil_gcm_vaes_tag(&g->vaes, other);
        return CRYPTO_memcmp(other, tag, ANVIL_TAG) == 0;
    }
#endif
    return EVP_CIPHER_CTX_ctrl(g->ctx, EVP_CTRL_AEAD_SET_TAG, ANVIL_TAG, tag) == 1 && EVP_CipherFinal_ex(g->ctx, other, &n) == 1;
}

/* Also wipes what a failed or unfinished stream left of the key. */
static void anvil_gcm_end(anvil_gcm *g) {
#ifdef ANVIL_GCM_X86
    if (!g->ctx && anvil_gcm_use_vaes)
        OPENSSL_cleanse(&g->vaes, sizeof g->vaes);
#endif
    EVP_CIPHER_CTX_free(g->ctx);
    g->ctx = NULL;
}

#endif
