// engine/scheduler.c: tenants, priorities, and who gives way
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "schedule_rig.h"

static int32_t running_of(const struct world *w, int32_t tenant)
{
    return w->s.tenants.all[tenant].n_running;
}

// One tenant holds every slot and has two hundred more waiting; the other's request runs in the next pass. That costs
// one preemption, of the newest, and no other one follows.
static void test_a_tenant_with_many_requests_gives_a_slot_up_at_once(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, roomy());
    struct eng_request *newest = NULL;
    for (int i = 0; i < 200; i++) {
        struct eng_request *r = add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 5, 60, 8);
        newest = i == 7 ? r : newest;
    }
    for (int i = 0; i < 10; i++) {
        fill(&w);
        compute(&w);
    }
    assert_int_equal(running_of(&w, 1), 8);
    struct eng_request *small = add_of(&w, (struct who){.tenant = 2}, ENG_MODE_AR, 5, 30, 8);
    fill(&w);
    assert_int_equal(rows_of(&w, small), 5);
    assert_int_equal(w.s.n_preemptions, 1);
    assert_int_equal(newest->seq.n_preempted, 1);
    compute(&w);
    while (running_of(&w, 2)) { // small is freed with its last token
        fill(&w);
        assert_int_equal(w.s.n_preemptions, 1);
        compute(&w);
    }
    fill(&w);
    assert_true(newest->seq.slot >= 0); // before the 192 that never ran
    compute(&w);
    run_out(&w);
    close_world(&w);
}

static void test_tenants_that_want_it_get_equal_slots(void **state)
{
    (void)state;
    struct world w;
    open_world(&w, roomy());
    for (int i = 0; i < 60; i++)
        add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 5, 20 + i % 7, 8);
    fill(&w);
    compute(&w);
    for (int i = 0; i < 90; i++)
        add_of(&w, (struct who){.tenant = 2 + i % 3}, ENG_MODE_AR, 5, 20 + i % 7, 8);
    for (int i = 0; i < 60; i++) {
        fill(&w);
        for (int t = 1; t <= 4; t++)
            assert_int_equal(running_of(&w, t), 2);
        compute(&w);
    }
    assert_int_equal(w.s.n_preemptions, 6); // as many slots as the first had too many, once
    run_out(&w);
    close_world(&w);
}

static void test_more_tenants_than_slots_take_turns_without_preempting(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.max_sequences = 2;
    open_world(&w, limits);
    for (int i = 0; i < 40; i++)
        add_of(&w, (struct who){.tenant = i % 5, .submit_ns = 5 - i % 5}, ENG_MODE_AR, 5, 20, 8);
    run_out(&w);
    assert_int_equal(w.s.n_preemptions, 0);
    close_world(&w);
}

// A slot that is about to come free is waited for.
static void test_nobody_is_preempted_for_a_slot_that_comes_free(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.max_sequences = 3;
    open_world(&w, limits);
    for (int i = 0; i < 3; i++)
        add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 5, i ? 50 : 4, 8);
    for (int i = 0; i < 3; i++) {
        fill(&w);
        compute(&w);
    }
    struct eng_request *other = add_of(&w, (struct who){.tenant = 2}, ENG_MODE_AR, 5, 5, 8);
    fill(&w);
    assert_int_equal(other->seq.slot, -1); // the first one's last token is being computed
    compute(&w);
    fill(&w);
    assert_true(other->seq.slot >= 0);
    assert_int_equal(w.s.n_preemptions, 0);
    compute(&w);
    run_out(&w);
    close_world(&w);
}

