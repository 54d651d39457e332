// The engine's step by hand, without its thread, so that every step can be looked at. Included after cmocka.h.
#pragma once

#include <stdlib.h>

#include "client.h"

struct world {
    struct fake_model fake;
    struct eng_model model;
    struct eng_scheduler s;
    struct eng_sampler sampler;
    struct eng_decode_env env;
    struct eng_event_builder builder;
    uint64_t next_age;
};

static inline void open_world(struct world *w, struct eng_scheduler_limits limits)
{
    *w = (struct world){.fake = fake_model_default()};
    w->fake.n_pages = limits.n_pages;
    w->fake.page_size = limits.page_size;
    w->fake.shares = limits.prefix_cache;
    w->model = fake_model_open(&w->fake);
    w->env = (struct eng_decode_env){w->fake.mask_id, true, false, &w->sampler};
    assert_int_equal(eng_scheduler_init(&w->s, &limits), 0);
}

static inline void close_world(struct world *w)
{
    assert_string_equal(w->fake.fault, "");
    assert_int_equal(w->s.n_running, 0);
    assert_int_equal(w->s.tenants.n_waiting, 0);
    assert_int_equal(eng_kv_used(&w->s.kv), 0);
    assert_int_equal(w->s.n_free_slots, w->s.limits.max_sequences);
    eng_scheduler_done(&w->s);
    eng_sampler_reset(&w->sampler);
    eng_event_builder_done(&w->builder);
    w->model.close(w->model.ctx);
}

// Whose request, and when it came.
struct who {
    int32_t tenant, priority;
    int64_t submit_ns;
};

static inline struct eng_request *add_of(struct world *w, struct who who, enum eng_mode mode, int32_t n_prompt,
                                         int32_t max_tokens, int32_t block)
{
    struct eng_request_limits limits = {.n_vocab = w->fake.n_vocab,
                                        .max_context = w->s.limits.max_context,
                                        .modes = 15,
                                        .block_length = block,
                                        .threshold = 0.9f};
    int32_t *prompt = calloc((size_t)n_prompt, sizeof *prompt);
    for (int32_t i = 0; i < n_prompt; i++)
        prompt[i] = (int32_t)((w->next_age + 1) * 31 + (uint64_t)i) % 97;
    struct eng_params p = eng_params_default();
    p.mode = mode;
    p.max_tokens = max_tokens;
    p.tenant = who.tenant;
    p.priority = who.priority;
    struct eng_request *r;
    assert_int_equal(eng_request_make(&limits, &p, prompt, (size_t)n_prompt, &r, NULL, NULL, 0), 0);
    free(prompt);
    r->seq.age = w->next_age++;
    r->seq.submit_ns = who.submit_ns;
    eng_scheduler_add(&w->s, r);
    return r;
}

static inline struct eng_request *add(struct world *w, enum eng_mode mode, int32_t n_prompt, int32_t max_tokens,
                                      int32_t block)
{
    return add_of(w, (struct who){0}, mode, n_prompt, max_tokens, block);
}

// Admits and fills; what a step would compute can then be looked at.
static inline void fill(struct world *w)
{
    assert_null(eng_scheduler_admit(&w->s));
    for (int32_t i = 0; i < w->s.n_running; i++) {
        struct eng_seq *q = &w->s.running[i]->seq;
        if (eng_seq_at_boundary(q))
            eng_seq_set_mode(q, q->request->mode, q->request->params.block_length, "test");
    }
    eng_sampler_reset(&w->sampler);
    assert_null(eng_scheduler_fill(&w->s, &w->env, &w->s.steps[0]));
    assert_true(eng_kv_check(&w->s.kv));
    assert_true(w->s.steps[0].batch.n_segments > 0 && w->s.steps[0].batch.n_rows <= w->s.steps[0].batch.max_rows);
}

// Computes what was filled. Finished requests are freed; returns their number.
static inline int compute(struct world *w)
{
    int finished = 0;
    assert_int_equal(eng_model_forward(&w->model, &w->s.steps[0].batch), 0);
    for (int32_t i = 0; i < w->s.steps[0].batch.n_segments; i++) {
        const struct eng_segment *s = &w->s.steps[0].batch.segments[i];
        struct eng_request *r = w->s.steps[0].planned[i];
        struct eng_run run = {0};
        int32_t taken;
        assert_int_equal(r->seq.slot, s->slot);
        if (s->kind == ENG_PASS_PREFILL)
            eng_decode_prompt_commit(&r->seq, s, w->s.steps[0].batch.choices + s->first_wanted, &run);
        else
            eng_decode_of(r->seq.mode)->commit(&r->seq, &w->s.steps[0].batch, s, &run);
        eng_event_builder_reset(&w->builder);
        assert_int_equal(eng_seq_append(&r->seq, &run, &w->builder, &taken), 0);
        eng_scheduler_committed(&w->s, r, s->kind == ENG_PASS_VERIFY);
        if (r->seq.finish != ENG_FINISH_NONE) {
            eng_scheduler_remove(&w->s, r);
            eng_request_free(r);
            finished++;
        }
    }
    assert_true(eng_kv_check(&w->s.kv));
    return finished;
}

static inline int32_t rows_of(const struct world *w, const struct eng_request *r)
{
    for (int32_t i = 0; i < w->s.steps[0].batch.n_segments; i++)
        if (w->s.steps[0].planned[i] == r)
            return w->s.steps[0].batch.segments[i].rows;
    return 0;
}

static inline void run_out(struct world *w)
{
    for (int i = 0; w->s.n_running || w->s.tenants.head; i++) {
        fill(w);
        compute(w);
        assert_true(i < 100000);
    }
}

static inline struct eng_scheduler_limits roomy(void)
{
    return (struct eng_scheduler_limits){.max_sequences = 8,
                                         .max_step_rows = 128,
                                         .piece_rows = 32,
                                         .n_pages = 1000,
                                         .page_size = 4,
                                         .max_context = 500};
}
