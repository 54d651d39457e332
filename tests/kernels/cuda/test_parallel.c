// parallel.c over devices and an NCCL that are not there: what is refused and closed, and passes of the real CUDA
// backend on several emulated GPUs against the CPU.
#include "fake_nccl.h"

#include <math.h>
#include <stdio.h>

// ---- opening --------------------------------------------------------------------------------------------------------

// krn_cuda_open_parallel's own driver: not used by what is tested here.
int krn_cuda_driver_open(int32_t device, struct krn_cuda_driver *ret, char *err, size_t err_size)
{
    (void)ret;
    snprintf(err, err_size, "there is no GPU %d", device);
    return KRN_ENOTSUP;
}

static void test_only_2_4_or_8_gpus_share_a_model(void **state)
{
    (void)state;
    struct krn_backend *backend = NULL;
    char err[200] = "";
    struct krn_cuda_options options = {.tensor_parallel = 3};
    assert_int_equal(krn_cuda_open_parallel(&options, &backend, err, sizeof err), KRN_EINVAL);
    assert_string_equal(err, "a model can be shared by 2, 4 or 8 GPUs");
    options.tensor_parallel = 2; // without NCCL or without GPUs, there is a sentence
    err[0] = '\0';
    assert_int_equal(krn_cuda_open_parallel(&options, &backend, err, sizeof err), KRN_ENOTSUP);
    assert_true(strstr(err, "NCCL") || strstr(err, "there is no GPU 0"));
    assert_null(backend);
}

static void test_what_cannot_be_shared_is_closed(void **state)
{
    (void)state;
    struct krn_backend *backend = NULL;
    char err[200] = "";
    const struct krn_cuda_options options = {.device = 3, .tensor_parallel = 2};
    fake_open(2, true);
    fake.drivers[1].device.major = 7; // too old
    assert_int_equal(krn_cuda_share(&nccl, fake.drivers, 2, &options, &backend, err, sizeof err), KRN_ENOTSUP);
    assert_non_null(strstr(err, "older than"));
    fake_open(2, true);
    fake.init_error = 3;
    assert_int_equal(krn_cuda_share(&nccl, fake.drivers, 2, &options, &backend, err, sizeof err), KRN_EDEVICE);
    assert_non_null(strstr(err, "the link is down"));
    fake_open(2, true);
    fake_driver_fail(&fake.drivers[1], FAKE_ALLOC, 1, KRN_ENOMEM);
    assert_int_equal(krn_cuda_share(&nccl, fake.drivers, 2, &options, &backend, err, sizeof err), KRN_ENOMEM);
    assert_non_null(strstr(err, "no memory to exchange"));
    assert_null(backend);
    assert_int_equal(fake_driver_live_allocations(), 0);
    assert_int_equal(fake.alive, 0);
}

// ---- two GPUs that are not there ------------------------------------------------------------------------------------

enum { ROWS = 5, HIDDEN = 48, FF = 64, VOCAB = 96 };

// A model without attention: x = embed; x += (silu(n g) * (n u)) d with n = norm(x); logits = norm(x) head.
struct model {
    struct krn_tensor host[5], table, norm, gate, up, down, head;
    float *x, *wanted, *logits;
    void *n, *act, *add, *ff[2];
    struct krn_rope rope;
    float inv_freq[4];
};

static void import(struct krn_backend *b, const struct krn_tensor *host, enum krn_split split, struct krn_tensor *ret)
{
    assert_int_equal(b->import_weights(b->ctx, host, KRN_BF16, split, ret), 0);
}

