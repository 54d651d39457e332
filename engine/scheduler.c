// 4 SCHEDULE  Admission, pages for the rows of a step, and preemption (scheduler.h has the rules).
//
// Which rows those are is budget.c's matter, who waits tenants.c's. All pages that a step needs are made sure of before
// any of it is planned, so nobody is preempted who is in the batch already.
//
// Planning ahead fills the next step before the choices of the present one are known. It only ever adds what was
// certain anyway: everyone goes on, or nobody is planned and the next step waits for the choices.
#include "scheduler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "sample.h"

enum {
    FRESH_RESERVE = 16,               // positions for each that runs, which a fresh request leaves free,
    FRESH_PART = 8,                   // or this part of all pages, if that is less
    BACK_RESERVE = ENG_MAX_BLOCK + 1, // those that a preempted one does
    NEAR_END = 1,                     // tokens that are waited for rather than preempting for a slot
};

int eng_scheduler_init(struct eng_scheduler *s, const struct eng_scheduler_limits *limits)
{
    *s = (struct eng_scheduler){.limits = *limits};
    if (limits->max_step_rows < ENG_MAX_BLOCK || limits->piece_rows < 1 || limits->page_size < 1 ||
        (int64_t)limits->max_context > (int64_t)limits->n_pages * limits->page_size)
        return ENG_EINVAL;
    int32_t n = limits->max_sequences;
    int rc = eng_kv_init(&s->kv, limits->n_pages, limits->page_size, n, limits->max_context);
    if (!rc && limits->prefix_cache)
        rc = eng_kv_enable_sharing(&s->kv);
    for (int i = 0; !rc && i < KRN_PASSES_AHEAD; i++) {
        rc = eng_batch_init(&s->steps[i].batch, limits->max_step_rows, n);
        s->steps[i].planned = calloc((size_t)n, sizeof(struct eng_request *));
        rc = rc || s->steps[i].planned ? rc : ENG_ENOMEM;
    }
    rc = rc ? rc : eng_tenants_init(&s->tenants, n);
    rc = rc ? rc : eng_budget_init(&s->budget, n);
    if (rc) {
        eng_scheduler_done(s);
        return rc;
    }
    s->running = calloc((size_t)n, sizeof(struct eng_request *));
    s->free_slots = calloc((size_t)n, sizeof *s->free_slots);
    s->parts = calloc((size_t)n, sizeof(struct eng_request *));
    if (!s->running || !s->free_slots || !s->parts) {
        eng_scheduler_done(s);
        return ENG_ENOMEM;
    }
    s->budget.max_rows = limits->max_step_rows;
    s->budget.piece_rows = limits->piece_rows;
    s->budget.stretch = limits->prompt_budget;
    s->budget.cost = limits->cost;
    s->budget.live = limits->live;
    for (int32_t i = 0; i < n; i++)
        s->free_slots[s->n_free_slots++] = n - 1 - i;
    return 0;
}

void eng_scheduler_done(struct eng_scheduler *s)
{
    eng_kv_done(&s->kv);
    for (int i = 0; i < KRN_PASSES_AHEAD; i++) {
        eng_batch_done(&s->steps[i].batch);
        free(s->steps[i].planned);
    }
    eng_tenants_done(&s->tenants);
    eng_budget_done(&s->budget);
    free(s->running);
    free(s->free_slots);
    free(s->parts);
    *s = (struct eng_scheduler){0};
}

// ---- lists ----------------------------------------------------------------------------------------------------------

void eng_scheduler_add(struct eng_scheduler *s, struct eng_request *r)
{
    eng_tenants_add(&s->tenants, r);
}

static void leave_running(struct eng_scheduler *s, struct eng_request *r)
{
    int32_t i = 0;
    while (s->running[i] != r)
        i++;
    s->n_running--;
    memmove(&s->running[i], &s->running[i + 1], (size_t)(s->n_running - i) * sizeof(struct eng_request *));
    eng_kv_release(&s->kv, r->seq.slot);
    s->free_slots[s->n_free_slots++] = r->seq.slot;
    eng_tenants_stopped(&s->tenants, r);
}

