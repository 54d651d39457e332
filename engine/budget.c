// 4 SCHEDULE  Filling a pass under the rules of budget.h: the lightest tenant's decoders, the others' as far as their
// credit goes, then prompts.
#include "budget.h"

#include <math.h>
#include <stdlib.h>

#include "base/err.h"
#include "request.h"

enum { PIECE = 32 }; // of one prompt, the fewest rows while several share too few

int eng_budget_init(struct eng_budget *b, int32_t max_sequences)
{
    *b = (struct eng_budget){.ramp = INFINITY};
    b->next = calloc((size_t)max_sequences, sizeof *b->next);
    b->want = calloc((size_t)max_sequences, sizeof *b->want);
    b->active = calloc((size_t)max_sequences, sizeof(struct eng_tenant *));
    if (b->next && b->want && b->active)
        return 0;
    eng_budget_done(b);
    return ENG_ENOMEM;
}

void eng_budget_done(struct eng_budget *b)
{
    free(b->next);
    free(b->want);
    free(b->active);
    *b = (struct eng_budget){0};
}

static bool has_model(const struct eng_budget *b)
{
    return b->cost && b->cost->n_knots;
}

double eng_budget_time(const struct eng_budget *b, const struct eng_cost_pass *pass)
{
    if (!pass->rows)
        return 0;
    return has_model(b) ? eng_cost_expect(b->cost, b->live, pass) : pass->rows + ENG_EMPTY_PASS_ROWS;
}

// ---- the pass being filled ------------------------------------------------------------------------------------------

struct filling {
    struct eng_budget *b;
    const struct eng_decode_env *env;
    struct eng_request *const *running;
    struct eng_request **parts;
    int32_t n_running, n_parts, n_active, n_decoders, n_prompts;
    int32_t left, prompt_rows; // rows: still to be had; given to prompts
    struct eng_cost_pass pass;
    double time; // of the pass
};

static void add_decoder(const struct filling *f, struct eng_cost_pass *pass, const struct eng_seq *q, int32_t rows)
{
    bool draft = q->mode == ENG_MODE_SELF_SPECULATION && rows > 1 && !q->block.drafted;
    bool denoise = q->mode == ENG_MODE_DIFFUSION && (!q->block.rows || q->block.masked);
    eng_cost_pass_add(pass, rows, q->n_kv, rows, (draft && f->env->has_adapter) || (denoise && f->env->block_adapter));
}

static void accept(struct filling *f, struct eng_tenant *t, struct eng_request *r, int32_t rows)
{
    r->seq.step_rows = rows;
    f->parts[f->n_parts++] = r;
    f->left -= rows;
    t->served = true;
}

// Parts the running requests by tenant, in their order, and asks the decoders for their rows.
static void collect(struct filling *f, const struct eng_tenants *tenants)
{
    struct eng_budget *b = f->b;
    for (int32_t i = 0; i < f->n_running; i++)
        eng_tenants_of(tenants, f->running[i])->first = -1;
    for (int32_t i = 0; i < f->n_running; i++) {
        struct eng_seq *q = &f->running[i]->seq;
        struct eng_tenant *t = eng_tenants_of(tenants, f->running[i]);
        if (t->first < 0) {
            b->active[f->n_active++] = t;
            t->first = i;
            t->n_decoders = t->n_prompts = 0;
            t->squeezed = t->no_room && !t->served;
            t->served = t->no_room = false;
        } else {
            b->next[t->last] = i;
        }
        t->last = i;
        b->next[i] = -1;
        q->step_rows = 0;
        int32_t end;
        b->want[i] = eng_seq_in_prompt(q) ? 0 : eng_decode_of(q->mode)->rows(q, &end);
        t->n_decoders += b->want[i] > 0;
        t->n_prompts += b->want[i] == 0;
    }
    for (int32_t k = 0; k < f->n_active; k++) {
        f->n_decoders += b->active[k]->n_decoders;
        f->n_prompts += b->active[k]->n_prompts;
    }
}

