// engine/decode_ar.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "drive.h"

static void test_one_row_and_one_token_a_step(void **state)
{
    (void)state;
    struct drive d;
    int32_t prompt[] = {3, 4, 5}; // the mask id as ordinary text
    struct eng_params p = eng_params_default();
    p.mode = ENG_MODE_AR;
    p.max_tokens = 10;
    drive_open(&d, fake_model_default(), &p, prompt, 3, 0);
    assert_int_equal(drive_step(&d), ENG_PASS_PREFILL);
    assert_int_equal(d.run.n, 1);
    uint64_t chain = fake_chain(prompt, 3);
    for (int i = 0; i < 9; i++) {
        chain = fake_chain_next(chain, d.run.tokens[0]);
        assert_int_equal(drive_step(&d), ENG_PASS_AR);
        assert_int_equal(d.batch.n_rows, 1);
        assert_int_equal(d.run.n, 1);
        struct krn_choice c;
        struct krn_select_row row = d.batch.wanted[0];
        assert_int_equal(row.position, 4 + i);
        fake_choose(&d.fake, chain, &row, &c);
        assert_int_equal(d.run.tokens[0], c.token);
        assert_int_equal(d.r->seq.n_kv, d.r->seq.n_tokens - 1);
    }
    assert_int_equal(d.r->seq.finish, ENG_FINISH_LENGTH);
    drive_close(&d);
}

static void test_prompts_come_in_pieces(void **state)
{
    (void)state;
    struct drive d;
    int32_t prompt[150];
    struct eng_params p = eng_params_default();
    for (int i = 0; i < 150; i++)
        prompt[i] = i % 90;
    p.mode = ENG_MODE_AR;
    drive_open(&d, fake_model_default(), &p, prompt, 150, 0);
    static const int32_t rows[] = {64, 64, 22};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(drive_step(&d), ENG_PASS_PREFILL);
        assert_int_equal(d.batch.n_rows, rows[i]);
        assert_int_equal(d.run.n, i == 2);
    }
    assert_false(eng_seq_in_prompt(&d.r->seq));
    drive_close(&d);
}

static void test_an_end_id_is_counted_but_not_reported(void **state)
{
    (void)state;
    struct drive d;
    int32_t prompt[] = {3};
    struct fake_model f = fake_model_default();
    f.end_id = 9;
    f.end_rate = 0.2;
    struct eng_params p = eng_params_default();
    p.mode = ENG_MODE_AR;
    p.max_tokens = 150;
    p.min_tokens = 6;
    drive_open(&d, f, &p, prompt, 1, 0);
    drive_to_end(&d);
    assert_int_equal(d.r->seq.finish, ENG_FINISH_STOP);
    assert_int_equal(d.r->seq.stop_id, 9);
    assert_true(d.r->seq.stats.completion_tokens > 6);
    assert_int_equal(d.builder.n_tokens, d.r->seq.stats.completion_tokens - 1);
    drive_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_row_and_one_token_a_step),
        cmocka_unit_test(test_prompts_come_in_pieces),
        cmocka_unit_test(test_an_end_id_is_counted_but_not_reported),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
