// engine/tenants.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include <malloc.h>

#include "base/clock.h"
#include "client.h"
#include "tenants.h"

#define SECOND INT64_C(1000000000)

static const struct eng_request_limits limits = {.n_vocab = 97, .max_context = 4096, .modes = 15, .block_length = 32};

static struct eng_request *make(int32_t tenant, int32_t priority, int32_t n_prompt)
{
    static int32_t prompt[4096];
    struct eng_params p = eng_params_default();
    struct eng_request *r;
    p.tenant = tenant;
    p.priority = priority;
    assert_int_equal(eng_request_make(&limits, &p, prompt, (size_t)n_prompt, &r, NULL, NULL, 0), 0);
    return r;
}

static uint64_t next_age;

static struct eng_request *add(struct eng_tenants *w, int32_t tenant, int32_t priority, int64_t submit_ns,
                               int32_t n_prompt)
{
    struct eng_request *r = make(tenant, priority, n_prompt);
    r->seq.age = next_age++;
    r->seq.submit_ns = submit_ns;
    eng_tenants_add(w, r);
    return r;
}

// Whose turn it is, taken.
static struct eng_request *take(struct eng_tenants *w)
{
    struct eng_request *r = eng_tenants_next(w);
    assert_ptr_equal(eng_tenants_next(w), r); // asking changes nothing
    if (r)
        eng_tenants_take(w, r);
    return r;
}

static void expect(struct eng_tenants *w, struct eng_request *r)
{
    assert_ptr_equal(take(w), r);
    eng_request_free(r);
}

static void test_priority_then_age_and_ten_seconds_a_level(void **state)
{
    (void)state;
    struct eng_tenants w;
    assert_int_equal(eng_tenants_init(&w, 4), 0);
    struct eng_request *old = add(&w, 0, 0, 100 * SECOND, 5), *same = add(&w, 0, 0, 100 * SECOND, 5);
    struct eng_request *urgent = add(&w, 0, -1, 105 * SECOND, 5), *late = add(&w, 0, -1, 111 * SECOND, 5);
    struct eng_request *low = add(&w, 0, 1, 95 * SECOND, 5), *later = add(&w, 0, 0, 106 * SECOND, 5);
    assert_int_equal(w.n_waiting, 6);
    expect(&w, urgent); // as if it had come at 95 s
    expect(&w, old);
    expect(&w, same);
    expect(&w, late); // 101 s
    expect(&w, low);  // 105 s: what came ten seconds later does not overtake it
    expect(&w, later);
    assert_null(take(&w));
    assert_int_equal(w.n_active, 0);
    eng_tenants_done(&w);
}

static void test_the_preempted_go_before_all_of_their_tenant(void **state)
{
    (void)state;
    struct eng_tenants w;
    assert_int_equal(eng_tenants_init(&w, 4), 0);
    struct eng_request *urgent = add(&w, 0, -1000, 0, 5);
    struct eng_request *back[2] = {make(0, 1000, 5), make(0, 0, 5)};
    for (int i = 0; i < 2; i++) {
        back[i]->seq.n_preempted = 1;
        eng_tenants_add(&w, back[i]);
    }
    expect(&w, back[1]);
    expect(&w, back[0]);
    expect(&w, urgent);
    eng_tenants_done(&w);
}

// Two tenants, one with long prompts and one with short ones, each with more than enough of them.
static void test_turns_are_shared_by_positions(void **state)
{
    (void)state;
    struct eng_tenants w;
    int64_t taken[2] = {0};
    assert_int_equal(eng_tenants_init(&w, 1), 0); // a share of one slot: nobody runs less than it below
    for (int i = 0; i < 400; i++)
        for (int k = 0; k < (i % 20 ? 1 : 2); k++)
            add(&w, k, 0, i, k ? 2000 : 100);
    struct eng_request held = {.params = {.tenant = 0}}, held2 = {.params = {.tenant = 1}};
    eng_tenants_started(&w, &held);
    eng_tenants_started(&w, &held2);
    for (int i = 0; i < 200; i++) {
        struct eng_request *r = take(&w);
        taken[r->params.tenant] += r->seq.n_prompt + r->params.block_length;
        int64_t difference = taken[0] - taken[1];
        assert_true(difference <= 4096 && difference >= -4096); // a round, and the longest of a request
        eng_request_free(r);
    }
    assert_true(taken[0] > 10000 && taken[1] > 10000);
    struct eng_request *r;
    while ((r = take(&w)))
        eng_request_free(r);
    eng_tenants_stopped(&w, &held);
    eng_tenants_stopped(&w, &held2);
    assert_int_equal(w.n_active, 0);
    eng_tenants_done(&w);
}

