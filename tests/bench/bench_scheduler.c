// What the scheduling of one pass costs: taking new requests in, admission, the router, filling the pass, planning the
// one after, and the bookkeeping of its commit, with 256 requests running in mixed modes and 10,000 waiting. No model
// runs: the choices of a pass are made up between the timed parts, and so is what the modes do with them.
//
// Times are of the thread's CPU.
//
//   bench_scheduler [--passes N] [--max-us X]    exit status 1 when a median is above X
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "events.h"
#include "router.h"
#include "sample.h"
#include "scheduler.h"

enum {
    N_RUNNING = 256,
    N_WAITING = 10000,
    N_PROMPT = 48,
    N_OUTPUT = 120,
    BLOCK = 16,
    CONTEXT = 512,
    MASK = 5,
    VOCAB = 97
};

struct world {
    struct eng_scheduler s;
    struct eng_sampler sampler;
    struct eng_decode_env env;
    struct eng_event_builder builder;
    struct eng_cost cost;
    struct eng_cost_live live;
    struct eng_router router;
    int64_t now_ns; // of the passes, which last 10 ms each
    int32_t n_tenants;
    uint64_t next_age;
};

// Of this thread: what else runs on the machine does not count.
static int64_t cpu_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void *must(void *p)
{
    if (!p)
        abort();
    return p;
}

static struct eng_request *make(struct world *w)
{
    static const enum eng_mode modes[] = {ENG_MODE_AUTO, ENG_MODE_SELF_SPECULATION, ENG_MODE_DIFFUSION, ENG_MODE_AUTO};
    struct eng_request_limits limits = {
        .n_vocab = VOCAB, .max_context = CONTEXT, .modes = 15, .block_length = BLOCK, .threshold = 0.9f};
    int32_t prompt[N_PROMPT];
    uint64_t n = w->next_age++;
    for (int32_t i = 0; i < N_PROMPT; i++)
        prompt[i] = (int32_t)((n * 31 + (uint64_t)i * 7) % VOCAB);
    struct eng_params p = eng_params_default();
    p.mode = modes[n % 4];
    p.max_tokens = N_OUTPUT + (int32_t)(n % 64);
    p.tenant = (int32_t)(n % (uint64_t)w->n_tenants);
    p.priority = (int32_t)(n % 3);
    struct eng_request *r = NULL;
    if (eng_request_make(&limits, &p, prompt, N_PROMPT, &r, NULL, NULL, 0))
        abort();
    r->seq.age = n;
    r->seq.submit_ns = (int64_t)n;
    return r;
}

static void look_away(void *user, struct eng_request *r, enum eng_mode before, const struct eng_route *to)
{
    (void)user;
    (void)r;
    (void)before;
    (void)to;
}

// Every choice is some token; four of each verified block are right.
static void choose(struct eng_batch *b)
{
    for (int32_t i = 0; i < b->n_wanted; i++)
        b->choices[i] = (struct krn_choice){.token = 10 + i % 80, .confidence = i % 3 ? 0.5f : 0.95f};
    for (int32_t i = 0; i < b->n_accepts; i++) {
        int32_t n = b->accepts[i].rows < 4 ? b->accepts[i].rows : 4;
        b->accepted[i] = (struct krn_accepted){.n = n, .seed = b->choices[b->accepts[i].choice + n - 1].token};
    }
}

// What a segment's choices became.
struct decoded {
    struct eng_run run;
    int32_t taken;
};

static void decode(struct world *w, const struct eng_batch *b, const struct eng_segment *s, struct eng_request *r,
                   struct decoded *ret)
{
    *ret = (struct decoded){0};
    if (s->kind == ENG_PASS_PREFILL)
        eng_decode_prompt_commit(&r->seq, s, b->choices + s->first_wanted, &ret->run);
    else
        eng_decode_of(r->seq.mode)->commit(&r->seq, b, s, &ret->run);
    eng_event_builder_reset(&w->builder);
    if (eng_seq_append(&r->seq, &ret->run, &w->builder, &ret->taken))
        abort();
}

