// Whole passes of a small model over a device that is not there: against the CPU backend, and each way of running a
// pass against the others, which must agree to the bit.
#include "backend.h"
#include "cmocka_util.h"
#include "fake_driver.h"
#include "tiny_model.h"

static struct tiny_weights weights;
static int64_t live_before; // of allocations, when the test began

static int note_live(void **state)
{
    (void)state;
    live_before = fake_driver_live_allocations();
    return 0;
}

// One backend with its model.
struct rig {
    struct krn_cuda_driver driver; // the backend's, for counting
    struct krn_cuda_backend *inner;
    struct tiny_model model;
};

static void rig_open(struct rig *rig, const struct fake_driver_options *fake, const struct krn_cuda_options *options,
                     const struct tiny_options *tiny)
{
    const struct krn_cuda_options defaults = {0};
    struct krn_backend *backend = NULL;
    assert_int_equal(fake_driver_open(fake, &rig->driver), 0);
    assert_int_equal(krn_cuda_backend_open(&rig->driver, options ? options : &defaults, &backend, NULL, 0), 0);
    rig->inner = backend->ctx;
    int rc = tiny_open(&rig->model, backend, &weights, tiny);
    if (rc != 0)
        fail_msg("open: %s", backend->error(backend->ctx));
}

static void rig_close(struct rig *rig)
{
    rig->model.backend->close(rig->model.backend->ctx);
    assert_int_equal(fake_driver_live_allocations(), live_before);
}

static int pass_of(struct tiny_model *model, struct tiny_plan *plan)
{
    int rc = tiny_pass(model, &plan->pass);
    if (rc < 0)
        fail_msg("pass: %s", model->backend->error(model->backend->ctx));
    return rc;
}

static void assert_same_choices(const struct tiny_plan *a, const struct tiny_plan *b)
{
    assert_int_equal(a->pass.n_wanted, b->pass.n_wanted);
    for (int32_t i = 0; i < a->pass.n_wanted; i++)
        assert_memory_equal(&a->choices[i], &b->choices[i], sizeof a->choices[i]);
    for (int32_t i = 0; i < a->pass.n_accepts; i++)
        assert_memory_equal(&a->accepted[i], &b->accepted[i], sizeof a->accepted[i]);
}

// ---- plans ----------------------------------------------------------------------------------------------------------

// Prompts of several sequences, cut anywhere.
static void plan_prompts(struct tiny_plan *p, int32_t chunk)
{
    tiny_plan_start(p, 4, chunk);
    tiny_plan_add(p, 0, 0, 9, KRN_MASK_CAUSAL, TINY_WANTS_LAST);
    tiny_plan_add(p, 1, 0, 5, KRN_MASK_CAUSAL, TINY_WANTS_NONE);
    tiny_plan_add(p, 2, 0, 1, KRN_MASK_CAUSAL, TINY_WANTS_LAST);
}

// One autoregressive row, a denoised block, a draft with the adapter on.
static void plan_mixed(struct tiny_plan *p, int32_t chunk)
{
    tiny_plan_start(p, 4, chunk);
    tiny_plan_add(p, 0, 9, 1, KRN_MASK_CAUSAL, TINY_WANTS_LAST);
    tiny_plan_add(p, 1, 5, 6, KRN_MASK_BLOCK, TINY_WANTS_ALL);
    tiny_plan_adapt(p, tiny_plan_add(p, 2, 1, 4, KRN_MASK_BLOCK, TINY_WANTS_ALL), 4);
}

// `rows` autoregressive rows of one sequence each, up to 4, at position `pos`.
static void plan_steps(struct tiny_plan *p, int32_t rows, int32_t pos)
{
    tiny_plan_start(p, 4, 0);
    for (int32_t s = 0; s < rows; s++)
        tiny_plan_add(p, s, pos, 1, KRN_MASK_CAUSAL, TINY_WANTS_LAST);
}

// A block of sequence 3 from position 0.
static void plan_block(struct tiny_plan *p, int32_t rows, bool adapter)
{
    tiny_plan_start(p, 4, 0);
    tiny_plan_add(p, 3, 0, rows, KRN_MASK_BLOCK, TINY_WANTS_ALL);
    if (adapter)
        tiny_plan_adapt(p, 0, rows);
}

