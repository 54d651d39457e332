// The tables of what is drawn, and the drawing.
#include "workload.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"
#include "route_machine.h"

// ---- the tables -----------------------------------------------------------------------------------------------------

enum kind { INT32, INT64, FLOAT, DOUBLE, BOOL, TEXT }; // enums are INT32; TEXT draws one of the names below

// In `percent` of the cases the field becomes one of its values, else it stays what it was.
struct parameter {
    enum kind kind;
    size_t offset;
    int percent, n;
    double values[12];
};

#define LENGTH(...) (int)(sizeof((const double[]){__VA_ARGS__}) / sizeof(double))
#define OF(type, kind, field, percent, ...)                               \
    {                                                                     \
        kind, offsetof(struct type, field), percent, LENGTH(__VA_ARGS__), \
        {                                                                 \
            __VA_ARGS__                                                   \
        }                                                                 \
    }
#define REQUEST(kind, field, percent, ...) OF(eng_params, kind, field, percent, __VA_ARGS__)
#define OPTION(kind, field, percent, ...) OF(eng_options, kind, field, percent, __VA_ARGS__)
#define FAKE(kind, field, percent, ...) OF(fake_model, kind, field, percent, __VA_ARGS__)

enum {
    AR = 1 << ENG_MODE_AR,
    DIFFUSION = 1 << ENG_MODE_DIFFUSION,
    SELF_SPECULATION = 1 << ENG_MODE_SELF_SPECULATION,
};

static const char *const names[] = {"one", "two", "none", "f32", "bf16", "q8"};
enum { NAME_ONE, NAME_TWO, NAME_NONE, NAME_F32, NAME_BF16, NAME_Q8 };

static const struct parameter of_requests[] = {
    REQUEST(INT32, mode, 70, ENG_MODE_AR, ENG_MODE_DIFFUSION, ENG_MODE_SELF_SPECULATION, ENG_MODE_SELF_SPECULATION),
    REQUEST(BOOL, lossless, 20, true),
    REQUEST(BOOL, allow_diffusion, 25, true),
    REQUEST(INT32, block_length, 75, 4, 8, 16, 32, 64),
    REQUEST(INT32, max_tokens, 100, 0, 1, 2, 8, 20, 33, 50, 70, 100, 150),
    REQUEST(INT32, min_tokens, 20, 1, 5, 20, 70),
    REQUEST(BOOL, ignore_eos, 20, true),
    REQUEST(FLOAT, temperature, 60, 0.3, 0.7, 1, 1.6),
    REQUEST(INT64, seed, 80, 1, 2, 3, 77777777777),
    REQUEST(INT32, top_k, 25, 1, 2, 20, 1000),
    REQUEST(FLOAT, top_p, 25, 0.1, 0.5, 0.9, 0.99),
    REQUEST(FLOAT, min_p, 20, 0.05, 0.3, 1),
    REQUEST(FLOAT, repetition_penalty, 10, 0.8, 1.2, 2),
    REQUEST(FLOAT, frequency_penalty, 10, -0.5, 0.4, 2),
    REQUEST(FLOAT, presence_penalty, 10, -0.5, 0.4, 2),
    REQUEST(INT32, n_top, 30, 0, 1, 5, 20),
    REQUEST(BOOL, skip_special, 20, false),
    REQUEST(BOOL, stream_draft, 20, true),
    REQUEST(TEXT, cache_salt, 25, NAME_ONE, NAME_TWO),
    REQUEST(INT32, priority, 40, -5, 1, 5),
    REQUEST(INT32, tenant, 50, 1, 2, 200),
    REQUEST(INT64, timeout_ms, 8, 1, 2, 5, 20, 1000),
    REQUEST(FLOAT, threshold, 40, 0.05, 0.5, 0.9, 1),
    REQUEST(INT32, steps, 30, 1, 2, 4, 8, 64),
    REQUEST(INT32, commit_policy, 20, ENG_COMMIT_LEFTMOST, ENG_COMMIT_SCHEDULE),
};

static const struct parameter of_options[] = {
    OPTION(INT32, max_sequences, 100, 1, 2, 3, 5, 8, 16, 32, 64),
    OPTION(INT32, max_step_rows, 100, 64, 65, 96, 200, 512, 2048),
    OPTION(INT32, page_size, 100, 1, 2, 3, 4, 5, 7, 8, 16, 32, 64),
    OPTION(BOOL, prefix_cache, 30, false),
    OPTION(INT32, auto_rows, 100, 1, 16, 40, 64, 300),
    OPTION(INT32, mode, 15, ENG_MODE_AR, ENG_MODE_DIFFUSION, ENG_MODE_SELF_SPECULATION),
    OPTION(INT32, auto_modes, 40, AR, SELF_SPECULATION, DIFFUSION, AR | DIFFUSION, AR | DIFFUSION,
           AR | DIFFUSION | SELF_SPECULATION),
    OPTION(INT32, block_length, 100, 4, 8, 16, 32, 64),
    OPTION(FLOAT, threshold, 50, 0.3, 0.6, 1),
    OPTION(INT32, threads, 50, 1, 2),
    OPTION(TEXT, adapter, 25, NAME_NONE),
    OPTION(TEXT, kv_type, 100, NAME_F32, NAME_BF16, NAME_Q8),
    OPTION(BOOL, calibrate, 30, true),
};

