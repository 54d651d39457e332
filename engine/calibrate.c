// 4 ROUTE  Measures the cost model (cost.h): which passes, how often, until when; and what a model is of.
//
// The passes are those of a bench (bench.c). They differ in rows, segments, context, adapter and choices independently
// enough for the fit to tell them apart: one row in many sequences, one block in one or many, prompts of one choice.
// Small ones come first, so that a model whose time runs out was measured where the router decides; three are measured
// whatever they take. Runs on the thread that opens the engine; no engine exists beside it.
#include "calibrate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/clock.h"
#include "bench.h"
#include "model/cost_file.h"
#include "text/fail.h"
#include "text/file.h"

enum {
    LONGEST_CONTEXT = 1024,
    MAX_ROWS = 512,
    MAX_SEGMENTS = 64,
    NEEDED = 3,
    NEEDED_RUNS = 3,
    MAX_RUNS = 9,
    MAX_SWEEPS = 6
};
static const double start_seconds = 0.7; // of the calibration while opening
static const double fill_share = 0.2;    // of the time, at most, goes into one shape's context
static const double check_share = 0.3;   // of the time, at most, on top for the checks

// ---- what is measured -----------------------------------------------------------------------------------------------

// Kind, segments, rows of each; the context comes from the round.
static const struct eng_bench_shape shapes[] = {
    {ENG_PASS_AR, 1, 1, 0},        {ENG_PASS_VERIFY, 1, 32, 0},  {ENG_PASS_DRAFT, 1, 32, 0},
    {ENG_PASS_AR, 8, 1, 0},        {ENG_PASS_VERIFY, 4, 32, 0},  {ENG_PASS_PREFILL, 1, 256, 0},
    {ENG_PASS_AR, 2, 1, 0},        {ENG_PASS_AR, 4, 1, 0},       {ENG_PASS_VERIFY, 1, 4, 0},
    {ENG_PASS_DRAFT, 1, 8, 0},     {ENG_PASS_VERIFY, 1, 16, 0},  {ENG_PASS_AR, 16, 1, 0},
    {ENG_PASS_DRAFT, 1, 64, 0},    {ENG_PASS_VERIFY, 8, 8, 0},   {ENG_PASS_AR, 32, 1, 0},
    {ENG_PASS_AR, 64, 1, 0},       {ENG_PASS_DRAFT, 4, 16, 0},   {ENG_PASS_PREFILL, 1, 64, 0},
    {ENG_PASS_DRAFT, 4, 32, 0},    {ENG_PASS_VERIFY, 16, 8, 0},  {ENG_PASS_VERIFY, 2, 64, 0},
    {ENG_PASS_PREFILL, 1, 128, 0}, {ENG_PASS_DRAFT, 16, 16, 0},  {ENG_PASS_VERIFY, 8, 32, 0},
    {ENG_PASS_DRAFT, 64, 4, 0},    {ENG_PASS_VERIFY, 16, 32, 0}, {ENG_PASS_DRAFT, 16, 32, 0},
    {ENG_PASS_PREFILL, 1, 512, 0}, {ENG_PASS_VERIFY, 64, 8, 0},
};
static const int32_t contexts[] = {32, 256, 896};
static const struct eng_bench_shape checks[ENG_MAX_CHECKS] = {
    {ENG_PASS_AR, 1, 1, 100},     {ENG_PASS_AR, 3, 1, 100},       {ENG_PASS_AR, 24, 1, 60},
    {ENG_PASS_VERIFY, 1, 8, 100}, {ENG_PASS_DRAFT, 1, 16, 100},   {ENG_PASS_DRAFT, 2, 32, 60},
    {ENG_PASS_VERIFY, 6, 16, 60}, {ENG_PASS_PREFILL, 1, 96, 100},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes, N_CONTEXTS = sizeof contexts / sizeof *contexts };
_Static_assert((int)N_SHAPES *(int)N_CONTEXTS <= (int)ENG_MAX_CALIBRATION, "every pass has an entry");

struct calibrator {
    const struct eng_options *options;
    struct eng_bench *bench;
    int32_t max_segments, max_rows, max_context;
    bool blocks, async;  // the model has block passes; a queue
    double start, limit; // seconds
    struct eng_calibration *ret;
};

static int32_t least(int32_t a, int32_t b)
{
    return a < b ? a : b;
}

