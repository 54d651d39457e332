// tensor_parallel.c: the order of passes over several children, and what happens when one of them fails.
#include "tensor_parallel_rig.h"

// ---- passes ---------------------------------------------------------------------------------------------------------

// Logits whose row r has its largest value at token (r + shift) * 3.
static struct rows peaked_logits(struct rig *rig, int32_t shift)
{
    struct rows logits = rows_open(rig, VOCAB, false);
    for (int32_t d = 0; d <= rig->n; d++)
        for (int32_t r = 0; r < ROWS; r++)
            (d == rig->n ? logits.one : part_of(&logits, d))[r * VOCAB + (r + shift) * 3 % VOCAB] = 9;
    return logits;
}

static int run_select(struct rig *rig, const struct rows *logits)
{
    struct krn_backend *b = rig->many;
    int rc = b->begin(b->ctx, &rig->pass);
    if (rc == 0)
        rc = b->select(b->ctx, logits->many, VOCAB, -1, rig->wanted, ROWS, rig->choices);
    if (rc == 0 && rig->pass.n_accepts)
        rc = b->accept(b->ctx, rig->accepts, rig->pass.n_accepts, rig->accepted);
    return rc;
}

static void check_links(struct rig *rig)
{
    struct krn_backend *b = rig->many;
    static const int32_t links[ROWS] = {-1, 4, -1, 0, -1, -1, 6};
    assert_int_equal(b->prepare(b->ctx, &limits), 0);
    struct rows logits = peaked_logits(rig, 0);
    assert_int_equal(run_select(rig, &logits), 0);
    assert_int_equal(b->submit(b->ctx), 0);
    for (int32_t i = 0; i < ROWS; i++)
        assert_int_equal(rig->choices[i].token, i * 3);
    // A second pass goes ahead; each child reads its own choices of the first.
    struct rig second = *rig;
    fill_pass(&second);
    second.pass.links = links;
    second.pass.tokens = second.tokens;
    second.pass.accepts = second.accepts;
    second.pass.n_accepts = 1;
    second.accepts[0] = (struct krn_accept){.row = 0, .rows = 2, .choice = 0};
    assert_int_equal(run_select(&second, &logits), 0);
    assert_int_equal(b->submit(b->ctx), 0);
    for (int32_t i = 0; i < ROWS; i++)
        assert_int_equal(second.tokens[i], links[i] < 0 ? (5 * i + 3) % VOCAB : links[i] * 3);
    assert_int_equal(rig->comm->passes, 2);
    assert_int_equal(b->wait(b->ctx), 0);
    assert_int_equal(b->wait(b->ctx), 0);
    assert_int_equal(rig->comm->passes, 0);
    assert_true(second.accepted[0].n >= 1);
    assert_int_equal(b->wait(b->ctx), 0); // nothing is under way
    rows_close(rig, &logits);
}

static void test_links_name_the_choices_of_the_pass_before(void **state)
{
    (void)state;
    for_both_sizes(check_links);
}

static int begin_replays(void *ctx, const struct krn_pass *pass)
{
    (void)ctx, (void)pass;
    return KRN_REPLAY;
}

static int submit_nothing(void *ctx)
{
    (void)ctx;
    return 0;
}

static void check_replay(struct rig *rig)
{
    struct krn_backend *b = rig->many;
    assert_int_equal(b->prepare(b->ctx, &limits), 0);
    int (*begin)(void *, const struct krn_pass *) = rig->children[0]->begin;
    rig->children[rig->n - 1]->begin = begin_replays;
    assert_int_equal(b->begin(b->ctx, &rig->pass), KRN_EDEVICE);
    assert_non_null(strstr(b->error(b->ctx), "do not agree on replaying"));
    // The others were abandoned: a pass that all replay is one.
    int (*submit)(void *) = rig->children[0]->submit;
    for (int32_t d = 0; d < rig->n; d++) {
        rig->children[d]->begin = begin_replays;
        rig->children[d]->submit = submit_nothing;
    }
    assert_int_equal(b->begin(b->ctx, &rig->pass), KRN_REPLAY);
    assert_int_equal(b->submit(b->ctx), 0);
    assert_int_equal(b->wait(b->ctx), 0);
    for (int32_t d = 0; d < rig->n; d++) {
        rig->children[d]->begin = begin;
        rig->children[d]->submit = submit;
    }
    assert_int_equal(b->begin(b->ctx, &rig->pass), 0);
    assert_int_equal(b->begin(b->ctx, &rig->pass), KRN_EINVAL); // one at a time
    b->abandon(b->ctx);
    assert_int_equal(b->begin(b->ctx, &rig->pass), 0);
    b->abandon(b->ctx);
    b->abandon(b->ctx);
}

