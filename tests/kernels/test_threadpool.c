#include "cmocka_util.h"
#include "threadpool.h"

#include <stdatomic.h>
#include <string.h>
#include <time.h>

enum { N_MAX = 1000 };

struct job {
    int32_t seen[N_MAX]; // each index belongs to one chunk, so no two threads write one
    _Atomic int calls, bad;
    int threads;
};

static void mark(void *arg, int64_t begin, int64_t end, int thread)
{
    struct job *job = arg;
    atomic_fetch_add(&job->calls, 1);
    if (begin >= end || thread < 0 || thread >= job->threads)
        atomic_fetch_add(&job->bad, 1);
    for (int64_t i = begin; i < end; i++)
        job->seen[i]++;
}

static void run_and_check(struct krn_pool *pool, int64_t n, int chunks)
{
    static struct job job;
    memset(&job, 0, sizeof job);
    job.threads = krn_pool_threads(pool);
    krn_pool_run(pool, n, chunks, mark, &job);
    for (int64_t i = 0; i < n; i++)
        assert_int_equal(job.seen[i], 1);
    assert_int_equal(job.bad, 0);
    assert_true(job.calls <= (chunks < 1 ? 1 : chunks));
}

static void test_every_index_is_done_once(void **state)
{
    (void)state;
    for (int threads = 1; threads <= 5; threads++) {
        struct krn_pool *pool = krn_pool_open(threads);
        assert_non_null(pool);
        assert_int_equal(krn_pool_threads(pool), threads);
        for (int64_t n = 0; n <= 40; n++)
            for (int chunks = 0; chunks <= 12; chunks++)
                run_and_check(pool, n, chunks);
        run_and_check(pool, N_MAX, 7);
        run_and_check(pool, N_MAX, KRN_POOL_CHUNKS_MAX);
        run_and_check(pool, N_MAX, KRN_POOL_CHUNKS_MAX + 5);
        krn_pool_close(pool);
    }
}

static void add_one(void *arg, int64_t begin, int64_t end, int thread)
{
    int64_t *values = arg;
    (void)thread;
    for (int64_t i = begin; i < end; i++)
        values[i]++;
}

static void test_thousands_of_small_jobs_follow_each_other(void **state)
{
    (void)state;
    struct krn_pool *pool = krn_pool_open(3);
    int64_t values[6] = {0};
    for (int job = 0; job < 20000; job++)
        krn_pool_run(pool, 6, 6, add_one, values);
    for (int i = 0; i < 6; i++)
        assert_int_equal(values[i], 20000);
    krn_pool_close(pool);
}

static void test_sleeping_threads_wake_up_again(void **state)
{
    (void)state;
    struct krn_pool *pool = krn_pool_open(3);
    int64_t values[6] = {0};
    for (int job = 0; job < 20; job++) {
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL); // far longer than they spin
        krn_pool_run(pool, 6, 6, add_one, values);
    }
    for (int i = 0; i < 6; i++)
        assert_int_equal(values[i], 20);
    krn_pool_close(pool);
}

static void sleep_in_worker(void *arg, int64_t begin, int64_t end, int thread)
{
    (void)begin, (void)end;
    _Atomic int *others = arg;
    if (thread == 0) {
        // Leaves the other chunk to a worker for a while, so that the owner must wait for it.
        for (int i = 0; i < 200 && atomic_load(others) == 0; i++)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        return;
    }
    atomic_fetch_add(others, 1);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    atomic_fetch_add(others, 1);
}

static void test_the_owner_sleeps_until_a_slow_worker_is_done(void **state)
{
    (void)state;
    struct krn_pool *pool = krn_pool_open(2);
    _Atomic int others = 0;
    krn_pool_run(pool, 2, 2, sleep_in_worker, &others);
    assert_true(others == 2 || others == 4 || others == 0);
    krn_pool_close(pool);
}

static void test_thread_counts_out_of_range_are_clamped(void **state)
{
    (void)state;
    struct krn_pool *pool = krn_pool_open(0);
    assert_int_equal(krn_pool_threads(pool), 1);
    krn_pool_close(pool);
    pool = krn_pool_open(KRN_POOL_MAX + 1);
    assert_in_range(krn_pool_threads(pool), 1, KRN_POOL_MAX);
    run_and_check(pool, N_MAX, 500);
    krn_pool_close(pool);
    krn_pool_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_index_is_done_once),
        cmocka_unit_test(test_thousands_of_small_jobs_follow_each_other),
        cmocka_unit_test(test_sleeping_threads_wake_up_again),
        cmocka_unit_test(test_the_owner_sleeps_until_a_slow_worker_is_done),
        cmocka_unit_test(test_thread_counts_out_of_range_are_clamped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
