#include "cmocka_util.h"
#include "kern_util.h"
#include "noise.h"

#include <float.h>
#include <math.h>

static struct krn_backend *backend;

static int set_up(void **state)
{
    (void)state;
    backend = open_cpu(2, ~0u);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    backend->close(backend->ctx);
    return 0;
}

static struct krn_select_row greedy(void)
{
    return (struct krn_select_row){.top_p = 1, .repetition_penalty = 1};
}

static struct krn_choice choose(const float *logits, int32_t n, int32_t banned, struct krn_select_row row)
{
    struct krn_choice choice;
    memset(&choice, 0xff, sizeof choice);
    assert_int_equal(backend->select(backend->ctx, logits, n, banned, &row, 1, &choice), 0);
    return choice;
}

// ---- greedy ---------------------------------------------------------------------------------------------------------

static void test_greedy_takes_the_largest(void **state)
{
    (void)state;
    float logits[5] = {0, 2, -1, 1, 0.5f};
    struct krn_choice choice = choose(logits, 5, -1, greedy());
    double sum = 1 + exp(2) + exp(-1) + exp(1) + exp(0.5);
    assert_int_equal(choice.token, 1);
    assert_near(choice.confidence, exp(2) / sum, 1e-6);
    assert_near(choice.logprob, 2 - log(sum), 1e-6);
    assert_int_equal(choice.n_top, 0);
}

static void test_the_lowest_id_wins_a_tie(void **state)
{
    (void)state;
    float logits[40];
    for (int i = 0; i < 40; i++)
        logits[i] = i == 7 || i == 20 || i == 39 ? 3 : 1;
    assert_int_equal(choose(logits, 40, -1, greedy()).token, 7);
    assert_int_equal(choose(logits, 40, 7, greedy()).token, 20);
    logits[0] = -0.0f;
    logits[1] = 0.0f;
    assert_int_equal(choose(logits, 2, -1, greedy()).token, 0);
}

static void test_the_banned_id_is_left_out_of_everything(void **state)
{
    (void)state;
    float logits[4] = {1, 9, 2, 0};
    struct krn_select_row row = greedy();
    row.n_top = 4;
    struct krn_choice choice = choose(logits, 4, 1, row);
    double sum = exp(1) + exp(2) + 1;
    assert_int_equal(choice.token, 2);
    assert_near(choice.confidence, exp(2) / sum, 1e-6);
    assert_near(choice.logprob, 2 - log(sum), 1e-6);
    assert_int_equal(choice.n_top, 3);
    assert_int_equal(choice.top_token[0], 2);
    assert_int_equal(choice.top_token[1], 0);
    assert_int_equal(choice.top_token[2], 3);
    for (int i = 0; i < 200; i++) {
        row.temperature = 5;
        row.position = i;
        assert_int_not_equal(choose(logits, 4, 1, row).token, 1);
    }
    // At either end, and outside the vocabulary.
    assert_int_equal(choose(logits, 4, 0, greedy()).token, 1);
    assert_int_equal(choose(logits, 4, 3, greedy()).token, 1);
    assert_int_equal(choose(logits, 4, 4, greedy()).token, 1);
    assert_int_equal(choose(logits, 1, 0, greedy()).token, -1);
}

static void test_large_logits_do_not_overflow(void **state)
{
    (void)state;
    float logits[3] = {3e38f, -3e38f, 1e38f};
    struct krn_choice choice = choose(logits, 3, -1, greedy());
    assert_int_equal(choice.token, 0);
    assert_near(choice.confidence, 1, 1e-6);
    assert_near(choice.logprob, 0, 1e-6);
    struct krn_select_row row = greedy();
    row.temperature = 1e-30f; // the scaled logits leave the range of f32
    assert_int_equal(choose(logits, 3, -1, row).token, 0);
}

static void test_logits_that_are_not_finite_give_no_token(void **state)
{
    (void)state;
    static const float bad[3] = {NAN, INFINITY, -INFINITY};
    for (int i = 0; i < 3; i++)
        for (int at = 0; at < 37; at += 9) {
            float logits[37] = {0};
            logits[at] = bad[i];
            assert_int_equal(choose(logits, 37, -1, greedy()).token, -1);
        }
}