static const struct parameter of_fakes[] = {
    FAKE(BOOL, async, 50, true),         FAKE(INT32, step_us, 60, 20, 50, 200),
    FAKE(INT32, full_at_step, 5, 3, 20), FAKE(DOUBLE, agree, 70, 0, 0.3, 0.95, 1),
    FAKE(BOOL, has_adapter, 25, false),  FAKE(BOOL, block_adapter, 25, true),
    FAKE(INT32, end_id, 80, 11),         FAKE(DOUBLE, end_rate, 100, 0.002, 0.01, 0.05),
};

// ---- drawing --------------------------------------------------------------------------------------------------------

static int32_t below(uint64_t *random, int32_t n)
{
    return (int32_t)(test_random(random) % (uint32_t)n);
}

static bool chance(uint64_t *random, int percent)
{
    return below(random, 100) < percent;
}

static void draw(const struct parameter *p, uint64_t *random, void *ret)
{
    bool changes = chance(random, p->percent);
    double value = p->values[below(random, p->n)]; // drawn in any case, so that percentages may change
    char *at = (char *)ret + p->offset;
    if (!changes)
        return;
    switch (p->kind) {
    case INT32:
        *(int32_t *)at = (int32_t)value;
        break;
    case INT64:
        *(int64_t *)at = (int64_t)value;
        break;
    case FLOAT:
        *(float *)at = (float)value;
        break;
    case DOUBLE:
        *(double *)at = value;
        break;
    case BOOL:
        *(bool *)at = value != 0;
        break;
    case TEXT:
        *(const char **)at = names[(int)value];
        break;
    }
}

static void draw_all(const struct parameter *table, size_t n, uint64_t *random, void *ret)
{
    for (size_t i = 0; i < n; i++)
        draw(&table[i], random, ret);
}

#define DRAW(table, random, ret) draw_all(table, sizeof table / sizeof table[0], random, ret)

// ---- requests -------------------------------------------------------------------------------------------------------

static void draw_lists(struct workload_request *r, uint64_t *random, int32_t n_vocab)
{
    static const char *const stops[] = {"a", "cab", "bd", "eeb", "ha", "\xc3\xa9", "the", "."};
    struct eng_params *p = &r->params;
    if (chance(random, 15))
        p->n_stop_ids = 1 + (size_t)below(random, 2);
    if (chance(random, 20))
        p->n_stops = 1 + (size_t)below(random, 3);
    if (chance(random, 20))
        p->n_biases = 1 + (size_t)below(random, 3);
    // Among the last ids are the letters of a small vocabulary.
    for (int i = 0; i < 2; i++)
        r->stop_ids[i] = n_vocab - 1 - below(random, chance(random, 50) ? 8 : n_vocab);
    for (int i = 0; i < 3; i++)
        r->stops[i] = stops[below(random, 8)];
    for (int i = 0; i < 3; i++)
        r->biases[i] = (struct eng_logit_bias){n_vocab - 1 - below(random, chance(random, 50) ? 8 : n_vocab),
                                               (float[]){-100, -2, 5, 100}[below(random, 4)]};
    p->stop_ids = r->stop_ids;
    p->stops = r->stops;
    p->biases = r->biases;
}

// What was drawn may exclude each other (request.c).
static void make_valid(struct eng_params *p)
{
    if (p->min_tokens > p->max_tokens)
        p->min_tokens = p->max_tokens;
    if (p->mode == ENG_MODE_DIFFUSION)
        p->lossless = false;
    if (p->lossless)
        p->allow_diffusion = false;
    bool may_diffuse = p->mode == ENG_MODE_AUTO || p->mode == ENG_MODE_DIFFUSION;
    if (!may_diffuse || p->threshold > 0)
        p->steps = 0;
    if (!may_diffuse)
        p->threshold = 0;
    if (!may_diffuse || p->threshold > 0 || (p->commit_policy == ENG_COMMIT_SCHEDULE && !p->steps))
        p->commit_policy = ENG_COMMIT_CONFIDENCE;
}

