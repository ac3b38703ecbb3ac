/* See lanes.h. */
#include "lanes.h"

#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

void anvil_digest_job_run(anvil_job *job) {
    anvil_digest_job *work = (anvil_digest_job *)job->arg;
    if (!anvil_digests_take(work->stream)) {
        job->status = ANVIL_DIGEST_HELD;
        return;
    }
    job->status = anvil_digests_update(work->stream, work->data, work->length) == 0 ? 0 : ANVIL_DIGEST_REFUSED;
    anvil_digests_release(work->stream);
}

/* One slice of every job in `active`: whole MD5 blocks of all of them side by side, as many as the shortest has, and the other
 * digests over the same bytes. A job without MD5 takes no part in "side by side" and just does a slice. */
static void run_slice(const anvil_md5_kernel *kernel, anvil_digest_job *active[], int count) {
    anvil_digest_job *in_lane[ANVIL_MD5_LANES_MAX];
    uint32_t *state[ANVIL_MD5_LANES_MAX];
    const uint8_t *data[ANVIL_MD5_LANES_MAX];
    size_t begin[ANVIL_MD5_LANES_MAX];
    size_t blocks = ANVIL_DIGEST_SLICE / ANVIL_MD5_BLOCK;
    int streams = 0;
    for (int i = 0; i < count; i++) {
        anvil_digest_job *work = active[i];
        anvil_digests *stream = work->stream;
        size_t left = work->length - work->done;
        begin[i] = work->done;
        if (!(stream->algorithms & ANVIL_MD5)) {
            work->done += left < ANVIL_DIGEST_SLICE ? left : ANVIL_DIGEST_SLICE;
            continue;
        }
        work->done += anvil_md5_head(stream, work->data + work->done, left);
        left = work->length - work->done;
        if (left >= ANVIL_MD5_BLOCK) {
            in_lane[streams] = work;
            state[streams] = stream->md5;
            data[streams++] = work->data + work->done;
            if (left / ANVIL_MD5_BLOCK < blocks)
                blocks = left / ANVIL_MD5_BLOCK;
        }
    }
    if (streams)
        anvil_md5_run(kernel, streams, state, data, blocks);
    for (int i = 0; i < streams; i++) {
        anvil_md5_blocks_done(in_lane[i]->stream, blocks);
        in_lane[i]->done += blocks * ANVIL_MD5_BLOCK;
    }
    for (int i = 0; i < count; i++) {
        anvil_digest_job *work = active[i];
        size_t left = work->length - work->done;
        if ((work->stream->algorithms & ANVIL_MD5) && left && left < ANVIL_MD5_BLOCK) {
            anvil_md5_tail(work->stream, work->data + work->done, left);
            work->done = work->length;
        }
        if (anvil_digests_update_others(work->stream, work->data + begin[i], work->done - begin[i]) != 0)
            work->job->status = ANVIL_DIGEST_REFUSED;
    }
}

/* The rest is under the lock. */

static void make_ready(anvil_lanes *l, anvil_digests *stream) {
    stream->next_ready = NULL;
    if (l->ready_tail)
        l->ready_tail->next_ready = stream;
    else
        l->ready_head = stream;
    l->ready_tail = stream;
    l->ready++;
}

static int fill_lanes(anvil_lanes *l, anvil_digest_job *active[], int count) {
    while (count < l->kernel->lanes && l->ready_head) {
        anvil_digests *stream = l->ready_head;
        l->ready_head = stream->next_ready;
        if (!l->ready_head)
            l->ready_tail = NULL;
        l->ready--;
        active[count++] = stream->job_head;
    }
    return count;
}

/* Whether the loop is to be told. */
static int finish(anvil_lanes *l, anvil_digest_job *work) {
    anvil_digests *stream = work->stream;
    stream->job_head = work->next_of_stream;
    if (stream->job_head)
        make_ready(l, stream);
    else {
        stream->job_tail = NULL;
        anvil_digests_release(stream);
    }
    anvil_job *job = work->job;
    job->next = NULL;
    int was_empty = l->done_head == NULL;
    if (was_empty)
        l->done_head = job;
    else
        l->done_tail->next = job;
    l->done_tail = job;
    return was_empty;
}

enum {
    PEAK_SLICES = 32, /* how many slices it takes to forget a stream */
    GATHER_NS = 300 * 1000,
    NICENESS = 10,
};

/* Half of the streams that were here a moment ago have nothing queued. A slice costs the same with few lanes filled as with all, so
 * the thread sleeps until half of them are back, at most GATHER_NS: their next stripes are on the way, and the processor is better
 * spent on those. One stream, or two, never wait. Under the lock. */
