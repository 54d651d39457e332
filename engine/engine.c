// The loop: take, route, schedule, forward, commit, publish. One step is one forward pass over the rows of everyone.
//
// Where the model is asynchronous, the next step is planned and submitted while the present one runs, if it does not
// depend on its choices but as tokens (links). The choices are then committed and published while the next one runs. A
// request that ends with them has rows in the next step for nothing; these are dropped.
//
// Everything mutable below belongs to the engine thread; the hand-overs are in queue.c, events.c and stats.c. Left out:
// opening and the functions that callers' threads use (open.c).
#include "core.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/err.h"

// ---- ends -----------------------------------------------------------------------------------------------------------

// NULL: there was no memory for it.
static bool post(struct eng_engine *e, struct eng_event *ev)
{
    if (!ev)
        return false;
    *e->outbox_tail = ev;
    e->outbox_tail = &ev->next;
    return true;
}

// Appends what the builder holds for r to the outbox; with a finish, r is not ours any more once that is published.
static bool emit(struct eng_engine *e, struct eng_request *r)
{
    return post(e, eng_event_build(&e->builder, r));
}

static double ms_between(int64_t from, int64_t to)
{
    return to > from ? (double)(to - from) / 1e6 : 0;
}

// The request's sequence has a finish: takes it out of the schedule and sends its last event.
static void finish(struct eng_engine *e, struct eng_request *r)
{
    struct eng_seq *q = &r->seq;
    int64_t now = eng_now_ns();
    q->stats.total_ms = ms_between(q->submit_ns, now);
    q->stats.queue_ms = ms_between(q->submit_ns, q->admit_ns ? q->admit_ns : now);
    q->stats.preemptions = q->n_preempted;
    q->stats.first_token_ms = q->first_token_ns ? ms_between(q->submit_ns, q->first_token_ns) : 0;
    eng_scheduler_remove(&e->sched, r);
    bool sent = emit(e, r);
    assert(sent); // the event's memory was reserved with the request
    (void)sent;
    e->n_finished++;
}

// Ends a request from outside. The builder may hold a run of it that was not sent.
static void end(struct eng_engine *e, struct eng_request *r, enum eng_finish how, const char *error)
{
    eng_seq_end(&r->seq, how, error, &e->builder);
    finish(e, r);
    eng_event_builder_reset(&e->builder);
}

// Everyone, running or waiting.
static void end_all(struct eng_engine *e, enum eng_finish how, const char *error)
{
    while (e->sched.n_running)
        end(e, e->sched.running[e->sched.n_running - 1], how, error);
    while (e->sched.tenants.head)
        end(e, e->sched.tenants.head, how, error);
}

// ---- take -----------------------------------------------------------------------------------------------------------

static void note_deadline(struct eng_engine *e, const struct eng_request *r)
{
    if (r->deadline_ns && (!e->next_deadline_ns || r->deadline_ns < e->next_deadline_ns))
        e->next_deadline_ns = r->deadline_ns;
}

static bool end_if_over(struct eng_engine *e, struct eng_request *r, int64_t now)
{
    if (atomic_load(&r->cancelled))
        end(e, r, ENG_FINISH_CANCELLED, NULL);
    else if (r->deadline_ns && now >= r->deadline_ns)
        end(e, r, ENG_FINISH_TIMEOUT, NULL);
    else
        return false;
    return true;
}

// Ends what was cancelled or has run out of time, wherever it is.
static void sweep(struct eng_engine *e, int64_t now)
{
    e->next_deadline_ns = 0;
    for (int32_t i = e->sched.n_running - 1; i >= 0; i--) {
        struct eng_request *r = e->sched.running[i];
        if (!end_if_over(e, r, now))
            note_deadline(e, r);
    }
    for (struct eng_request *r = e->sched.tenants.head, *next; r; r = next) {
        next = r->next;
        if (!end_if_over(e, r, now))
            note_deadline(e, r);
    }
}

// New requests, cancels and deadlines. Sleeps while there is nothing to do. False when the engine closes.
static bool take(struct eng_engine *e)
{
    bool idle = !e->sched.n_running && !e->sched.tenants.head && !e->flying;
    bool woken;
    struct eng_request *r = eng_queue_take(&e->queue, idle, &woken);
    e->busy = e->busy && !idle;
    while (r) {
        struct eng_request *next = r->next;
        eng_scheduler_add(&e->sched, r);
        note_deadline(e, r);
        r = next;
    }
    if (atomic_load(&e->closing))
        return false;
    int64_t now = eng_now_ns();
    if (woken || (e->next_deadline_ns && now >= e->next_deadline_ns))
        sweep(e, now);
    if (atomic_load(&e->failed))
        end_all(e, ENG_FINISH_ERROR, e->failure);
    return true;
}

