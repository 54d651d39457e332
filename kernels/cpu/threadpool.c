// A pool of threads that share the chunks of an index range: one job at a time, its range cut evenly, chunks claimed
// one by one.
//
// Everything turns on one atomic word, `claims`: job number, number of chunks, next unclaimed chunk. A thread claims by
// incrementing the word, and the owner does not return from a job before every claimed chunk is done. So a thread that
// holds a claim may read the job, and one that wakes up late finds nothing to claim and reads nothing else: the owner
// never waits for a thread that did not begin. That matters on a machine with other work, where a woken thread may not
// run for milliseconds; the owner then simply does the chunks itself.
//
// Waiting: a forward pass has gaps of microseconds between its ops, so both sides spin for a short while and then sleep
// on a condition variable. Each side first changes its own word and then reads the other's, all sequentially
// consistent, so no wake-up is lost. One that spins longer than a hand-over takes offers its core to whoever else wants
// it: with as many threads as cores that may be the very thread it waits for, or the one that answers the clients.
#include "threadpool.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

enum {
    SPINS = 400,     // some 40 microseconds on current x86 cores
    YIELD_FROM = 20, // 0.3 microseconds, about what a hand-over takes
    YIELD_EVERY = 4,
};

struct worker {
    struct krn_pool *pool;
    pthread_t thread;
    int number; // 1 ..
};

struct krn_pool {
    // The job. Written by the owner when no chunk is claimed; read by whoever holds a claim.
    krn_pool_fn *fn;
    void *arg;
    int64_t n;

    _Atomic uint64_t claims;  // see claims_word; the owner begins a job, everyone claims
    _Atomic int pending;      // chunks not done; set by the owner before `claims`, counted down by all
    _Atomic int n_sleeping;   // workers asleep or about to be; written under `lock`, read by the owner without
    _Atomic int owner_sleeps; // written by the owner under `lock`, read by workers without
    _Atomic int closing;      // written by the owner under `lock`, once

    // Guards only the two condition variables.
    pthread_mutex_t lock;
    pthread_cond_t work, done;

    int threads;
    struct worker workers[]; // threads - 1 of them
};

static uint64_t claims_word(uint64_t job, int chunks)
{
    return job << 32 | (uint64_t)chunks << 16;
}

static int chunks_of(uint64_t claims)
{
    return (int)(claims >> 16 & 0xffff);
}

static int next_of(uint64_t claims)
{
    return (int)(claims & 0xffff);
}

static bool is_claimable(uint64_t claims)
{
    return next_of(claims) < chunks_of(claims);
}

// The turn-th wait of a spin.
static void pause_briefly(int turn)
{
    if (turn >= YIELD_FROM && turn % YIELD_EVERY == 0)
        sched_yield();
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

// Claims and does chunks until none is left.
static void work_on_chunks(struct krn_pool *pool, int thread)
{
    uint64_t claims = atomic_load(&pool->claims);
    while (is_claimable(claims)) {
        if (!atomic_compare_exchange_weak(&pool->claims, &claims, claims + 1))
            continue;
        int64_t chunk = next_of(claims), chunks = chunks_of(claims);
        pool->fn(pool->arg, pool->n * chunk / chunks, pool->n * (chunk + 1) / chunks, thread);
        if (atomic_fetch_sub(&pool->pending, 1) == 1 && atomic_load(&pool->owner_sleeps)) {
            pthread_mutex_lock(&pool->lock);
            pthread_cond_signal(&pool->done);
            pthread_mutex_unlock(&pool->lock);
        }
        claims = atomic_load(&pool->claims);
    }
}

// Waits until there is something to claim; false: the pool closes.
static bool wait_for_job(struct krn_pool *pool)
{
    for (int i = 0; i < SPINS; i++) {
        if (is_claimable(atomic_load(&pool->claims)))
            return true;
        pause_briefly(i);
    }
    pthread_mutex_lock(&pool->lock);
    atomic_fetch_add(&pool->n_sleeping, 1);
    while (!is_claimable(atomic_load(&pool->claims)) && !atomic_load(&pool->closing))
        pthread_cond_wait(&pool->work, &pool->lock);
    atomic_fetch_sub(&pool->n_sleeping, 1);
    pthread_mutex_unlock(&pool->lock);
    return !atomic_load(&pool->closing);
}

static void *worker_main(void *arg)
{
    struct worker *worker = arg;
    while (wait_for_job(worker->pool))
        work_on_chunks(worker->pool, worker->number);
    return NULL;
}

static void wake_workers(struct krn_pool *pool)
{
    if (atomic_load(&pool->n_sleeping) > 0) {
        pthread_mutex_lock(&pool->lock);
        pthread_cond_broadcast(&pool->work);
        pthread_mutex_unlock(&pool->lock);
    }
}

static void wait_for_workers(struct krn_pool *pool)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&pool->pending) == 0)
            return;
        pause_briefly(i);
    }
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->owner_sleeps, 1);
    while (atomic_load(&pool->pending) != 0)
        pthread_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->owner_sleeps, 0);
    pthread_mutex_unlock(&pool->lock);
}

struct krn_pool *krn_pool_open(int threads)
{
    if (threads < 1)
        threads = 1;
    if (threads > KRN_POOL_MAX)
        threads = KRN_POOL_MAX;
    struct krn_pool *pool = calloc(1, sizeof *pool + (size_t)(threads - 1) * sizeof pool->workers[0]);
    if (!pool)
        return NULL;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->work, NULL);
    pthread_cond_init(&pool->done, NULL);
    pool->threads = 1;
    for (int i = 0; i < threads - 1; i++) {
        struct worker *worker = &pool->workers[i];
        worker->pool = pool;
        worker->number = i + 1;
        if (pthread_create(&worker->thread, NULL, worker_main, worker) != 0)
            break;
        pool->threads++;
    }
    return pool;
}

int krn_pool_threads(const struct krn_pool *pool)
{
    return pool->threads;
}

void krn_pool_run(struct krn_pool *pool, int64_t n, int chunks, krn_pool_fn *fn, void *arg)
{
    if (n <= 0)
        return;
    if (chunks > KRN_POOL_CHUNKS_MAX)
        chunks = KRN_POOL_CHUNKS_MAX;
    if (chunks > n)
        chunks = (int)n;
    if (chunks <= 1 || pool->threads == 1) {
        fn(arg, 0, n, 0);
        return;
    }
    pool->fn = fn;
    pool->arg = arg;
    pool->n = n;
    atomic_store(&pool->pending, chunks);
    atomic_store(&pool->claims, claims_word((atomic_load(&pool->claims) >> 32) + 1, chunks));
    wake_workers(pool);
    work_on_chunks(pool, 0);
    wait_for_workers(pool);
}

void krn_pool_close(struct krn_pool *pool)
{
    if (!pool)
        return;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->closing, 1);
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
    for (int i = 0; i < pool->threads - 1; i++)
        pthread_join(pool->workers[i].thread, NULL);
    pthread_cond_destroy(&pool->work);
    pthread_cond_destroy(&pool->done);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}
