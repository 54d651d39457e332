// bench forward: the times of forward passes by kind, rows and context, each beside the bytes it must read. Runs in
// this process on the main thread, without requests or HTTP; results go to stdout as they come, errors to stderr.
// Leaves out what a load of clients would show (bench_serve.c) and single kernels.
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "buf.h"
#include "cli.h"
#include "engine.h"

enum { MAX_LIST = 32, MAX_ROWS = 65536, MAX_CONTEXT = 1 << 20 };

struct plan {
    int32_t rows[MAX_LIST], contexts[MAX_LIST];
    enum eng_pass_kind kinds[ENG_N_PASS_KINDS];
    int n_rows, n_contexts, n_kinds;
    int32_t max_segments, max_rows, max_segment_rows;
};

// The loader tells what fraction of the bytes is there, for the first time when a tensor is.
struct stopwatch {
    double opened, loading, loaded; // seconds; 0: not seen
    double fraction;                // at `loading`
};

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void on_progress(void *user, const char *what, double fraction)
{
    struct stopwatch *w = user;
    if (strcmp(what, "weights"))
        return;
    if (w->loading <= 0) {
        w->loading = now();
        w->fraction = fraction;
    }
    if (fraction >= 1)
        w->loaded = now();
}

// ---- what is asked --------------------------------------------------------------------------------------------------

static int refuse(const char *key, const char *value, const char *allowed)
{
    fprintf(stderr, "trimode: %s cannot be '%s'; allowed: %s\n", key, value, allowed);
    return -1;
}

static int parse_numbers(const char *key, const char *text, long min, long max, int32_t *ret, int *ret_n)
{
    for (const char *p = text;; p++) {
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || v < min || v > max || (*end && *end != ',') || *ret_n == MAX_LIST)
            return refuse(key, text, "a comma list of at most 32 numbers in range");
        ret[(*ret_n)++] = (int32_t)v;
        p = end;
        if (!*p)
            return 0;
    }
}

static int parse_kinds(const char *text, struct plan *plan)
{
    for (const char *p = text;;) {
        size_t n = strcspn(p, ",");
        int kind = ENG_N_PASS_KINDS;
        for (int k = 0; k < ENG_N_PASS_KINDS; k++) {
            const char *name = eng_pass_kind_name((enum eng_pass_kind)k);
            if (strlen(name) == n && !memcmp(name, p, n))
                kind = k;
        }
        if (kind == ENG_N_PASS_KINDS || plan->n_kinds == ENG_N_PASS_KINDS)
            return refuse("kind", text, "a comma list of prefill, ar, denoise, seal, draft, verify");
        plan->kinds[plan->n_kinds++] = (enum eng_pass_kind)kind;
        p += n;
        if (!*p++)
            return 0;
    }
}

static int by_value(const void *a, const void *b)
{
    return *(const int32_t *)a - *(const int32_t *)b;
}

// Rows of a pass as sequences: AR has one row a sequence, a prompt is one sequence, the others are blocks.
static int shape_of(enum eng_pass_kind kind, int32_t rows, int32_t block, struct eng_bench_shape *ret)
{
    *ret = (struct eng_bench_shape){.kind = kind, .segments = 1, .rows = rows};
    if (kind == ENG_PASS_AR)
        *ret = (struct eng_bench_shape){.kind = kind, .segments = rows, .rows = 1};
    else if (kind != ENG_PASS_PREFILL && rows > block)
        *ret = (struct eng_bench_shape){.kind = kind, .segments = rows / block, .rows = block};
    return ret->segments * ret->rows == rows ? 0 : -1;
}