static void test_top_log_probabilities_are_sorted_and_raw(void **state)
{
    (void)state;
    float logits[6] = {1, 3, 3, -2, 0, 2.5f};
    struct krn_token_bias bias = {.token = 3, .bias = 50};
    struct krn_select_row row = greedy();
    row.n_top = 4;
    row.biases = &bias;
    row.n_biases = 1;
    struct krn_choice choice = choose(logits, 6, -1, row);
    double sum = 0;
    for (int i = 0; i < 6; i++)
        sum += exp((double)logits[i]);
    static const int32_t expected[4] = {1, 2, 5, 0};
    assert_int_equal(choice.token, 3);
    assert_near(choice.logprob, -2 - log(sum), 1e-6);
    assert_near(choice.confidence, 1, 1e-6);
    assert_int_equal(choice.n_top, 4);
    for (int j = 0; j < 4; j++) {
        assert_int_equal(choice.top_token[j], expected[j]);
        assert_near(choice.top_logprob[j], (double)logits[expected[j]] - log(sum), 1e-6);
    }
    row.n_top = KRN_TOP_MAX;
    assert_int_equal(choose(logits, 6, -1, row).n_top, 6);
}

// ---- mask, penalties, bias ------------------------------------------------------------------------------------------

static void test_only_allowed_tokens_are_chosen(void **state)
{
    (void)state;
    float logits[70];
    for (int i = 0; i < 70; i++)
        logits[i] = (float)i / 10;
    uint32_t allowed[3] = {1u << 5, 1u << 1, 0}; // 5 and 33
    struct krn_select_row row = greedy();
    row.allowed = allowed;
    struct krn_choice choice = choose(logits, 70, -1, row);
    assert_int_equal(choice.token, 33);
    assert_near(choice.confidence, exp(3.3) / (exp(3.3) + exp(0.5)), 1e-6);
    assert_int_equal(choose(logits, 70, 33, row).token, 5);
    row.temperature = 1;
    row.top_k = 10;
    for (row.position = 0; row.position < 100; row.position++) {
        int32_t token = choose(logits, 70, -1, row).token;
        assert_true(token == 5 || token == 33);
    }
    allowed[0] = allowed[1] = 0;
    assert_int_equal(choose(logits, 70, -1, row).token, -1);
}

static void test_bias_moves_and_forbids(void **state)
{
    (void)state;
    float logits[3] = {1, 2, 3};
    struct krn_token_bias biases[2] = {{.token = 0, .bias = 2.5f}, {.token = 2, .bias = -0.25f}};
    struct krn_select_row row = greedy();
    row.biases = biases;
    row.n_biases = 2;
    assert_int_equal(choose(logits, 3, -1, row).token, 0);
    biases[0].bias = -100;
    struct krn_choice choice = choose(logits, 3, -1, row);
    assert_int_equal(choice.token, 2);
    assert_near(choice.confidence, exp(2.75) / (exp(2.75) + exp(2)), 1e-6);
    biases[0].bias = 1000; // what the mask forbids stays forbidden
    uint32_t allowed[1] = {6};
    row.allowed = allowed;
    assert_int_equal(choose(logits, 3, -1, row).token, 2);
}

static void test_repetition_divides_positive_and_multiplies_negative(void **state)
{
    (void)state;
    struct krn_token_count counts[2] = {{.token = 0, .in_prompt = 1}, {.token = 1, .in_output = 2}};
    struct krn_select_row row = greedy();
    row.counts = counts;
    row.n_counts = 2;
    row.repetition_penalty = 2;
    float positive[3] = {4, 3.5f, 1.9f};
    struct krn_choice choice = choose(positive, 3, -1, row);
    assert_int_equal(choice.token, 0); // 2, 1.75, 1.9
    assert_near(choice.confidence, exp(2) / (exp(2) + exp(1.75) + exp(1.9)), 1e-6);
    float negative[3] = {-1, -1, -1.5f};
    assert_int_equal(choose(negative, 3, -1, row).token, 2); // -2, -2, -1.5
    row.repetition_penalty = 1;
    assert_int_equal(choose(negative, 3, -1, row).token, 0);
}

static void test_frequency_and_presence_look_at_the_output_only(void **state)
{
    (void)state;
    struct krn_token_count counts[2] = {{.token = 0, .in_prompt = 9}, {.token = 1, .in_output = 3}};
    float logits[3] = {0, 4, 1.5f};
    struct krn_select_row row = greedy();
    row.counts = counts;
    row.n_counts = 2;
    row.frequency_penalty = 0.75f;
    struct krn_choice choice = choose(logits, 3, -1, row);
    assert_int_equal(choice.token, 1); // 0, 1.75, 1.5
    assert_near(choice.confidence, exp(1.75) / (1 + exp(1.75) + exp(1.5)), 1e-6);
    row.presence_penalty = 0.5f;
    assert_int_equal(choose(logits, 3, -1, row).token, 2); // 1.25
    row.frequency_penalty = 0;
    assert_int_equal(choose(logits, 3, -1, row).token, 1); // 3.5
    row.presence_penalty = -10;
    assert_int_equal(choose(logits, 3, -1, row).token, 1);
}

