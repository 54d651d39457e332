// checkkern: every version of every dispatched op against the reference, over odd sizes; and the bits of a row against
// the same row computed in other company. With --bench: time, GB/s, GFLOP/s and the share of what this machine can do,
// measured in the same run.
//
// A difference is allowed to grow with what was added: abs + rel * sum |a_i b_i|. Batch invariance is compared bit for
// bit. Exit status 0 when everything held, else 1; output is TAP, so that the test runner counts the checks.
#include "kern_util.h"
#include "ops.h"

#include <math.h>
#include <stdio.h>
#include <time.h>

static struct version versions[VERSIONS_MAX];
static int n_versions;
static int n_checks, n_failures;

static void report(bool ok, const char *version, const char *what)
{
    n_checks++;
    n_failures += !ok;
    printf("%s %d - %s %s\n", ok ? "ok" : "not ok", n_checks, version, what);
}

#define COUNT(array) (int)(sizeof(array) / sizeof(array)[0])

// ---- linear ---------------------------------------------------------------------------------------------------------

enum { ROWS_MAX = 64, RANK = 5 };

static const int32_t row_counts[] = {0, 1, 2, 3, 5, 7, 8, 15, 16, 17, 33, 64};
static const int32_t widths[] = {1, 7, 16, 24, 31, 48, 100, 256, 704};
static const int32_t output_counts[] = {1, 3, 4, 9, 37};

struct linear_case {
    int32_t in, out;
    float *x, *scratch, *y, *expected;
    uint8_t flags[ROWS_MAX];
    struct krn_tensor w;
    struct krn_adapter adapter;
};

static struct linear_case linear_case_open(struct random *random, enum krn_type type, int32_t in, int32_t out)
{
    struct linear_case c = {.in = in, .out = out};
    c.x = floats((size_t)ROWS_MAX * (size_t)in);
    c.scratch = floats(ROWS_MAX * RANK);
    c.y = floats((size_t)ROWS_MAX * (size_t)out);
    c.expected = floats((size_t)ROWS_MAX * (size_t)out);
    fill_random(random, c.x, (size_t)ROWS_MAX * (size_t)in);
    for (int r = 0; r < ROWS_MAX; r++)
        c.flags[r] = random_below(random, 3) != 0;
    c.w = tensor_random(random, type, out, in);
    c.adapter.a = tensor_random(random, KRN_F32, RANK, in);
    c.adapter.b = tensor_random(random, KRN_F32, out, RANK);
    c.adapter.scale = 4;
    return c;
}

static void linear_case_close(struct linear_case *c)
{
    free(c->x);
    free(c->scratch);
    free(c->y);
    free(c->expected);
    tensor_free(&c->w);
    tensor_free(&c->adapter.a);
    tensor_free(&c->adapter.b);
}

// sum |a_i b_i| of one output, adapter included.
static double linear_magnitude(const struct linear_case *c, int32_t r, int32_t o, bool adapter)
{
    double sum = 0;
    for (int32_t i = 0; i < c->in; i++)
        sum += fabs((double)c->x[(size_t)r * (size_t)c->in + (size_t)i] * (double)tensor_at(&c->w, o, i));
    for (int32_t k = 0; adapter && c->flags[r] && k < RANK; k++) {
        double inner = 0;
        for (int32_t i = 0; i < c->in; i++)
            inner += fabs((double)c->x[(size_t)r * (size_t)c->in + (size_t)i] * (double)tensor_at(&c->adapter.a, k, i));
        sum += (double)c->adapter.scale * inner * fabs((double)tensor_at(&c->adapter.b, o, k));
    }
    return sum;
}

static void run_linear(struct krn_backend *backend, struct linear_case *c, float *y, int32_t first, int32_t rows,
                       bool adapter)
{
    int rc = backend->linear(backend->ctx, y, c->x + (size_t)first * (size_t)c->in, &c->w, rows,
                             adapter ? &c->adapter : NULL, c->flags + first, c->scratch);
    if (rc != 0)
        abort();
}

