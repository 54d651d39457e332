// Requests in simulated time (route_machine.h). One step of the loop is one pass of everyone, as in engine.c, but
// nothing is computed: a draft's fate is drawn from the text's law.
#include "route_machine.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "batch.h"
#include "request.h"

enum { MAX_CLIENTS = 256, CONTEXT = 1 << 20, PROMPT = 64 };

struct client {
    struct eng_request *r;
    int32_t text;
    uint8_t kept[ENG_MAX_BLOCK]; // fate of the drafts under way
    int32_t denoised;            // passes of the block under way
    double begun_s, changed_s;   // changed_s < 0: never
};

struct state {
    const struct machine *m;
    struct machine_mode how;
    struct eng_router router;
    struct eng_cost_live live;
    struct client clients[MAX_CLIENTS];
    struct eng_request *running[MAX_CLIENTS];
    int32_t n;
    uint64_t random;
    double now_s, from_s; // from_s: when counting begins
    double tokens[ENG_N_MODES];
    struct machine_result result;
};

static double uniform(uint64_t *random)
{
    *random = *random * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (double)(*random >> 11) * 0x1p-53;
}

struct eng_cost machine_gpu(void)
{
    return (struct eng_cost){.n_knots = 2,
                             .knots = {1, 256},
                             .slopes = {4e-6, 20e-6},
                             .base = 5e-3,
                             .segment = 2e-6,
                             .choice = 1e-6,
                             .context = 1e-8};
}

struct eng_cost machine_cpu(void)
{
    return (struct eng_cost){.n_knots = 3,
                             .knots = {1, 2, 8},
                             .slopes = {24e-6, 12e-6, 15e-6},
                             .base = 66e-6,
                             .segment = 5e-6,
                             .choice = 3e-6,
                             .context = 5e-8,
                             .pair = 2e-8};
}

static void begin(struct state *s, struct client *c)
{
    struct eng_request_limits limits = {
        .n_vocab = 50, .max_context = CONTEXT, .modes = 15, .block_length = 32, .threshold = 0.9f};
    struct eng_params p = eng_params_default();
    static int32_t prompt[PROMPT];
    c->text = (c->text + 1) % s->m->n_texts;
    p.max_tokens = s->m->texts[c->text].length;
    p.mode = s->how.mode;
    p.block_length = s->how.block_length;
    p.allow_diffusion = s->m->allow_diffusion && p.mode == ENG_MODE_AUTO;
    assert_int_equal(eng_request_make(&limits, &p, prompt, PROMPT, &c->r, NULL, NULL, 0), 0);
    struct eng_seq *q = &c->r->seq;
    q->n_kv = PROMPT;
    q->n_tokens = PROMPT + 1;
    q->block.rows = 0;
    c->begun_s = s->now_s;
    c->changed_s = -1;
}

static void finish(struct state *s, struct client *c)
{
    const struct eng_seq *q = &c->r->seq;
    double speed = (q->n_tokens - PROMPT) / (s->now_s - c->begun_s);
    if (c->begun_s >= s->from_s && speed < s->result.slowest)
        s->result.slowest = speed;
    eng_request_free(c->r);
    begin(s, c);
}

static void count_change(void *state, struct eng_request *r, enum eng_mode before, const struct eng_route *to)
{
    struct state *s = state;
    (void)to;
    for (int32_t i = 0; i < s->n && before != ENG_MODE_AUTO && s->now_s >= s->from_s; i++) {
        struct client *c = &s->clients[i];
        if (c->r != r)
            continue;
        s->result.changes++;
        if (c->changed_s >= 0 && s->now_s - c->changed_s < s->result.shortest_between_s)
            s->result.shortest_between_s = s->now_s - c->changed_s;
        c->changed_s = s->now_s;
    }
}

static void route(struct state *s)
{
    for (int32_t i = 0; i < s->n; i++)
        s->running[i] = s->clients[i].r;
    eng_router_route(&s->router, s->running, s->n, (int64_t)(s->now_s * 1e9) + 1, count_change, s);
}