// ---- against the CPU ------------------------------------------------------------------------------------------------

// Log-probabilities within what bf16 activations cost; the token where it is not a near tie.
static void assert_close_choices(const struct tiny_plan *a, const struct tiny_plan *b, double bound)
{
    for (int32_t i = 0; i < a->pass.n_wanted; i++) {
        const struct krn_choice *x = &a->choices[i], *y = &b->choices[i];
        assert_near(x->logprob, y->logprob, bound);
        if (x->top_logprob[0] - x->top_logprob[1] > 2 * bound)
            assert_int_equal(x->token, y->token);
        for (int t = 0; t < 3; t++)
            assert_near(x->top_logprob[t], y->top_logprob[t], bound);
    }
}

static void compare_with_cpu(const struct tiny_options *tiny, double bound)
{
    struct rig rig;
    struct tiny_model cpu;
    static struct tiny_plan a, b;
    rig_open(&rig, NULL, NULL, tiny);
    assert_int_equal(tiny_open(&cpu, open_cpu(1, 0), &weights, NULL), 0);
    void (*const plans[])(struct tiny_plan *, int32_t) = {plan_prompts, plan_mixed};
    for (size_t i = 0; i < 2; i++) {
        plans[i](&a, 0);
        plans[i](&b, 0);
        assert_int_equal(pass_of(&rig.model, &a), 0);
        assert_int_equal(pass_of(&cpu, &b), 0);
        assert_close_choices(&b, &a, bound);
    }
    cpu.backend->close(cpu.backend->ctx);
    rig_close(&rig);
}

static void test_passes_agree_with_the_cpu(void **state)
{
    (void)state;
    compare_with_cpu(NULL, 0.05);
}

static void test_quantised_weights_and_kv_stay_close_to_the_cpu(void **state)
{
    (void)state;
    compare_with_cpu(&(struct tiny_options){.kv = KRN_FP8}, 0.2);
    compare_with_cpu(&(struct tiny_options){.weights = KRN_FP8}, 0.5);
    compare_with_cpu(&(struct tiny_options){.weights = KRN_Q4}, 1.0);
}

// ---- ways of running a pass -----------------------------------------------------------------------------------------

static const struct krn_cuda_options eager = {.no_graphs = true, .no_overlap = true};

static void test_a_recorded_pass_and_its_replay_give_the_bits_of_an_eager_one(void **state)
{
    (void)state;
    struct rig a, b;
    static struct tiny_plan p, q;
    rig_open(&a, NULL, &eager, NULL);
    rig_open(&b, &(struct fake_driver_options){.deferred = true}, NULL, NULL);
    // 3, 4 and again 3 rows: one bucket, a padding row, other positions.
    const int32_t rows[] = {3, 4, 3, 2}, answers[] = {0, KRN_REPLAY, KRN_REPLAY, 0};
    for (int i = 0; i < 4; i++) {
        plan_steps(&p, rows[i], i);
        plan_steps(&q, rows[i], i);
        assert_int_equal(pass_of(&a.model, &p), 0);
        assert_int_equal(pass_of(&b.model, &q), answers[i]);
        assert_same_choices(&p, &q);
    }
    assert_int_equal(b.inner->graphs.n, 2);
    a.model.backend->close(a.model.backend->ctx);
    rig_close(&b);
}

// Others shipped a draft graph recorded without its adapter. The same shape with and without it, in both orders, each
// recorded once and replayed once.
static void test_the_graph_of_a_draft_holds_the_adapter(void **state)
{
    (void)state;
    struct rig a, b;
    static struct tiny_plan with, without, p;
    rig_open(&a, NULL, &eager, NULL);
    plan_block(&with, 4, true);
    plan_block(&without, 4, false);
    assert_int_equal(pass_of(&a.model, &with), 0);
    assert_int_equal(pass_of(&a.model, &without), 0);
    assert_true(memcmp(&with.choices, &without.choices, sizeof with.choices[0]) != 0);
    a.model.backend->close(a.model.backend->ctx);
    for (int first = 0; first < 2; first++) {
        rig_open(&b, NULL, NULL, NULL);
        for (int i = 0; i < 6; i++) {
            bool adapter = (i + first) % 2 == 0;
            plan_block(&p, 4, adapter);
            assert_int_equal(pass_of(&b.model, &p), i < 2 ? 0 : KRN_REPLAY);
            assert_same_choices(&p, adapter ? &with : &without);
        }
        rig_close(&b);
    }
}

