// engine/stats.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "stats.h"

static void test_a_value_falls_into_the_first_bucket_that_holds_it(void **state)
{
    (void)state;
    struct eng_counters c;
    assert_int_equal(eng_counters_init(&c), 0);
    struct eng_hist *h = &c.now.rows;
    eng_hist_add(h, 1);
    eng_hist_add(h, 3);
    eng_hist_add(h, 4);
    eng_hist_add(h, 1e9);
    assert_int_equal(h->counts[0], 1);
    assert_int_equal(h->counts[2], 2);
    assert_int_equal(h->counts[h->n_bounds], 1);
    assert_int_equal(h->count, 4);
    assert_true(h->sum == 8 + 1e9);
    eng_counters_done(&c);
}

static void test_bounds_rise_and_fit(void **state)
{
    (void)state;
    struct eng_counters c;
    assert_int_equal(eng_counters_init(&c), 0);
    const struct eng_hist *all[] = {&c.now.rows, &c.now.seconds, &c.now.accepted_length, &c.now.denoise_passes};
    for (int i = 0; i < 4; i++) {
        assert_true(all[i]->n_bounds > 0 && all[i]->n_bounds <= ENG_HIST_BUCKETS);
        for (int32_t k = 1; k < all[i]->n_bounds; k++)
            assert_true(all[i]->bounds[k] > all[i]->bounds[k - 1]);
    }
    eng_counters_done(&c);
}

static void test_readers_see_published_numbers_only(void **state)
{
    (void)state;
    struct eng_counters c;
    struct eng_stats st;
    assert_int_equal(eng_counters_init(&c), 0);
    c.now.steps = 3;
    eng_counters_read(&c, &st);
    assert_int_equal(st.steps, 0);
    eng_counters_publish(&c);
    eng_counters_read(&c, &st);
    assert_int_equal(st.steps, 3);
    eng_counters_done(&c);
}

static void test_every_pass_kind_has_a_name(void **state)
{
    (void)state;
    for (enum eng_pass_kind k = 0; k < ENG_N_PASS_KINDS; k++)
        assert_true(strlen(eng_pass_kind_name(k)) > 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_value_falls_into_the_first_bucket_that_holds_it),
        cmocka_unit_test(test_bounds_rise_and_fit),
        cmocka_unit_test(test_readers_see_published_numbers_only),
        cmocka_unit_test(test_every_pass_kind_has_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
