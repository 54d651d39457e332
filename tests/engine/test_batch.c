// engine/batch.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"
#include "batch.h"

static void test_segments_stand_one_after_the_other(void **state)
{
    (void)state;
    struct eng_batch b;
    assert_int_equal(eng_batch_init(&b, 10, 3), 0);
    struct eng_segment *s = eng_batch_add(&b, 4, ENG_PASS_PREFILL, 7, 6);
    assert_int_equal(s->row, 0);
    assert_int_equal(s->mask, KRN_MASK_CAUSAL);
    assert_false(s->keep);
    struct krn_select_row *w = eng_batch_want(&b, s, 5);
    assert_int_equal(w->row, 5);
    assert_true(w->top_p == 1 && w->repetition_penalty == 1);
    assert_null(eng_batch_add(&b, 5, ENG_PASS_AR, 0, 5)); // four rows are left
    s = eng_batch_add(&b, 5, ENG_PASS_DENOISE, 0, 4);
    assert_int_equal(s->row, 6);
    eng_batch_want(&b, s, 1);
    eng_batch_want(&b, s, 3);
    assert_int_equal(s->first_wanted, 1);
    assert_int_equal(s->n_wanted, 2);
    assert_int_equal(b.wanted[2].row, 9);
    assert_int_equal(b.n_rows, 10);
    eng_batch_reset(&b);
    assert_int_equal(b.n_rows + b.n_segments + b.n_wanted, 0);
    eng_batch_done(&b);
}

static void test_segments_are_bounded(void **state)
{
    (void)state;
    struct eng_batch b;
    assert_int_equal(eng_batch_init(&b, 10, 3), 0);
    for (int i = 0; i < 3; i++)
        assert_non_null(eng_batch_add(&b, i, ENG_PASS_AR, 0, 1));
    assert_null(eng_batch_add(&b, 3, ENG_PASS_AR, 0, 1));
    eng_batch_done(&b);
    eng_batch_done(&b);
    assert_int_equal(eng_batch_init(&b, 0, 3), ENG_EINVAL);
}

static void test_links_and_accepts_are_counted(void **state)
{
    (void)state;
    struct eng_batch b;
    assert_int_equal(eng_batch_init(&b, 10, 3), 0);
    for (int round = 0; round < 2; round++) {
        eng_batch_reset(&b);
        assert_int_equal(b.n_links + b.n_accepts, 0);
        struct eng_segment *s = eng_batch_add(&b, 0, ENG_PASS_AR, 3, 1);
        assert_int_equal(s->accept, -1);
        assert_int_equal(b.links[0], -1); // also after a round that linked it
        eng_batch_link(&b, 0, 7);
        eng_batch_want(&b, s, 0);
        s = eng_batch_add(&b, 1, ENG_PASS_VERIFY, 5, 4);
        for (int32_t i = 0; i < 4; i++)
            eng_batch_want(&b, s, i);
        eng_batch_accept(&b, s);
        eng_batch_link(&b, 2, 8);
        assert_true(b.n_links == 2 && b.links[0] == 7 && b.links[1] == -1 && b.links[2] == 8);
        assert_true(b.n_accepts == 1 && s->accept == 0);
        assert_true(b.accepts[0].row == 1 && b.accepts[0].rows == 4 && b.accepts[0].choice == 1);
    }
    eng_batch_done(&b);
}

static void test_the_cost_of_a_batch_is_that_of_its_segments(void **state)
{
    (void)state;
    struct eng_batch b;
    assert_int_equal(eng_batch_init(&b, 16, 4), 0);
    struct eng_segment *s = eng_batch_add(&b, 0, ENG_PASS_DRAFT, 10, 4);
    s->adapter = true;
    for (int32_t i = 1; i < 4; i++)
        eng_batch_want(&b, s, i);
    eng_batch_want(&b, eng_batch_add(&b, 1, ENG_PASS_AR, 7, 1), 0);
    struct eng_cost_pass p = eng_batch_cost(&b);
    assert_true(p.rows == 5 && p.segments == 2 && p.choices == 4 && p.adapter_rows == 4);
    assert_true(p.context == 14 + 8 && p.pairs == 4 * 14 + 8);
    eng_batch_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_segments_stand_one_after_the_other),
        cmocka_unit_test(test_segments_are_bounded),
        cmocka_unit_test(test_links_and_accepts_are_counted),
        cmocka_unit_test(test_the_cost_of_a_batch_is_that_of_its_segments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