static void model_open(struct krn_backend *b, struct model *m)
{
    struct random random = {5};
    static const int32_t shapes[5][2] = {{VOCAB, HIDDEN}, {1, HIDDEN}, {FF, HIDDEN}, {HIDDEN, FF}, {VOCAB, HIDDEN}};
    *m = (struct model){.inv_freq = {1, 0.5f, 0.2f, 0.1f}};
    for (int i = 0; i < 5; i++)
        m->host[i] = tensor_random(&random, KRN_BF16, shapes[i][0], shapes[i][1]);
    import(b, &m->host[0], KRN_SPLIT_NONE, &m->table);
    import(b, &m->host[1], KRN_SPLIT_NONE, &m->norm);
    import(b, &m->host[2], KRN_SPLIT_OUTPUTS, &m->gate);
    import(b, &m->host[2], KRN_SPLIT_OUTPUTS, &m->up);
    import(b, &m->host[3], KRN_SPLIT_INPUTS, &m->down);
    import(b, &m->host[4], KRN_SPLIT_OUTPUTS, &m->head);
    m->x = b->alloc_rows(b->ctx, KRN_ROWS_STATE, ROWS, HIDDEN, "x");
    m->wanted = b->alloc_rows(b->ctx, KRN_ROWS_STATE, ROWS, HIDDEN, "x");
    m->logits = b->alloc_rows(b->ctx, KRN_ROWS_STATE, ROWS, VOCAB, "logits");
    m->n = b->alloc_rows(b->ctx, KRN_ROWS_INPUT, ROWS, HIDDEN, "x");
    m->act = b->alloc_rows(b->ctx, KRN_ROWS_INPUT, ROWS, FF, "x");
    m->add = b->alloc_rows(b->ctx, KRN_ROWS_OUTPUT, ROWS, HIDDEN, "x");
    for (int i = 0; i < 2; i++)
        m->ff[i] = b->alloc_rows(b->ctx, KRN_ROWS_OUTPUT, ROWS, FF, "x");
    m->rope = (struct krn_rope){.inv_freq = m->inv_freq, .head_dim = 8, .attention_factor = 1, .query_original_max = 1};
    const struct krn_limits limits = {.max_rows = ROWS,
                                      .max_segments = ROWS,
                                      .max_chunk = ROWS,
                                      .max_pages = ROWS,
                                      .n_layers = 1,
                                      .n_heads = 8,
                                      .n_kv_heads = 4,
                                      .head_dim = 8,
                                      .n_vocab = VOCAB,
                                      .hidden = HIDDEN,
                                      .ff = FF,
                                      .rope = &m->rope};
    assert_int_equal(b->prepare(b->ctx, &limits), 0);
    struct krn_kv kv = {
        .type = KRN_N_TYPES, .n_layers = 1, .n_pages = 4, .page_size = 4, .n_kv_heads = 4, .head_dim = 8};
    assert_int_equal(b->kv_open(b->ctx, &kv), 0);
}

static void model_free(struct model *m)
{
    for (int i = 0; i < 5; i++)
        tensor_free(&m->host[i]);
}

static int ops(struct krn_backend *b, struct model *m, const struct krn_pass *pass)
{
    int rc, rows = pass->n_rows;
    if ((rc = b->embed(b->ctx, m->x, &m->table, pass->tokens, rows)) != 0 ||
        (rc = b->rms_norm(b->ctx, m->n, m->x, NULL, &m->norm, 1e-5f, rows, HIDDEN)) != 0 ||
        (rc = b->gated(b->ctx, m->act, m->n, &m->gate, &m->up, rows, m->ff)) != 0 ||
        (rc = b->linear(b->ctx, m->add, m->act, &m->down, rows, NULL, NULL, NULL)) != 0 ||
        (rc = b->add(b->ctx, m->x, m->add, rows, HIDDEN)) != 0 ||
        (rc = b->gather(b->ctx, m->wanted, m->x, pass->wanted_rows, pass->n_wanted, HIDDEN)) != 0 ||
        (rc = b->rms_norm(b->ctx, m->n, m->wanted, NULL, &m->norm, 1e-5f, pass->n_wanted, HIDDEN)) != 0 ||
        (rc = b->head(b->ctx, m->logits, m->n, &m->head, pass->n_wanted)) != 0 ||
        (rc = b->select(b->ctx, m->logits, VOCAB, -1, pass->wanted, pass->n_wanted, pass->choices)) != 0)
        return rc;
    return 0;
}