static void leave_steps(struct eng_scheduler *s, const struct eng_request *r)
{
    for (int k = 0; k < KRN_PASSES_AHEAD; k++)
        for (int32_t i = 0; i < s->steps[k].batch.n_segments; i++)
            if (s->steps[k].planned[i] == r)
                s->steps[k].planned[i] = NULL;
}

void eng_scheduler_remove(struct eng_scheduler *s, struct eng_request *r)
{
    leave_steps(s, r);
    if (r->seq.slot < 0) {
        s->lost_rows += (uint64_t)r->seq.n_lost;
        eng_tenants_remove(&s->tenants, r);
        return;
    }
    leave_running(s, r);
    r->seq.slot = -1;
}

// ---- preemption -----------------------------------------------------------------------------------------------------

static void preempt(struct eng_scheduler *s, struct eng_request *r)
{
    leave_running(s, r);
    eng_seq_preempt(&r->seq);
    eng_tenants_add(&s->tenants, r);
    s->n_preemptions++;
}

// Who never gives way.
static const struct eng_request *first_of_all(const struct eng_scheduler *s)
{
    const struct eng_request *first = s->running[0];
    for (int32_t i = 1; i < s->n_running; i++)
        if (eng_tenants_before(s->running[i], first))
            first = s->running[i];
    return first;
}

// a gives way rather than b.
static bool sooner(const struct eng_scheduler *s, const struct eng_request *a, const struct eng_request *b)
{
    if (a->params.priority != b->params.priority)
        return a->params.priority > b->params.priority;
    int32_t pages = eng_tenants_of(&s->tenants, a)->n_pages - eng_tenants_of(&s->tenants, b)->n_pages;
    return pages ? pages > 0 : a->seq.age > b->seq.age;
}

// Who gives way, of those of `tenant` or of all (NULL); NULL where that is nobody but the first.
static struct eng_request *victim_of(struct eng_scheduler *s, const struct eng_tenant *tenant)
{
    const struct eng_request *first = first_of_all(s);
    struct eng_request *victim = NULL;
    for (int32_t i = 0; i < s->n_running; i++)
        eng_tenants_of(&s->tenants, s->running[i])->n_pages = 0;
    for (int32_t i = 0; i < s->n_running; i++)
        eng_tenants_of(&s->tenants, s->running[i])->n_pages += s->kv.slots[s->running[i]->seq.slot].n_pages;
    // Only what is over a share counts against a tenant.
    int32_t share = s->kv.n_pages / s->tenants.n_active;
    for (int32_t i = 0; i < s->n_running; i++) {
        struct eng_tenant *t = eng_tenants_of(&s->tenants, s->running[i]);
        t->n_pages = t->n_pages > share ? t->n_pages : 0;
    }
    for (int32_t i = 0; i < s->n_running; i++) {
        struct eng_request *r = s->running[i];
        if (r != first && (!tenant || eng_tenants_of(&s->tenants, r) == tenant) && (!victim || sooner(s, r, victim)))
            victim = r;
    }
    return victim;
}

// ---- admission ------------------------------------------------------------------------------------------------------

// What of a sequence's tokens the prefix cache may answer for: the last one's choice is wanted, so it is computed.
static int32_t n_cacheable(const struct eng_seq *q)
{
    return q->prefill_end - 1;
}

static bool has_pages_for(const struct eng_scheduler *s, const struct eng_request *r)
{
    const struct eng_seq *q = &r->seq;
    int32_t block = q->block.rows > r->params.block_length ? q->block.rows : r->params.block_length;
    int32_t end = q->prefill_end < s->limits.max_context - block ? q->prefill_end + block : s->limits.max_context;
    int64_t need = eng_kv_pages_for(&s->kv, end);
    int64_t reserve = (int64_t)s->n_running * eng_kv_pages_for(&s->kv, q->n_preempted ? BACK_RESERVE : FRESH_RESERVE);
    if (!q->n_preempted && reserve > s->kv.n_pages / FRESH_PART)
        reserve = s->kv.n_pages / FRESH_PART;
    need += reserve;
    int32_t available = eng_kv_available(&s->kv);
    if (need <= available || s->n_running == 0)
        return true;
    const int32_t *tokens = q->started ? q->tokens : r->prompt;
    return need - eng_kv_match_used(&s->kv, tokens, n_cacheable(q), r->params.cache_salt) <= available;
}

