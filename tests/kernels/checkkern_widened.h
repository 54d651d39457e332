// checkkern's part for the ops whose reference is compiled for each instruction set: every version has the reference's
// bits, at any width and for any part of the units. For checkkern.c, whose report() and print_bench() it uses.
#pragma once

enum { WIDENED_MAX = 1100, WIDENED_ROWS = 3 };

static const int32_t widened_widths[] = {1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 100, 192, 703, 1025, WIDENED_MAX};

// Values that a model has, and the ones an exponential treats apart.
static void fill_with_edges(struct random *random, float *x, int32_t n)
{
    static const float edges[] = {0, -0.0f, 88.5f, -88.5f, 87.4f, -87.4f, 1e-30f, -200, 200, 3e38f};
    for (int32_t i = 0; i < n; i++)
        x[i] = random_below(random, 8) ? 12 * random_float(random) : edges[random_below(random, COUNT(edges))];
}

static bool swiglu_has_the_bits(const struct krn_ops *ops, struct random *random, int32_t width)
{
    static float gate[WIDENED_ROWS * WIDENED_MAX], up[WIDENED_ROWS * WIDENED_MAX], y[2][WIDENED_ROWS * WIDENED_MAX];
    int32_t n = WIDENED_ROWS * width, cut = random_below(random, width + 1);
    fill_with_edges(random, gate, n);
    fill_random(random, up, (size_t)n);
    struct krn_swiglu_task task = {.y = y[0], .gate = gate, .up = up, .rows = WIDENED_ROWS, .width = width};
    krn_swiglu_ref(&task, 0, width);
    task.y = y[1];
    ops->swiglu(&task, cut, width);
    ops->swiglu(&task, 0, cut);
    bool ok = same_bits(y[0], y[1], (size_t)n);
    task.y = up; // in place
    ops->swiglu(&task, 0, width);
    return ok && same_bits(y[0], up, (size_t)n);
}

static bool rms_norm_has_the_bits(const struct krn_ops *ops, struct random *random, int32_t width)
{
    static float x[2][WIDENED_ROWS * WIDENED_MAX], add[WIDENED_ROWS * WIDENED_MAX], y[2][WIDENED_ROWS * WIDENED_MAX];
    size_t n = (size_t)WIDENED_ROWS * (size_t)width;
    bool ok = true;
    for (int kind = 0; kind < 4; kind++) {
        struct krn_tensor weight = tensor_random(random, kind & 1 ? KRN_BF16 : KRN_F32, 1, width);
        fill_random(random, x[0], n);
        fill_random(random, add, n);
        memcpy(x[1], x[0], sizeof x[0]);
        struct krn_rms_norm_task task = {
            .y = y[0], .x = x[0], .add = kind & 2 ? add : NULL, .weight = &weight, .eps = 1e-5f, .width = width};
        krn_rms_norm_ref(&task, 0, WIDENED_ROWS);
        task.y = y[1];
        task.x = x[1];
        ops->rms_norm(&task, 1, WIDENED_ROWS);
        ops->rms_norm(&task, 0, 1);
        ok = ok && same_bits(y[0], y[1], n) && same_bits(x[0], x[1], n);
        tensor_free(&weight);
    }
    return ok;
}

static bool add_has_the_bits(const struct krn_ops *ops, struct random *random, int32_t width)
{
    static float x[2][WIDENED_MAX], y[WIDENED_MAX];
    int32_t cut = random_below(random, width + 1);
    fill_random(random, x[0], (size_t)width);
    fill_with_edges(random, y, width);
    memcpy(x[1], x[0], sizeof x[0]);
    krn_add_ref(x[0], y, 0, width);
    ops->add(x[1], y, 0, cut);
    ops->add(x[1], y, cut, width);
    return same_bits(x[0], x[1], (size_t)width);
}