static bool linear_matches(struct krn_backend *ref, struct krn_backend *backend, struct linear_case *c, int32_t rows,
                           bool adapter)
{
    run_linear(ref, c, c->expected, 0, rows, adapter);
    run_linear(backend, c, c->y, 0, rows, adapter);
    bool ok = true;
    for (int32_t r = 0; r < rows; r++)
        for (int32_t o = 0; o < c->out; o++) {
            size_t at = (size_t)r * (size_t)c->out + (size_t)o;
            double bound = 1e-6 + 2e-6 * linear_magnitude(c, r, o, adapter);
            ok = ok && fabs((double)c->y[at] - (double)c->expected[at]) <= bound;
        }
    return ok;
}

// Every row alone, and every sub-range of 5 rows, gives the bits it has among all rows.
static bool linear_is_invariant(struct krn_backend *backend, struct linear_case *c, bool adapter)
{
    float *alone = floats((size_t)5 * (size_t)c->out);
    run_linear(backend, c, c->y, 0, ROWS_MAX, adapter);
    bool ok = true;
    for (int32_t n = 1; n <= 5; n += 4)
        for (int32_t r = 0; r + n <= ROWS_MAX; r++) {
            run_linear(backend, c, alone, r, n, adapter);
            ok = ok && same_bits(alone, c->y + (size_t)r * (size_t)c->out, (size_t)n * (size_t)c->out);
        }
    free(alone);
    return ok;
}

static void check_linear(const struct version *version)
{
    static const struct {
        enum krn_type type;
        bool adapter;
        const char *name;
    } kinds[] = {{KRN_F32, false, "f32"}, {KRN_BF16, false, "bf16"}, {KRN_BF16, true, "bf16 with adapter"}};
    struct krn_backend *ref = open_cpu(1, 0), *backend = open_cpu(2, version->mask);
    for (int kind = 0; kind < COUNT(kinds); kind++) {
        char what[96];
        bool matches = true, invariant = true;
        struct random random = {.state = (uint64_t)kind};
        for (int i = 0; i < COUNT(widths); i++)
            for (int o = 0; o < COUNT(output_counts); o++) {
                struct linear_case c = linear_case_open(&random, kinds[kind].type, widths[i], output_counts[o]);
                for (int r = 0; r < COUNT(row_counts); r++)
                    matches = linear_matches(ref, backend, &c, row_counts[r], kinds[kind].adapter) && matches;
                invariant = linear_is_invariant(backend, &c, kinds[kind].adapter) && invariant;
                linear_case_close(&c);
            }
        snprintf(what, sizeof what, "linear %s equals the reference", kinds[kind].name);
        report(matches, version->name, what);
        snprintf(what, sizeof what, "linear %s does not depend on the other rows", kinds[kind].name);
        report(invariant, version->name, what);
    }
    ref->close(ref->ctx);
    backend->close(backend->ctx);
}

// Large enough that the pool really splits it.
static void check_linear_threads(const struct version *version)
{
    struct random random = {.state = 7};
    struct linear_case c = linear_case_open(&random, KRN_BF16, 704, 333);
    bool ok = true;
    for (int threads = 1; threads <= 3; threads++) {
        struct krn_backend *backend = open_cpu(threads, version->mask);
        run_linear(backend, &c, threads == 1 ? c.expected : c.y, 0, ROWS_MAX, true);
        ok = ok && (threads == 1 || same_bits(c.expected, c.y, (size_t)ROWS_MAX * 333));
        backend->close(backend->ctx);
    }
    report(ok, version->name, "linear does not depend on the number of threads");
    linear_case_close(&c);
}

// ---- attention ------------------------------------------------------------------------------------------------------

struct attention_case {
    int32_t n_heads, n_kv_heads, head_dim, positions, page_size;
    float *q, *k, *v; // of all positions
    struct store store;
};