// Which rows have the adapter on is read from the pass: one graph serves all of them.
static void test_the_adapter_touches_only_its_rows(void **state)
{
    (void)state;
    struct rig rig;
    static struct tiny_plan with, without, mixed;
    rig_open(&rig, NULL, NULL, NULL);
    plan_steps(&without, 4, 0);
    plan_steps(&with, 4, 0);
    tiny_plan_adapt(&with, 0, 4);
    plan_steps(&mixed, 4, 0);
    tiny_plan_adapt(&mixed, 1, 2);
    assert_int_equal(pass_of(&rig.model, &without), 0);
    assert_int_equal(pass_of(&rig.model, &with), 0);
    assert_int_equal(pass_of(&rig.model, &mixed), KRN_REPLAY);
    for (int i = 0; i < 4; i++)
        assert_memory_equal(&mixed.choices[i], i == 1 || i == 2 ? &with.choices[i] : &without.choices[i],
                            sizeof mixed.choices[i]);
    // An adapter_rows without any row set is a pass without an adapter.
    plan_steps(&mixed, 4, 0);
    mixed.pass.adapter_rows = mixed.adapter;
    assert_int_equal(pass_of(&rig.model, &mixed), KRN_REPLAY);
    assert_same_choices(&mixed, &without);
    rig_close(&rig);
}

static void test_a_row_has_the_same_bits_alone_and_among_others(void **state)
{
    (void)state;
    struct rig rig;
    static struct tiny_plan all, one;
    const struct krn_cuda_options options = {.deterministic = true};
    rig_open(&rig, NULL, &options, NULL);
    tiny_plan_start(&all, 4, 0);
    tiny_plan_add(&all, 0, 0, 35, KRN_MASK_CAUSAL, TINY_WANTS_ALL);
    tiny_plan_add(&all, 1, 0, 33, KRN_MASK_CAUSAL, TINY_WANTS_ALL);
    assert_int_equal(pass_of(&rig.model, &all), 0);
    assert_int_equal(fake_driver_count(&rig.driver).calls[FAKE_PRODUCT], 0);
    for (int32_t pos = 0, rows; pos < 35; pos += rows) {
        rows = pos < 3 ? 1 : pos < 9 ? 3 : 13;
        tiny_plan_start(&one, 4, 0);
        tiny_plan_add(&one, 0, pos, rows, KRN_MASK_CAUSAL, TINY_WANTS_ALL);
        pass_of(&rig.model, &one);
        for (int32_t r = 0; r < rows; r++)
            assert_memory_equal(&one.choices[r], &all.choices[pos + r], sizeof one.choices[r]);
    }
    rig_close(&rig);
}

static void test_many_rows_go_to_the_library_where_there_is_one(void **state)
{
    (void)state;
    static struct tiny_plan plans[3];
    for (int i = 0; i < 3; i++) {
        struct rig rig;
        const struct krn_cuda_options options = {.deterministic = i == 1};
        const struct fake_driver_options fake = {.no_product = i == 2};
        rig_open(&rig, &fake, &options, NULL);
        tiny_plan_start(&plans[i], 2, 0);
        tiny_plan_adapt(&plans[i], tiny_plan_add(&plans[i], 0, 0, 70, KRN_MASK_CAUSAL, TINY_WANTS_ALL), 30);
        assert_int_equal(pass_of(&rig.model, &plans[i]), 0);
        assert_int_equal(pass_of(&rig.model, &plans[i]), KRN_REPLAY);
        // 7 products a layer and the head; without a library the first answer is enough.
        assert_int_equal(fake_driver_count(&rig.driver).calls[FAKE_PRODUCT], i == 0   ? TINY_LAYERS * 7 + 1
                                                                             : i == 1 ? 0
                                                                                      : 1);
        rig_close(&rig);
    }
    assert_close_choices(&plans[0], &plans[1], 0.05);
    assert_same_choices(&plans[1], &plans[2]);
}

