/* AES-256-GCM on VAES, VPCLMULQDQ and AVX-512: the interface of kernels/gcm_vaes.c. Chosen in gcm.h. */
#ifndef ANVIL_GCM_VAES_H
#define ANVIL_GCM_VAES_H

#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define ANVIL_GCM_X86 1
#endif

/* State of the VAES kernel. Unaligned on purpose: it lives on the stack of whoever seals. */
typedef struct {
    unsigned char round_key[15][16];
    unsigned char power[19][16];   /* H^16 .. H^1 (times x^-1), then zeros for a load that reaches past the last */
    unsigned char hash[16];        /* GHASH so far, byte-reversed */
    unsigned char counter[16];     /* of the next block, byte-reversed */
    unsigned char first_mask[16];  /* E(J0), for the tag */
    uint64_t associated_bytes, text_bytes;
} anvil_gcm_vaes;

#ifdef ANVIL_GCM_X86
void anvil_gcm_vaes_begin(anvil_gcm_vaes *s, const unsigned char *key, const unsigned char *nonce,
                          const unsigned char *associated, size_t associated_length);
/* Every piece but the last is a multiple of 16 bytes. out == in is allowed, any other overlap is not. */
void anvil_gcm_vaes_seal(anvil_gcm_vaes *s, unsigned char *out, const unsigned char *in, size_t length);
void anvil_gcm_vaes_open(anvil_gcm_vaes *s, unsigned char *out, const unsigned char *in, size_t length);
void anvil_gcm_vaes_tag(anvil_gcm_vaes *s, unsigned char *tag);
#endif

#endif