static struct attention_case attention_case_open(enum krn_type type, uint64_t seed, int32_t head_dim, int32_t group,
                                                 int32_t positions, int32_t page_size)
{
    struct random random = {.state = seed};
    struct attention_case c = {
        .n_heads = 2 * group, .n_kv_heads = 2, .head_dim = head_dim, .positions = positions, .page_size = page_size};
    size_t q_width = (size_t)c.n_heads * (size_t)head_dim, kv_width = 2 * (size_t)head_dim;
    c.q = floats((size_t)positions * q_width);
    c.k = floats((size_t)positions * kv_width);
    c.v = floats((size_t)positions * kv_width);
    fill_random(&random, c.q, (size_t)positions * q_width);
    fill_random(&random, c.k, (size_t)positions * kv_width);
    fill_random(&random, c.v, (size_t)positions * kv_width);
    for (size_t i = 0; i < (size_t)positions * q_width; i++)
        c.q[i] *= 3; // so that the weights are far from even
    c.store = store_open(&random, type, 2, positions, page_size, 2, head_dim);
    struct krn_segment all = {.rows = positions, .pages = c.store.pages};
    krn_kv_write_ref(&c.store.kv, 1, c.k, c.v, &all);
    return c;
}

static void attention_case_close(struct attention_case *c)
{
    free(c->q);
    free(c->k);
    free(c->v);
    store_close(&c->store);
}

static size_t q_width(const struct attention_case *c)
{
    return (size_t)c->n_heads * (size_t)c->head_dim;
}

// Rows first .. first + rows of the case as segments of at most `piece` rows, into y at their own places.
static void run_attention(struct krn_backend *backend, const struct attention_case *c, float *y, int32_t first,
                          int32_t rows, int32_t piece, enum krn_mask mask)
{
    enum { SEGMENTS = 512 };
    struct krn_segment segments[SEGMENTS];
    int32_t n = 0;
    for (int32_t r = 0; r < rows; r += piece, n++)
        segments[n] = (struct krn_segment){
            .row = first + r,
            .rows = rows - r < piece ? rows - r : piece,
            .first_pos = first + r,
            .mask = mask,
            .pages = c->store.pages,
        };
    if (backend->attention(backend->ctx, y, c->q, c->n_heads, &c->store.kv, 1, segments, n) != 0)
        abort();
}

// A weight's relative error is that of its score, so the bound grows with the score's products; the values then average
// it.
static bool attention_matches(struct krn_backend *ref, struct krn_backend *backend, const struct attention_case *c,
                              int32_t first, int32_t rows, enum krn_mask mask)
{
    size_t n = (size_t)c->positions * q_width(c);
    float *y = floats(n), *expected = floats(n);
    run_attention(ref, c, expected, first, rows, rows, mask);
    run_attention(backend, c, y, first, rows, rows, mask);
    double score =
        3.0 * c->head_dim / sqrt((double)c->head_dim) / 4; // mean sum |q_i k_i| / sqrt(head_dim), |k| and |v| below 1
    double bound = 1e-6 + 2e-6 * (1 + score) + 1e-7 * sqrt((double)(first + rows));
    bool ok = true;
    for (size_t i = (size_t)first * q_width(c); i < (size_t)(first + rows) * q_width(c); i++)
        ok = ok && fabs((double)y[i] - (double)expected[i]) <= bound;
    free(y);
    free(expected);
    return ok;
}

static const int32_t head_dims[] = {24, 32, 64, 128};
static const int32_t groups[] = {1, 2, 4};
static const int32_t page_sizes[] = {1, 3, 16, 64};
static const int32_t contexts[] = {1, 5, 31, 32, 33, 64, 97, 300};

static void report_attention(bool ok, const struct version *version, enum krn_type type, const char *what)
{
    char text[96];
    snprintf(text, sizeof text, "attention on %s %s", krn_type_name(type), what);
    report(ok, version->name, text);
}

