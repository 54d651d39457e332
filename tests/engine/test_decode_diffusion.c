// engine/decode_diffusion.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "drive.h"

static struct eng_params params(int32_t block, int32_t max_tokens)
{
    struct eng_params p = eng_params_default();
    p.mode = ENG_MODE_DIFFUSION;
    p.block_length = block;
    p.max_tokens = max_tokens;
    return p;
}

static const int32_t prompt[] = {3, 5, 7};

static uint64_t reveal(enum eng_commit_policy policy, uint64_t masked, const float *confidences, float threshold,
                       int32_t steps, int32_t passes)
{
    struct krn_choice choices[64] = {0};
    for (int i = 0; i < __builtin_popcountll(masked); i++)
        choices[i].confidence = confidences[i];
    struct eng_commit_view v = {masked, choices, threshold, steps, passes};
    return eng_decode_reveal(policy, &v);
}

static void test_policies(void **state)
{
    (void)state;
    const float c[] = {0.2f, 0.95f, 0.9f, 0.5f, 0.95f};
    uint64_t masked = 0x1a6; // bits 1, 2, 5, 7, 8
    assert_int_equal(reveal(ENG_COMMIT_CONFIDENCE, masked, c, 0.9f, 0, 0), 1u << 2 | 1u << 5 | 1u << 8);
    // Below the threshold the most confident one; of equals the leftmost.
    assert_int_equal(reveal(ENG_COMMIT_CONFIDENCE, masked, c, 0.99f, 0, 0), 1u << 2);
    assert_int_equal(reveal(ENG_COMMIT_SCHEDULE, masked, c, 0.9f, 2, 0), 1u << 2 | 1u << 8 | 1u << 5);
    assert_int_equal(reveal(ENG_COMMIT_SCHEDULE, masked, c, 0.9f, 4, 1), 1u << 2 | 1u << 8);
    assert_int_equal(reveal(ENG_COMMIT_SCHEDULE, masked, c, 0.9f, 4, 3), masked);
    assert_int_equal(reveal(ENG_COMMIT_SCHEDULE, masked, c, 0.9f, 4, 9), masked);
    assert_int_equal(reveal(ENG_COMMIT_LEFTMOST, masked, c, 0.9f, 0, 0), 1u << 1);
    assert_int_equal(reveal(ENG_COMMIT_LEFTMOST, masked, c, 0.9f, 2, 0), 1u << 1 | 1u << 2 | 1u << 5);
    const float equal[64] = {0};
    assert_true(reveal(ENG_COMMIT_CONFIDENCE, ~UINT64_C(1), equal, 0.9f, 0, 0) == 2);
    assert_true(reveal(ENG_COMMIT_SCHEDULE, ~UINT64_C(1), equal, 0.9f, 1, 0) == ~UINT64_C(1));
}

static void test_a_block_is_denoised_then_sealed(void **state)
{
    (void)state;
    for (int32_t block = 4; block <= 64; block *= 2) {
        struct drive d;
        struct eng_params p = params(block, 150);
        p.steps = 3;
        drive_open(&d, fake_model_default(), &p, prompt, 3, 0);
        drive_step(&d);
        for (int i = 0; i < 2; i++) {
            int32_t start = d.r->seq.n_kv;
            for (int pass = 0; pass < 3; pass++) {
                assert_int_equal(drive_step(&d), ENG_PASS_DENOISE);
                assert_int_equal(d.batch.n_rows, block);
                assert_int_equal(d.r->seq.n_kv, start);
            }
            assert_int_equal(d.run.denoise_passes, 3);
            assert_int_equal(drive_step(&d), ENG_PASS_SEAL);
            assert_int_equal(d.r->seq.n_kv, start + block);
            assert_int_equal(d.r->seq.n_tokens, start + block + 1);
            assert_true(eng_seq_at_boundary(&d.r->seq));
        }
        drive_close(&d);
    }
}

static void test_what_stands_without_a_mask_before_it_is_published_at_once(void **state)
{
    (void)state;
    struct drive d;
    struct eng_params p = params(16, 150);
    drive_open(&d, fake_model_default(), &p, prompt, 3, 0);
    drive_step(&d);
    int early = 0;
    for (int i = 0; i < 60; i++) {
        enum eng_pass_kind kind = drive_step(&d);
        const struct eng_block *b = &d.r->seq.block;
        if (kind != ENG_PASS_DENOISE)
            continue;
        early += d.run.n > 0 && b->masked;
        int32_t stands = b->masked ? __builtin_ctzll(b->masked) : b->rows;
        assert_int_equal(d.r->seq.n_tokens, b->start + stands);
        for (int32_t k = 0; k < stands; k++)
            assert_int_equal(d.r->seq.tokens[b->start + k], b->tokens[k]);
    }
    assert_true(early > 0);
    drive_close(&d);
}