struct result {
    struct krn_choice choices[ROWS];
    float logits[ROWS * VOCAB];
};

static void run_pass(struct krn_backend *b, struct model *m, struct result *ret)
{
    static const int32_t pages[2] = {0, 1};
    int32_t tokens[ROWS] = {1, 50, 3, 95, 7}, wanted_rows[ROWS] = {0, 1, 2, 3, 4};
    struct krn_select_row wanted[ROWS];
    const struct krn_segment segment = {.rows = ROWS, .pages = pages};
    for (int i = 0; i < ROWS; i++)
        wanted[i] = (struct krn_select_row){.row = i, .top_p = 1, .repetition_penalty = 1};
    const struct krn_pass pass = {.n_rows = ROWS,
                                  .tokens = tokens,
                                  .segments = &segment,
                                  .n_segments = 1,
                                  .wanted_rows = wanted_rows,
                                  .wanted = wanted,
                                  .n_wanted = ROWS,
                                  .choices = ret->choices};
    assert_int_equal(b->begin(b->ctx, &pass), 0);
    assert_int_equal(ops(b, m, &pass), 0);
    assert_int_equal(b->submit(b->ctx), 0);
    if (b->wait(b->ctx) != 0)
        fail_msg("%s", b->error(b->ctx));
    assert_int_equal(b->download(b->ctx, ret->logits, m->logits, sizeof ret->logits), 0);
}

static void test_a_pass_over_emulated_gpus_is_the_cpus(void **state)
{
    (void)state;
    struct krn_backend *cpu = NULL;
    struct model on_cpu;
    struct result want;
    assert_int_equal(krn_open_cpu(1, ~0u, &cpu, NULL, 0), 0);
    model_open(cpu, &on_cpu);
    run_pass(cpu, &on_cpu, &want);
    cpu->close(cpu->ctx);
    model_free(&on_cpu);
    for (int n = 2; n <= 4; n *= 2) {
        struct krn_backend *b = NULL;
        struct model model;
        struct result got;
        struct krn_memory memory;
        char err[200] = "";
        const struct krn_cuda_options options = {.device = 3, .tensor_parallel = n, .no_graphs = true};
        fake_open(n, true);
        if (krn_cuda_share(&nccl, fake.drivers, n, &options, &b, err, sizeof err) != 0)
            fail_msg("%s", err);
        assert_true(b->async);
        model_open(b, &model);
        for (int pass = 0; pass < 2; pass++) {
            run_pass(b, &model, &got);
            float most = 0;
            for (int i = 0; i < ROWS * VOCAB; i++)
                most = fmaxf(most, fabsf(want.logits[i]));
            for (int i = 0; i < ROWS * VOCAB; i++) // activations are bf16 there
                assert_near(got.logits[i], want.logits[i], 0.02 * most);
            for (int i = 0; i < ROWS; i++)
                assert_int_equal(got.choices[i].token, want.choices[i].token);
        }
        b->memory(b->ctx, &memory);
        int64_t exchange = 0;
        for (int32_t i = 0; i < memory.n_categories; i++)
            exchange += strcmp(memory.categories[i].name, "exchange") == 0 ? memory.categories[i].bytes : 0;
        assert_int_equal(exchange, (int64_t)n * KRN_EXCHANGE_FLOATS * (int64_t)sizeof(float));
        b->close(b->ctx);
        model_free(&model);
        assert_int_equal(fake.alive, 0);
        assert_int_equal(fake_driver_live_allocations(), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_only_2_4_or_8_gpus_share_a_model),
        cmocka_unit_test(test_what_cannot_be_shared_is_closed),
        cmocka_unit_test(test_a_pass_over_emulated_gpus_is_the_cpus),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