static void check_attention(const struct version *version, enum krn_type type)
{
    struct krn_backend *ref = open_cpu(1, 0), *backend = open_cpu(2, version->mask);
    bool causal = true, block = true;
    for (int d = 0; d < COUNT(head_dims); d++)
        for (int g = 0; g < COUNT(groups); g++)
            for (int p = 0; p < COUNT(contexts); p++) {
                struct attention_case c = attention_case_open(type, 3, head_dims[d], groups[g], contexts[p],
                                                              page_sizes[(d + g + p) % COUNT(page_sizes)]);
                int32_t few = contexts[p] < 19 ? contexts[p] : 19;
                causal = attention_matches(ref, backend, &c, 0, contexts[p] < 70 ? contexts[p] : 70, KRN_MASK_CAUSAL) &&
                         causal;
                causal = attention_matches(ref, backend, &c, contexts[p] - few, few, KRN_MASK_CAUSAL) && causal;
                block = attention_matches(ref, backend, &c, contexts[p] - few, few, KRN_MASK_BLOCK) && block;
                attention_case_close(&c);
            }
    report_attention(causal, version, type, "equals the reference, causal");
    report_attention(block, version, type, "equals the reference, block");
    ref->close(ref->ctx);
    backend->close(backend->ctx);
}

// A prompt in one piece, by pieces of several sizes, row by row, and at every page size: the same bits.
static void check_attention_pieces(const struct version *version, enum krn_type type)
{
    static const int32_t pieces[] = {1, 3, 17, 32, 100};
    struct krn_backend *backend = open_cpu(2, version->mask);
    bool ok = true;
    for (int d = 0; d < COUNT(head_dims); d++)
        for (int g = 0; g < COUNT(groups); g++) {
            int32_t positions = version->mask ? 300 : 100;
            struct attention_case whole = attention_case_open(type, 5, head_dims[d], groups[g], positions, 16);
            size_t n = (size_t)positions * q_width(&whole);
            float *expected = floats(n), *y = floats(n);
            run_attention(backend, &whole, expected, 0, positions, positions, KRN_MASK_CAUSAL);
            for (int s = 0; s < COUNT(page_sizes); s++) {
                struct attention_case c =
                    attention_case_open(type, 5, head_dims[d], groups[g], positions, page_sizes[s]);
                run_attention(backend, &c, y, 0, positions, pieces[(s + d) % COUNT(pieces)], KRN_MASK_CAUSAL);
                ok = ok && same_bits(y, expected, n);
                memset(y, 0xff, n * sizeof *y);
                run_attention(backend, &c, y, 0, positions, 1, KRN_MASK_CAUSAL);
                ok = ok && same_bits(y, expected, n);
                attention_case_close(&c);
            }
            free(expected);
            free(y);
            attention_case_close(&whole);
        }
    report_attention(ok, version, type, "does not depend on pieces or page size");
    backend->close(backend->ctx);
}

// A row of a block sees the same positions whether the block's rows share a segment with a causal mask's last row or
// not: the last row of a causal segment sees what every row of a block segment sees.
static void check_attention_masks_agree(const struct version *version, enum krn_type type)
{
    struct krn_backend *backend = open_cpu(2, version->mask);
    struct attention_case c = attention_case_open(type, 9, 64, 4, 150, 16);
    size_t width = q_width(&c);
    float *block = floats(150 * width), *causal = floats(150 * width);
    run_attention(backend, &c, block, 118, 32, 32, KRN_MASK_BLOCK);
    run_attention(backend, &c, causal, 118, 32, 32, KRN_MASK_CAUSAL);
    bool ok = same_bits(block + 149 * width, causal + 149 * width, width);
    ok = ok && !same_bits(block + 118 * width, causal + 118 * width, width);
    report_attention(ok, version, type, "gives the last row of a block what the last causal row gets");
    free(block);
    free(causal);
    attention_case_close(&c);
    backend->close(backend->ctx);
}

static void check_attention_threads(const struct version *version, enum krn_type type)
{
    bool ok = true;
    float *expected = NULL;
    for (int threads = 1; threads <= 3; threads++) {
        struct krn_backend *backend = open_cpu(threads, version->mask);
        struct attention_case c = attention_case_open(type, 11, 64, 2, 200, 16);
        size_t n = 200 * q_width(&c);
        float *y = floats(n);
        run_attention(backend, &c, y, 0, 200, 77, KRN_MASK_CAUSAL);
        ok = ok && (!expected || same_bits(expected, y, n));
        free(expected);
        expected = y;
        attention_case_close(&c);
        backend->close(backend->ctx);
    }
    free(expected);
    report_attention(ok, version, type, "does not depend on the number of threads");
}