static void draft(struct state *s, struct client *c, int32_t rows)
{
    const struct machine_text *t = &s->m->texts[c->text];
    struct eng_block *b = &c->r->seq.block;
    b->rows = b->drafted = rows;
    for (int32_t i = 0; i < rows - 1; i++) {
        double chance = uniform(&s->random) < t->sure ? t->sure_chance : t->unsure_chance * uniform(&s->random);
        b->confidence[i] = (float)chance;
        c->kept[i] = uniform(&s->random) < chance;
        b->tokens[i + 1] = 7; // and what AR chooses is 7 if it is kept, 8 if not
    }
}

static int32_t verify(struct client *c, struct eng_run *run)
{
    struct eng_block *b = &c->r->seq.block;
    int32_t kept = 0;
    while (kept < b->rows - 1 && c->kept[kept])
        kept++;
    run->drafted = b->drafted - 1;
    run->n = kept + 1;
    run->accepted = kept + (kept == b->rows - 1 && b->rows < b->drafted && c->kept[kept]);
    for (int32_t i = 0; i < run->n; i++)
        run->tokens[i] = i < b->drafted - 1 && c->kept[i] ? 7 : 8;
    b->rows = b->drafted = 0;
    return run->n;
}

// One pass of one request: its rows go into the pass, its tokens come out. What the pass does is decided before it and
// told after it, so the two happen here at once.
static int32_t take_part(struct state *s, struct client *c, struct eng_cost_pass *pass, struct eng_segment *seg,
                         struct eng_run *run)
{
    struct eng_seq *q = &c->r->seq;
    struct eng_block *b = &q->block;
    int32_t wanted = eng_seq_wanted(q), rows = q->block_length < wanted ? q->block_length : wanted;
    *run = (struct eng_run){0};
    if (q->mode == ENG_MODE_DIFFUSION) {
        int32_t passes = s->m->denoise_passes * q->block_length / 8;
        b->rows = q->block_length;
        eng_cost_pass_add(pass, b->rows, q->n_kv, b->rows / 2, false);
        *seg = (struct eng_segment){.kind = ENG_PASS_DENOISE, .rows = b->rows};
        if (c->denoised++ < passes)
            return 0;
        c->denoised = 0;
        run->denoise_passes = passes;
        run->n = b->rows;
        b->rows = 0;
        return run->n < wanted ? run->n : wanted;
    }
    if (q->mode == ENG_MODE_AR || (!b->rows && rows < 2)) {
        eng_cost_pass_add(pass, 1, q->n_kv, 1, false);
        *seg = (struct eng_segment){.kind = ENG_PASS_AR, .rows = 1};
        return run->n = 1;
    }
    if (!b->drafted) {
        draft(s, c, rows);
        eng_cost_pass_add(pass, rows, q->n_kv, rows - 1, true);
        *seg = (struct eng_segment){.kind = ENG_PASS_DRAFT, .rows = rows};
        if (q->routing.row_price >= ENG_FREE_ROW_PRICE)
            eng_seq_cut_draft(q, eng_router_verified_rows(&s->router, c->r));
        return 0;
    }
    eng_cost_pass_add(pass, b->rows, q->n_kv, b->rows, false);
    *seg = (struct eng_segment){.kind = ENG_PASS_VERIFY, .rows = b->rows};
    return verify(c, run);
}

