// 4 SCHEDULE  Admission, the rows of a step, and preemption.
//
// A step's rows go to decoding sequences first, those that went without last time leading, then to pieces of prompts.
// When prompts found fewer than an eighth of the rows, that eighth of the next step is theirs before anyone else's, so
// that a full house of decoders cannot keep newcomers out. When pages run out, the youngest sequence gives all of its
// own back and is computed again later; its tokens and its mode's state stay, so its text does not change.
//
// Planning ahead fills the next step before the choices of the present one are known. It only ever adds what was
// certain anyway: everyone goes on, or nobody is planned and the next step waits for the choices.
#include "scheduler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "sample.h"

int eng_scheduler_init(struct eng_scheduler *s, const struct eng_scheduler_limits *limits)
{
    *s = (struct eng_scheduler){.limits = *limits};
    s->waiting_tail = &s->waiting;
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
    free(s->running);
    free(s->free_slots);
    free(s->parts);
    *s = (struct eng_scheduler){0};
}

// ---- lists ----------------------------------------------------------------------------------------------------------

void eng_scheduler_add(struct eng_scheduler *s, struct eng_request *r)
{
    r->next = NULL;
    *s->waiting_tail = r;
    s->waiting_tail = &r->next;
    s->n_waiting++;
}

static void add_in_front(struct eng_scheduler *s, struct eng_request *r)
{
    r->next = s->waiting;
    s->waiting = r;
    if (!r->next)
        s->waiting_tail = &r->next;
    s->n_waiting++;
}

static void unlink_waiting(struct eng_scheduler *s, struct eng_request *r)
{
    struct eng_request **at = &s->waiting;
    while (*at != r)
        at = &(*at)->next;
    *at = r->next;
    if (!*at)
        s->waiting_tail = at;
    r->next = NULL;
    s->n_waiting--;
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
        unlink_waiting(s, r);
        return;
    }
    leave_running(s, r);
    r->seq.slot = -1;
}

static void preempt(struct eng_scheduler *s, struct eng_request *r)
{
    leave_running(s, r);
    eng_seq_preempt(&r->seq);
    add_in_front(s, r);
    s->n_preemptions++;
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
    // A preempted sequence comes back only when the others can go on for a block; otherwise it would be thrown out at
    // once.
    if (q->n_preempted)
        need += (int64_t)s->n_running * (eng_kv_pages_for(&s->kv, ENG_MAX_BLOCK) + 1);
    int32_t available = eng_kv_available(&s->kv);
    if (need <= available || s->n_running == 0)
        return true;
    const int32_t *tokens = q->started ? q->tokens : r->prompt;
    return need - eng_kv_match_used(&s->kv, tokens, n_cacheable(q), r->params.cache_salt) <= available;
}

static bool can_admit(const struct eng_scheduler *s)
{
    return s->waiting && s->n_free_slots && has_pages_for(s, s->waiting);
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
    // The prompt's pages are taken at once, so that two prompts cannot both count on the same ones.
    int rc = eng_kv_reserve(&s->kv, q->slot, q->prefill_end);
    assert(!rc);
    (void)rc;
    q->unserved = true;
    s->running[s->n_running++] = r;
}

struct eng_request *eng_scheduler_admit(struct eng_scheduler *s)
{
    while (can_admit(s)) {
        struct eng_request *r = s->waiting;
        unlink_waiting(s, r);
        if (eng_seq_start(&r->seq))
            return r;
        start(s, r);
    }
    return NULL;
}

// ---- the rows of a step ---------------------------------------------------------------------------------------------

// Who may take rows in one round of a step.
enum round { STARVED_PROMPTS, WAITED_DECODERS, DECODERS, PROMPTS, N_ROUNDS };

static bool in_round(const struct eng_scheduler *s, const struct eng_seq *q, enum round round)
{
    bool prompt = eng_seq_in_prompt(q);
    switch (round) {
    case STARVED_PROMPTS:
        return prompt && s->prompts_waited;
    case WAITED_DECODERS:
        return !prompt && q->unserved;
    case DECODERS:
        return !prompt;
    default:
        return prompt;
    }
}

// Chooses the step's participants (s->parts, in no particular order) and their rows (seq.step_rows).
static int32_t choose(struct eng_scheduler *s)
{
    int32_t max_rows = s->limits.max_step_rows, n = 0, left = max_rows, n_prompts = 0, prompt_rows = 0;
    for (int32_t i = 0; i < s->n_running; i++) {
        s->running[i]->seq.step_rows = 0;
        n_prompts += eng_seq_in_prompt(&s->running[i]->seq);
    }
    int32_t piece = n_prompts < s->n_running ? s->limits.piece_rows : max_rows;
    for (enum round round = STARVED_PROMPTS; round < N_ROUNDS; round++) {
        for (int32_t i = 0; i < s->n_running && left > 0; i++) {
            struct eng_seq *q = &s->running[i]->seq;
            if (q->step_rows || !in_round(s, q, round))
                continue;
            int32_t end, rows;
            if (eng_seq_in_prompt(q)) {
                int32_t most = round == STARVED_PROMPTS ? left - (max_rows - max_rows / 8) : left;
                if (most <= 0)
                    break;
                rows = eng_decode_prompt_rows(q, most < piece ? most : piece);
                prompt_rows += rows;
            } else {
                rows = eng_decode_of(q->mode)->rows(q, &end);
                if (rows > left)
                    continue;
            }
            q->step_rows = rows;
            left -= rows;
            s->parts[n++] = s->running[i];
        }
    }
    s->prompts_waited = n_prompts && left == 0 && prompt_rows < max_rows / 8;
    return n;
}

static int by_age(const void *a, const void *b)
{
    const struct eng_request *x = *(struct eng_request *const *)a, *y = *(struct eng_request *const *)b;
    return x->seq.age < y->seq.age ? -1 : x->seq.age > y->seq.age;
}

static struct eng_request *youngest(const struct eng_scheduler *s)
{
    struct eng_request *r = s->running[0];
    for (int32_t i = 1; i < s->n_running; i++)
        if (s->running[i]->seq.age > r->seq.age)
            r = s->running[i];
    return r;
}

// Pages for the participant's rows, at the cost of younger sequences if need be. False: it was itself the youngest and
// was preempted.
static bool make_room(struct eng_scheduler *s, struct eng_request *r)
{
    int32_t end = r->seq.n_kv + r->seq.step_rows;
    if (!eng_seq_in_prompt(&r->seq))
        eng_decode_of(r->seq.mode)->rows(&r->seq, &end);
    while (eng_kv_reserve(&s->kv, r->seq.slot, end)) {
        struct eng_request *victim = youngest(s);
        assert(s->n_running > 1); // one sequence alone always fits
        preempt(s, victim);
        if (victim == r)
            return false;
    }
    return true;
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
    int32_t n = choose(s);
    // Oldest first: whoever is preempted is younger than all that are planned already.
    qsort(s->parts, (size_t)n, sizeof(struct eng_request *), by_age);
    for (int32_t i = 0; i < n; i++) {
        struct eng_request *r = s->parts[i];
        if (r->seq.slot < 0 || !make_room(s, r))
            continue;
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
    eng_batch_reset(&next->batch);
    bool good = !can_admit(s);
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