// Pages run out: of the rest, the lowest priority gives way, though others are younger; the first of all never does,
// whatever its priority.
static void test_the_lowest_priority_gives_way(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.n_pages = 40;
    limits.max_context = 110;
    open_world(&w, limits);
    struct eng_request *first = add_of(&w, (struct who){.priority = 9}, ENG_MODE_AR, 8, 60, 8);
    fill(&w);
    compute(&w);
    first->turn_ns = 0; // the others came long after
    int64_t later = 1000 * ENG_PRIORITY_NS;
    struct eng_request *low = add_of(&w, (struct who){.priority = 2, .submit_ns = later}, ENG_MODE_AR, 8, 60, 8);
    add_of(&w, (struct who){.priority = 1, .submit_ns = later}, ENG_MODE_AR, 8, 60, 8);
    struct eng_request *high = add_of(&w, (struct who){.priority = 0, .submit_ns = later}, ENG_MODE_AR, 8, 60, 8);
    while (!w.s.n_preemptions) {
        fill(&w);
        assert_int_equal(w.s.n_running + (int32_t)w.s.n_preemptions, 4);
        compute(&w);
    }
    assert_int_equal(low->seq.n_preempted, 1);
    assert_int_equal(first->seq.n_preempted + high->seq.n_preempted, 0);
    run_out(&w);
    close_world(&w);
}

// Of one priority, the tenant that has more pages than its share gives way, though its requests are older.
static void test_the_tenant_over_its_share_of_pages_gives_way(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.n_pages = 60;
    limits.max_context = 200;
    open_world(&w, limits);
    struct eng_request *first = add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 10, 90, 8);
    struct eng_request *wide = add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 100, 90, 8);
    struct eng_request *young = add_of(&w, (struct who){.tenant = 2}, ENG_MODE_AR, 10, 90, 8);
    while (!w.s.n_preemptions) {
        fill(&w);
        compute(&w);
    }
    assert_int_equal(wide->seq.n_preempted, 1);
    assert_int_equal(first->seq.n_preempted + young->seq.n_preempted, 0);
    run_out(&w);
    close_world(&w);
}

// Someone with the lowest of five priorities, while two more important requests arrive in every pass of 50 ms. It ends,
// and not before some of those that came after it.
static void test_a_low_priority_waits_a_bounded_time(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.max_sequences = 4;
    limits.n_pages = 40;
    limits.max_context = 100;
    open_world(&w, limits);
    struct eng_request *low = NULL;
    int64_t now = 0, started = 0, ended = 0;
    for (int i = 0; !ended; i++, now += ENG_PRIORITY_NS / 200) {
        for (int k = 0; k < 2; k++)
            add_of(&w, (struct who){.tenant = k, .submit_ns = now}, ENG_MODE_AR, 5, 10, 8);
        if (i == 20)
            low = add_of(&w, (struct who){.priority = 4, .submit_ns = now}, ENG_MODE_AR, 5, 50, 8);
        int64_t low_age = low ? (int64_t)low->seq.age : -1;
        fill(&w);
        if (low && !started && low->seq.slot >= 0)
            started = now;
        compute(&w);
        bool there = false;
        for (int32_t k = 0; k < w.s.n_running; k++)
            there = there || (int64_t)w.s.running[k]->seq.age == low_age;
        for (const struct eng_request *r = w.s.tenants.head; r; r = r->next)
            there = there || (int64_t)r->seq.age == low_age;
        ended = low && !there ? now : 0;
        assert_true(i < 20000);
    }
    // Its turn is that of what came forty seconds later: those before it are served first, at two in ten passes.
    assert_true(started > 40 * (ENG_PRIORITY_NS / 10));
    print_message("# started after %.0f s, ended after %.0f s\n", (double)started / 1e9, (double)ended / 1e9);
    while (w.s.tenants.head) {
        struct eng_request *r = w.s.tenants.head;
        eng_scheduler_remove(&w.s, r);
        eng_request_free(r);
    }
    run_out(&w);
    close_world(&w);
}

