// engine/decode.c: the table of modes, and the prompt.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "drive.h"

static void test_each_mode_has_its_functions(void **state)
{
    (void)state;
    static const enum eng_mode modes[] = {ENG_MODE_AR, ENG_MODE_DIFFUSION, ENG_MODE_SELF_SPECULATION};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        const struct eng_decode *d = eng_decode_of(modes[i]);
        assert_int_equal(d->mode, modes[i]);
        assert_true(d->rows && d->plan && d->commit);
    }
}

static void open_prompt(struct drive *d, int32_t max_tokens)
{
    struct eng_params p = eng_params_default();
    int32_t prompt[10] = {7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
    p.mode = ENG_MODE_AR;
    p.max_tokens = max_tokens;
    drive_open(d, fake_model_default(), &p, prompt, 10, 0);
}

static void test_a_piece_is_planned_and_only_the_last_gives_a_token(void **state)
{
    (void)state;
    struct drive d;
    open_prompt(&d, 5);
    struct eng_seq *seq = &d.r->seq;
    assert_int_equal(eng_decode_prompt_rows(seq, 4), 4);
    assert_int_equal(eng_decode_prompt_rows(seq, 100), 10);
    eng_batch_reset(&d.batch);
    assert_int_equal(eng_decode_prompt_plan(seq, &d.env, &d.batch, 4), 0);
    assert_int_equal(d.batch.n_rows, 4);
    assert_int_equal(d.batch.n_wanted, 0);
    assert_int_equal(d.batch.tokens[3], 10);
    assert_int_equal(seq->n_kv, 0); // planning changes nothing
    struct eng_run run = {0};
    eng_decode_prompt_commit(seq, &d.batch.segments[0], NULL, &run);
    assert_int_equal(seq->n_kv, 4);
    assert_int_equal(run.n, 0);
    assert_int_equal(eng_decode_prompt_rows(seq, 100), 6);
    eng_batch_reset(&d.batch);
    assert_int_equal(eng_decode_prompt_plan(seq, &d.env, &d.batch, 6), 0);
    assert_int_equal(d.batch.n_wanted, 1);
    assert_int_equal(d.batch.wanted[0].position, 10);
    struct krn_choice choice = {.token = 20};
    eng_decode_prompt_commit(seq, &d.batch.segments[0], &choice, &run);
    assert_int_equal(seq->n_kv, 10);
    assert_int_equal(run.n, 1);
    assert_int_equal(run.tokens[0], 20);
    assert_false(run.failed);
    drive_close(&d);
}

static void test_a_choice_without_a_token_fails(void **state)
{
    (void)state;
    struct drive d;
    open_prompt(&d, 5);
    eng_batch_reset(&d.batch);
    assert_int_equal(eng_decode_prompt_plan(&d.r->seq, &d.env, &d.batch, 10), 0);
    struct krn_choice choice = {.token = -1};
    struct eng_run run = {0};
    eng_decode_prompt_commit(&d.r->seq, &d.batch.segments[0], &choice, &run);
    assert_true(run.failed);
    drive_close(&d);
}

static void test_no_token_wanted_is_no_choice(void **state)
{
    (void)state;
    struct drive d;
    open_prompt(&d, 0);
    eng_batch_reset(&d.batch);
    assert_int_equal(eng_decode_prompt_plan(&d.r->seq, &d.env, &d.batch, 10), 0);
    assert_int_equal(d.batch.n_wanted, 0);
    drive_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_mode_has_its_functions),
        cmocka_unit_test(test_a_piece_is_planned_and_only_the_last_gives_a_token),
        cmocka_unit_test(test_a_choice_without_a_token_fails),
        cmocka_unit_test(test_no_token_wanted_is_no_choice),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