static void test_wanted_rows_in_chunks_choose_the_same(void **state)
{
    (void)state;
    struct rig a, b;
    static struct tiny_plan p, q;
    rig_open(&a, NULL, NULL, NULL);
    rig_open(&b, NULL, NULL, &(struct tiny_options){.chunk = 3});
    plan_mixed(&p, 0);
    plan_mixed(&q, 3);
    for (int i = 0; i < 2; i++) { // more chunks than one are never replayed: their number is not in the key
        pass_of(&a.model, &p);
        assert_int_equal(pass_of(&b.model, &q), 0);
        assert_same_choices(&p, &q);
    }
    a.model.backend->close(a.model.backend->ctx);
    rig_close(&b);
}

// ---- passes ahead ---------------------------------------------------------------------------------------------------

// Three passes, each linked to the choice of the one before, submitted as far ahead as allowed over a device that runs
// as late as it may; against the same tokens given one by one.
static void test_a_linked_row_takes_the_choice_of_the_pass_before(void **state)
{
    (void)state;
    struct rig late, eager_rig;
    static struct tiny_plan linked[4], plain[4];
    rig_open(&late, &(struct fake_driver_options){.deferred = true}, NULL, NULL);
    rig_open(&eager_rig, NULL, &eager, NULL);
    for (int32_t i = 0; i < 4; i++) {
        plan_steps(&linked[i], 2, i);
        plan_steps(&plain[i], 2, i);
        for (int32_t r = 0; i > 0 && r < 2; r++) {
            linked[i].links[r] = 1 - r; // crosswise, to see which is taken
            linked[i].tokens[r] = -1;
            plain[i].tokens[r] = plain[i - 1].choices[1 - r].token;
        }
        assert_int_equal(pass_of(&eager_rig.model, &plain[i]), 0);
        if (i >= KRN_PASSES_AHEAD)
            assert_int_equal(late.model.backend->wait(late.model.backend->ctx), 0);
        assert_int_equal(tiny_start(&late.model, &linked[i].pass), i == 0 ? 0 : KRN_REPLAY);
    }
    for (int i = 0; i < KRN_PASSES_AHEAD; i++)
        assert_int_equal(late.model.backend->wait(late.model.backend->ctx), 0);
    for (int i = 0; i < 4; i++)
        assert_same_choices(&linked[i], &plain[i]);
    late.model.backend->close(late.model.backend->ctx);
    rig_close(&eager_rig);
}

// What krn_accept asks, by its definition.
static struct krn_accepted accepted_by_hand(const struct tiny_plan *p, const struct krn_accept *a)
{
    int32_t n = 1;
    while (n < a->rows && p->choices[a->choice + n - 1].token == p->tokens[a->row + n])
        n++;
    return (struct krn_accepted){.n = n, .seed = p->choices[a->choice + n - 1].token};
}

static void test_accepted_tokens_are_those_that_were_chosen(void **state)
{
    (void)state;
    struct rig rig;
    static struct tiny_plan p;
    rig_open(&rig, &(struct fake_driver_options){.deferred = true}, NULL, NULL);
    // Chosen once; then the first of them are put where they were predicted, so that 1, 3 and all rows are accepted.
    for (int32_t right = 0; right < 6; right++) {
        tiny_plan_start(&p, 4, 0);
        tiny_plan_add(&p, 0, 0, 2, KRN_MASK_CAUSAL, TINY_WANTS_NONE);
        tiny_plan_add(&p, 3, 0, 5, KRN_MASK_CAUSAL, TINY_WANTS_ALL);
        static int32_t chosen[5];
        for (int32_t i = 0; i < right && i < 4; i++)
            p.tokens[2 + i + 1] = chosen[i];
        p.accepts[0] = (struct krn_accept){.row = 2, .rows = 5, .choice = 0};
        p.accepts[1] = (struct krn_accept){.row = 4, .rows = 2, .choice = 2};
        p.pass.n_accepts = 2;
        assert_int_equal(pass_of(&rig.model, &p), right ? KRN_REPLAY : 0);
        for (int i = 0; i < 2; i++) {
            struct krn_accepted want = accepted_by_hand(&p, &p.accepts[i]);
            assert_int_equal(p.accepted[i].n, want.n);
            assert_int_equal(p.accepted[i].seed, want.seed);
        }
        assert_true(p.accepted[0].n >= (right < 4 ? right : 4) + 1 || right == 0);
        for (int i = 0; i < 5; i++)
            chosen[i] = p.choices[i].token;
    }
    rig_close(&rig);
}

