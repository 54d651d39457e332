// engine/acceptance.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "acceptance.h"

enum { SECOND = 1000000000 };

static float sure[63], unsure[63];

static int set_up(void **state)
{
    (void)state;
    for (int i = 0; i < 63; i++) {
        sure[i] = 0.97f;
        unsure[i] = 0.3f;
    }
    return 0;
}

static struct eng_verified draft(int32_t n, int32_t kept, const float *confidence)
{
    return (struct eng_verified){.n = n, .kept = kept, .judged = n, .ended = false, .confidence = confidence};
}

static void test_block_lengths(void **state)
{
    (void)state;
    for (int32_t n = 1; n <= 64; n++) {
        int k = eng_block_index(n);
        assert_true(n <= eng_block_length(k) && (k == 0 || n > eng_block_length(k - 1)));
    }
}

static void test_what_is_unknown_is_believed_to_be_good(void **state)
{
    (void)state;
    float hoped[ENG_BLOCK_LENGTHS], expected[ENG_BLOCK_LENGTHS];
    struct eng_acceptance own = {0};
    struct eng_experience all = {0};
    eng_acceptance_hope(hoped);
    eng_acceptance_expect(&own, &all, expected);
    for (int k = 0; k < ENG_BLOCK_LENGTHS; k++) {
        assert_true(expected[k] == hoped[k]);
        assert_true(hoped[k] > 0.4f * (float)eng_block_length(k) && hoped[k] < (float)eng_block_length(k));
        assert_true(!k || hoped[k] > hoped[k - 1]);
    }
    assert_true(eng_verified_share(&all, 16) == 1);
    assert_true(eng_denoising_tokens(&all, 32) > 2 && eng_denoising_tokens(&all, 32) < 4);
}

// Drafts that are always accepted up to a position and never beyond it yield just that.
static void test_the_yield_of_a_block_is_learned_by_position(void **state)
{
    (void)state;
    for (int32_t kept = 0; kept <= 15; kept += 3) {
        struct eng_acceptance own = {0};
        struct eng_experience all = {0};
        float expected[ENG_BLOCK_LENGTHS];
        for (int i = 0; i < 300; i++) {
            struct eng_verified v = draft(15, kept, sure);
            eng_acceptance_learn(&own, &all, &v);
        }
        eng_acceptance_expect(&own, &all, expected);
        float right = (float)kept + 1, mine = expected[eng_block_index(16)];
        assert_true(mine > 0.8f * right && mine < 1.35f * right);
        // Those who have done nothing yet are expected to do as the others.
        struct eng_acceptance fresh = {0};
        eng_acceptance_expect(&fresh, &all, expected);
        mine = expected[eng_block_index(16)];
        assert_true(mine > 0.6f * right && mine < 2 * right + 2);
    }
}

static void test_one_request_is_not_all(void **state)
{
    (void)state;
    struct eng_experience all = {0};
    float expected[ENG_BLOCK_LENGTHS], fresh[ENG_BLOCK_LENGTHS];
    for (int r = 0; r < 40; r++) {
        struct eng_acceptance own = {0};
        for (int i = 0; i < 8; i++) {
            struct eng_verified v = draft(15, 15, sure);
            eng_acceptance_learn(&own, &all, &v);
        }
    }
    struct eng_acceptance bad = {0};
    for (int i = 0; i < 50; i++) {
        struct eng_verified v = draft(15, 0, sure);
        eng_acceptance_learn(&bad, &all, &v);
    }
    eng_acceptance_expect(&bad, &all, expected);
    assert_true(expected[2] < 1.5f);
    eng_acceptance_expect(&(struct eng_acceptance){0}, &all, fresh);
    assert_true(fresh[2] > 3 * expected[2]);
    // What it did is forgotten while it does not draft.
    for (int i = 0; i < 8; i++)
        eng_acceptance_forget(&bad);
    eng_acceptance_expect(&bad, &all, expected);
    assert_true(expected[2] > 0.8f * fresh[2]);
}

// A text that becomes harder is found out although its beginning was easy.
static void test_a_requests_own_past_fades(void **state)
{
    (void)state;
    struct eng_acceptance own = {0};
    struct eng_experience all = {0};
    float easy[ENG_BLOCK_LENGTHS], hard[ENG_BLOCK_LENGTHS];
    for (int i = 0; i < 230; i++) {
        struct eng_verified v = draft(15, i < 200 ? 15 : 0, sure);
        eng_acceptance_learn(&own, &all, &v);
        if (i == 199)
            eng_acceptance_expect(&own, &all, easy);
    }
    eng_acceptance_expect(&own, &all, hard);
    assert_true(easy[2] > 14 && hard[2] < 7);
}

static void test_the_end_of_the_text_counts_against_long_blocks_but_not_against_confidence(void **state)
{
    (void)state;
    struct eng_acceptance own = {0};
    struct eng_experience all = {0};
    float expected[ENG_BLOCK_LENGTHS];
    for (int i = 0; i < 100; i++) {
        struct eng_verified v = draft(31, 6, sure);
        v.ended = true;
        eng_acceptance_learn(&own, &all, &v);
    }
    eng_acceptance_expect(&own, &all, expected);
    assert_true(expected[3] < 10);
    assert_true(eng_confidence_chance(&all, 0.97f) > 0.97f);
}