static int make_plan(const struct srv_config *c, struct plan *plan)
{
    *plan = (struct plan){0};
    if (parse_numbers("rows", c->rows, 1, MAX_ROWS, plan->rows, &plan->n_rows) ||
        parse_numbers("context", c->context, 0, MAX_CONTEXT, plan->contexts, &plan->n_contexts) ||
        parse_kinds(c->kind, plan))
        return -1;
    // Rising contexts: what stands in the caches is then only added to.
    qsort(plan->contexts, (size_t)plan->n_contexts, sizeof *plan->contexts, by_value);
    for (int k = 0; k < plan->n_kinds; k++)
        for (int i = 0; i < plan->n_rows; i++) {
            struct eng_bench_shape s;
            if (shape_of(plan->kinds[k], plan->rows[i], (int32_t)c->block_length, &s))
                return refuse("rows", c->rows, "for block passes, at most block_length or a multiple of it");
            plan->max_segments = s.segments > plan->max_segments ? s.segments : plan->max_segments;
            plan->max_segment_rows = s.rows > plan->max_segment_rows ? s.rows : plan->max_segment_rows;
            plan->max_rows = plan->rows[i] > plan->max_rows ? plan->rows[i] : plan->max_rows;
        }
    if (plan->max_segments > 1024)
        return refuse("rows", c->rows, "at most 1024 sequences in a pass");
    return 0;
}

// ---- what is printed ------------------------------------------------------------------------------------------------

// Of the weights alone, from the part that was seen; of the whole opening when there was none.
static double loading_seconds(const struct stopwatch *w)
{
    bool seen = w->loading > 0 && w->loaded > w->loading && w->fraction < 1;
    return seen ? (w->loaded - w->loading) / (1 - w->fraction) : w->opened;
}

static void print_json(struct srv_buf *b)
{
    srv_buf_puts(b, "}}\n");
    fwrite(b->data, 1, b->len, stdout);
    fflush(stdout);
    srv_buf_reset(b);
}

static void print_open(const struct srv_config *c, const struct eng_info *info, const struct stopwatch *w,
                       struct srv_buf *b)
{
    double seconds = loading_seconds(w);
    if (!c->json) {
        printf("%s (%s), %s weights, %s keys and values, %.3f GB resident, %.3f GB in the files; open in %.2f s, the "
               "weights in %.2f s\n",
               info->backend, info->backend_description, info->weights_type, info->kv_type,
               (double)info->weights_bytes * 1e-9, (double)info->file_bytes * 1e-9, w->opened, seconds);
        if (info->backend_reason && *info->backend_reason)
            printf("backend %s: %s\n", info->backend, info->backend_reason);
        printf("%-8s %6s %6s %8s %10s %10s %10s %10s %8s %9s %8s%s\n", "kind", "rows", "seqs", "context", "ms", "min",
               "max", "queued", "host us", "MB read", "GB/s", c->limit_gbps > 0 ? "    share" : "");
        return;
    }
    srv_buf_puts(b, "{\"open\":{\"backend\":");
    srv_buf_jsonz(b, info->backend);
    srv_buf_puts(b, ",\"description\":");
    srv_buf_jsonz(b, info->backend_description);
    srv_buf_puts(b, ",\"weights_type\":");
    srv_buf_jsonz(b, info->weights_type);
    srv_buf_printf(b,
                   ",\"weights_bytes\":%lld,\"file_bytes\":%lld,\"step_bytes\":%lld,\"adapter_bytes\":%lld,"
                   "\"kv_token_bytes\":%lld,\"n_vocab\":%d,\"open_seconds\":%.4f,\"weights_seconds\":%.4f",
                   (long long)info->weights_bytes, (long long)info->file_bytes, (long long)info->step_bytes,
                   (long long)info->adapter_bytes, (long long)info->kv_token_bytes, (int)info->n_vocab, w->opened,
                   seconds);
    srv_buf_puts(b, ",\"kv_type\":");
    srv_buf_jsonz(b, info->kv_type);
    srv_buf_puts(b, ",\"memory\":{");
    for (int32_t i = 0; i < info->memory.n_categories; i++) {
        if (i)
            srv_buf_puts(b, ",");
        srv_buf_jsonz(b, info->memory.categories[i].name);
        srv_buf_printf(b, ":%lld", (long long)info->memory.categories[i].bytes);
    }
    srv_buf_puts(b, "}");
    print_json(b);
}

