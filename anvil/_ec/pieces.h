/* Bytes on their way between a drive and a transformation, a piece at a time, while the piece is in the cache of one core.
 *
 * A sink says how many bytes it wants next and is fed exactly as many, until it wants none. A source fills a piece and says where it
 * belongs, until it has none. Both run on a C thread, without Python.
 */
#ifndef ANVIL_PIECES_H
#define ANVIL_PIECES_H

#include <stddef.h>

#define ANVIL_PIECE (512 * 1024) /* a quarter of a second-level cache of today; less costs more in calls to the file system than it spares */
#define ANVIL_PIECE_MAX (ANVIL_PIECE + 64)

typedef struct anvil_sink {
    void (*feed)(struct anvil_sink *sink, const unsigned char *data); /* `want` bytes of them */
    size_t want;                                                      /* 0: all has come, or no more is of use */
    void *arg;                                                        /* the sink's own C state */
} anvil_sink;

typedef struct anvil_source {
    /* Fills `room` (ANVIL_PIECE_MAX bytes) and says where that belongs; returns how many bytes, 0 at the end and after a failure. */
    size_t (*next)(struct anvil_source *source, unsigned char *room, size_t *at);
    void *arg;
} anvil_source;

#endif