// Greedy, sampled from all and from few tokens, with penalties: token, confidence and log-probabilities.
static bool select_has_the_bits(const struct krn_ops *ops, struct random *random, int32_t n_vocab)
{
    static float logits[WIDENED_MAX], value[WIDENED_MAX], scaled[WIDENED_MAX];
    static int32_t ids[WIDENED_MAX];
    const struct krn_token_count counts[] = {{.token = 0, .in_prompt = 1, .in_output = 2}};
    const struct krn_select_row rows[] = {
        {.top_p = 1, .repetition_penalty = 1},
        {.temperature = 0.7f, .top_p = 1, .repetition_penalty = 1, .seed = 4, .position = 9, .n_top = 5},
        {.temperature = 1, .top_k = 40, .top_p = 0.9f, .min_p = 0.01f, .repetition_penalty = 1, .seed = 5},
        {.top_p = 1, .repetition_penalty = 1.1f, .counts = counts, .n_counts = COUNT(counts)},
    };
    struct krn_select_scratch scratch = {.value = value, .scaled = scaled, .ids = ids, .n_vocab = WIDENED_MAX};
    struct krn_choice expected[COUNT(rows)], choices[COUNT(rows)];
    for (int32_t i = 0; i < n_vocab; i++)
        logits[i] = 9 * random_float(random);
    struct krn_select_task task = {.logits = logits,
                                   .n_vocab = n_vocab,
                                   .banned_id = random_below(random, 2 * n_vocab) - n_vocab,
                                   .rows = rows,
                                   .choices = expected};
    krn_select_ref(&task, &scratch, 0, COUNT(rows));
    task.choices = choices;
    ops->select(&task, &scratch, 0, COUNT(rows));
    return memcmp(expected, choices, sizeof choices) == 0;
}

static void check_widened(const struct version *version)
{
    static const struct {
        const char *what;
        bool (*check)(const struct krn_ops *ops, struct random *random, int32_t width);
    } cases[] = {
        {"swiglu has the bits of the reference", swiglu_has_the_bits},
        {"rms_norm has the bits of the reference", rms_norm_has_the_bits},
        {"add has the bits of the reference", add_has_the_bits},
        {"select has the bits of the reference", select_has_the_bits},
    };
    struct krn_ops ops;
    krn_ops_init(&ops, version->mask);
    for (int c = 0; c < COUNT(cases); c++) {
        struct random random = {.state = (uint64_t)c};
        bool ok = true;
        for (int w = 0; w < COUNT(widened_widths); w++)
            for (int repeat = 0; repeat < 20; repeat++)
                ok = cases[c].check(&ops, &random, widened_widths[w]) && ok;
        report(ok, version->name, cases[c].what);
    }
}

// ---- bench ----------------------------------------------------------------------------------------------------------

struct widened_bench {
    struct krn_ops ops;
    struct krn_swiglu_task swiglu;
    struct krn_rms_norm_task rms_norm;
    struct krn_select_task select;
    struct krn_select_scratch scratch;
};

static void bench_swiglu_once(void *arg)
{
    struct widened_bench *bench = arg;
    bench->ops.swiglu(&bench->swiglu, 0, bench->swiglu.width);
}

static void bench_rms_norm_once(void *arg)
{
    struct widened_bench *bench = arg;
    bench->ops.rms_norm(&bench->rms_norm, 0, 8);
}

static void bench_select_once(void *arg)
{
    struct widened_bench *bench = arg;
    bench->ops.select(&bench->select, &bench->scratch, 0, 1);
}

// The sizes of the bundled model at 8 rows, on one thread.
static void bench_widened(const struct version *version, const struct machine_limit *limit)
{
    enum { ROWS = 8, HIDDEN = 192, FF = 512, VOCAB = 1024 };
    struct random random = {.state = 1};
    struct krn_tensor weight = tensor_random(&random, KRN_BF16, 1, HIDDEN);
    const struct krn_select_row greedy = {.top_p = 1, .repetition_penalty = 1};
    struct krn_choice choice;
    float *x = floats(ROWS * FF), *up = floats(ROWS * FF), *y = floats(ROWS * FF);
    fill_random(&random, x, ROWS * FF);
    fill_random(&random, up, ROWS * FF);
    struct widened_bench bench = {
        .swiglu = {.y = y, .gate = x, .up = up, .rows = ROWS, .width = FF},
        .rms_norm = {.y = y, .x = x, .weight = &weight, .eps = 1e-5f, .width = HIDDEN},
        .select = {.logits = x, .n_vocab = VOCAB, .banned_id = -1, .rows = &greedy, .choices = &choice},
    };
    krn_ops_init(&bench.ops, version->mask);
    print_bench(version->name, "swiglu 512, 8 rows", time_it(bench_swiglu_once, &bench), 12.0 * ROWS * FF,
                25.0 * ROWS * FF, limit);
    print_bench(version->name, "rms_norm 192, 8 rows", time_it(bench_rms_norm_once, &bench), 8.0 * ROWS * HIDDEN,
                4.0 * ROWS * HIDDEN, limit);
    print_bench(version->name, "select 1024, greedy", time_it(bench_select_once, &bench), 4.0 * VOCAB, 20.0 * VOCAB,
                limit);
    free(x);
    free(up);
    free(y);
    tensor_free(&weight);
}