// ---- route ----------------------------------------------------------------------------------------------------------

static void count_change(void *engine, struct eng_request *r, enum eng_mode before, const struct eng_route *to)
{
    struct eng_engine *e = engine;
    if (before == ENG_MODE_AUTO) {
        e->counters.now.decisions[to->mode]++;
        r->seq.stats.cause = to->cause;
    } else if (before != to->mode) {
        e->counters.now.switches[before][to->mode]++;
        r->seq.stats.switches++;
    }
}

static void route(struct eng_engine *e)
{
    eng_router_route(&e->router, e->sched.running, e->sched.n_running, eng_now_ns(), count_change, e);
}

// ---- schedule -------------------------------------------------------------------------------------------------------

static void admit(struct eng_engine *e)
{
    struct eng_request *r;
    while ((r = eng_scheduler_admit(&e->sched))) {
        // It could not be started: no list holds it, so it goes back to one for `end` to take it from.
        eng_scheduler_add(&e->sched, r);
        end(e, r, ENG_FINISH_ERROR, eng_strerror(ENG_ENOMEM));
    }
    int64_t now = eng_now_ns();
    for (int32_t i = 0; i < e->sched.n_running; i++)
        if (!e->sched.running[i]->seq.admit_ns)
            e->sched.running[i]->seq.admit_ns = now;
}

// NULL when there is nothing to compute.
static struct eng_step *schedule(struct eng_engine *e)
{
    struct eng_step *step = &e->sched.steps[0];
    eng_sampler_reset(&e->sampler);
    struct eng_request *r;
    while ((r = eng_scheduler_fill(&e->sched, &e->env, step)))
        end(e, r, ENG_FINISH_ERROR, eng_strerror(ENG_ENOMEM));
    return step->batch.n_segments ? step : NULL;
}

// ---- forward --------------------------------------------------------------------------------------------------------

// The backend is lost: everyone is told why, and nothing is taken any more.
static void lose(struct eng_engine *e, int code)
{
    const struct eng_model *m = &e->parts.model;
    if (atomic_load(&e->failed))
        return;
    snprintf(e->failure, sizeof e->failure, "%s", m->error(m->ctx, code));
    atomic_store(&e->failed, true);
    eng_queue_refuse(&e->queue, ENG_EDEVICE);
    end_all(e, ENG_FINISH_ERROR, e->failure);
}

// The backend has no room for this step (long histories of penalties, say) but is well: whoever takes part ends.
static void refuse_step(struct eng_engine *e, struct eng_step *step, int code)
{
    const struct eng_model *m = &e->parts.model;
    for (int32_t i = 0; i < step->batch.n_segments; i++)
        if (step->planned[i])
            end(e, step->planned[i], ENG_FINISH_ERROR, m->error(m->ctx, code));
    eng_batch_reset(&step->batch);
}

// NULL when the backend did not take the step.
static struct eng_step *submit(struct eng_engine *e, struct eng_step *step)
{
    const struct eng_model *m = &e->parts.model;
    step->submit_ns = eng_now_ns();
    int rc = m->submit(m->ctx, &step->batch);
    if (rc == KRN_ENOMEM)
        refuse_step(e, step, rc);
    else if (rc)
        lose(e, rc);
    return rc ? NULL : step;
}

// False when the backend is lost.
static bool wait_for(struct eng_engine *e, struct eng_step *step)
{
    const struct eng_model *m = &e->parts.model;
    int rc = m->wait(m->ctx, &step->batch);
    if (rc) {
        lose(e, rc);
        return false;
    }
    // A step that was submitted ahead begins when the one before it is done.
    int64_t now = eng_now_ns(), start = step->submit_ns > e->done_ns ? step->submit_ns : e->done_ns;
    struct eng_stats *st = &e->counters.now;
    st->steps++;
    eng_hist_add(&st->rows, step->batch.n_rows);
    eng_hist_add(&st->seconds, (double)(now - start) / 1e9);
    if (e->parts.info.cost.n_knots) {
        struct eng_cost_pass pass = eng_batch_cost(&step->batch);
        eng_cost_observe(&e->cost_live, &e->parts.info.cost, &pass, (double)(now - start) / 1e9);
    }
    e->done_ns = now;
    e->busy = true;
    return true;
}

