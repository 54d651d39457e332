// Opening and closing, and the public functions that callers' threads use.
//
// eng_open loads a checkpoint and hands its parts to eng_open_model, which knows no files: the tests give it a fake
// model. Text functions only read constant parts, so any thread may call them.
#include "core.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "text/fail.h"

struct eng_options eng_options_default(void)
{
    return (struct eng_options){
        .backend = "auto",
        .tensor_parallel = 1,
        .kv_type = "auto",
        .cpu_mask = ~0u,
        .weights = "auto",
        .adapter = "auto",
        .page_size = 16,
        .max_sequences = 64,
        .max_step_rows = 2048,
        .max_queue = 1024,
        .prompt_budget = 1.6,
        .prefix_cache = true,
        .auto_rows = 64,
        .mode = ENG_MODE_AUTO,
        .auto_modes = 1u << ENG_MODE_AR | 1u << ENG_MODE_SELF_SPECULATION,
        .block_length = 32,
        .threshold = 0.9f,
    };
}

// ---- checks ---------------------------------------------------------------------------------------------------------

static bool is_block_length(int32_t n)
{
    return n == 4 || n == 8 || n == 16 || n == 32 || n == 64;
}

static int check_options(const struct eng_options *o, const struct eng_info *info, char *err, size_t err_size)
{
    if (o->max_sequences < 1 || o->max_sequences > 1024)
        return fail(ENG_EINVAL, err, err_size, "max_sequences must be between 1 and 1024, not %d", o->max_sequences);
    if (o->max_step_rows < ENG_MAX_BLOCK || o->max_step_rows > 1 << 20)
        return fail(ENG_EINVAL, err, err_size, "max_step_rows must be between %d and 1048576, not %d", ENG_MAX_BLOCK,
                    o->max_step_rows);
    if (o->max_queue < 0 || o->max_queue > 1 << 24)
        return fail(ENG_EINVAL, err, err_size, "max_queue must be between 0 and 16777216, not %d", o->max_queue);
    if (o->prompt_budget != 0 && !(o->prompt_budget >= 1 && o->prompt_budget <= 100))
        return fail(ENG_EINVAL, err, err_size, "prompt_budget must be 0 or between 1 and 100, not %g",
                    o->prompt_budget);
    if (!is_block_length(o->block_length))
        return fail(ENG_EINVAL, err, err_size, "block_length must be 4, 8, 16, 32 or 64, not %d", o->block_length);
    if (!(o->threshold > 0 && o->threshold <= 1))
        return fail(ENG_EINVAL, err, err_size, "threshold must be above 0 and at most 1, not %g", o->threshold);
    if ((int)o->mode < 0 || o->mode >= ENG_N_MODES || !(info->modes & 1u << o->mode))
        return fail(ENG_ENOTSUP, err, err_size, "this model cannot decode in mode %s",
                    (int)o->mode < 0 || o->mode >= ENG_N_MODES ? "?" : eng_mode_name(o->mode));
    if (!(o->auto_modes & info->modes & ~(1u << ENG_MODE_AUTO)))
        return fail(ENG_EINVAL, err, err_size, "auto_modes names no mode that this model can decode in");
    if (info->max_context < 2)
        return fail(ENG_EINVAL, err, err_size, "max_context must be at least 2, not %d", info->max_context);
    return 0;
}

// ---- the engine over any model --------------------------------------------------------------------------------------

static void free_engine(struct eng_engine *e)
{
    eng_scheduler_done(&e->sched);
    eng_sampler_reset(&e->sampler);
    eng_event_builder_done(&e->builder);
    free(e);
}

static void set_constants(struct eng_engine *e, const struct eng_options *o, const struct eng_parts *parts)
{
    struct eng_info *info = &e->parts.info;
    e->parts = *parts;
    info->modes = 1u << ENG_MODE_AUTO | 1u << ENG_MODE_AR;
    if (parts->model.mask_id >= 0)
        info->modes |= 1u << ENG_MODE_DIFFUSION | 1u << ENG_MODE_SELF_SPECULATION;
    info->n_vocab = parts->model.n_vocab;
    info->has_adapter = parts->model.has_adapter;
    int32_t n_eos = 0;
    for (int32_t i = 0; i < parts->n_eos && n_eos < (int32_t)(sizeof e->eos_ids / sizeof e->eos_ids[0]); i++)
        if (parts->eos_ids[i] >= 0 && parts->eos_ids[i] < info->n_vocab)
            e->eos_ids[n_eos++] = parts->eos_ids[i];
    e->limits = (struct eng_request_limits){
        .n_vocab = info->n_vocab,
        .max_context = info->max_context,
        .eos_ids = e->eos_ids,
        .n_eos = n_eos,
        .modes = info->modes,
        .mode = o->mode,
        .block_length = o->block_length,
        .threshold = o->threshold,
        .tokenizer = parts->tokenizer,
    };
    e->router.rules = (struct eng_plan_rules){
        .modes = info->modes,
        .auto_modes = o->auto_modes,
        .auto_rows = o->auto_rows,
        .draft_adapter = parts->model.has_adapter,
        .block_adapter = parts->model.has_adapter && parts->model.block_adapter,
        .cost = &info->cost,
        .live = &e->cost_live,
    };
    e->env = (struct eng_decode_env){
        .mask_id = parts->model.mask_id,
        .has_adapter = parts->model.has_adapter,
        .block_adapter = parts->model.has_adapter && parts->model.block_adapter,
        .sampler = &e->sampler,
    };
    e->outbox_tail = &e->outbox;
    atomic_init(&e->closing, false);
    atomic_init(&e->failed, false);
}