// Who gives a slot up for r, or NULL: nobody has more than its share, r's tenant has its own, or a slot is about to
// come free.
static struct eng_request *slot_for(struct eng_scheduler *s, const struct eng_request *r)
{
    int32_t share = eng_tenants_share(&s->tenants);
    const struct eng_tenant *most = NULL;
    if (eng_tenants_of(&s->tenants, r)->n_running >= share)
        return NULL;
    for (int32_t i = 0; i < s->n_running; i++) {
        const struct eng_tenant *t = eng_tenants_of(&s->tenants, s->running[i]);
        const struct eng_seq *q = &s->running[i]->seq;
        if (!eng_seq_in_prompt(q) && eng_seq_wanted(q) <= NEAR_END)
            return NULL;
        if (t->n_running > share && (!most || t->n_running > most->n_running))
            most = t;
    }
    return most ? victim_of(s, most) : NULL;
}

// Who could start now, or NULL; *ret_victim: who has to give its slot up first, or NULL.
static struct eng_request *who_starts(struct eng_scheduler *s, struct eng_request **ret_victim)
{
    struct eng_request *r = eng_tenants_next(&s->tenants);
    *ret_victim = NULL;
    if (!r)
        return NULL;
    if (!s->n_free_slots && !(*ret_victim = slot_for(s, r)))
        return NULL;
    return has_pages_for(s, r) ? r : NULL;
}

// Gives the sequence a slot, what the prefix cache has of it, and pages for the rest.
static void start(struct eng_scheduler *s, struct eng_request *r)
{
    struct eng_seq *q = &r->seq;
    q->slot = s->free_slots[--s->n_free_slots];
    q->n_kv = eng_kv_attach(&s->kv, q->slot, q->tokens, n_cacheable(q), r->params.cache_salt);
    if (!q->n_preempted)
        q->stats.cached_tokens = q->n_kv;
    if (s->limits.prefix_cache) {
        s->prefix_queries += (uint64_t)q->prefill_end;
        s->prefix_hits += (uint64_t)q->n_kv;
    }
    s->lost_rows += (uint64_t)(q->n_lost > q->n_kv ? q->n_lost - q->n_kv : 0);
    q->n_lost = 0;
    // The prompt's pages are taken at once, so that two prompts cannot both count on the same ones.
    int rc = eng_kv_reserve(&s->kv, q->slot, q->prefill_end);
    assert(!rc);
    (void)rc;
    q->unserved = true;
    s->running[s->n_running++] = r;
    eng_tenants_started(&s->tenants, r);
}

struct eng_request *eng_scheduler_admit(struct eng_scheduler *s)
{
    struct eng_request *r, *victim;
    while ((r = who_starts(s, &victim))) {
        if (victim)
            preempt(s, victim);
        eng_tenants_take(&s->tenants, r);
        if (eng_seq_start(&r->seq))
            return r;
        start(s, r);
    }
    return NULL;
}

// ---- the rows of a step ---------------------------------------------------------------------------------------------

// KV slots that the participant's rows need.
static int32_t end_of(const struct eng_seq *q)
{
    int32_t end = q->n_kv + q->step_rows;
    if (!eng_seq_in_prompt(q))
        eng_decode_of(q->mode)->rows(q, &end);
    return end;
}

// Pages that the n participants lack.
static int64_t missing(const struct eng_scheduler *s, int32_t n)
{
    int64_t pages = 0;
    for (int32_t i = 0; i < n; i++)
        pages += eng_kv_missing(&s->kv, s->parts[i]->seq.slot, end_of(&s->parts[i]->seq));
    return pages;
}

// Makes room for the n participants' rows, at the cost of some of them if need be. Returns how many are left.
static int32_t make_room(struct eng_scheduler *s, int32_t n)
{
    while (missing(s, n) > eng_kv_available(&s->kv)) {
        struct eng_request *victim = victim_of(s, NULL);
        assert(victim); // one sequence alone always fits
        int32_t kept = 0;
        for (int32_t i = 0; i < n; i++)
            if (s->parts[i] != victim)
                s->parts[kept++] = s->parts[i];
        n = kept;
        preempt(s, victim);
    }
    for (int32_t i = 0; i < n; i++) {
        int rc = eng_kv_reserve(&s->kv, s->parts[i]->seq.slot, end_of(&s->parts[i]->seq));
        assert(!rc);
        (void)rc;
    }
    return n;
}