static double now(void)
{
    return (double)eng_now_ns() * 1e-9;
}

static bool fits(const struct calibrator *c, const struct eng_bench_shape *s)
{
    bool block = s->kind == ENG_PASS_DRAFT || s->kind == ENG_PASS_DENOISE;
    return s->context >= 0 && s->segments <= c->max_segments && s->segments * s->rows <= c->max_rows &&
           s->context + s->rows <= c->max_context && (c->blocks || !block);
}

// Seconds of a pass as far as those measured so far tell: no slower a row than the nearest one in size.
static double guess(const struct calibrator *c, int32_t rows)
{
    const struct eng_calibration *r = c->ret;
    double nearest = INFINITY, seconds = 0;
    for (int32_t i = 0; i < r->n_passes; i++) {
        double n = r->passes[i].sample.pass.rows, distance = fabs(log(rows / n));
        if (distance < nearest) {
            nearest = distance;
            seconds = r->passes[i].sample.seconds * fmax(1, rows / n);
        }
    }
    return seconds;
}

// Runs that the time left allows when `left` shapes, this one included, share it; 0: none.
static int runs_for(const struct calibrator *c, const struct eng_bench_shape *s, int left)
{
    double remains = c->start + c->limit - now(), pass = guess(c, s->segments * s->rows);
    if (c->ret->n_passes < NEEDED)
        return NEEDED * (NEEDED_RUNS + 1) * pass < remains ? NEEDED_RUNS : 1;
    double fill_rows = (double)s->segments * s->context;
    double fill = fill_rows < 1 ? 0 : guess(c, MAX_ROWS) * fill_rows / MAX_ROWS;
    if (fill > fill_share * c->limit || fill + 2 * pass > remains)
        return 0;
    double runs = (remains / left - fill) / pass - 1;
    return runs < 1 ? 1 : runs > MAX_RUNS ? MAX_RUNS : (int)runs;
}

static int measure(struct calibrator *c, const struct eng_bench_shape *s, int runs, struct eng_calibrated *ret)
{
    struct eng_bench_time time;
    int rc = eng_bench_measure(c->bench, s, 1, runs, &time);
    if (rc)
        return rc;
    // An engine keeps the queue of an asynchronous backend full. Elsewhere the shortest run is the one that other
    // processes disturbed least; what they cost in the long run is the live correction's matter.
    *ret = (struct eng_calibrated){
        .shape = *s,
        .sample = {.pass = eng_bench_cost(c->bench), .seconds = (c->async ? time.queued_ms : time.min_ms) * 1e-3},
        .adapter = time.adapter,
    };
    return 0;
}

static void report(const struct calibrator *c, double fraction)
{
    if (c->options->progress)
        c->options->progress(c->options->user, "calibrate", fmin(fraction, 1));
}

static int measure_all(struct calibrator *c)
{
    for (int k = 0; k < N_CONTEXTS; k++)
        for (int i = 0; i < N_SHAPES; i++) {
            struct eng_bench_shape s = shapes[i];
            int done = k * N_SHAPES + i, left = N_SHAPES * N_CONTEXTS - done;
            s.context = least(contexts[k], c->max_context - s.rows);
            bool again = k > 0 && s.context <= contexts[k - 1]; // shortened to what was measured
            int runs = fits(c, &s) && !again ? runs_for(c, &s, left) : 0;
            int rc = runs ? measure(c, &s, runs, &c->ret->passes[c->ret->n_passes]) : 0;
            if (rc)
                return rc;
            c->ret->n_passes += runs > 0;
            report(c, (now() - c->start) / c->limit);
        }
    return 0;
}