// ---- bench ----------------------------------------------------------------------------------------------------------

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

enum { SAMPLES = 9 };

struct timing {
    double median, low, high; // seconds
};

// Times run(arg) SAMPLES times after one warm-up; a sample repeats it for at least 5 ms.
static struct timing time_it(void (*run)(void *), void *arg)
{
    double samples[SAMPLES];
    double start = now();
    run(arg);
    int repeats = 1 + (int)(0.005 / (now() - start + 1e-9));
    for (int s = 0; s < SAMPLES; s++) {
        start = now();
        for (int i = 0; i < repeats; i++)
            run(arg);
        samples[s] = (now() - start) / repeats;
    }
    qsort(samples, SAMPLES, sizeof samples[0], compare_doubles);
    return (struct timing){.median = samples[SAMPLES / 2], .low = samples[0], .high = samples[SAMPLES - 1]};
}

#include "machine_limit.h"

struct linear_bench {
    struct krn_backend *backend;
    struct krn_tensor *weights; // several, used in turn, so that they come from memory
    int n_weights, next;
    int32_t rows;
    float *x, *y;
};

static void bench_linear_once(void *arg)
{
    struct linear_bench *bench = arg;
    bench->next = (bench->next + 1) % bench->n_weights;
    bench->backend->linear(bench->backend->ctx, bench->y, bench->x, &bench->weights[bench->next], bench->rows, NULL,
                           NULL, NULL);
}

static void print_bench(const char *version, const char *what, struct timing t, double bytes, double flops,
                        const struct machine_limit *limit)
{
    double gb = bytes / t.median / 1e9, gflop = flops / t.median / 1e9;
    printf("%-7s %-34s %9.1f us (%.1f .. %.1f) %7.2f GB/s (%3.0f %%) %8.1f GFLOP/s (%3.0f %%)\n", version, what,
           t.median * 1e6, t.low * 1e6, t.high * 1e6, gb, 100 * gb / limit->gb_per_s, gflop,
           100 * gflop / limit->gflop_per_s);
}

static void bench_linear(const struct version *version, int threads, int32_t out, int32_t in, int n_weights,
                         const struct machine_limit *limit)
{
    static const int32_t rows[] = {1, 4, 8, 16, 32, 128};
    struct random random = {.state = 1};
    struct linear_bench bench = {.backend = open_cpu(threads, version->mask), .n_weights = n_weights};
    bench.weights = must(calloc((size_t)n_weights, sizeof *bench.weights));
    for (int i = 0; i < n_weights; i++)
        bench.weights[i] = tensor_random(&random, KRN_BF16, out, in);
    bench.x = floats(128 * (size_t)in);
    bench.y = floats(128 * (size_t)out);
    fill_random(&random, bench.x, 128 * (size_t)in);
    for (int r = 0; r < COUNT(rows) - (version->mask == 0); r++) {
        char what[64];
        bench.rows = rows[r];
        snprintf(what, sizeof what, "linear bf16 %dx%d, %d rows", out, in, rows[r]);
        print_bench(version->name, what, time_it(bench_linear_once, &bench), 2.0 * out * in, 2.0 * rows[r] * out * in,
                    limit);
    }
    for (int i = 0; i < n_weights; i++)
        tensor_free(&bench.weights[i]);
    free(bench.weights);
    free(bench.x);
    free(bench.y);
    bench.backend->close(bench.backend->ctx);
}

struct attention_bench {
    struct krn_backend *backend;
    struct attention_case c;
    int32_t rows;
    float *y;
};

static void bench_attention_once(void *arg)
{
    struct attention_bench *bench = arg;
    run_attention(bench->backend, &bench->c, bench->y, bench->c.positions - bench->rows, bench->rows, bench->rows,
                  KRN_MASK_CAUSAL);
}