// ---- sampling -------------------------------------------------------------------------------------------------------

// The tokens that can come out of 4000 draws, as a bitmap.
static uint32_t reachable(const float *logits, int32_t n, struct krn_select_row row)
{
    uint32_t seen = 0;
    for (row.position = 0; row.position < 4000; row.position++)
        seen |= 1u << choose(logits, n, -1, row).token;
    return seen;
}

static const float five[5] = {1, 0.5f, 0.5f, 2, -1}; // at T = 1: .197 .120 .120 .537 .027

static void test_top_k_keeps_the_best_and_breaks_ties_by_id(void **state)
{
    (void)state;
    struct krn_select_row row = greedy();
    row.temperature = 1;
    row.top_k = 1;
    assert_int_equal(reachable(five, 5, row), 1u << 3);
    row.top_k = 2;
    assert_int_equal(reachable(five, 5, row), 1u << 3 | 1u << 0);
    row.top_k = 3; // tokens 1 and 2 are equal
    assert_int_equal(reachable(five, 5, row), 1u << 3 | 1u << 0 | 1u << 1);
    row.top_k = 5;
    assert_int_equal(reachable(five, 5, row), 31);
    row.top_k = 50;
    assert_int_equal(reachable(five, 5, row), 31);
}

static void test_top_p_keeps_the_smallest_set_that_reaches_it(void **state)
{
    (void)state;
    struct krn_select_row row = greedy();
    row.temperature = 1;
    row.top_p = 0;
    assert_int_equal(reachable(five, 5, row), 1u << 3);
    row.top_p = 0.53f;
    assert_int_equal(reachable(five, 5, row), 1u << 3);
    row.top_p = 0.6f;
    assert_int_equal(reachable(five, 5, row), 1u << 3 | 1u << 0);
    row.top_p = 0.8f;
    assert_int_equal(reachable(five, 5, row), 1u << 3 | 1u << 0 | 1u << 1);
    row.top_p = 0.96f;
    assert_int_equal(reachable(five, 5, row), 15);
    row.top_p = 0.98f;
    assert_int_equal(reachable(five, 5, row), 31);
}

static void test_top_p_looks_at_what_top_k_left(void **state)
{
    (void)state;
    struct krn_select_row row = greedy();
    row.temperature = 1;
    row.top_k = 2;    // .731 and .269 of what is left
    row.top_p = 0.6f; // of all it would need two
    assert_int_equal(reachable(five, 5, row), 1u << 3);
}

static void test_min_p_is_relative_to_the_best(void **state)
{
    (void)state;
    struct krn_select_row row = greedy();
    row.temperature = 1;
    row.min_p = 0.3f; // e^-1 = .37 passes, e^-1.5 = .22 does not
    assert_int_equal(reachable(five, 5, row), 1u << 3 | 1u << 0);
    row.min_p = 0.2f;
    assert_int_equal(reachable(five, 5, row), 15);
    row.min_p = 1;
    assert_int_equal(reachable(five, 5, row), 1u << 3);
    row.min_p = 0.3f;
    row.top_k = 4;
    assert_int_equal(reachable(five, 5, row), 1u << 3 | 1u << 0);
}

static void test_confidence_is_unscaled_and_unfiltered(void **state)
{
    (void)state;
    struct krn_select_row row = greedy();
    row.temperature = 0.1f;
    row.top_k = 1;
    double sum = 0;
    for (int i = 0; i < 5; i++)
        sum += exp((double)five[i]);
    struct krn_choice choice = choose(five, 5, -1, row);
    assert_int_equal(choice.token, 3);
    assert_near(choice.confidence, exp(2) / sum, 1e-6);
    assert_near(choice.logprob, 2 - log(sum), 1e-6);
}