// Time of the tenant's decoders without the others, or of its prompts where nothing decodes.
static double time_alone(const struct filling *f, const struct eng_tenant *t)
{
    const struct eng_budget *b = f->b;
    struct eng_cost_pass pass = {0};
    for (int32_t i = t->first; i >= 0; i = b->next[i]) {
        const struct eng_seq *q = &f->running[i]->seq;
        int32_t room = b->max_rows - pass.rows;
        if (b->want[i] > 0 && b->want[i] <= room)
            add_decoder(f, &pass, q, b->want[i]);
        else if (!t->n_decoders && room > 0)
            eng_cost_pass_add(&pass, eng_decode_prompt_rows(q, room), q->n_kv, 1, false);
    }
    return eng_budget_time(b, &pass);
}

// Gives everyone its credit for this pass, the lightest tenant, which comes first from now on, as much as it likes.
// Only a tenant that found no room for any of its blocks comes before it.
static double give_credit(struct filling *f)
{
    struct eng_budget *b = f->b;
    if (f->n_active == 1) {
        b->active[0]->credit = b->ramp;
        return INFINITY;
    }
    int32_t lightest = 0;
    for (int32_t k = 0; k < f->n_active; k++) {
        b->active[k]->alone = time_alone(f, b->active[k]);
        if (b->active[k]->alone < b->active[lightest]->alone)
            lightest = k;
    }
    struct eng_tenant *t = b->active[lightest];
    b->active[lightest] = b->active[0];
    b->active[0] = t;
    t->credit = INFINITY;
    for (int32_t k = 1; k < f->n_active; k++)
        b->active[k]->credit += ENG_OTHERS_PART * t->alone;
    for (int32_t k = 1; k < f->n_active; k++)
        if (b->active[k]->squeezed) {
            b->active[0] = b->active[k];
            b->active[k] = t;
            break;
        }
    return t->alone;
}

// ---- decoders -------------------------------------------------------------------------------------------------------

// Takes the tenant's decoders in order: those that fit `room` rows, until `credit` is used up.
static void take_decoders(struct filling *f, struct eng_tenant *t, int32_t room, double credit)
{
    const struct eng_budget *b = f->b;
    struct eng_cost_pass all = f->pass;
    int32_t rows = 0;
    for (int32_t i = t->first; i >= 0; i = b->next[i])
        if (b->want[i]) {
            add_decoder(f, &all, &f->running[i]->seq, b->want[i]);
            rows += b->want[i];
        }
    double time = eng_budget_time(b, &all);
    bool whole = rows <= room && (credit == INFINITY || time - f->time <= credit);
    for (int32_t i = t->first; i >= 0; i = b->next[i]) {
        t->no_room = t->no_room || b->want[i] > room;
        if (!b->want[i] || b->want[i] > room)
            continue;
        if (!whole) {
            struct eng_cost_pass more = f->pass;
            add_decoder(f, &more, &f->running[i]->seq, b->want[i]);
            time = eng_budget_time(b, &more);
            if (time - f->time > credit && f->n_parts) // the first one always fits
                return;
            credit -= time - f->time;
            t->credit -= time - f->time;
            f->pass = more;
            f->time = time;
        }
        accept(f, t, f->running[i], b->want[i]);
        room -= b->want[i];
    }
    if (whole) {
        t->credit -= time - f->time;
        f->pass = all;
        f->time = time;
    }
}

static void choose_decoders(struct filling *f)
{
    struct eng_budget *b = f->b;
    int32_t kept = b->prompts_waited && f->n_prompts ? b->max_rows / 8 : 0; // for prompts
    for (int32_t k = 0; k < f->n_active; k++) {
        struct eng_tenant *t = b->active[k];
        if (t->n_decoders)
            take_decoders(f, t, f->left - kept, t->n_prompts && t->prompts_waited ? t->credit / 2 : t->credit);
    }
}

// ---- prompts --------------------------------------------------------------------------------------------------------