static void print_pass(const struct srv_config *c, const struct eng_bench_shape *s, const struct eng_bench_time *t,
                       struct srv_buf *b)
{
    const char *kind = eng_pass_kind_name(s->kind);
    double bytes = (double)t->weight_bytes + (double)t->kv_bytes, rate = bytes / t->queued_ms * 1e-6;
    if (!c->json) {
        printf("%-8s %6d %6d %8d %10.4f %10.4f %10.4f %10.4f %8.1f %9.2f %8.2f", kind, s->segments * s->rows,
               s->segments, s->context, t->median_ms, t->min_ms, t->max_ms, t->queued_ms, t->host_ms * 1e3,
               bytes * 1e-6, rate);
        if (c->limit_gbps > 0)
            printf(" %6.1f %%", 100 * rate / c->limit_gbps);
        printf("\n");
        fflush(stdout);
        return;
    }
    srv_buf_printf(b,
                   "{\"pass\":{\"kind\":\"%s\",\"rows\":%d,\"segments\":%d,\"context\":%d,\"wanted\":%d,"
                   "\"adapter\":%s,\"median_ms\":%.5f,\"min_ms\":%.5f,\"max_ms\":%.5f,\"queued_ms\":%.5f,"
                   "\"host_us\":%.2f,\"weight_bytes\":%lld,\"kv_bytes\":%lld",
                   kind, s->segments * s->rows, s->segments, s->context, t->wanted, t->adapter ? "true" : "false",
                   t->median_ms, t->min_ms, t->max_ms, t->queued_ms, t->host_ms * 1e3, (long long)t->weight_bytes,
                   (long long)t->kv_bytes);
    print_json(b);
}

// ---- the run --------------------------------------------------------------------------------------------------------

static int run_passes(const struct srv_config *c, const struct plan *plan, struct eng_bench *bench, struct srv_buf *b)
{
    for (int i = 0; i < plan->n_contexts; i++)
        for (int k = 0; k < plan->n_kinds; k++)
            for (int r = 0; r < plan->n_rows; r++) {
                struct eng_bench_shape shape;
                struct eng_bench_time time;
                shape_of(plan->kinds[k], plan->rows[r], (int32_t)c->block_length, &shape);
                shape.context = plan->contexts[i];
                int rc = eng_bench_pass(bench, &shape, (int)c->runs, &time);
                if (rc) {
                    fprintf(stderr, "trimode: the %s pass of %d rows at context %d failed: %s\n",
                            eng_pass_kind_name(shape.kind), plan->rows[r], shape.context, eng_bench_error(bench, rc));
                    return 1;
                }
                print_pass(c, &shape, &time, b);
            }
    return 0;
}

int srv_cli_bench(const struct srv_config *c)
{
    if (c->n_arguments != 1 || strcmp(c->arguments[0], "forward")) {
        fprintf(stderr, "trimode bench: expects `forward` or `serve`; --help says more\n");
        return 2;
    }
    struct plan plan;
    char *dir = NULL, *name = NULL, err[512] = "";
    if (make_plan(c, &plan))
        return 2;
    if (srv_config_model_dir(c->model, &dir, &name, err, sizeof err)) {
        fprintf(stderr, "trimode: %s\n", err);
        return 2;
    }
    struct stopwatch watch = {0};
    struct eng_options o = srv_config_engine(c, dir);
    o.max_sequences = plan.max_segments;
    o.max_step_rows = plan.max_rows > o.max_step_rows ? plan.max_rows : o.max_step_rows;
    o.max_context = plan.contexts[plan.n_contexts - 1] + plan.max_segment_rows;
    o.max_context += o.max_context < 2;
    o.progress = on_progress;
    o.user = &watch;
    struct eng_bench *bench = NULL;
    struct srv_buf b = {0};
    double start = now();
    int status = eng_bench_open(&o, &bench, err, sizeof err);
    watch.opened = now() - start;
    if (status) {
        fprintf(stderr, "trimode: cannot load the model '%s': %s\n", c->model, err);
        status = 1;
    } else {
        print_open(c, eng_bench_info(bench), &watch, &b);
        status = run_passes(c, &plan, bench, &b);
    }
    eng_bench_close(bench);
    srv_buf_free(&b);
    free(dir);
    free(name);
    return status;
}