// cancels: percent.
static void make_request(struct workload *w, int32_t i, uint64_t *random, int32_t n_vocab,
                         const struct workload_pool *pool, int cancels)
{
    struct workload_request *r = &w->requests[i];
    *r = (struct workload_request){.params = eng_params_default(), .parent = -1, .cancel_after = -1, .cancel_with = -1};
    DRAW(of_requests, random, &r->params);
    make_valid(&r->params);
    draw_lists(r, random, n_vocab);
    if (i && chance(random, 25))
        r->parent = below(random, i);
    // Few families, so that most share something with somebody.
    r->entry = (int32_t)((w->seed + (uint64_t)below(random, 3)) % (uint64_t)pool->n);
    r->n_shared = chance(random, 40) ? WORKLOAD_CONTEXT : below(random, 100);
    r->n_own = chance(random, 40) ? 0 : below(random, chance(random, 75) ? 20 : w->max_context / 2);
    for (int32_t k = 0; k < r->n_own; k++)
        r->own[k] = below(random, n_vocab);
    r->pause = (enum workload_pause)(chance(random, 60) ? PAUSE_NONE : below(random, N_PAUSES));
    if (!chance(random, cancels))
        return;
    if (chance(random, 60) || i == w->n_requests - 1)
        r->cancel_after = below(random, 12);
    else
        r->cancel_with = i + 1 + below(random, w->n_requests - i - 1);
}

int32_t workload_prompt(const struct workload *w, const struct workload_request *r, const struct workload_pool *pool,
                        int32_t n_vocab, const int32_t *parent, int32_t n_parent, int32_t *ret_ids)
{
    int32_t n = 0, most = w->max_context - 1;
    if (r->parent >= 0)
        for (; n < n_parent && n < most; n++)
            ret_ids[n] = parent[n];
    else
        for (; n < pool->lengths[r->entry] && n < r->n_shared && n < most / 2; n++)
            ret_ids[n] = pool->ids[r->entry][n] % n_vocab;
    for (int32_t i = 0; i < r->n_own && n < most; i++)
        ret_ids[n++] = r->own[i];
    if (!n)
        ret_ids[n++] = r->entry % n_vocab;
    return n;
}

struct eng_params workload_ar_params(const struct workload_request *r)
{
    struct eng_params p = r->params;
    p.mode = ENG_MODE_AR;
    p.allow_diffusion = false;
    make_valid(&p);
    return p;
}

// ---- the whole load -------------------------------------------------------------------------------------------------

// All ids of the tokenizer, or none but the end and some letters, so that stop strings match often.
static int32_t make_fake(struct workload *w, uint64_t *random, const struct workload_vocab *vocab)
{
    struct fake_model *f = &w->fake;
    DRAW(of_fakes, random, f);
    int machine = below(random, 3); // what auto is told of passes: nothing, or what one of two machines would take
    f->cost = machine == 0 ? f->cost : machine == 1 ? machine_cpu() : machine_gpu();
    bool letters = chance(random, 60);
    f->first_id = letters ? vocab->letters : 0;
    f->n_vocab = letters ? vocab->letters + 8 : vocab->tokenizer_vocab;
    return f->n_vocab;
}

// The generator is linear, so seeds in a row must not be states in a row: their draws would go in step.
static uint64_t scrambled(uint64_t seed)
{
    uint64_t x = (seed + 0x9e3779b97f4a7c15u) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 31) * 0x94d049bb133111ebu;
    return x ^ x >> 29;
}

void workload_make(struct workload *w, uint64_t seed, const struct workload_vocab *vocab,
                   const struct workload_pool *pool)
{
    static const int32_t contexts[] = {40, 120, WORKLOAD_CONTEXT};
    static const int cancels[] = {0, 0, 10, 50};
    uint64_t random = scrambled(seed);
    *w = (struct workload){.seed = seed, .options = client_options(), .fake = fake_model_default()};
    DRAW(of_options, &random, &w->options);
    w->max_context = contexts[below(&random, 3)];
    // From just enough for one alone to plenty.
    int32_t least = (w->max_context + w->options.page_size - 1) / w->options.page_size;
    w->fake.n_pages = least + (int32_t[]){0, 1, least / 4, least, 8 * least}[below(&random, 5)];
    w->fake.page_size = w->options.page_size;
    int32_t n_vocab = vocab->n_vocab ? vocab->n_vocab : make_fake(w, &random, vocab);
    w->n_requests = 1 + below(&random, vocab->n_vocab ? 40 : 60);
    w->requests = calloc((size_t)w->n_requests, sizeof *w->requests);
    int percent = cancels[below(&random, 4)];
    for (int32_t i = 0; i < w->n_requests; i++)
        make_request(w, i, &random, n_vocab, pool, percent);
}

void workload_done(struct workload *w)
{
    free(w->requests);
    *w = (struct workload){0};
}