// Again through n passes that were measured since `start`, while there is time for it. A busy machine only makes passes
// longer, so the shortest time stands.
static int measure_again(struct calibrator *c, struct eng_calibrated *passes, int32_t n, int runs, double start,
                         double limit)
{
    double begin = now(), sweep = begin - start;
    for (int k = 1; k < MAX_SWEEPS && now() + sweep < start + limit; k++) {
        for (int32_t i = 0; i < n; i++) {
            struct eng_calibrated again, *p = &passes[i];
            int rc = measure(c, &p->shape, runs, &again);
            if (rc)
                return rc;
            p->sample.seconds = fmin(p->sample.seconds, again.sample.seconds);
            report(c, (now() - c->start) / c->limit);
        }
        sweep = (now() - begin) / k;
    }
    return 0;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// Measures those checks that the time allows, one run at a time: a disturbance meets few of them.
static int measure_checks(struct calibrator *c)
{
    struct eng_calibration *r = c->ret;
    double start = now(), limit = c->limit * check_share;
    for (int i = 0; i < ENG_MAX_CHECKS; i++) {
        double pass = guess(c, checks[i].segments * checks[i].rows);
        if (!fits(c, &checks[i]) || 2 * pass > limit / ENG_MAX_CHECKS)
            continue;
        int rc = measure(c, &checks[i], 1, &r->checks[r->n_checks]);
        if (rc)
            return rc;
        r->n_checks++;
    }
    return measure_again(c, r->checks, r->n_checks, 1, start, limit);
}

static int check(struct calibrator *c)
{
    double errors[ENG_MAX_CHECKS];
    struct eng_calibration *r = c->ret;
    int rc = measure_checks(c);
    if (rc)
        return rc;
    for (int32_t i = 0; i < r->n_checks; i++) {
        const struct eng_cost_sample *s = &r->checks[i].sample;
        errors[i] = fabs(eng_cost_predict(&r->cost, &s->pass) / s->seconds - 1);
    }
    qsort(errors, (size_t)r->n_checks, sizeof *errors, by_value);
    r->check_error = r->n_checks ? errors[r->n_checks / 2] : 0;
    return 0;
}

// A bench over the parts: long sequences, but not so long that there are pages for a few only.
static int open_bench(struct calibrator *c, const struct eng_parts *parts, char *err, size_t err_size)
{
    struct eng_parts p = *parts;
    struct eng_options o = *c->options;
    c->max_context = least(p.info.max_context, LONGEST_CONTEXT);
    int32_t n = least(o.max_sequences, MAX_SEGMENTS), slot_pages;
    for (;; c->max_context /= 2) {
        slot_pages = (c->max_context + p.info.page_size - 1) / p.info.page_size;
        c->max_segments = least(n, p.info.n_pages / slot_pages);
        if (c->max_segments == n || c->max_context <= MAX_SEGMENTS)
            break;
    }
    if (c->max_segments < 1)
        return fail(ENG_ELIMIT, err, err_size, "there is no memory for the keys and values of a calibration");
    c->max_rows = least(o.max_step_rows, MAX_ROWS);
    c->blocks = p.model.mask_id >= 0;
    c->async = p.model.async;
    o.max_sequences = c->max_segments;
    o.max_step_rows = c->max_rows;
    p.info.max_context = c->max_context;
    return eng_bench_make(&o, &p, &c->bench, err, err_size);
}

// checked: with the measurements afterwards.
static int calibrate(struct calibrator *c, const struct eng_parts *parts, bool checked, char *err, size_t err_size)
{
    int rc = open_bench(c, parts, err, err_size);
    if (rc)
        return rc;
    c->start = now();
    rc = measure_all(c);
    if (!rc)
        rc = measure_again(c, c->ret->passes, c->ret->n_passes, MAX_RUNS, c->start, c->limit);
    if (!rc) {
        struct eng_cost_sample samples[ENG_MAX_CALIBRATION];
        for (int32_t i = 0; i < c->ret->n_passes; i++)
            samples[i] = c->ret->passes[i].sample;
        rc = eng_cost_fit(samples, c->ret->n_passes, &c->ret->cost);
    }
    if (!rc && checked)
        rc = check(c);
    c->ret->seconds = now() - c->start;
    report(c, 1);
    if (rc)
        fail(rc, err, err_size, "the calibration failed: %s", eng_bench_error(c->bench, rc));
    eng_bench_leave(c->bench);
    return rc;
}

int eng_calibrate_parts(const struct eng_options *options, const struct eng_parts *parts, double seconds,
                        struct eng_calibration *ret, char *err, size_t err_size)
{
    memset(ret, 0, sizeof *ret);
    struct calibrator c = {.options = options, .limit = seconds, .ret = ret};
    return calibrate(&c, parts, true, err, err_size);
}

// ---- what a model is of ---------------------------------------------------------------------------------------------

// FNV-1a, 64 bits: names a file's content; nothing relies on its being hard to forge.
static uint64_t hash(uint64_t h, const void *data, size_t n)
{
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const unsigned char *)data)[i]) * 0x100000001b3u;
    return h;
}