// Nobody whose cycle ends with this step would then be sent to another mode.
static bool modes_stay(struct eng_engine *e, const struct eng_step *flying)
{
    return eng_router_all_stay(&e->router, e->sched.running, e->sched.n_running, flying->planned,
                               flying->batch.n_segments, eng_now_ns());
}

// Plans and submits the step after `flying`. NULL when it has to wait for flying's choices.
static struct eng_step *go_ahead(struct eng_engine *e, const struct eng_step *flying)
{
    struct eng_step *next = &e->sched.steps[flying == &e->sched.steps[0]];
    if (!e->parts.model.async || !modes_stay(e, flying) || !eng_scheduler_fill_ahead(&e->sched, flying, next))
        return NULL;
    eng_router_note_host(&e->router, 0);
    return submit(e, next);
}

// ---- commit ---------------------------------------------------------------------------------------------------------

static void count_pass(struct eng_engine *e, struct eng_seq *q, const struct eng_segment *s)
{
    struct eng_stats *st = &e->counters.now;
    st->passes[s->kind]++;
    q->stats.forward_passes += s->kind != ENG_PASS_PREFILL;
    q->stats.denoise_passes += s->kind == ENG_PASS_DENOISE;
    if (s->kind == ENG_PASS_PREFILL && !eng_seq_in_prompt(q) && q->n_tokens == q->n_prompt) {
        st->prompt_tokens += (uint64_t)q->n_prompt;
        st->cached_prompt_tokens += (uint64_t)q->stats.cached_tokens;
    }
}

// taken: tokens of the run that came before the end.
static void count_run(struct eng_engine *e, struct eng_seq *q, const struct eng_segment *s, const struct eng_run *run,
                      int32_t taken)
{
    struct eng_stats *st = &e->counters.now;
    int32_t accepted = run->accepted < taken ? run->accepted : taken;
    q->stats.blocks += run->blocks;
    q->stats.drafted_tokens += run->drafted;
    q->stats.accepted_tokens += accepted;
    st->drafted_tokens += (uint64_t)run->drafted;
    st->accepted_tokens += (uint64_t)accepted;
    st->wasted_rejected += (uint64_t)run->rejected;
    st->generated_tokens[q->mode] += (uint64_t)taken;
    if (s->kind == ENG_PASS_VERIFY)
        eng_hist_add(&st->accepted_length, taken);
    if (run->denoise_passes)
        eng_hist_add(&st->denoise_passes, run->denoise_passes);
    if (q->finish == ENG_FINISH_NONE)
        return;
    int32_t cut = q->block.rows ? q->block.start + q->block.rows - q->n_tokens : run->n - taken;
    st->wasted_cut += (uint64_t)cut;
}

// One segment's choices become tokens, text and an event.
static void commit_segment(struct eng_engine *e, const struct eng_batch *b, const struct eng_segment *s,
                           struct eng_request *r)
{
    struct eng_seq *q = &r->seq;
    struct eng_run run = {0};
    if (s->kind == ENG_PASS_PREFILL)
        eng_decode_prompt_commit(q, s, b->choices + s->first_wanted, &run);
    else
        eng_decode_of(q->mode)->commit(q, b, s, &run);
    count_pass(e, q, s);
    if (run.failed) {
        end(e, r, ENG_FINISH_ERROR,
            "no token could be chosen: the logits were not finite, or every token was forbidden");
        return;
    }
    int32_t taken = 0;
    if (eng_seq_append(q, &run, &e->builder, &taken)) {
        q->finish = ENG_FINISH_NONE;                                  // it may have been set before memory ran out
        e->counters.now.generated_tokens[q->mode] += (uint64_t)taken; // as its own statistics have it
        end(e, r, ENG_FINISH_ERROR, eng_strerror(ENG_ENOMEM));
        return;
    }
    if (taken && !q->first_token_ns)
        q->first_token_ns = eng_now_ns();
    // max_tokens 0 ends with the prompt.
    if (q->finish == ENG_FINISH_NONE && !eng_seq_in_prompt(q) && !eng_seq_wanted(q))
        eng_seq_end(q, ENG_FINISH_LENGTH, NULL, &e->builder);
    count_run(e, q, s, &run, taken);
    eng_router_learn(&e->router, r, s, &run, taken, e->done_ns);
    eng_scheduler_committed(&e->sched, r, s->kind == ENG_PASS_VERIFY);
    if (q->finish != ENG_FINISH_NONE)
        finish(e, r);
    else if (run.n && !emit(e, r))
        end(e, r, ENG_FINISH_ERROR, eng_strerror(ENG_ENOMEM));
    else if (r->params.stream_draft && (s->kind == ENG_PASS_DENOISE || s->kind == ENG_PASS_DRAFT))
        (void)post(e, eng_event_draft(r)); // only a picture: without memory it is left out
}