static void test_confidence_is_taken_at_what_it_has_been_worth(void **state)
{
    (void)state;
    struct eng_acceptance own = {0};
    struct eng_experience all = {0};
    assert_true(eng_confidence_chance(&all, 0.3f) > 0.29f && eng_confidence_chance(&all, 0.3f) < 0.31f);
    for (int i = 0; i < 100; i++) {
        struct eng_verified v = draft(1, i % 10 != 0, unsure); // says 0.3 and is right nine times of ten
        eng_acceptance_learn(&own, &all, &v);
    }
    assert_true(eng_confidence_chance(&all, 0.35f) > 0.7f && eng_confidence_chance(&all, 0.35f) < 0.95f);
    assert_true(eng_confidence_chance(&all, 0.97f) > 0.96f && eng_confidence_chance(&all, 0.97f) < 0.98f);
}

static void test_rows_are_verified_while_they_are_worth_it(void **state)
{
    (void)state;
    struct eng_experience all = {0};
    float confidence[63];
    for (int i = 0; i < 63; i++)
        confidence[i] = 0.9f;
    assert_int_equal(eng_rows_worth_verifying(&all, confidence, 32, 0), 32);
    assert_int_equal(eng_rows_worth_verifying(&all, confidence, 32, 0.5f), 7); // 0.9^6 = 0.53, 0.9^7 = 0.48
    assert_int_equal(eng_rows_worth_verifying(&all, confidence, 4, 0.5f), 4);
    assert_int_equal(eng_rows_worth_verifying(&all, confidence, 32, 2), 1); // the seed is always computed
    assert_int_equal(eng_rows_worth_verifying(&all, confidence, 1, 0.5f), 1);
}

// Rows that were left out count as their confidence says, so the others do not look better than they are.
static void test_unverified_drafts_do_not_flatter(void **state)
{
    (void)state;
    struct eng_acceptance own = {0};
    struct eng_experience all = {0};
    float expected[ENG_BLOCK_LENGTHS], confidence[63];
    for (int i = 0; i < 63; i++)
        confidence[i] = i < 3 ? 0.999f : 0.1f;
    for (int i = 0; i < 200; i++) {
        struct eng_verified v = draft(15, 3, confidence);
        v.judged = 3;
        eng_acceptance_learn(&own, &all, &v);
    }
    eng_acceptance_expect(&own, &all, expected);
    assert_true(expected[2] > 3.5f && expected[2] < 5.5f);
    float share = eng_verified_share(&all, 16);
    assert_true(share > 0.24f && share < 0.26f); // 4 rows of 16
}

static void test_old_experience_fades(void **state)
{
    (void)state;
    struct eng_acceptance own = {0};
    struct eng_experience all = {0};
    float before[ENG_BLOCK_LENGTHS], after[ENG_BLOCK_LENGTHS];
    for (int i = 0; i < 200; i++) {
        struct eng_verified v = draft(15, 0, sure);
        own = (struct eng_acceptance){0};
        eng_acceptance_learn(&own, &all, &v);
    }
    all.learned_ns = SECOND;
    struct eng_acceptance fresh = {0};
    eng_acceptance_expect(&fresh, &all, before);
    eng_experience_fade(&all, INT64_C(9) * SECOND);
    eng_acceptance_expect(&fresh, &all, after);
    assert_memory_equal(before, after, sizeof before);
    for (int64_t s = 11; s < 200; s++)
        eng_experience_fade(&all, s * SECOND);
    eng_acceptance_expect(&fresh, &all, after);
    assert_true(before[2] < 2 && after[2] > 8);
}

static void test_diffusion_is_learned_by_block_length(void **state)
{
    (void)state;
    struct eng_experience all = {0};
    for (int i = 0; i < 100; i++) {
        eng_denoising_learn(&all, 32, 7);
        eng_denoising_learn(&all, 8, 7);
    }
    assert_true(eng_denoising_tokens(&all, 32) > 3.8f && eng_denoising_tokens(&all, 32) < 4.2f);
    assert_true(eng_denoising_tokens(&all, 8) > 0.95f && eng_denoising_tokens(&all, 8) < 1.1f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_block_lengths),
        cmocka_unit_test(test_what_is_unknown_is_believed_to_be_good),
        cmocka_unit_test(test_the_yield_of_a_block_is_learned_by_position),
        cmocka_unit_test(test_one_request_is_not_all),
        cmocka_unit_test(test_a_requests_own_past_fades),
        cmocka_unit_test(test_the_end_of_the_text_counts_against_long_blocks_but_not_against_confidence),
        cmocka_unit_test(test_confidence_is_taken_at_what_it_has_been_worth),
        cmocka_unit_test(test_rows_are_verified_while_they_are_worth_it),
        cmocka_unit_test(test_unverified_drafts_do_not_flatter),
        cmocka_unit_test(test_old_experience_fades),
        cmocka_unit_test(test_diffusion_is_learned_by_block_length),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