static void pass(struct state *s)
{
    struct eng_cost_pass p = {0};
    struct eng_segment seg[MAX_CLIENTS];
    struct eng_run run[MAX_CLIENTS];
    int32_t taken[MAX_CLIENTS];
    route(s);
    for (int32_t i = 0; i < s->n; i++)
        taken[i] = take_part(s, &s->clients[i], &p, &seg[i], &run[i]);
    double seconds = eng_cost_predict(&s->m->cost, &p);
    s->now_s += seconds + s->m->host_s;
    eng_cost_observe(&s->live, &s->m->believed, &p, seconds);
    eng_router_note_host(&s->router, s->m->host_s);
    for (int32_t i = 0; i < s->n; i++) {
        struct client *c = &s->clients[i];
        struct eng_seq *q = &c->r->seq;
        q->n_tokens += taken[i];
        q->n_kv += taken[i];
        s->tokens[q->mode] += s->now_s >= s->from_s ? taken[i] : 0;
        bool ended = !eng_seq_wanted(q);
        q->finish = ended ? ENG_FINISH_LENGTH : ENG_FINISH_NONE;
        eng_router_learn(&s->router, c->r, &seg[i], &run[i], taken[i], (int64_t)(s->now_s * 1e9));
        if (ended)
            finish(s, c);
    }
}

static void set_clients(struct state *s, int32_t n)
{
    assert_true(n >= 1 && n <= MAX_CLIENTS);
    while (s->n > n)
        eng_request_free(s->clients[--s->n].r);
    while (s->n < n) {
        s->clients[s->n] = (struct client){.text = s->n};
        begin(s, &s->clients[s->n++]);
    }
}

static struct state *start(const struct machine *m, struct machine_mode how)
{
    struct state *s = calloc(1, sizeof *s);
    assert_non_null(s);
    s->m = m;
    s->how = how;
    s->random = m->seed;
    s->router.rules = (struct eng_plan_rules){
        .modes = 15,
        .auto_modes = m->auto_modes ? m->auto_modes : 1u << ENG_MODE_AR | 1u << ENG_MODE_SELF_SPECULATION,
        .auto_rows = 64,
        .draft_adapter = true,
        .cost = &m->believed,
        .live = &s->live,
    };
    s->result = (struct machine_result){.shortest_between_s = 1e9, .slowest = 1e9};
    return s;
}

struct machine_result machine_run(const struct machine *m, struct machine_mode how, int32_t clients, double seconds)
{
    struct state *s = start(m, how);
    set_clients(s, clients);
    s->from_s = seconds / 2;
    while (s->now_s < seconds)
        pass(s);
    struct machine_result result = s->result;
    double all = 0;
    for (int mode = 0; mode < ENG_N_MODES; mode++)
        all += s->tokens[mode];
    for (int mode = 0; mode < ENG_N_MODES; mode++)
        result.share[mode] = s->tokens[mode] / all;
    result.rate = all / (s->now_s - s->from_s);
    while (s->n)
        eng_request_free(s->clients[--s->n].r);
    free(s);
    return result;
}

void machine_step(const struct machine *m, int32_t from, int32_t to, double seconds, double *ret_settled)
{
    enum { SLICES = 20 };
    double shares[SLICES] = {0};
    struct state *s = start(m, (struct machine_mode){ENG_MODE_AUTO, 0});
    set_clients(s, from);
    while (s->now_s < seconds)
        pass(s);
    set_clients(s, to);
    // Slices of simulated time; one that no pass ended in is as the one before.
    double begin_s = s->now_s;
    for (int32_t slice = 0; slice < SLICES; slice++) {
        memset(s->tokens, 0, sizeof s->tokens);
        while (s->now_s < begin_s + seconds * (slice + 1) / SLICES)
            pass(s);
        double all = 0;
        for (int mode = 0; mode < ENG_N_MODES; mode++)
            all += s->tokens[mode];
        shares[slice] = all > 0 ? 1 - s->tokens[ENG_MODE_AR] / all : slice ? shares[slice - 1] : 0;
    }
    int32_t settled = SLICES;
    while (settled > 0 && fabs(shares[settled - 1] - shares[SLICES - 1]) <= 0.2)
        settled--;
    *ret_settled = seconds * settled / SLICES;
    while (s->n)
        eng_request_free(s->clients[--s->n].r);
    free(s);
}
