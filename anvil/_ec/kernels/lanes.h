/* Threads that advance the digests of many streams at once, MD5 in lanes.
 *
 * Owns: the queue of jobs per stream, the list of streams that wait for a lane, the threads, and the list of finished jobs with
 * its eventfd. Invariants: at most one job of a stream is being worked on, and jobs of one stream finish in the order submitted; the
 * eventfd is written only when the finished list goes from empty to non-empty; the lock is held for list operations only, never
 * while digesting. A job enters a lane as soon as one is free: lanes are refilled every ANVIL_DIGEST_SLICE bytes and whenever a job
 * of another length ends. Not here: Python, and the digests themselves (digests.c).
 */
#ifndef ANVIL_LANES_H
#define ANVIL_LANES_H

#include <pthread.h>

#include "digests.h"
#include "pool.h"

typedef struct anvil_digest_job {
    anvil_job *job; /* carries owner, status, and the link of the finished list */
    anvil_digests *stream;
    const uint8_t *data;
    size_t length;
    size_t done; /* bytes digested so far */
    struct anvil_digest_job *next_of_stream;
} anvil_digest_job;

typedef struct anvil_lanes {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    anvil_digests *ready_head, *ready_tail; /* streams with a job and no lane */
    int ready;                              /* how many */
    int wanted;                             /* a thread sleeps until there are that many */
    anvil_job *done_head, *done_tail;
    const anvil_md5_kernel *kernel;
    int event_fd;
    int closing;
    int threads;
    pthread_t *thread;
} anvil_lanes;

int anvil_lanes_open(anvil_lanes *l, const anvil_md5_kernel *kernel, int threads); /* 0, or -1 with nothing left running */
/* 0, or -1 if somebody outside of these threads is changing the stream. One stream may be queued on one anvil_lanes at a time. */
int anvil_lanes_submit(anvil_lanes *l, anvil_digest_job *work);
anvil_job *anvil_lanes_collect(anvil_lanes *l); /* finished jobs, oldest first; clears the event */
void anvil_lanes_stop(anvil_lanes *l);          /* works off everything submitted, then ends the threads; they can be collected after */
void anvil_lanes_free(anvil_lanes *l);

/* What a lane does, on the calling thread: anvil_job.run of a digest job. */
void anvil_digest_job_run(anvil_job *job);

enum { ANVIL_DIGEST_REFUSED = 1, ANVIL_DIGEST_HELD = 2 }; /* job.status */

#endif