// ---- the cache of graphs --------------------------------------------------------------------------------------------

static void test_more_shapes_than_graphs_still_choose_the_same(void **state)
{
    (void)state;
    struct rig a, b;
    static struct tiny_plan p, q;
    rig_open(&a, NULL, &eager, NULL);
    rig_open(&b, &(struct fake_driver_options){.deferred = true}, NULL, NULL);
    b.inner->graphs.most = 2;
    for (int32_t i = 0; i < 9; i++) {
        plan_steps(&p, 1 << i % 3, i);
        plan_steps(&q, 1 << i % 3, i);
        pass_of(&a.model, &p);
        assert_int_equal(pass_of(&b.model, &q), 0); // the third shape always threw the next one out
        assert_same_choices(&p, &q);
        assert_true(b.inner->graphs.n <= 2);
    }
    a.model.backend->close(a.model.backend->ctx);
    rig_close(&b);
}

static void test_a_larger_block_and_released_memory_drop_the_graphs(void **state)
{
    (void)state;
    struct rig rig;
    static struct tiny_plan p, q;
    static struct krn_token_count many[30000];
    struct krn_backend *b;
    for (int32_t i = 0; i < 30000; i++)
        many[i] = (struct krn_token_count){.token = i % TINY_VOCAB, .in_output = 1};
    rig_open(&rig, &(struct fake_driver_options){.deferred = true}, NULL, NULL);
    b = rig.model.backend;
    plan_steps(&p, 2, 0);
    assert_int_equal(pass_of(&rig.model, &p), 0);
    plan_steps(&q, 2, 0);
    q.wanted[1].counts = many;
    q.wanted[1].n_counts = 30000;
    assert_int_equal(pass_of(&rig.model, &q), 0);
    assert_memory_equal(&p.choices[0], &q.choices[0], sizeof p.choices[0]);
    plan_steps(&q, 2, 0);
    assert_int_equal(pass_of(&rig.model, &q), KRN_REPLAY);
    assert_same_choices(&p, &q);
    b->release(b->ctx, b->alloc(b->ctx, 100, "kv"));
    assert_int_equal(pass_of(&rig.model, &q), 0);
    assert_same_choices(&p, &q);
    rig_close(&rig);
}

static int set_up_weights(void **state)
{
    (void)state;
    tiny_weights_make(&weights);
    return 0;
}

static int free_weights(void **state)
{
    (void)state;
    tiny_weights_free(&weights);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_passes_agree_with_the_cpu, note_live),
        cmocka_unit_test_setup(test_quantised_weights_and_kv_stay_close_to_the_cpu, note_live),
        cmocka_unit_test_setup(test_a_recorded_pass_and_its_replay_give_the_bits_of_an_eager_one, note_live),
        cmocka_unit_test_setup(test_the_graph_of_a_draft_holds_the_adapter, note_live),
        cmocka_unit_test_setup(test_the_adapter_touches_only_its_rows, note_live),
        cmocka_unit_test_setup(test_a_row_has_the_same_bits_alone_and_among_others, note_live),
        cmocka_unit_test_setup(test_many_rows_go_to_the_library_where_there_is_one, note_live),
        cmocka_unit_test_setup(test_wanted_rows_in_chunks_choose_the_same, note_live),
        cmocka_unit_test_setup(test_a_linked_row_takes_the_choice_of_the_pass_before, note_live),
        cmocka_unit_test_setup(test_accepted_tokens_are_those_that_were_chosen, note_live),
        cmocka_unit_test_setup(test_more_shapes_than_graphs_still_choose_the_same, note_live),
        cmocka_unit_test_setup(test_a_larger_block_and_released_memory_drop_the_graphs, note_live),
    };
    return cmocka_run_group_tests(tests, set_up_weights, free_weights);
}