// Where the step after this one runs already, it verifies the whole draft.
static void cut_draft(struct eng_engine *e, struct eng_request *r)
{
    if (r->seq.block.drafted && !e->flying)
        eng_seq_cut_draft(&r->seq, eng_router_verified_rows(&e->router, r));
}

static void commit(struct eng_engine *e, struct eng_step *step)
{
    for (int32_t i = 0; i < step->batch.n_segments; i++) {
        const struct eng_segment *s = &step->batch.segments[i];
        eng_event_builder_reset(&e->builder);
        if (step->planned[i])
            commit_segment(e, &step->batch, s, step->planned[i]);
        else
            e->counters.now.wasted_ahead += (uint64_t)s->rows;
        if (s->kind == ENG_PASS_DRAFT && step->planned[i]) // not if it has ended
            cut_draft(e, step->planned[i]);
    }
    eng_event_builder_reset(&e->builder);
    eng_batch_reset(&step->batch);
}

// ---- publish --------------------------------------------------------------------------------------------------------

static void publish(struct eng_engine *e)
{
    struct eng_stats *st = &e->counters.now;
    memset(st->running, 0, sizeof st->running);
    for (int32_t i = 0; i < e->sched.n_running; i++)
        st->running[e->sched.running[i]->seq.mode]++;
    st->pages_total = e->sched.kv.n_pages;
    st->pages_used = eng_kv_used(&e->sched.kv);
    st->pages_cached = e->sched.kv.n_cached;
    st->prefix_queries = e->sched.prefix_queries;
    st->prefix_hits = e->sched.prefix_hits;
    st->has_cost = e->parts.info.cost.n_knots > 0;
    st->step_error_ratio = eng_cost_error_ratio(&e->cost_live);
    st->preemptions = e->sched.n_preemptions;
    st->wasted_preempted = e->sched.lost_rows;
    // Whoever sees a finish may submit again at once, so the place is free before; and it is free before the numbers
    // are shown (see eng_stats).
    if (e->n_finished)
        eng_queue_finished(&e->queue, e->n_finished);
    eng_counters_publish(&e->counters);
    eng_live_publish(&e->live, e->sched.running, e->sched.n_running, e->n_finished > 0, eng_now_ns());
    if (!e->outbox)
        return;
    struct eng_event *first = e->outbox;
    e->outbox = NULL;
    e->outbox_tail = &e->outbox;
    e->n_finished = 0;
    eng_events_publish(&e->events, first);
}

// ---- the loop -------------------------------------------------------------------------------------------------------

// The step that runs already, or a new one; NULL when there is nothing to compute or the backend is lost.
static struct eng_step *next_step(struct eng_engine *e)
{
    struct eng_step *step = e->flying;
    e->flying = NULL;
    if (step)
        return step;
    admit(e);
    route(e);
    step = schedule(e);
    if (step && e->busy)
        eng_router_note_host(&e->router, (double)(eng_now_ns() - e->done_ns) / 1e9);
    return step ? submit(e, step) : NULL;
}

// Builds with the option check_pages make sure after every step that no page was lost or given out twice.
static void check_pages(const struct eng_engine *e)
{
#ifdef ENG_CHECK_PAGES
    assert(eng_kv_check(&e->sched.kv));
#else
    (void)e;
#endif
}

void *eng_engine_run(void *engine)
{
    struct eng_engine *e = engine;
    while (take(e)) {
        struct eng_step *step = next_step(e);
        if (step) {
            e->flying = go_ahead(e, step);
            if (wait_for(e, step))
                commit(e, step);
            else
                e->flying = NULL;
        }
        check_pages(e);
        publish(e);
    }
    const struct eng_model *m = &e->parts.model;
    if (e->flying) // the model must not be closed under it; nobody is left to be told of a failure
        (void)m->wait(m->ctx, &e->flying->batch);
    return NULL;
}