// Those without rows move to the front, so that they lead the next step.
static void rotate(struct eng_scheduler *s)
{
    int32_t n = 0, n_served = 0;
    for (int32_t i = 0; i < s->n_running; i++) {
        struct eng_request *r = s->running[i];
        r->seq.unserved = r->seq.step_rows == 0;
        if (r->seq.unserved)
            s->running[n++] = r;
        else
            s->parts[n_served++] = r;
    }
    memcpy(&s->running[n], s->parts, (size_t)n_served * sizeof(struct eng_request *));
}

// The segment just added is r's.
static void note_planned(struct eng_scheduler *s, struct eng_step *step, struct eng_request *r)
{
    int32_t last = step->batch.n_segments - 1;
    step->batch.segments[last].pages = eng_kv_table(&s->kv, r->seq.slot);
    step->planned[last] = r;
}

struct eng_request *eng_scheduler_fill(struct eng_scheduler *s, const struct eng_decode_env *env, struct eng_step *step)
{
    struct eng_batch *batch = &step->batch;
    eng_batch_reset(batch);
    int32_t n = 0;
    // Once more if all who were chosen gave way to someone who was not; fewer run then, and one alone always fits.
    while (!n && s->n_running)
        n = make_room(s, eng_budget_choose(&s->budget, &s->tenants, env, s->running, s->n_running, s->parts));
    for (int32_t i = 0; i < n; i++) {
        struct eng_request *r = s->parts[i];
        int rc = eng_seq_in_prompt(&r->seq) ? eng_decode_prompt_plan(&r->seq, env, batch, r->seq.step_rows)
                                            : eng_decode_of(r->seq.mode)->plan(&r->seq, env, batch);
        assert(rc != ENG_ELIMIT);
        if (rc)
            return r;
        note_planned(s, step, r);
    }
    rotate(s);
    return NULL;
}

// ---- the step after -------------------------------------------------------------------------------------------------

// Its output is full with the choice that is being made.
static bool ends_for_certain(const struct eng_seq *q, const struct eng_segment *flying)
{
    return flying->kind == ENG_PASS_AR && eng_seq_wanted(q) == 1;
}

static bool follow(struct eng_scheduler *s, struct eng_request *r, const struct eng_segment *flying,
                   struct eng_step *next)
{
    const struct eng_seq *q = &r->seq;
    const struct eng_decode *mode = eng_decode_of(q->mode);
    int32_t end;
    if (eng_sample_needs_history(&r->params) || !mode->rows_ahead(q, flying, &end) ||
        eng_kv_reserve(&s->kv, q->slot, end) || mode->plan_ahead(q, flying, &next->batch))
        return false;
    note_planned(s, next, r);
    return true;
}

bool eng_scheduler_fill_ahead(struct eng_scheduler *s, const struct eng_step *flying, struct eng_step *next)
{
    int32_t n = 0;
    struct eng_request *victim;
    eng_batch_reset(&next->batch);
    bool good = !who_starts(s, &victim);
    for (int32_t i = 0; good && i < flying->batch.n_segments; i++) {
        const struct eng_segment *segment = &flying->batch.segments[i];
        struct eng_request *r = flying->planned[i];
        n += r != NULL;
        if (r && !ends_for_certain(&r->seq, segment))
            good = follow(s, r, segment, next);
    }
    // Whoever runs and has no row in `flying` would have to wait for the step after the next.
    if (!good || n != s->n_running)
        eng_batch_reset(&next->batch);
    return next->batch.n_segments > 0;
}

void eng_scheduler_committed(struct eng_scheduler *s, struct eng_request *r, bool cut)
{
    const struct eng_seq *q = &r->seq;
    eng_kv_commit(&s->kv, q->slot, q->n_kv);
    // An end inside a verified block leaves KV of tokens that are not the sequence's any more.
    eng_kv_share(&s->kv, q->slot, q->tokens, q->n_tokens);
    if (cut)
        eng_kv_rollback(&s->kv, q->slot);
}
