#include "cmocka_util.h"
#include "kern_util.h"

static int set_up(void **state)
{
    *state = open_cpu(2, ~0u);
    return 0;
}

static int tear_down(void **state)
{
    struct krn_backend *backend = *state;
    backend->close(backend->ctx);
    return 0;
}

static void test_open_refuses_a_bad_thread_count_in_one_sentence(void **state)
{
    (void)state;
    struct krn_backend *backend = NULL;
    char err[100] = "";
    assert_int_equal(krn_open_cpu(-1, ~0u, &backend, err, sizeof err), KRN_EINVAL);
    assert_null(backend);
    assert_string_equal(err, "the number of threads must be 0 to 256, not -1");
    assert_int_equal(krn_open_cpu(257, ~0u, &backend, NULL, 0), KRN_EINVAL);
}

static void test_the_mask_chooses_the_version(void **state)
{
    (void)state;
    struct krn_backend *backend = open_cpu(1, 0);
    assert_string_equal(backend->name, "cpu");
    assert_string_equal(backend->description, "linear ref, attention ref, 1 thread");
    backend->close(backend->ctx);
    if (krn_cpu_features() & KRN_CPU_AVX2) {
        backend = open_cpu(2, KRN_CPU_AVX2);
        assert_string_equal(backend->description, "linear avx2, attention avx2, 2 threads");
        backend->close(backend->ctx);
    }
}

static void test_zero_threads_means_the_physical_cores(void **state)
{
    (void)state;
    struct krn_backend *backend = open_cpu(0, ~0u);
    assert_non_null(strstr(backend->description, "thread"));
    backend->close(backend->ctx);
}

// ---- passes ---------------------------------------------------------------------------------------------------------

// A pass of three AR rows whose choices are what `tokens` says.
static void run_pass(struct krn_backend *b, const struct krn_pass *pass, const int32_t *tokens)
{
    assert_int_equal(b->begin(b->ctx, pass), 0);
    for (int32_t i = 0; i < pass->n_wanted; i++)
        pass->choices[i].token = tokens[i];
    assert_int_equal(b->submit(b->ctx), 0);
}

static void test_links_become_the_choices_of_the_pass_before(void **state)
{
    struct krn_backend *b = *state;
    int32_t tokens[4] = {1, 2, 3, 4}, links[4] = {-1, 2, 0, 1}, before[3] = {70, -1, 90};
    struct krn_choice choices[2][3];
    struct krn_pass first = {.n_rows = 3, .tokens = tokens, .n_wanted = 3, .choices = choices[0]};
    struct krn_pass second = {.n_rows = 4, .tokens = tokens, .links = links, .n_wanted = 0, .choices = choices[1]};
    run_pass(b, &first, before);
    assert_int_equal(b->begin(b->ctx, &second), 0);
    assert_int_equal(tokens[0], 1);
    assert_int_equal(tokens[1], 90);
    assert_int_equal(tokens[2], 70);
    assert_int_equal(tokens[3], 0); // the choice had no token
    assert_int_equal(b->submit(b->ctx), 0);
    assert_int_equal(b->begin(b->ctx, &second), KRN_EINVAL); // the pass before has no choices
    links[1] = links[2] = links[3] = -1;
    assert_int_equal(b->begin(b->ctx, &second), 0);
    b->abandon(b->ctx);
}

static void test_passes_come_in_order(void **state)
{
    struct krn_backend *b = *state;
    int32_t tokens[65] = {0};
    struct krn_pass pass = {.n_rows = 1, .tokens = tokens};
    assert_int_equal(b->submit(b->ctx), KRN_EINVAL); // nothing was begun
    assert_int_equal(b->begin(b->ctx, &pass), 0);
    assert_int_equal(b->begin(b->ctx, &pass), KRN_EINVAL); // one at a time
    b->abandon(b->ctx);
    for (int i = 0; i < KRN_PASSES_AHEAD; i++)
        run_pass(b, &pass, NULL);
    assert_int_equal(b->begin(b->ctx, &pass), 0);
    assert_int_equal(b->submit(b->ctx), KRN_EINVAL); // too many under way
    assert_int_equal(b->wait(b->ctx), 0);
    assert_int_equal(b->submit(b->ctx), 0);
    for (int i = 0; i < 5; i++)
        assert_int_equal(b->wait(b->ctx), 0); // more than there are
    assert_int_equal(strlen(b->error(b->ctx)) > 0, 1);
}

static void test_a_pass_beyond_what_was_prepared_is_refused(void **state)
{
    struct krn_backend *b = NULL;
    (void)state;
    int32_t tokens[5] = {0};
    struct krn_limits limits = {.max_rows = 4, .max_segments = 2, .n_vocab = 10, .head_dim = 8};
    struct krn_pass pass = {.n_rows = 1, .tokens = tokens};
    assert_int_equal(krn_open_cpu(1, 0, &b, NULL, 0), 0);
    assert_int_equal(b->begin(b->ctx, &pass), KRN_EINVAL); // nothing was prepared
    limits.head_dim = 7;
    assert_int_equal(b->prepare(b->ctx, &limits), KRN_ENOTSUP);
    limits.head_dim = 8;
    limits.max_rows = 0;
    assert_int_equal(b->prepare(b->ctx, &limits), KRN_EINVAL);
    limits.max_rows = 4;
    assert_int_equal(b->prepare(b->ctx, &limits), 0);
    pass.n_rows = 5;
    assert_int_equal(b->begin(b->ctx, &pass), KRN_EINVAL);
    pass.n_rows = 4;
    pass.n_segments = 3;
    assert_int_equal(b->begin(b->ctx, &pass), KRN_EINVAL);
    pass.n_segments = 2;
    assert_int_equal(b->begin(b->ctx, &pass), 0);
    b->abandon(b->ctx);
    float logits[11] = {0};
    struct krn_select_row row = {.top_p = 1, .repetition_penalty = 1};
    struct krn_choice choice;
    assert_int_equal(b->select(b->ctx, logits, 11, -1, &row, 1, &choice), KRN_EINVAL);
    assert_int_equal(b->select(b->ctx, logits, 10, -1, &row, 1, &choice), 0);
    b->close(b->ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_open_refuses_a_bad_thread_count_in_one_sentence),
        cmocka_unit_test(test_the_mask_chooses_the_version),
        cmocka_unit_test(test_zero_threads_means_the_physical_cores),
        cmocka_unit_test_setup_teardown(test_links_become_the_choices_of_the_pass_before, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_passes_come_in_order, set_up, tear_down),
        cmocka_unit_test(test_a_pass_beyond_what_was_prepared_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