static void test_a_pass_is_replayed_when_all_children_do(void **state)
{
    (void)state;
    for_both_sizes(check_replay);
}

// ---- failures -------------------------------------------------------------------------------------------------------

static const char *fan_error(void *ctx)
{
    (void)ctx;
    return "the fan fell off";
}

static int failing_add(void *ctx, void *x, const void *y, int32_t rows, int32_t width)
{
    (void)ctx, (void)x, (void)y, (void)rows, (void)width;
    return KRN_EDEVICE;
}

static int failing_begin(void *ctx, const struct krn_pass *pass)
{
    (void)ctx, (void)pass;
    return KRN_EDEVICE;
}

static int failing_submit(void *ctx)
{
    (void)ctx;
    return KRN_EDEVICE;
}

static void check_failed_op(struct rig *rig)
{
    struct krn_backend *b = rig->many, *child = rig->children[1];
    struct rows x = rows_open(rig, WIDTH, false);
    assert_int_equal(b->prepare(b->ctx, &limits), 0);
    int (*begin)(void *, const struct krn_pass *) = child->begin;
    child->error = fan_error;
    child->add = failing_add;
    child->begin = failing_begin;
    assert_int_equal(b->begin(b->ctx, &rig->pass), KRN_EDEVICE);
    child->begin = begin;
    assert_int_equal(b->begin(b->ctx, &rig->pass), 0); // child 0 is not left in the pass that failed
    assert_int_equal(b->add(b->ctx, x.many, x.many, ROWS, WIDTH), KRN_EDEVICE);
    assert_string_equal(b->error(b->ctx), "device 1: the fan fell off");
    b->abandon(b->ctx);
    assert_int_equal(b->begin(b->ctx, &rig->pass), 0); // all devices stand at the same place
    b->abandon(b->ctx);
    assert_false(rig->comm->aborted);
    rows_close(rig, &x);
}

static void test_a_failed_op_has_its_childs_words(void **state)
{
    (void)state;
    for_both_sizes(check_failed_op);
}

static void check_failed_submit(struct rig *rig)
{
    struct krn_backend *b = rig->many;
    assert_int_equal(b->prepare(b->ctx, &limits), 0);
    rig->children[1]->error = fan_error;
    rig->children[1]->submit = failing_submit;
    assert_int_equal(b->begin(b->ctx, &rig->pass), 0);
    assert_int_equal(b->submit(b->ctx), KRN_EDEVICE);
    assert_true(rig->comm->aborted); // child 0 waits for a sum that never comes
    assert_int_equal(b->wait(b->ctx), KRN_EDEVICE);
    assert_int_equal(b->begin(b->ctx, &rig->pass), KRN_EDEVICE);
    assert_string_equal(b->error(b->ctx), "device 1: the fan fell off");
}

static void test_a_submit_that_some_made_ends_it_all(void **state)
{
    (void)state;
    for_both_sizes(check_failed_submit);
}

static void check_failed_exchange(struct rig *rig)
{
    struct krn_backend *b = rig->many;
    struct weight w = weight_open(rig, KRN_F32, 11, WIDTH, KRN_SPLIT_INPUTS);
    struct rows x = rows_open(rig, WIDTH, true), y = rows_open(rig, 11, false);
    assert_int_equal(b->prepare(b->ctx, &limits), 0);
    assert_int_equal(b->begin(b->ctx, &rig->pass), 0);
    rig->comm->fail_in = 2;
    assert_int_equal(b->linear(b->ctx, y.many, x.many, &w.many, ROWS, NULL, NULL, NULL), 0);
    assert_int_equal(b->linear(b->ctx, y.many, x.many, &w.many, ROWS, NULL, NULL, NULL), KRN_EDEVICE);
    b->abandon(b->ctx);
    assert_true(rig->comm->aborted);
    assert_int_equal(b->begin(b->ctx, &rig->pass), KRN_EDEVICE);
    assert_string_equal(b->error(b->ctx), "the exchange broke off");
    rows_close(rig, &y);
    rows_close(rig, &x);
    weight_close(rig, &w);
}