static void cpu_name(char *out, size_t size)
{
    char line[512];
    snprintf(out, size, "unknown CPU");
    FILE *f = fopen("/proc/cpuinfo", "re");
    while (f && fgets(line, sizeof line, f)) {
        char *value = strchr(line, ':');
        if (strncmp(line, "model name", 10) || !value)
            continue;
        value += 1 + strspn(value + 1, " \t");
        value[strcspn(value, "\n")] = '\0';
        snprintf(out, size, "%.100s", value);
        break;
    }
    if (f)
        fclose(f);
}

int eng_cost_identify(const char *model_dir, const struct eng_info *info, struct eng_cost_id *ret, char *err,
                      size_t err_size)
{
    char *path, *config, cpu[128];
    size_t n = 0;
    if (asprintf(&path, "%s/config.json", model_dir) < 0)
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    int rc = eng_text_read_file(path, 64 << 20, &config, &n, err, err_size);
    free(path);
    if (rc)
        return rc;
    uint64_t h = hash(0xcbf29ce484222325u, config, n);
    const int64_t sizes[] = {info->weights_bytes, info->file_bytes,      info->parameters,    info->step_bytes,
                             info->adapter_bytes, info->embed_row_bytes, info->kv_token_bytes};
    h = hash(h, sizes, sizeof sizes);
    free(config);
    cpu_name(cpu, sizeof cpu);
    snprintf(ret->version, sizeof ret->version, "%s", TRIMODE_VERSION);
    snprintf(ret->model, sizeof ret->model, "%016llx, %s weights, %s keys and values", (unsigned long long)h,
             info->weights_type, info->kv_type);
    snprintf(ret->machine, sizeof ret->machine, "%s, %ld cores; %s: %.180s", cpu, sysconf(_SC_NPROCESSORS_ONLN),
             info->backend, info->backend_description);
    return 0;
}

// ---- opening --------------------------------------------------------------------------------------------------------

int eng_calibrate(const struct eng_options *options, double seconds, struct eng_calibration *ret, char *err,
                  size_t err_size)
{
    struct eng_parts parts;
    err_size = err ? err_size : 0;
    int rc = eng_load(options, &parts, err, err_size);
    if (rc)
        return rc;
    rc = eng_calibrate_parts(options, &parts, seconds, ret, err, err_size);
    if (!rc)
        rc = eng_cost_identify(options->model_dir, &parts.info, &ret->cost.id, err, err_size);
    parts.model.close(parts.model.ctx);
    parts.release(parts.owner);
    return rc;
}

int eng_cost_save(const char *path, const struct eng_cost *cost, char *err, size_t err_size)
{
    return eng_cost_file_save(path, cost, err, err ? err_size : 0);
}

// Measured on the spot. An engine so small that too few passes fit it runs without a model; that the backend fails is
// an error like any other of the opening.
static int measure_at_start(const struct eng_options *options, struct eng_parts *parts, char *err, size_t err_size)
{
    struct eng_calibration *made = calloc(1, sizeof *made);
    if (!made)
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    struct calibrator c = {.options = options, .limit = start_seconds, .ret = made};
    int rc = calibrate(&c, parts, false, err, err_size);
    if (rc == ENG_EINVAL || rc == ENG_ELIMIT) {
        rc = 0;
    } else if (!rc) {
        parts->info.cost = made->cost;
        parts->info.cost_origin = "measured at start";
    }
    free(made);
    return rc;
}

int eng_cost_open(const struct eng_options *options, struct eng_parts *parts, char *err, size_t err_size)
{
    bool file = options->cost_model && *options->cost_model;
    struct eng_cost_id here;
    parts->info.cost_origin = "none";
    if (!file && !options->calibrate)
        return 0;
    int rc = eng_cost_identify(options->model_dir, &parts->info, &here, err, err_size);
    if (!rc && file) {
        rc = eng_cost_file_load(options->cost_model, &here, &parts->info.cost, err, err_size);
        if (!rc)
            parts->info.cost_origin = "file";
    } else if (!rc) {
        rc = measure_at_start(options, parts, err, err_size);
        parts->info.cost.id = here;
    }
    return rc;
}
