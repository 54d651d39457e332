// engine/decode_self_speculation.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "client.h"
#include "drive.h"

static struct eng_params params(int32_t block, int32_t max_tokens)
{
    struct eng_params p = eng_params_default();
    p.mode = ENG_MODE_SELF_SPECULATION;
    p.block_length = block;
    p.max_tokens = max_tokens;
    return p;
}

static const int32_t prompt[] = {3, 4, 7};

static void test_good_drafts_give_a_block_per_cycle(void **state)
{
    (void)state;
    struct drive d;
    struct fake_model f = fake_model_default();
    struct eng_params p = params(8, 17);
    f.agree = 1;
    drive_open(&d, f, &p, prompt, 3, 0);
    drive_step(&d);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(drive_step(&d), ENG_PASS_DRAFT);
        assert_int_equal(d.run.n, 0);
        assert_false(eng_seq_at_boundary(&d.r->seq));
        assert_int_equal(drive_step(&d), ENG_PASS_VERIFY);
        assert_int_equal(d.run.n, 8);
        assert_int_equal(d.run.accepted, 7);
        assert_int_equal(d.run.rejected, 0);
        assert_true(eng_seq_at_boundary(&d.r->seq));
    }
    assert_int_equal(d.r->seq.finish, ENG_FINISH_LENGTH);
    drive_close(&d);
}

static void test_a_bad_draft_still_gives_one_token(void **state)
{
    (void)state;
    struct drive d;
    struct fake_model f = fake_model_default();
    struct eng_params p = params(8, 30);
    f.agree = 0;
    drive_open(&d, f, &p, prompt, 3, 0);
    drive_step(&d);
    for (int i = 0; i < 10; i++) {
        drive_step(&d);
        drive_step(&d);
        assert_true(d.run.n >= 1);
        assert_int_equal(d.run.n, d.run.accepted + 1);
        assert_int_equal(d.run.rejected, 8 - d.run.n);
        assert_int_equal(d.r->seq.n_kv, d.r->seq.n_tokens - 1);
    }
    drive_close(&d);
}

static void test_the_block_is_cut_to_what_is_wanted(void **state)
{
    (void)state;
    struct drive d;
    struct fake_model f = fake_model_default();
    struct eng_params p = params(16, 6);
    f.agree = 1;
    drive_open(&d, f, &p, prompt, 3, 0);
    drive_step(&d);
    assert_int_equal(drive_step(&d), ENG_PASS_DRAFT);
    assert_int_equal(d.batch.n_rows, 5);
    drive_step(&d);
    assert_int_equal(d.taken, 5);
    assert_int_equal(d.r->seq.finish, ENG_FINISH_LENGTH);
    drive_close(&d);
}

static void test_one_wanted_token_is_a_plain_row(void **state)
{
    (void)state;
    struct drive d;
    struct eng_params p = params(16, 2);
    drive_open(&d, fake_model_default(), &p, prompt, 3, 0);
    drive_step(&d);
    assert_int_equal(drive_step(&d), ENG_PASS_AR);
    assert_int_equal(d.batch.n_rows, 1);
    assert_int_equal(d.r->seq.finish, ENG_FINISH_LENGTH);
    drive_close(&d);
}

static void test_an_end_id_inside_the_accepted_run_ends(void **state)
{
    (void)state;
    int cut = 0;
    for (int32_t first = 10; first < 60; first++) {
        struct drive d;
        int32_t start[] = {first};
        struct fake_model f = fake_model_default();
        struct eng_params p = params(16, 100);
        f.agree = 1;
        f.end_id = 9;
        f.end_rate = 0.1;
        drive_open(&d, f, &p, start, 1, 0);
        drive_to_end(&d);
        if (d.r->seq.finish == ENG_FINISH_STOP) {
            assert_int_equal(d.r->seq.tokens[d.r->seq.n_tokens - 1], 9);
            cut += d.taken < d.run.n;
        }
        drive_close(&d);
    }
    assert_true(cut > 10);
}

// Row i of the verification must look back on exactly what AR would: the fake's choices depend on the counts.
static void test_penalties_see_the_drafts_before_them(void **state)
{
    (void)state;
    for (int32_t block = 4; block <= 32; block *= 2) {
        struct drive ss, ar;
        struct fake_model f = fake_model_default();
        struct eng_params p = params(block, 60);
        f.agree = 1;
        f.n_vocab = 20; // so that tokens repeat
        p.repetition_penalty = 1.1f;
        p.frequency_penalty = 0.3f;
        drive_open(&ss, f, &p, prompt, 3, 0);
        drive_to_end(&ss);
        p.mode = ENG_MODE_AR;
        drive_open(&ar, f, &p, prompt, 3, 0);
        drive_to_end(&ar);
        assert_int_equal(ss.r->seq.n_tokens, ar.r->seq.n_tokens);
        assert_memory_equal(ss.r->seq.tokens, ar.r->seq.tokens, (size_t)ar.r->seq.n_tokens * sizeof(int32_t));
        drive_close(&ss);
        drive_close(&ar);
    }
}

// However little of each draft is verified, the text is AR's; what was drafted right is counted by its whole length.
static void test_a_part_of_the_draft_may_be_verified(void **state)
{
    (void)state;
    uint64_t random = 3;
    struct drive ar, ss;
    struct eng_params p = params(8, 60);
    struct fake_model f = fake_model_default();
    p.mode = ENG_MODE_AR;
    drive_open(&ar, f, &p, prompt, 3, 0);
    drive_to_end(&ar);
    p.mode = ENG_MODE_SELF_SPECULATION;
    for (int agree = 0; agree <= 2; agree++)
        for (int32_t cut = 1; cut <= 9; cut++) {
            f.agree = agree * 0.5;
            drive_open(&ss, f, &p, prompt, 3, 0);
            drive_step(&ss);
            while (ss.r->seq.finish == ENG_FINISH_NONE) {
                if (drive_step(&ss) != ENG_PASS_DRAFT)
                    continue; // one token was left
                int32_t drafted = ss.r->seq.block.rows;
                int32_t rows = cut <= 8 ? cut : 1 + (int32_t)(test_random(&random) % 8);
                rows = rows < drafted ? rows : drafted;
                eng_seq_cut_draft(&ss.r->seq, rows);
                assert_int_equal(drive_step(&ss), ENG_PASS_VERIFY);
                assert_true(eng_seq_at_boundary(&ss.r->seq));
                assert_true(ss.run.n >= 1 && ss.run.n <= rows);
                assert_int_equal(ss.run.rejected, rows - ss.run.n);
                assert_int_equal(ss.run.drafted, drafted - 1);
                if (agree == 2)
                    assert_int_equal(ss.run.accepted, rows < drafted ? rows : drafted - 1);
            }
            assert_int_equal(ss.r->seq.n_tokens, ar.r->seq.n_tokens);
            assert_memory_equal(ss.r->seq.tokens, ar.r->seq.tokens, (size_t)ar.r->seq.n_tokens * sizeof(int32_t));
            drive_close(&ss);
        }
    drive_close(&ar);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_good_drafts_give_a_block_per_cycle),
        cmocka_unit_test(test_a_bad_draft_still_gives_one_token),
        cmocka_unit_test(test_the_block_is_cut_to_what_is_wanted),
        cmocka_unit_test(test_one_wanted_token_is_a_plain_row),
        cmocka_unit_test(test_an_end_id_inside_the_accepted_run_ends),
        cmocka_unit_test(test_penalties_see_the_drafts_before_them),
        cmocka_unit_test(test_a_part_of_the_draft_may_be_verified),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
