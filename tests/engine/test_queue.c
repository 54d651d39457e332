// engine/queue.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <pthread.h>

#include "base/err.h"
#include "queue.h"
#include "request.h"

static void test_order_and_bound(void **state)
{
    (void)state;
    struct eng_queue q;
    static struct eng_request r[4];
    bool woken;
    assert_int_equal(eng_queue_init(&q, 3), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(eng_queue_submit(&q, &r[i]), 0);
    assert_int_equal(eng_queue_submit(&q, &r[3]), ENG_EBUSY);
    struct eng_request *first = eng_queue_take(&q, true, &woken);
    assert_false(woken);
    assert_ptr_equal(first, &r[0]);
    assert_ptr_equal(first->next, &r[1]);
    assert_ptr_equal(first->next->next, &r[2]);
    assert_null(r[2].next);
    assert_true(r[0].seq.age < r[1].seq.age && r[1].seq.age < r[2].seq.age);
    // They still live, so the queue is still full.
    assert_int_equal(eng_queue_submit(&q, &r[3]), ENG_EBUSY);
    assert_int_equal(eng_queue_live(&q), 3);
    eng_queue_finished(&q, 1);
    assert_int_equal(eng_queue_live(&q), 2);
    assert_int_equal(eng_queue_submit(&q, &r[3]), 0);
    assert_ptr_equal(eng_queue_take(&q, false, &woken), &r[3]);
    assert_null(eng_queue_take(&q, false, &woken));
    eng_queue_done(&q);
}

static void test_a_wake_is_seen_once(void **state)
{
    (void)state;
    struct eng_queue q;
    bool woken;
    assert_int_equal(eng_queue_init(&q, 3), 0);
    eng_queue_wake(&q);
    eng_queue_wake(&q);
    assert_null(eng_queue_take(&q, true, &woken));
    assert_true(woken);
    assert_null(eng_queue_take(&q, false, &woken));
    assert_false(woken);
    eng_queue_done(&q);
}

static void test_refusal_keeps_the_graver_code(void **state)
{
    (void)state;
    struct eng_queue q;
    static struct eng_request r;
    assert_int_equal(eng_queue_init(&q, 3), 0);
    eng_queue_refuse(&q, ENG_ECLOSED);
    assert_int_equal(eng_queue_submit(&q, &r), ENG_ECLOSED);
    eng_queue_refuse(&q, ENG_EDEVICE);
    assert_int_equal(eng_queue_submit(&q, &r), ENG_EDEVICE);
    eng_queue_refuse(&q, ENG_ECLOSED);
    assert_int_equal(eng_queue_submit(&q, &r), ENG_EDEVICE);
    eng_queue_done(&q);
}

static void test_a_timeout_is_counted_from_the_submission(void **state)
{
    (void)state;
    struct eng_queue q;
    static struct eng_request r;
    assert_int_equal(eng_queue_init(&q, 3), 0);
    r.params.timeout_ms = 5;
    assert_int_equal(eng_queue_submit(&q, &r), 0);
    assert_true(r.deadline_ns == r.seq.submit_ns + 5000000);
    eng_queue_done(&q);
}

enum { N_EACH = 5000 };
struct producer {
    struct eng_queue *q;
    struct eng_request *r;
};

static void *produce(void *arg)
{
    struct producer *p = arg;
    for (int i = 0; i < N_EACH; i++)
        if (eng_queue_submit(p->q, &p->r[i]))
            abort();
    return NULL;
}

static void test_many_threads_submit_and_nothing_is_lost(void **state)
{
    (void)state;
    struct eng_queue q;
    struct producer producers[3];
    pthread_t threads[3];
    assert_int_equal(eng_queue_init(&q, 3 * N_EACH), 0);
    for (int i = 0; i < 3; i++) {
        producers[i] = (struct producer){&q, calloc(N_EACH, sizeof(struct eng_request))};
        pthread_create(&threads[i], NULL, produce, &producers[i]);
    }
    int n = 0;
    uint64_t age = 0;
    while (n < 3 * N_EACH) {
        bool woken;
        for (struct eng_request *r = eng_queue_take(&q, true, &woken); r; r = r->next, n++, age++)
            assert_true(r->seq.age == age);
    }
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], NULL);
        free(producers[i].r);
    }
    eng_queue_done(&q);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_order_and_bound),
        cmocka_unit_test(test_a_wake_is_seen_once),
        cmocka_unit_test(test_refusal_keeps_the_graver_code),
        cmocka_unit_test(test_a_timeout_is_counted_from_the_submission),
        cmocka_unit_test(test_many_threads_submit_and_nothing_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