static void test_who_runs_less_than_its_share_comes_first(void **state)
{
    (void)state;
    struct eng_tenants w;
    assert_int_equal(eng_tenants_init(&w, 9), 0);
    assert_int_equal(eng_tenants_share(&w), 9);
    for (int i = 0; i < 100; i++)
        add(&w, 7, 0, i, 1);
    struct eng_request *first = add(&w, 3, 0, 1000, 4000); // late, and long
    assert_int_equal(eng_tenants_share(&w), 4);
    struct eng_request held[4] = {0};
    for (int i = 0; i < 4; i++) {
        held[i].params.tenant = 7;
        eng_tenants_started(&w, &held[i]);
    }
    expect(&w, first);
    assert_int_equal(eng_tenants_share(&w), 9);
    struct eng_request *r;
    while ((r = take(&w)))
        eng_request_free(r);
    for (int i = 0; i < 4; i++)
        eng_tenants_stopped(&w, &held[i]);
    assert_int_equal(w.n_active, 0);
    eng_tenants_done(&w);
}

// The best of all by looking at each.
static struct eng_request *search(const struct eng_tenants *w)
{
    struct eng_request *best = w->head;
    for (struct eng_request *r = w->head; r; r = r->next)
        if ((r->seq.n_preempted > 0) != (best->seq.n_preempted > 0) ? r->seq.n_preempted > 0
                                                                    : eng_tenants_before(r, best))
            best = r;
    return best;
}

static void test_random_adds_takes_and_removals(void **state)
{
    (void)state;
    struct eng_tenants w;
    struct eng_request *all[300];
    int n = 0;
    uint64_t random = 4;
    assert_int_equal(eng_tenants_init(&w, 4), 0);
    for (int i = 0; i < 20000; i++) {
        uint32_t what = test_random(&random) % 5;
        if (what < 3 && n < 300) {
            struct eng_request *r = make(0, (int32_t)(test_random(&random) % 7) - 3, 1);
            r->seq.submit_ns = (int64_t)(test_random(&random) % 40) * SECOND;
            r->seq.age = next_age++;
            r->seq.n_preempted = test_random(&random) % 9 == 0;
            eng_tenants_add(&w, r);
            all[n++] = r;
        } else if (n) {
            int k = (int)(test_random(&random) % (uint32_t)n);
            if (what == 3) {
                struct eng_request *best = search(&w);
                assert_ptr_equal(take(&w), best);
                for (k = 0; all[k] != best;)
                    k++;
            } else {
                eng_tenants_remove(&w, all[k]);
            }
            eng_request_free(all[k]);
            all[k] = all[--n];
        }
        assert_int_equal(w.n_waiting, n);
        assert_int_equal(w.n_active, n > 0);
    }
    while (n) {
        eng_tenants_remove(&w, all[--n]);
        eng_request_free(all[n]);
    }
    assert_true(!w.head && !w.tail && !w.first && !w.last);
    eng_tenants_done(&w);
}

// Ten thousand requests wait: they are a few kilobytes each, and cancelling all of them, in any order, takes no time.
static void test_ten_thousand_wait_and_are_cancelled(void **state)
{
    (void)state;
    enum { N = 10000, N_PROMPT = 100 };
    struct eng_tenants w;
    struct eng_request **all = calloc(N, sizeof *all);
    uint64_t random = 5;
    assert_int_equal(eng_tenants_init(&w, 64), 0);
    size_t before = mallinfo2().uordblks;
    for (int i = 0; i < N; i++)
        all[i] = add(&w, i % 17, (int32_t)(test_random(&random) % 3), (int64_t)(test_random(&random) % 100) * SECOND,
                     N_PROMPT);
    size_t each = (mallinfo2().uordblks - before) / N;
    print_message("# a waiting request: %zu bytes, %zu of them the prompt\n", each, N_PROMPT * sizeof(int32_t));
    assert_true(each < 4096);         // 0 under a sanitizer's own allocator, which mallinfo2 does not see
    for (int i = 0; i < N / 2; i++) { // some structure in the heaps
        struct eng_request *r = eng_tenants_next(&w);
        eng_tenants_take(&w, r);
        eng_tenants_add(&w, r);
    }
    for (int i = N - 1; i > 0; i--) {
        int k = (int)(test_random(&random) % (uint32_t)(i + 1));
        struct eng_request *swap = all[i];
        all[i] = all[k];
        all[k] = swap;
    }
    int64_t start = eng_now_ns();
    for (int i = 0; i < N; i++)
        eng_tenants_remove(&w, all[i]);
    double us = (double)(eng_now_ns() - start) / 1e3;
    print_message("# %d removals: %.0f us\n", N, us);
    assert_true(us < 500000); // measured: about 3000; a walk through the list for each takes some 50 times as long
    assert_int_equal(w.n_waiting, 0);
    for (int i = 0; i < N; i++)
        eng_request_free(all[i]);
    free(all);
    eng_tenants_done(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_priority_then_age_and_ten_seconds_a_level),
        cmocka_unit_test(test_the_preempted_go_before_all_of_their_tenant),
        cmocka_unit_test(test_turns_are_shared_by_positions),
        cmocka_unit_test(test_who_runs_less_than_its_share_comes_first),
        cmocka_unit_test(test_random_adds_takes_and_removals),
        cmocka_unit_test(test_ten_thousand_wait_and_are_cancelled),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