static void test_a_failed_exchange_ends_it_all(void **state)
{
    (void)state;
    for_both_sizes(check_failed_exchange);
}

static void check_different_tokens(struct rig *rig)
{
    struct krn_backend *b = rig->many;
    struct rows logits = peaked_logits(rig, 0);
    assert_int_equal(b->prepare(b->ctx, &limits), 0);
    part_of(&logits, rig->n - 1)[3 * VOCAB + 1] = 99;
    assert_int_equal(run_select(rig, &logits), 0);
    assert_int_equal(b->submit(b->ctx), 0);
    assert_int_equal(b->wait(b->ctx), KRN_EDEVICE);
    assert_non_null(strstr(b->error(b->ctx), "different tokens"));
    assert_int_equal(b->begin(b->ctx, &rig->pass), KRN_EDEVICE);
    rows_close(rig, &logits);
}

static void test_devices_that_part_are_a_failure(void **state)
{
    (void)state;
    for_both_sizes(check_different_tokens);
}

// ---- open and close -------------------------------------------------------------------------------------------------

static void test_open_refuses_what_cannot_share_a_model(void **state)
{
    (void)state;
    struct krn_backend *children[2] = {open_cpu(1, ~0u), open_cpu(1, ~0u)}, *ret = NULL;
    struct krn_comm comm = host_comm_open(2);
    char err[100] = "";
    assert_int_equal(krn_open_tensor_parallel(children, 1, &comm, &ret, err, sizeof err), KRN_EINVAL);
    assert_string_equal(err, "a model can be shared by 2 to 8 devices");
    assert_int_equal(krn_open_tensor_parallel(children, 9, &comm, &ret, NULL, 0), KRN_EINVAL);
    children[1]->name = "abacus";
    assert_int_equal(krn_open_tensor_parallel(children, 2, &comm, &ret, err, sizeof err), KRN_ENOTSUP);
    children[1]->name = children[0]->name;
    children[1]->flatten = NULL;
    assert_int_equal(krn_open_tensor_parallel(children, 2, &comm, &ret, err, sizeof err), KRN_ENOTSUP);
    assert_null(ret);
    for (int i = 0; i < 2; i++)
        children[i]->close(children[i]->ctx); // still ours
    comm.close(comm.ctx);
}

static void test_close_frees_what_was_not_given_back(void **state)
{
    (void)state;
    struct rig rig;
    int closed = 0;
    rig_open(&rig, 2);
    rig.comm->closed = &closed;
    assert_string_equal(rig.many->name, "cpu");
    assert_non_null(strstr(rig.many->description, "2 devices, each: linear"));
    struct krn_tensor host = tensor_random(&rig.random, KRN_F32, VOCAB, WIDTH), ret;
    struct krn_kv kv = {
        .type = KRN_N_TYPES, .n_layers = 1, .n_pages = 1, .page_size = 1, .n_kv_heads = 2, .head_dim = 2};
    assert_int_equal(rig.many->import_weights(rig.many->ctx, &host, KRN_F32, KRN_SPLIT_INPUTS, &ret), 0);
    assert_int_equal(rig.many->kv_open(rig.many->ctx, &kv), 0);
    assert_non_null(rig.many->alloc(rig.many->ctx, 10, "test"));
    rig_close(&rig);
    assert_int_equal(closed, 1);
    tensor_free(&host);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_links_name_the_choices_of_the_pass_before),
        cmocka_unit_test(test_a_pass_is_replayed_when_all_children_do),
        cmocka_unit_test(test_a_failed_op_has_its_childs_words),
        cmocka_unit_test(test_a_submit_that_some_made_ends_it_all),
        cmocka_unit_test(test_a_failed_exchange_ends_it_all),
        cmocka_unit_test(test_devices_that_part_are_a_failure),
        cmocka_unit_test(test_open_refuses_what_cannot_share_a_model),
        cmocka_unit_test(test_close_frees_what_was_not_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
