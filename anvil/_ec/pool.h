/* The C thread pool: runs jobs that never need the GIL, and tells an event loop through an eventfd when some are done.
 *
 * A job is a C struct embedded in a Python object that keeps its buffers alive; the pool never touches Python. Completed jobs
 * are chained on a list; the eventfd is written only when that list goes from empty to non-empty. One lock guards all lists.
 *
 * A thread at rest waits on a semaphore of its own, since to post one never waits. (To signal a condition variable may: glibc's first lets
 * those it woke before come round, and the event loop stood still meanwhile for a third of an upload to six drives.) The last one to have
 * come to rest is the first to be woken: what it needs may still be in a cache.
 */
#ifndef ANVIL_POOL_H
#define ANVIL_POOL_H

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

typedef struct anvil_job {
    void (*run)(struct anvil_job *job); /* called on a pool thread, without the GIL */
    void *arg;                          /* the job's own C state */
    void *owner;                        /* PyObject*, opaque here */
    int status;                         /* set by run: 0, or the job's own code */
    struct anvil_job *next;
} anvil_job;

typedef struct anvil_pool_thread {
    struct anvil_pool *pool;
    struct anvil_pool_thread *next_idle;
    sem_t wake; /* posted by whoever takes it off the list of idle threads */
    pthread_t id;
} anvil_pool_thread;

typedef struct anvil_pool {
    pthread_mutex_t lock;
    anvil_pool_thread *idle;          /* at rest, the last one first */
    anvil_job *head, *tail;           /* waiting, first in first out */
    anvil_job *done_head, *done_tail; /* completed, not yet collected */
    int event_fd;
    int closing;
    int threads;
    anvil_pool_thread *thread;
} anvil_pool;

/* A thread that has just been given work must not push the event loop off its processor, which is about to give out more: the class
 * for what computes and does not interact. It gets its share of time as before. Refused (another kernel): it is only a hint. */
static inline void anvil_pool_as_batch(void) {
    const struct sched_param none = {0};
    (void)pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
}

/* Makes an eventfd readable. Not under a lock: who is woken takes that first. (It may have seen meanwhile what there is to see, and then
 * comes once for nothing.) */
static inline void anvil_tell(int event_fd) {
    uint64_t one = 1;
    ssize_t n = write(event_fd, &one, sizeof one);
    (void)n; /* an eventfd with EFD_NONBLOCK refuses only at 2^64-1 */
}

/* Under the lock, which is given back meanwhile. */
static void anvil_pool_rest(anvil_pool *p, anvil_pool_thread *self) {
    self->next_idle = p->idle;
    p->idle = self;
    pthread_mutex_unlock(&p->lock);
    while (sem_wait(&self->wake) != 0 && errno == EINTR)
        ;
    pthread_mutex_lock(&p->lock);
}

static void *anvil_pool_main(void *arg) {
    anvil_pool_thread *self = (anvil_pool_thread *)arg;
    anvil_pool *p = self->pool;
    anvil_pool_as_batch();
    pthread_mutex_lock(&p->lock);
    for (;;) {
        while (!p->head && !p->closing)
            anvil_pool_rest(p, self);
        if (!p->head)
            break; /* closing, and everything has run */
        anvil_job *job = p->head;
        p->head = job->next;
        if (!p->head)
            p->tail = NULL;
        pthread_mutex_unlock(&p->lock);
        job->next = NULL;
        job->run(job);
        pthread_mutex_lock(&p->lock);
        int was_empty = p->done_head == NULL;
        if (was_empty)
            p->done_head = job;
        else
            p->done_tail->next = job;
        p->done_tail = job;
        if (was_empty) {
            pthread_mutex_unlock(&p->lock);
            anvil_tell(p->event_fd);
            pthread_mutex_lock(&p->lock);
        }
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void anvil_pool_submit(anvil_pool *p, anvil_job *job) {
    job->next = NULL;
    pthread_mutex_lock(&p->lock);
    if (p->tail)
        p->tail->next = job;
    else
        p->head = job;
    p->tail = job;
    anvil_pool_thread *woken = p->idle;
    if (woken)
        p->idle = woken->next_idle;
    pthread_mutex_unlock(&p->lock);
    if (woken)
        sem_post(&woken->wake); /* not before: it would find the lock held, and sleep again */
}

/* Takes the whole list of completed jobs, oldest first, and clears the event. */
static anvil_job *anvil_pool_collect(anvil_pool *p) {
    uint64_t count;
    pthread_mutex_lock(&p->lock);
    ssize_t n = read(p->event_fd, &count, sizeof count);
    (void)n;
    anvil_job *list = p->done_head;
    p->done_head = p->done_tail = NULL;
    pthread_mutex_unlock(&p->lock);
    return list;
}

/* Waits for every submitted job and ends the threads. Must be called without the GIL. Completed jobs can still be collected. */
static void anvil_pool_stop(anvil_pool *p) {
    pthread_mutex_lock(&p->lock);
    p->closing = 1;
    for (; p->idle; p->idle = p->idle->next_idle)
        sem_post(&p->idle->wake);
    pthread_mutex_unlock(&p->lock);
    for (int i = 0; i < p->threads; i++)
        pthread_join(p->thread[i].id, NULL);
}

static void anvil_pool_free(anvil_pool *p) {
    for (int i = 0; i < p->threads; i++)
        sem_destroy(&p->thread[i].wake);
    free(p->thread);
    pthread_mutex_destroy(&p->lock);
    close(p->event_fd);
}

/* Returns 0, or -1 with nothing left over. */
static int anvil_pool_open(anvil_pool *p, int threads) {
    p->head = p->tail = p->done_head = p->done_tail = NULL;
    p->idle = NULL;
    p->closing = 0;
    p->threads = 0;
    p->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (p->event_fd < 0)
        return -1;
    p->thread = (anvil_pool_thread *)calloc((size_t)threads, sizeof *p->thread);
    if (!p->thread) {
        close(p->event_fd);
        return -1;
    }
    pthread_mutex_init(&p->lock, NULL);
    for (int i = 0; i < threads; i++) {
        p->thread[i].pool = p;
        sem_init(&p->thread[i].wake, 0, 0);
        if (pthread_create(&p->thread[i].id, NULL, anvil_pool_main, &p->thread[i]) != 0) {
            sem_destroy(&p->thread[i].wake);
            break;
        }
        p->threads++;
    }
    if (p->threads == threads)
        return 0;
    anvil_pool_stop(p);
    anvil_pool_free(p);
    return -1;
}

#endif