static int gather(anvil_lanes *l, anvil_digest_job *active[], int count, int peak) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += GATHER_NS;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_nsec -= 1000000000L;
        until.tv_sec++;
    }
    while (2 * count < peak && !l->closing) {
        l->wanted = (peak + 1) / 2 - count;
        int late = pthread_cond_timedwait(&l->wake, &l->lock, &until);
        count = fill_lanes(l, active, count);
        if (late)
            break;
    }
    l->wanted = 1;
    return count;
}

/* On a busy machine a fair share is too much for this thread: it would come round before the next stripes are there and work with
 * lanes half empty, which costs as much as with all of them filled. At a lower weight the streams' stripes (each has up to three under
 * way) gather meanwhile; where processors are idle it runs as ever. The weight is a tenth of the others', not nothing: it goes on beside
 * any load. Only this thread: on Linux niceness is a thread's own. */
static void yield_to_others(void) {
    anvil_pool_as_batch();
    (void)setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), NICENESS);
}

static void *lanes_main(void *arg) {
    anvil_lanes *l = (anvil_lanes *)arg;
    anvil_digest_job *active[ANVIL_MD5_LANES_MAX];
    int count = 0;
    int busy = 0; /* the most streams at a time lately, times PEAK_SLICES; it sinks by one a slice */
    yield_to_others();
    pthread_mutex_lock(&l->lock);
    for (;;) {
        count = fill_lanes(l, active, count);
        if (count && 2 * count * PEAK_SLICES < busy)
            count = gather(l, active, count, busy / PEAK_SLICES);
        busy = count * PEAK_SLICES > busy ? count * PEAK_SLICES : busy - (busy > 0);
        if (count == 0) {
            /* A stream that another thread works on comes back to the ready list through that thread, which goes on. */
            if (l->closing)
                break;
            pthread_cond_wait(&l->wake, &l->lock);
            continue;
        }
        pthread_mutex_unlock(&l->lock);
        run_slice(l->kernel, active, count);
        pthread_mutex_lock(&l->lock);
        int kept = 0, tell = 0;
        for (int i = 0; i < count; i++) {
            if (active[i]->done == active[i]->length)
                tell |= finish(l, active[i]); /* from here on the job belongs to whoever collects it */
            else
                active[kept++] = active[i];
        }
        count = kept;
        if (tell) {
            pthread_mutex_unlock(&l->lock);
            anvil_tell(l->event_fd);
            pthread_mutex_lock(&l->lock);
        }
    }
    pthread_mutex_unlock(&l->lock);
    return NULL;
}

int anvil_lanes_open(anvil_lanes *l, const anvil_md5_kernel *kernel, int threads) {
    memset(l, 0, sizeof *l);
    l->kernel = kernel;
    l->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (l->event_fd < 0)
        return -1;
    l->thread = (pthread_t *)calloc((size_t)threads, sizeof *l->thread);
    if (!l->thread) {
        close(l->event_fd);
        return -1;
    }
    pthread_mutex_init(&l->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&l->wake, &monotonic);
    pthread_condattr_destroy(&monotonic);
    l->wanted = 1;
    while (l->threads < threads && pthread_create(&l->thread[l->threads], NULL, lanes_main, l) == 0)
        l->threads++;
    if (l->threads == threads)
        return 0;
    anvil_lanes_stop(l);
    anvil_lanes_free(l);
    return -1;
}

int anvil_lanes_submit(anvil_lanes *l, anvil_digest_job *work) {
    anvil_digests *stream = work->stream;
    int taken = 1, wake = 0;
    work->next_of_stream = NULL;
    work->done = 0;
    pthread_mutex_lock(&l->lock);
    if (stream->job_head)
        stream->job_tail->next_of_stream = work;
    else if ((taken = anvil_digests_take(stream))) { /* released by the finish of its last job */
        stream->job_head = work;
        make_ready(l, stream);
        wake = l->ready >= l->wanted;
    }
    if (taken)
        stream->job_tail = work;
    pthread_mutex_unlock(&l->lock);
    if (wake)
        pthread_cond_signal(&l->wake); /* see pool.h */
    return taken ? 0 : -1;
}

anvil_job *anvil_lanes_collect(anvil_lanes *l) {
    uint64_t count;
    pthread_mutex_lock(&l->lock);
    ssize_t n = read(l->event_fd, &count, sizeof count);
    (void)n;
    anvil_job *list = l->done_head;
    l->done_head = l->done_tail = NULL;
    pthread_mutex_unlock(&l->lock);
    return list;
}

void anvil_lanes_stop(anvil_lanes *l) {
    pthread_mutex_lock(&l->lock);
    l->closing = 1;
    pthread_cond_broadcast(&l->wake);
    pthread_mutex_unlock(&l->lock);
    for (int i = 0; i < l->threads; i++)
        pthread_join(l->thread[i], NULL);
    l->threads = 0;
}

void anvil_lanes_free(anvil_lanes *l) {
    free(l->thread);
    pthread_mutex_destroy(&l->lock);
    pthread_cond_destroy(&l->wake);
    close(l->event_fd);
}