static void bench_attention(const struct version *version, int threads, enum krn_type type, int32_t head_dim,
                            int32_t positions, const struct machine_limit *limit)
{
    static const int32_t rows[] = {1, 8, 32};
    struct attention_bench bench = {.backend = open_cpu(threads, version->mask)};
    bench.c = attention_case_open(type, 1, head_dim, 4, positions, 16);
    bench.y = floats((size_t)positions * q_width(&bench.c));
    for (int r = 0; r < COUNT(rows); r++) {
        char what[64];
        bench.rows = rows[r];
        snprintf(what, sizeof what, "attention %s dim %d ctx %d, %d rows", krn_type_name(type), head_dim, positions,
                 rows[r]);
        double bytes = 2.0 * (double)krn_matrix_bytes(type, 2 * positions, head_dim); // k and v of 2 kv heads
        double flops = 4.0 * rows[r] * bench.c.n_heads * positions * head_dim;
        print_bench(version->name, what, time_it(bench_attention_once, &bench), bytes, flops, limit);
    }
    free(bench.y);
    attention_case_close(&bench.c);
    bench.backend->close(bench.backend->ctx);
}

static void bench_kv_write_once(void *arg)
{
    struct attention_case *c = arg;
    struct krn_segment all = {.rows = c->positions, .pages = c->store.pages};
    krn_kv_write_ref(&c->store.kv, 1, c->k, c->v, &all);
}

// One layer's keys and values of 256 rows, 2 kv heads; on one thread, as in a pass. Bytes: read and written.
static void bench_kv_write(enum krn_type type, int32_t head_dim, const struct machine_limit *limit)
{
    enum { ROWS = 256 };
    char what[64];
    struct attention_case c = attention_case_open(type, 1, head_dim, 1, ROWS, 16);
    snprintf(what, sizeof what, "kv_write %s dim %d, %d rows", krn_type_name(type), head_dim, ROWS);
    double read = 2.0 * 2 * ROWS * head_dim * 4, written = 2.0 * (double)krn_matrix_bytes(type, 2 * ROWS, head_dim);
    print_bench("ref", what, time_it(bench_kv_write_once, &c), read + written, 0, limit);
    attention_case_close(&c);
}

#include "checkkern_widened.h"

static void run_bench(int threads)
{
    struct machine_limit limit = machine_limit_measure(threads);
    printf("limit: %d thread%s, read %.1f GB/s, multiply-add %.0f GFLOP/s (f32, the widest vectors here)\n", threads,
           threads == 1 ? "" : "s", limit.gb_per_s, limit.gflop_per_s);
    for (int t = 0; t < KV_TYPES; t++)
        bench_kv_write(kv_types[t], 64, &limit);
    for (int v = 0; v < n_versions; v++) {
        bench_linear(&versions[v], threads, 4096, 4096, versions[v].mask ? 6 : 2, &limit);
        bench_linear(&versions[v], threads, 704, 256, 1, &limit);
        bench_linear(&versions[v], threads, 512, 192, 1, &limit);
        bench_widened(&versions[v], &limit);
        for (int t = 0; t < KV_TYPES; t++) {
            bench_attention(&versions[v], threads, kv_types[t], 128, 2048, &limit);
            bench_attention(&versions[v], threads, kv_types[t], 64, 1900, &limit);
            bench_attention(&versions[v], threads, kv_types[t], 32, 300, &limit);
        }
    }
}

int main(int argc, char **argv)
{
    n_versions = versions_here(versions);
    if (argc > 1 && strcmp(argv[1], "--bench") == 0) {
        run_bench(argc > 2 ? atoi(argv[2]) : 1);
        return 0;
    }
    for (int v = 0; v < n_versions; v++) {
        check_linear(&versions[v]);
        check_linear_threads(&versions[v]);
        check_widened(&versions[v]);
        for (int t = 0; t < KV_TYPES; t++) {
            check_attention(&versions[v], kv_types[t]);
            check_attention_pieces(&versions[v], kv_types[t]);
            check_attention_masks_agree(&versions[v], kv_types[t]);
            check_attention_threads(&versions[v], kv_types[t]);
        }
    }
    printf("1..%d\n", n_checks);
    return n_failures != 0;
}