// One pass; returns the nanoseconds that its scheduling took.
static int64_t pass(struct world *w)
{
    struct eng_scheduler *s = &w->s;
    struct eng_step *step = &s->steps[0];
    static struct eng_request *fresh[N_RUNNING], *ended[N_RUNNING];
    static struct decoded decoded[N_RUNNING];
    static int32_t n_fresh;
    while (n_fresh < N_RUNNING && s->tenants.n_waiting + n_fresh < N_WAITING)
        fresh[n_fresh++] = make(w);
    int64_t start = cpu_ns();
    while (n_fresh)
        eng_scheduler_add(s, fresh[--n_fresh]);
    if (eng_scheduler_admit(s))
        abort();
    w->now_ns += 10000000;
    eng_router_route(&w->router, s->running, s->n_running, w->now_ns, look_away, NULL);
    eng_sampler_reset(&w->sampler);
    if (eng_scheduler_fill(s, &w->env, step))
        abort();
    eng_scheduler_fill_ahead(s, step, &s->steps[1]);
    int64_t spent = cpu_ns() - start;
    choose(&step->batch);
    int32_t n = step->batch.n_segments, n_ended = 0;
    for (int32_t i = 0; i < n; i++)
        decode(w, &step->batch, &step->batch.segments[i], step->planned[i], &decoded[i]);
    start = cpu_ns();
    for (int32_t i = 0; i < n; i++) {
        struct eng_request *r = step->planned[i];
        const struct eng_segment *segment = &step->batch.segments[i];
        eng_router_learn(&w->router, r, segment, &decoded[i].run, decoded[i].taken, w->now_ns);
        eng_scheduler_committed(s, r, segment->kind == ENG_PASS_VERIFY);
        if (r->seq.finish != ENG_FINISH_NONE)
            ended[n_ended++] = r;
    }
    for (int32_t i = 0; i < n_ended; i++)
        eng_scheduler_remove(s, ended[i]);
    spent += cpu_ns() - start;
    while (n_ended)
        eng_request_free(ended[--n_ended]);
    return spent;
}

static int by_value(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return x < y ? -1 : x > y;
}

// Median microseconds of a pass's scheduling.
static double run(int32_t n_tenants, int32_t passes)
{
    struct world *w = must(calloc(1, sizeof *w));
    w->n_tenants = n_tenants;
    w->env = (struct eng_decode_env){MASK, true, false, &w->sampler};
    w->cost =
        (struct eng_cost){.n_knots = ENG_COST_KNOTS, .base = 1e-3, .segment = 1e-6, .context = 1e-9, .pair = 1e-9};
    for (int32_t i = 0; i < ENG_COST_KNOTS; i++) {
        w->cost.knots[i] = i * i * 32;
        w->cost.slopes[i] = 1e-5;
    }
    w->router.rules = (struct eng_plan_rules){
        .modes = 15,
        .auto_modes = 1u << ENG_MODE_AR | 1u << ENG_MODE_SELF_SPECULATION,
        .draft_adapter = true,
        .cost = &w->cost,
        .live = &w->live,
    };
    struct eng_scheduler_limits limits = {.max_sequences = N_RUNNING,
                                          .max_step_rows = 4096,
                                          .piece_rows = 256,
                                          .prompt_budget = 1.6,
                                          .n_pages = N_RUNNING * CONTEXT / 16,
                                          .page_size = 16,
                                          .max_context = CONTEXT,
                                          .prefix_cache = true,
                                          .cost = &w->cost,
                                          .live = &w->live};
    if (eng_scheduler_init(&w->s, &limits))
        abort();
    int64_t *ns = must(calloc((size_t)passes, sizeof *ns)), segments = 0;
    for (int32_t i = 0; i < N_WAITING + N_RUNNING; i++)
        eng_scheduler_add(&w->s, make(w));
    for (int32_t i = 0; i < 200; i++) // until requests of all ages are there
        pass(w);
    for (int32_t i = 0; i < passes; i++) {
        ns[i] = pass(w);
        segments += w->s.steps[0].batch.n_segments;
    }
    qsort(ns, (size_t)passes, sizeof *ns, by_value);
    double median = (double)ns[passes / 2] / 1e3;
    printf("%d tenant%s: %d running, %d waiting, %.0f requests in a pass: median %.1f us, p99 %.1f us (%d passes)\n",
           n_tenants, n_tenants == 1 ? "" : "s", w->s.n_running, w->s.tenants.n_waiting, (double)segments / passes,
           median, (double)ns[passes * 99 / 100] / 1e3, passes);
    while (w->s.n_running) {
        struct eng_request *r = w->s.running[w->s.n_running - 1];
        eng_scheduler_remove(&w->s, r);
        eng_request_free(r);
    }
    while (w->s.tenants.head) {
        struct eng_request *r = w->s.tenants.head;
        eng_scheduler_remove(&w->s, r);
        eng_request_free(r);
    }
    eng_scheduler_done(&w->s);
    eng_sampler_reset(&w->sampler);
    eng_event_builder_done(&w->builder);
    free(ns);
    free(w);
    return median;
}

int main(int argc, char **argv)
{
    int32_t passes = 2000;
    double max_us = 0;
    for (int i = 1; i + 1 < argc; i += 2) {
        if (!strcmp(argv[i], "--passes"))
            passes = (int32_t)atoi(argv[i + 1]);
        else if (!strcmp(argv[i], "--max-us"))
            max_us = atof(argv[i + 1]);
    }
    if (passes < 1)
        return 2;
    bool slow = false;
    for (int32_t n_tenants = 1; n_tenants <= 16; n_tenants *= 4)
        slow |= run(n_tenants, passes) > max_us && max_us > 0;
    return slow;
}