static void test_committed_tokens_never_change(void **state)
{
    (void)state;
    struct drive d;
    struct eng_params p = params(32, 100);
    p.temperature = 1;
    drive_open(&d, fake_model_default(), &p, prompt, 3, 0);
    drive_step(&d);
    struct eng_block before = {0};
    while (d.r->seq.finish == ENG_FINISH_NONE) {
        drive_step(&d);
        const struct eng_block *b = &d.r->seq.block;
        for (int32_t i = 0; b->rows && before.rows && b->start == before.start && i < b->rows; i++)
            if (!(before.masked >> i & 1)) {
                assert_false(b->masked >> i & 1);
                assert_int_equal(b->tokens[i], before.tokens[i]);
            }
        before = *b;
    }
    drive_close(&d);
}

static void test_the_output_is_cut_but_not_the_block(void **state)
{
    (void)state;
    struct drive d;
    struct eng_params p = params(16, 5);
    drive_open(&d, fake_model_default(), &p, prompt, 3, 0);
    drive_step(&d);
    while (d.r->seq.finish == ENG_FINISH_NONE) {
        assert_int_equal(drive_step(&d), ENG_PASS_DENOISE); // the end needs no seal
        assert_int_equal(d.batch.n_rows, 16);
    }
    assert_int_equal(eng_seq_n_output(&d.r->seq), 5);
    drive_close(&d);
}

static void test_the_context_cuts_the_block(void **state)
{
    (void)state;
    struct drive d;
    struct eng_params p = params(16, 100);
    drive_open(&d, fake_model_default(), &p, prompt, 3, 13);
    drive_step(&d);
    while (d.r->seq.finish == ENG_FINISH_NONE) {
        drive_step(&d);
        assert_int_equal(d.batch.n_rows, 10);
    }
    assert_int_equal(d.r->seq.n_tokens, 13);
    drive_close(&d);
}

static void test_an_end_id_ends_once_no_mask_stands_before_it(void **state)
{
    (void)state;
    int with_masks_behind = 0;
    for (int32_t first = 10; first < 80; first++) {
        struct drive d;
        int32_t start[] = {first};
        struct fake_model f = fake_model_default();
        struct eng_params p = params(16, 100);
        f.end_id = 9;
        f.end_rate = 0.1;
        drive_open(&d, f, &p, start, 1, 0);
        drive_to_end(&d);
        const struct eng_seq *q = &d.r->seq;
        for (int32_t i = q->n_prompt; i < q->n_tokens - 1; i++)
            assert_int_not_equal(q->tokens[i], 9);
        if (q->finish == ENG_FINISH_STOP && q->block.rows && q->block.masked) {
            with_masks_behind++;
            assert_true(__builtin_ctzll(q->block.masked) >= q->n_tokens - q->block.start);
        }
        drive_close(&d);
    }
    assert_true(with_masks_behind > 5);
}

// The fake's choices depend on the counts: they are those of the prompt, the output and all that is revealed in the
// block.
static void test_penalties_see_what_the_block_has_revealed(void **state)
{
    (void)state;
    struct drive d;
    struct fake_model f = fake_model_default();
    struct eng_params p = params(16, 60);
    f.n_vocab = 20;
    p.frequency_penalty = 0.5f;
    p.steps = 5;
    drive_open(&d, f, &p, prompt, 3, 0);
    drive_step(&d);
    for (int step = 0; step < 12; step++) {
        struct eng_block before = d.r->seq.block;
        int32_t n = d.r->seq.n_tokens;
        drive_step(&d);
        if (d.batch.segments[0].kind != ENG_PASS_DENOISE || !before.rows)
            continue;
        int32_t expect[20] = {0}, got = 0, sum = 0;
        for (int32_t i = 3; i < n; i++)
            expect[d.r->seq.tokens[i]]++;
        for (int32_t i = n - before.start; i < before.rows; i++)
            if (!(before.masked >> i & 1))
                expect[before.tokens[i]]++;
        for (int32_t t = 0; t < 20; t++)
            sum += expect[t];
        const struct krn_select_row *w = &d.batch.wanted[0];
        for (int32_t i = 0; i < w->n_counts; i++) {
            assert_int_equal(w->counts[i].in_output, expect[w->counts[i].token]);
            got += w->counts[i].in_output;
        }
        assert_int_equal(got, sum);
    }
    drive_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_policies),
        cmocka_unit_test(test_a_block_is_denoised_then_sealed),
        cmocka_unit_test(test_what_stands_without_a_mask_before_it_is_published_at_once),
        cmocka_unit_test(test_committed_tokens_never_change),
        cmocka_unit_test(test_the_output_is_cut_but_not_the_block),
        cmocka_unit_test(test_the_context_cuts_the_block),
        cmocka_unit_test(test_an_end_id_ends_once_no_mask_stands_before_it),
        cmocka_unit_test(test_penalties_see_what_the_block_has_revealed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
