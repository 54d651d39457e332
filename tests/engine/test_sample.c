// engine/sample.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "drive.h"

static const int32_t prompt[] = {3, 5, 3};

static int32_t count_of(struct eng_lookback back, int32_t token, bool output)
{
    for (int32_t i = 0; i < back.n; i++)
        if (back.counts[i].token == token)
            return output ? back.counts[i].in_output : back.counts[i].in_prompt;
    return 0;
}

static void test_without_penalties_there_is_no_history(void **state)
{
    (void)state;
    struct drive d;
    struct eng_params p = eng_params_default();
    p.mode = ENG_MODE_AR;
    drive_open(&d, fake_model_default(), &p, prompt, 3, 0);
    struct eng_lookback back;
    int32_t extra[] = {1, 2};
    assert_int_equal(eng_sample_lookback(&d.sampler, &d.r->seq, extra, 2, &back), 0);
    assert_int_equal(back.n, 0);
    assert_null(d.sampler.arena);
    drive_close(&d);
}

static void test_counts_are_of_prompt_output_and_extra_tokens(void **state)
{
    (void)state;
    struct drive d;
    struct eng_params p = eng_params_default();
    p.mode = ENG_MODE_AR;
    p.presence_penalty = 0.1f;
    drive_open(&d, fake_model_default(), &p, prompt, 3, 0);
    drive_step(&d);
    drive_step(&d);
    int32_t first = d.r->seq.tokens[3], second = d.r->seq.tokens[4];
    struct eng_lookback back;
    assert_int_equal(eng_sample_lookback(&d.sampler, &d.r->seq, NULL, 0, &back), 0);
    assert_int_equal(count_of(back, 3, false), 2);
    assert_int_equal(count_of(back, 5, false), 1);
    assert_int_equal(count_of(back, first, true), first == second ? 2 : 1);
    int32_t extra[] = {first, 96, 96};
    int32_t n = back.n, before = count_of(back, first, true);
    assert_int_equal(eng_sample_lookback(&d.sampler, &d.r->seq, extra, 3, &back), 0);
    assert_int_equal(count_of(back, first, true), before + 1);
    assert_int_equal(count_of(back, 96, true), 2);
    assert_true(back.n <= n + 1);
    // The sequence's own history did not change.
    assert_int_equal(eng_sample_lookback(&d.sampler, &d.r->seq, NULL, 0, &back), 0);
    assert_int_equal(count_of(back, first, true), before);
    drive_close(&d);
}

static void test_a_row_carries_the_request_and_its_position(void **state)
{
    (void)state;
    struct drive d;
    struct eng_params p = eng_params_default();
    struct eng_logit_bias biases[] = {{4, -100}};
    struct fake_model f = fake_model_default();
    f.end_id = 9;
    p.mode = ENG_MODE_AR;
    p.temperature = 0.5f;
    p.top_k = 3;
    p.top_p = 0.25f;
    p.min_p = 0.125f;
    p.seed = 77;
    p.min_tokens = 2;
    p.biases = biases;
    p.n_biases = 1;
    p.n_top = 4;
    drive_open(&d, f, &p, prompt, 3, 0);
    struct krn_select_row row = {.row = 12};
    eng_sample_row(&d.r->seq, 4, (struct eng_lookback){0}, &row);
    assert_int_equal(row.row, 12);
    assert_int_equal(row.position, 4);
    assert_int_equal(row.seed, 77);
    assert_true(row.temperature == 0.5f && row.top_k == 3 && row.top_p == 0.25f && row.min_p == 0.125f);
    assert_int_equal(row.n_top, 4);
    assert_int_equal(row.n_biases, 1);
    assert_int_equal(row.biases[0].token, 4);
    assert_ptr_equal(row.allowed, d.r->allowed_early); // the second token is one of min_tokens
    eng_sample_row(&d.r->seq, 5, (struct eng_lookback){0}, &row);
    assert_null(row.allowed);
    drive_close(&d);
}

static void test_a_long_history_is_counted_right(void **state)
{
    (void)state;
    struct eng_history h = {0};
    for (int32_t i = 0; i < 20000; i++)
        assert_int_equal(eng_history_add(&h, i * 7 % 3001, i % 2), 0);
    assert_int_equal(h.n, 3001);
    int32_t sum = 0;
    for (int32_t t = 0; t < 3001; t++) {
        int32_t at = eng_history_find(&h, t);
        assert_true(at >= 0 && h.counts[at].token == t);
        sum += h.counts[at].in_output + h.counts[at].in_prompt;
    }
    assert_int_equal(sum, 20000);
    assert_int_equal(eng_history_find(&h, 3001), -1);
    eng_history_done(&h);
    assert_int_equal(eng_history_find(&h, 1), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_without_penalties_there_is_no_history),
        cmocka_unit_test(test_counts_are_of_prompt_output_and_extra_tokens),
        cmocka_unit_test(test_a_row_carries_the_request_and_its_position),
        cmocka_unit_test(test_a_long_history_is_counted_right),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