// Chi-square over many positions: draws follow softmax(logits / T).
static void check_distribution(float temperature, uint64_t seed)
{
    enum { DRAWS = 20000 };
    struct krn_select_row row = greedy();
    row.temperature = temperature;
    row.seed = seed;
    int counts[5] = {0};
    double sum = 0, chi_square = 0;
    for (row.position = 0; row.position < DRAWS; row.position++)
        counts[choose(five, 5, -1, row).token]++;
    for (int i = 0; i < 5; i++)
        sum += exp((double)five[i] / (double)temperature);
    for (int i = 0; i < 5; i++) {
        double expected = DRAWS * exp((double)five[i] / (double)temperature) / sum;
        chi_square += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    assert_true(chi_square < 18.5); // 4 degrees of freedom, 99.9 %
}

static void test_draws_follow_the_softmax(void **state)
{
    (void)state;
    check_distribution(1, 1);
    check_distribution(0.7f, 2);
    check_distribution(2, 0xffffffffffffffffu);
}

static void test_seed_position_and_nothing_else_decide(void **state)
{
    (void)state;
    struct krn_select_row row = greedy();
    row.temperature = 1;
    row.seed = 77;
    row.position = 1234567890123;
    int differs_by_seed = 0, differs_by_position = 0;
    int32_t token = choose(five, 5, -1, row).token;
    for (int i = 0; i < 50; i++) {
        assert_int_equal(choose(five, 5, -1, row).token, token);
        struct krn_select_row other = row;
        other.seed += (uint64_t)i << 32;
        differs_by_seed += choose(five, 5, -1, other).token != token;
        other = row;
        other.position += (int64_t)i << 32;
        differs_by_position += choose(five, 5, -1, other).token != token;
    }
    assert_true(differs_by_seed > 5 && differs_by_position > 5);
}

// ---- against a plain implementation ---------------------------------------------------------------------------------

static const float *sort_by;

static int by_value_then_id(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (sort_by[i] != sort_by[j])
        return sort_by[i] > sort_by[j] ? -1 : 1;
    return (i > j) - (i < j);
}

// The documented rule without a shortcut: sorts everything and draws noise for everything.
static int32_t plain_choice(const float *logits, int32_t n, int32_t banned, const struct krn_select_row *row)
{
    float *scaled = floats((size_t)n);
    int32_t *ids = must(malloc((size_t)n * sizeof *ids)), kept = 0, best = -1;
    for (int32_t i = 0; i < n; i++) {
        scaled[i] = logits[i] / row->temperature;
        if (i != banned)
            ids[kept++] = i;
    }
    sort_by = scaled;
    qsort(ids, (size_t)kept, sizeof *ids, by_value_then_id);
    if (row->top_k > 0 && row->top_k < kept)
        kept = row->top_k;
    double total = 0, mass = 0;
    for (int32_t i = 0; i < kept; i++)
        total += exp((double)scaled[ids[i]] - (double)scaled[ids[0]]);
    for (int32_t i = 0; i < kept && row->top_p < 1; i++) {
        mass += exp((double)scaled[ids[i]] - (double)scaled[ids[0]]);
        if (mass >= (double)row->top_p * total)
            kept = i + 1;
    }
    float best_value = 0;
    for (int32_t i = 0; i < kept; i++) {
        if (exp((double)scaled[ids[i]] - (double)scaled[ids[0]]) < (double)row->min_p)
            continue;
        uint32_t words[4];
        krn_philox(row->seed, (uint64_t)row->position, (uint32_t)ids[i] / 4, words);
        float value = scaled[ids[i]] + krn_gumbel(words[ids[i] % 4]);
        if (best < 0 || value > best_value || (value == best_value && ids[i] < best)) {
            best = ids[i];
            best_value = value;
        }
    }
    free(scaled);
    free(ids);
    return best;
}

static void test_shortcuts_choose_what_the_plain_rule_chooses(void **state)
{
    (void)state;
    static const int32_t sizes[] = {1, 3, 17, 250, 1501};
    static const float temperatures[] = {0.05f, 0.6f, 1, 1.7f, 30};
    static const float spreads[] = {0.1f, 3, 12, 60};
    float *logits = floats(1501);
    struct random random = {.state = 99};
    for (int round = 0; round < 3000; round++) {
        int32_t n = sizes[random_below(&random, 5)];
        float spread = spreads[random_below(&random, 4)];
        bool coarse = random_below(&random, 4) == 0; // many ties
        for (int32_t i = 0; i < n; i++) {
            float x = random_float(&random) * spread;
            logits[i] = coarse ? floorf(x) : x;
        }
        struct krn_select_row row = greedy();
        row.temperature = temperatures[random_below(&random, 5)];
        row.seed = random_u64(&random);
        row.position = random_below(&random, 1 << 20);
        row.top_k = random_below(&random, 2) ? 0 : random_below(&random, 60);
        row.top_p = random_below(&random, 2) ? 1 : (float)random_below(&random, 1000) / 1000;
        row.min_p = random_below(&random, 2) ? 0 : (float)random_below(&random, 500) / 1000;
        int32_t banned = n > 1 ? random_below(&random, n + 1) - 1 : -1;
        assert_int_equal(choose(logits, n, banned, row).token, plain_choice(logits, n, banned, &row));
    }
    free(logits);
}

// ---- rows -----------------------------------------------------------------------------------------------------------

static void test_many_rows_give_what_each_gives_alone(void **state)
{
    (void)state;
    enum { ROWS = 64, VOCAB = 3001 };
    float *logits = floats(ROWS * VOCAB);
    struct random random = {.state = 5};
    fill_random(&random, logits, ROWS * VOCAB);
    struct krn_token_count count = {.token = 5, .in_output = 1};
    struct krn_select_row rows[ROWS];
    struct krn_choice together[ROWS], alone;
    for (int i = 0; i < ROWS; i++) {
        rows[i] = greedy();
        rows[i].row = ROWS - 1 - i;
        rows[i].temperature = (float)(i % 3);
        rows[i].top_k = i % 4 == 0 ? 20 : 0;
        rows[i].top_p = i % 5 == 0 ? 0.5f : 1;
        rows[i].seed = (uint64_t)i;
        rows[i].n_top = i % 7;
        if (i % 2) {
            rows[i].counts = &count;
            rows[i].n_counts = 1;
            rows[i].presence_penalty = 1;
        }
    }
    struct krn_backend *three = open_cpu(3, ~0u);
    memset(together, 0, sizeof together);
    assert_int_equal(three->select(three->ctx, logits, VOCAB, 9, rows, ROWS, together), 0);
    for (int i = 0; i < ROWS; i++) {
        memset(&alone, 0, sizeof alone);
        assert_int_equal(backend->select(backend->ctx, logits, VOCAB, 9, &rows[i], 1, &alone), 0);
        assert_memory_equal(&alone, &together[i], sizeof alone);
    }
    three->close(three->ctx);
    free(logits);
}

static void test_parameters_out_of_range_are_refused(void **state)
{
    (void)state;
    float logits[4] = {0};
    struct krn_choice choice;
    struct krn_token_count count = {.token = 4};
    struct krn_token_bias bias = {.token = -1};
    struct krn_select_row bad[10];
    for (int i = 0; i < 10; i++)
        bad[i] = greedy();
    bad[0].row = -1;
    bad[1].temperature = -1;
    bad[2].temperature = NAN;
    bad[3].n_top = KRN_TOP_MAX + 1;
    bad[4].repetition_penalty = 0;
    bad[5].top_p = NAN;
    bad[6].min_p = 2;
    bad[7].counts = &count;
    bad[7].n_counts = 1;
    bad[8].biases = &bias;
    bad[8].n_biases = 1;
    bad[9].n_top = -1;
    for (int i = 0; i < 10; i++)
        assert_int_equal(backend->select(backend->ctx, logits, 4, -1, &bad[i], 1, &choice), KRN_EINVAL);
    assert_int_equal(backend->select(backend->ctx, logits, 0, -1, bad, 0, &choice), KRN_EINVAL);
    assert_int_equal(backend->select(backend->ctx, logits, 4, -1, bad, -1, &choice), KRN_EINVAL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greedy_takes_the_largest),
        cmocka_unit_test(test_the_lowest_id_wins_a_tie),
        cmocka_unit_test(test_the_banned_id_is_left_out_of_everything),
        cmocka_unit_test(test_large_logits_do_not_overflow),
        cmocka_unit_test(test_logits_that_are_not_finite_give_no_token),
        cmocka_unit_test(test_top_log_probabilities_are_sorted_and_raw),
        cmocka_unit_test(test_only_allowed_tokens_are_chosen),
        cmocka_unit_test(test_bias_moves_and_forbids),
        cmocka_unit_test(test_repetition_divides_positive_and_multiplies_negative),
        cmocka_unit_test(test_frequency_and_presence_look_at_the_output_only),
        cmocka_unit_test(test_top_k_keeps_the_best_and_breaks_ties_by_id),
        cmocka_unit_test(test_top_p_keeps_the_smallest_set_that_reaches_it),
        cmocka_unit_test(test_top_p_looks_at_what_top_k_left),
        cmocka_unit_test(test_min_p_is_relative_to_the_best),
        cmocka_unit_test(test_confidence_is_unscaled_and_unfiltered),
        cmocka_unit_test(test_draws_follow_the_softmax),
        cmocka_unit_test(test_seed_position_and_nothing_else_decide),
        cmocka_unit_test(test_shortcuts_choose_what_the_plain_rule_chooses),
        cmocka_unit_test(test_many_rows_give_what_each_gives_alone),
        cmocka_unit_test(test_parameters_out_of_range_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