static void test_rows_lost_to_preemption_are_counted(void **state)
{
    (void)state;
    for (int cache = 0; cache < 2; cache++) {
        struct world w;
        struct eng_scheduler_limits limits = roomy();
        limits.max_sequences = 2;
        limits.prefix_cache = cache;
        open_world(&w, limits);
        add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 41, 200, 8);
        struct eng_request *victim = add_of(&w, (struct who){.tenant = 1}, ENG_MODE_AR, 41, 200, 8);
        for (int i = 0; i < 10; i++) {
            fill(&w);
            compute(&w);
        }
        int32_t computed = victim->seq.n_kv;
        assert_int_equal(computed, 50);
        add_of(&w, (struct who){.tenant = 2}, ENG_MODE_AR, 5, 2, 8);
        fill(&w);
        assert_int_equal(victim->seq.n_preempted, 1);
        while (victim->seq.slot < 0) {
            compute(&w);
            fill(&w);
        }
        assert_int_equal(victim->seq.n_kv, cache ? 48 : 0); // whole pages of what is to be computed, but for its last
        assert_int_equal(w.s.lost_rows, cache ? 2 : 50);
        compute(&w);
        add_of(&w, (struct who){.tenant = 2}, ENG_MODE_AR, 5, 2, 8);
        fill(&w);
        assert_int_equal(victim->seq.n_preempted, 2);
        computed = victim->seq.n_lost;
        eng_scheduler_remove(&w.s, victim); // while it waits: all it had is lost
        eng_request_free(victim);
        assert_int_equal(w.s.lost_rows, (cache ? 2 : 50) + computed);
        compute(&w);
        run_out(&w);
        close_world(&w);
    }
}

// Fresh requests leave those that run room to go on.
static void test_admission_keeps_a_reserve(void **state)
{
    (void)state;
    struct world w;
    struct eng_scheduler_limits limits = roomy();
    limits.n_pages = 100;
    limits.max_context = 400;
    open_world(&w, limits);
    add(&w, ENG_MODE_AR, 40, 40, 8); // 10 pages
    fill(&w);
    compute(&w);
    struct eng_request *big =
        add(&w, ENG_MODE_AR, 337, 40, 8); // 87 pages with a block; there are 90, less 4 of reserve
    fill(&w);
    assert_int_equal(big->seq.slot, -1);
    eng_scheduler_remove(&w.s, big);
    eng_request_free(big);
    compute(&w);
    big = add(&w, ENG_MODE_AR, 332, 40, 8); // 85; there are 89
    fill(&w);
    assert_true(big->seq.slot >= 0);
    compute(&w);
    run_out(&w);
    close_world(&w);
}

// Any mixture of tenants, priorities and modes over too few pages and slots comes to its end.
static void test_everything_ends_whatever_is_mixed(void **state)
{
    (void)state;
    uint64_t random = 8;
    for (int round = 0; round < 30; round++) {
        struct world w;
        struct eng_scheduler_limits limits = roomy();
        limits.max_sequences = 1 + (int32_t)(test_random(&random) % 7);
        limits.page_size = 1 + (int32_t)(test_random(&random) % 9);
        limits.max_context = 100;
        limits.n_pages = (100 + limits.page_size - 1) / limits.page_size + (int32_t)(test_random(&random) % 20);
        limits.prefix_cache = test_random(&random) % 2;
        open_world(&w, limits);
        int steps = 0;
        for (int i = 0; i < 60 || w.s.n_running || w.s.tenants.head; i++) {
            for (int k = 0; i < 60 && k < 2; k++)
                add_of(&w,
                       (struct who){.tenant = (int32_t)(test_random(&random) % 4),
                                    .priority = (int32_t)(test_random(&random) % 5),
                                    .submit_ns = i * (ENG_PRIORITY_NS / 10)},
                       (enum eng_mode)(1 + test_random(&random) % 3), 1 + (int32_t)(test_random(&random) % 50),
                       1 + (int32_t)(test_random(&random) % 45), 16);
            fill(&w);
            compute(&w);
            assert_true(++steps < 60000);
        }
        close_world(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_tenant_with_many_requests_gives_a_slot_up_at_once),
        cmocka_unit_test(test_tenants_that_want_it_get_equal_slots),
        cmocka_unit_test(test_more_tenants_than_slots_take_turns_without_preempting),
        cmocka_unit_test(test_nobody_is_preempted_for_a_slot_that_comes_free),
        cmocka_unit_test(test_the_lowest_priority_gives_way),
        cmocka_unit_test(test_the_tenant_over_its_share_of_pages_gives_way),
        cmocka_unit_test(test_a_low_priority_waits_a_bounded_time),
        cmocka_unit_test(test_rows_lost_to_preemption_are_counted),
        cmocka_unit_test(test_admission_keeps_a_reserve),
        cmocka_unit_test(test_everything_ends_whatever_is_mixed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