// The most rows of a prompt, at most `rows`, with which the pass takes at most `time`.
static int32_t rows_within(const struct filling *f, int32_t rows, int32_t first_pos, double time)
{
    int32_t low = 0, high = rows;
    while (low < high) {
        int32_t middle = low + (high - low + 1) / 2;
        struct eng_cost_pass more = f->pass;
        eng_cost_pass_add(&more, middle, first_pos, 1, false);
        if (eng_budget_time(f->b, &more) <= time)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

// Shares `rows` among the tenant's prompts, at most `piece` to each.
static void take_prompts(struct filling *f, struct eng_tenant *t, int32_t rows, int32_t piece)
{
    const struct eng_budget *b = f->b;
    int32_t n = t->n_prompts, taken = 0;
    for (int32_t i = t->first; i >= 0 && taken < rows; i = b->next[i]) {
        struct eng_seq *q = &f->running[i]->seq;
        if (b->want[i])
            continue;
        int32_t left = rows - taken, most = (left + n - 1) / n;
        most = most > PIECE ? most : PIECE;
        most = most < left ? most : left;
        int32_t got = eng_decode_prompt_rows(q, most < piece ? most : piece);
        eng_cost_pass_add(&f->pass, got, q->n_kv, q->n_kv + got == q->prefill_end, false);
        accept(f, t, f->running[i], got);
        taken += got;
        n--;
    }
    double time = eng_budget_time(b, &f->pass);
    t->credit -= time - f->time;
    f->time = time;
    f->prompt_rows += taken;
}

// How far the tenant's longest prompt is: its rows cost the most.
static int32_t furthest(const struct filling *f, const struct eng_tenant *t)
{
    int32_t pos = 0;
    for (int32_t i = t->first; i >= 0; i = f->b->next[i])
        if (!f->b->want[i] && f->running[i]->seq.n_kv > pos)
            pos = f->running[i]->seq.n_kv;
    return pos;
}

// light: the time of the lightest tenant alone, or INFINITY.
static void choose_prompts(struct filling *f, double light)
{
    struct eng_budget *b = f->b;
    bool bounded = f->n_decoders && b->stretch > 0 && has_model(b);
    int32_t piece = f->n_decoders && !bounded ? b->piece_rows : b->max_rows;
    int32_t n = 0;
    for (int32_t k = 0; k < f->n_active; k++)
        n += b->active[k]->n_prompts > 0;
    double most = b->stretch * (f->time > 0 ? f->time : light);
    for (int32_t k = 0; k < f->n_active; k++) {
        struct eng_tenant *t = b->active[k];
        if (!t->n_prompts)
            continue;
        int32_t rows = (f->left + n - 1) / n;
        double credit = f->time + t->credit, share = f->time + (most - f->time) / n;
        n--;
        double until = bounded && share < credit ? share : credit;
        if (until < INFINITY)
            rows = rows_within(f, rows, furthest(f, t), until);
        bool few = rows < ENG_LEAST_PROMPT_ROWS;
        if (few && (t->prompts_waited || (bounded && !f->prompt_rows)))
            rows = f->left < ENG_LEAST_PROMPT_ROWS ? f->left : ENG_LEAST_PROMPT_ROWS;
        t->prompts_waited = few && (!rows || until == credit);
        if (rows)
            take_prompts(f, t, rows, piece);
    }
}

// ---- all of it ------------------------------------------------------------------------------------------------------

// Whoever was left out keeps its credit, at most one pass's if it had rows; a debt stays.
static void settle(struct filling *f, double light)
{
    bool complete = true;
    for (int32_t k = 0; k < f->n_active; k++) {
        struct eng_tenant *t = f->b->active[k];
        bool all = true;
        for (int32_t i = t->first; i >= 0; i = f->b->next[i])
            all = all && f->running[i]->seq.step_rows;
        complete = complete && all;
        if (f->n_active == 1 || t->credit == INFINITY || (all && t->credit > 0))
            t->credit = 0;
        else if (t->served && t->credit > light)
            t->credit = light;
    }
    f->b->ramp = f->n_active == 1 && (complete || f->b->ramp == INFINITY) ? INFINITY : 2 * f->time;
}

int32_t eng_budget_choose(struct eng_budget *b, const struct eng_tenants *tenants, const struct eng_decode_env *env,
                          struct eng_request *const *running, int32_t n, struct eng_request **parts)
{
    struct filling f = {.b = b, .env = env, .running = running, .parts = parts, .n_running = n, .left = b->max_rows};
    if (!n)
        return 0;
    collect(&f, tenants);
    double light = give_credit(&f);
    choose_decoders(&f);
    if (f.n_prompts)
        choose_prompts(&f, light);
    for (int32_t k = 0; k < f.n_active && !f.n_parts; k++) // nothing fitted, so there are prompts
        if (b->active[k]->n_prompts)
            take_prompts(&f, b->active[k], f.left, b->piece_rows);
    b->prompts_waited = f.n_prompts && f.left == 0 && f.prompt_rows < b->max_rows / 8;
    settle(&f, light);
    return f.n_parts;
}