enum { PIECE_ROWS = 256 }; // of a prompt in one step while others decode and no time bounds it

static int start_handovers(struct eng_engine *e, const struct eng_options *o)
{
    int rc = eng_queue_init(&e->queue, o->max_sequences + o->max_queue);
    if (rc)
        return rc;
    rc = eng_events_init(&e->events, o->notify, o->user);
    if (rc)
        goto queue;
    rc = eng_counters_init(&e->counters);
    if (rc)
        goto events;
    e->counters.now.pages_total = e->sched.kv.n_pages;
    e->counters.now.has_cost = e->parts.info.cost.n_knots > 0;
    e->counters.now.step_error_ratio = 1;
    eng_counters_publish(&e->counters);
    rc = eng_live_init(&e->live, o->max_sequences);
    if (rc)
        goto counters;
    if (!pthread_create(&e->thread, NULL, eng_engine_run, e))
        return 0;
    rc = ENG_ENOMEM;
    eng_live_done(&e->live);
counters:
    eng_counters_done(&e->counters);
events:
    eng_events_done(&e->events);
queue:
    eng_queue_done(&e->queue);
    return rc;
}

int eng_open_model(const struct eng_options *options, const struct eng_parts *parts, struct eng_engine **ret_engine,
                   char *err, size_t err_size)
{
    struct eng_engine *e = calloc(1, sizeof *e);
    if (!e)
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    set_constants(e, options, parts);
    int rc = check_options(options, &e->parts.info, err, err_size);
    if (rc) {
        free_engine(e);
        return rc;
    }
    struct eng_scheduler_limits limits = {
        .max_sequences = options->max_sequences,
        .max_step_rows = options->max_step_rows,
        .piece_rows = PIECE_ROWS,
        .prompt_budget = options->prompt_budget,
        .n_pages = parts->info.n_pages,
        .page_size = parts->info.page_size,
        .max_context = parts->info.max_context,
        .prefix_cache = options->prefix_cache,
        .cost = &e->parts.info.cost,
        .live = &e->cost_live,
    };
    rc = eng_scheduler_init(&e->sched, &limits);
    if (!rc)
        rc = start_handovers(e, options);
    if (rc) {
        free_engine(e);
        return fail(rc, err, err_size, "cannot start the engine: %s", eng_strerror(rc));
    }
    *ret_engine = e;
    return 0;
}

static void free_list(struct eng_request *r)
{
    for (struct eng_request *next; r; r = next) {
        next = r->next;
        eng_request_free(r);
    }
}

void eng_close(struct eng_engine *e)
{
    if (!e)
        return;
    eng_queue_refuse(&e->queue, ENG_ECLOSED);
    atomic_store(&e->closing, true);
    eng_queue_wake(&e->queue);
    pthread_join(e->thread, NULL);
    // What is left is in the schedule's lists; what was finished is in untaken events.
    for (int32_t i = 0; i < e->sched.n_running; i++)
        eng_request_free(e->sched.running[i]);
    free_list(e->sched.tenants.head);
    free_list(e->queue.head);
    eng_events_done(&e->events);
    eng_queue_done(&e->queue);
    eng_counters_done(&e->counters);
    eng_live_done(&e->live);
    if (e->parts.model.close)
        e->parts.model.close(e->parts.model.ctx);
    if (e->parts.release)
        e->parts.release(e->parts.owner);
    free_engine(e);
}

// ---- hand-overs -----------------------------------------------------------------------------------------------------

int eng_request_new(const struct eng_engine *e, const struct eng_params *params, const int32_t *prompt, size_t n_prompt,
                    struct eng_request **ret_request, const char **ret_param, char *err, size_t err_size)
{
    return eng_request_make(&e->limits, params, prompt, n_prompt, ret_request, ret_param, err, err_size);
}

int eng_submit(struct eng_engine *e, struct eng_request *r)
{
    return eng_queue_submit(&e->queue, r);
}

void eng_cancel(struct eng_request *r)
{
    atomic_store(&r->cancelled, true);
    eng_queue_wake(r->queue);
}

void eng_drain(struct eng_engine *e)
{
    eng_queue_refuse(&e->queue, ENG_ECLOSED);
}

struct eng_event *eng_take_events(struct eng_engine *e)
{
    return eng_events_take(&e->events);
}

void eng_stats(const struct eng_engine *e, struct eng_stats *ret)
{
    // The mutexes are the only things written.
    eng_counters_read((struct eng_counters *)&e->counters, ret);
    // A pass may take long, and whoever balances load must see at once what was submitted meanwhile. Read in this
    // order, and published in the opposite one, so that a request that has just finished never counts as waiting.
    ret->waiting = eng_queue_live((struct eng_queue *)&e->queue);
    for (int m = 0; m < ENG_N_MODES; m++)
        ret->waiting -= ret->running[m];
    ret->waiting = ret->waiting > 0 ? ret->waiting : 0;
}

int32_t eng_live(const struct eng_engine *e, struct eng_live *ret, int32_t max)
{
    return eng_live_read((struct eng_live_list *)&e->live, ret, max);
}

const char *eng_failure(const struct eng_engine *e)
{
    return atomic_load(&e->failed) ? e->failure : NULL;
}

const struct eng_info *eng_info(const struct eng_engine *e)
{
    return &e->parts.info;
}
