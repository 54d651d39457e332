// 4 ROUTE  Mode and block length of one request, within the plan for everyone (router.h).
#include "router.h"

#include <stdio.h>

#include "batch.h"
#include "request.h"

static const int64_t plan_ns = 1000 * 1000;           // how long a plan is good for, by each running request
static const int64_t steady_ns = INT64_C(2000000000); // between two changes while the load stays
static const double host_rate = 1.0 / 64;
static const float worth_hoping = 0.8f; // of the tokens hoped for, what is known must be less
enum {
    most_planned = 50, // requests beyond which a plan is good for no longer
    plain_tokens = 64, // in AR, after which a request's own acceptance is half forgotten
    first_drafts = 8,  // of a request, after each of which it is looked at again
    trial_drafts = 6,
    trial_failure = 3,   // drafts of a trial that one counts for of which nothing was accepted
    trial_block = 8,     // at most
    most_looked_at = 64, // a decision takes about a tenth of a microsecond
    trial_pause = 50     // passes between two trials, for every pass of one
};

const char *eng_cause_name(enum eng_cause cause)
{
    static const char *const names[ENG_N_CAUSES] = {"requested", "default",     "only_mode",
                                                    "fastest",   "poor_drafts", "auto_rows"};
    return names[cause];
}

// ---- the plan -------------------------------------------------------------------------------------------------------

// A few requests more or less among many change nothing that would be worth a plan.
static bool same_load(int32_t n, int32_t before)
{
    int32_t difference = n > before ? n - before : before - n;
    return difference * 16 <= before;
}

// Drafts are known to be worse than one would hope: only then can a trial change the plan.
static bool hopes_for_more(const struct eng_request *r, int32_t block_length)
{
    float hoped[ENG_BLOCK_LENGTHS];
    int k = eng_block_index(block_length);
    eng_acceptance_hope(hoped);
    return r->seq.routing.tokens[k] < worth_hoping * hoped[k];
}

// Lets one of those that were not decided yet try blocks, if it is time for that.
static void offer_trial(struct eng_router *router, struct eng_request *const *running, int32_t n, int64_t now_ns)
{
    const struct eng_plan *plan = &router->plan;
    if (!plan->measured || plan->cap || now_ns < router->trial_ns)
        return;
    for (int32_t i = 0; i < n; i++) {
        struct eng_request *r = running[i];
        unsigned modes = eng_plan_modes(&router->rules, r);
        if (r->seq.mode != ENG_MODE_AUTO || !(modes >> ENG_MODE_SELF_SPECULATION & 1) || !(modes >> ENG_MODE_AR & 1))
            continue;
        int32_t cap = eng_plan_hope(&router->rules, running, n, router->host_s);
        router->trial_ns = now_ns + (int64_t)(2e9 * trial_drafts * trial_pause * plan->seconds);
        if (cap && hopes_for_more(r, cap)) {
            r->seq.routing.trial = trial_drafts;
            r->seq.routing.trial_block = !r->block_free      ? r->params.block_length
                                         : cap < trial_block ? cap
                                                             : trial_block;
        }
        return;
    }
}

void eng_router_plan(struct eng_router *router, struct eng_request *const *running, int32_t n, int64_t now_ns)
{
    bool fresh = false;
    for (int32_t i = 0; i < n; i++) {
        struct eng_routing *own = &running[i]->seq.routing;
        if (!own->tokens[0])
            eng_acceptance_expect(&own->acceptance, &router->experience, own->tokens);
        fresh = fresh || running[i]->seq.mode == ENG_MODE_AUTO;
    }
    const struct eng_plan *plan = &router->plan;
    if (!plan->number || !same_load(n, plan->active) ||
        now_ns - plan->made_ns >= plan_ns * (n < most_planned ? n : most_planned)) {
        eng_experience_fade(&router->experience, now_ns);
        eng_plan_make(&router->rules, &router->experience, running, n, router->host_s, now_ns, &router->plan);
    }
    if (fresh)
        offer_trial(router, running, n, now_ns);
}

// ---- one request ----------------------------------------------------------------------------------------------------

// Tokens a pass that are left when the time of the option's rows is paid for, at the rate of everyone together.
static double gain(const struct eng_plan *plan, const struct eng_route_option *o)
{
    return o->tokens - plan->rate * plan->row_s * ((o->rows[0] + o->rows[1]) / 2.0 - 1);
}

static bool slower_than_ar(const struct eng_plan *plan, const struct eng_route_option *o)
{
    return o->tokens / plan->seconds < ENG_LEAST_SPEED / plan->ar_seconds;
}

// Nobody is made slower than plain AR would make it for the sake of the others.
static void prefer(const struct eng_plan *plan, struct eng_route_option *best, struct eng_route_option other)
{
    if (slower_than_ar(plan, &other) && !slower_than_ar(plan, best))
        return;
    if (gain(plan, &other) > gain(plan, best))
        *best = other;
}

// What is best for the request within the plan.
static struct eng_route_option best_of(const struct eng_router *router, const struct eng_request *r, unsigned modes)
{
    const struct eng_plan *plan = &router->plan;
    if (r->seq.routing.trial)
        return eng_plan_speculation(&router->experience, r, r->seq.routing.trial_block);
    struct eng_route_option best = eng_plan_option(&router->rules, &router->experience, r, plan->cap);
    // A request alone is what the plan was made for.
    if (!plan->measured || plan->active == 1 || !plan->cap)
        return best;
    if (modes >> ENG_MODE_AR & 1)
        prefer(plan, &best, eng_plan_option(&router->rules, &router->experience, r, 0));
    for (int k = 0; r->block_free && modes >> ENG_MODE_SELF_SPECULATION & 1 && eng_block_length(k) < plan->cap; k++)
        prefer(plan, &best, eng_plan_speculation(&router->experience, r, eng_block_length(k)));
    if (modes >> ENG_MODE_DIFFUSION & 1 && r->params.block_length <= plan->cap)
        prefer(plan, &best, eng_plan_diffusion(&router->experience, r));
    return best;
}

// What it has now, as an option.
static struct eng_route_option present(const struct eng_router *router, const struct eng_request *r)
{
    const struct eng_seq *q = &r->seq;
    switch (q->mode) {
    case ENG_MODE_SELF_SPECULATION:
        return eng_plan_speculation(&router->experience, r, q->block_length);
    case ENG_MODE_DIFFUSION:
        return eng_plan_diffusion(&router->experience, r);
    default:
        return (struct eng_route_option){ENG_MODE_AR, q->block_length, 1, {1, 1}};
    }
}

static bool same(const struct eng_seq *q, const struct eng_route_option *o)
{
    return q->mode == o->mode && (o->mode == ENG_MODE_AR || q->block_length == o->block_length);
}

static bool load_changed(const struct eng_plan *plan, const struct eng_seq *q)
{
    int32_t a = plan->active, b = q->routing.active;
    return 2 * a >= 3 * b || 2 * b >= 3 * a;
}

// ---- reasons --------------------------------------------------------------------------------------------------------

static enum eng_cause cause_of(const struct eng_router *router, const struct eng_request *r, unsigned modes,
                               const struct eng_route_option *o)
{
    if (r->mode != ENG_MODE_AUTO)
        return r->params.mode == ENG_MODE_AUTO || r->params.mode_by_default ? ENG_CAUSE_DEFAULT : ENG_CAUSE_REQUESTED;
    if (!(modes & (modes - 1)))
        return ENG_CAUSE_ONLY_MODE;
    if (!router->plan.measured)
        return ENG_CAUSE_AUTO_ROWS;
    return router->plan.cap && o->mode == ENG_MODE_AR ? ENG_CAUSE_POOR_DRAFTS : ENG_CAUSE_FASTEST;
}

// Digits after the point that a speed needs.
static int digits(double rate)
{
    return rate < 10 ? 2 : rate < 100 ? 1 : 0;
}

// Why it is the fastest; `to` is after "N active requests: ".
static void say_fastest(const struct eng_router *router, const struct eng_request *r, const struct eng_route_option *o,
                        char *to, size_t size)
{
    const struct eng_plan *plan = &router->plan;
    int d = digits(plan->rate);
    if (r->seq.routing.trial)
        snprintf(to, size, "trying blocks of %d; ar predicted %.*f tok/s in all by what is known of drafts",
                 o->block_length, d, plan->rate);
    else if (o->mode == ENG_MODE_SELF_SPECULATION)
        snprintf(to, size, "blocks of %d predicted %.*f tok/s in all against %.*f with ar, %.1f tokens a block",
                 o->block_length, d, plan->rate, d, plan->ar_rate, 2 * o->tokens);
    else if (o->mode == ENG_MODE_DIFFUSION)
        snprintf(to, size, "diffusion predicted %.*f tok/s in all against %.*f with ar, %.1f tokens a pass", d,
                 plan->rate, d, plan->ar_rate, o->tokens);
    else if (!plan->other_cap)
        snprintf(to, size, "ar predicted %.*f tok/s in all", d, plan->rate);
    else
        snprintf(to, size, "ar predicted %.*f tok/s in all against %.*f with blocks of %d%s", d, plan->rate, d,
                 plan->other_rate, plan->other_cap, plan->hindered ? ", which would slow some down" : "");
}

static void say(const struct eng_router *router, const struct eng_request *r, const struct eng_route_option *o,
                struct eng_route *ret)
{
    const struct eng_plan *plan = &router->plan;
    char why[128];
    switch (ret->cause) {
    case ENG_CAUSE_REQUESTED:
    case ENG_CAUSE_DEFAULT:
        snprintf(ret->reason, sizeof ret->reason, "%s was asked for by the %s", eng_mode_name(r->mode),
                 ret->cause == ENG_CAUSE_DEFAULT ? "configuration" : "request");
        return;
    case ENG_CAUSE_ONLY_MODE:
        snprintf(why, sizeof why, "auto may choose only %s here", eng_mode_name(o->mode));
        break;
    case ENG_CAUSE_AUTO_ROWS:
        snprintf(why, sizeof why, "blocks of %d rows in all %s auto-rows %d%s", plan->all_rows,
                 plan->cap ? "fit" : "exceed", router->rules.auto_rows,
                 plan->cap || o->mode == ENG_MODE_AR ? "" : ", but auto may not choose ar");
        break;
    case ENG_CAUSE_POOR_DRAFTS: {
        struct eng_route_option block = eng_plan_option(&router->rules, &router->experience, r, plan->cap);
        snprintf(why, sizeof why, "ar, since blocks of %d would yield it only %.1f tokens each", block.block_length,
                 2 * block.tokens);
        break;
    }
    default:
        say_fastest(router, r, o, why, sizeof why);
    }
    snprintf(ret->reason, sizeof ret->reason, "%d active request%s: %s", plan->active, plan->active == 1 ? "" : "s",
             why);
}

// ---- decisions ------------------------------------------------------------------------------------------------------

bool eng_router_wants(const struct eng_router *router, const struct eng_request *r, int64_t now_ns,
                      struct eng_route *ret)
{
    const struct eng_seq *q = &r->seq;
    const struct eng_plan *plan = &router->plan;
    bool first = q->mode == ENG_MODE_AUTO;
    if (!first && r->mode != ENG_MODE_AUTO && !r->block_free)
        return false;
    unsigned modes = eng_plan_modes(&router->rules, r);
    struct eng_route_option to = best_of(router, r, modes);
    bool recent = q->routing.changed_ns && now_ns - q->routing.changed_ns < steady_ns;
    if (!first && (same(q, &to) || (recent && !load_changed(plan, q))))
        return false;
    if (ret) {
        ret->mode = to.mode;
        ret->block_length = to.block_length;
        ret->cause = cause_of(router, r, modes, &to);
        say(router, r, &to, ret);
    }
    return true;
}

void eng_router_follow(const struct eng_router *router, struct eng_request *r, bool changed, int64_t now_ns)
{
    struct eng_seq *q = &r->seq;
    struct eng_routing *own = &q->routing;
    const struct eng_plan *plan = &router->plan;
    if (changed) {
        // The first decision is no change.
        if (own->active)
            own->changed_ns = now_ns;
        own->active = plan->active;
    }
    own->plan = plan->number;
    own->row_price = plan->row_price;
    struct eng_route_option o = present(router, r);
    own->predicted = plan->measured ? (float)(o.tokens / plan->seconds) : 0;
}

// Between two cycles, and not looked at since the plan was made or something was learned of it.
static bool is_due(const struct eng_router *router, const struct eng_request *r)
{
    const struct eng_seq *q = &r->seq;
    return eng_seq_at_boundary(q) && (q->mode == ENG_MODE_AUTO || q->routing.plan != router->plan.number);
}

void eng_router_route(struct eng_router *router, struct eng_request *const *running, int32_t n, int64_t now_ns,
                      eng_router_changed *changed, void *user)
{
    int32_t looked_at = 0;
    eng_router_plan(router, running, n, now_ns);
    for (int32_t i = 0; i < n; i++) {
        struct eng_request *r = running[i];
        struct eng_route to;
        enum eng_mode before = r->seq.mode;
        if (!is_due(router, r) || (looked_at++ >= most_looked_at && before != ENG_MODE_AUTO))
            continue;
        bool changes = eng_router_wants(router, r, now_ns, &to);
        if (changes)
            eng_seq_set_mode(&r->seq, to.mode, to.block_length, to.reason);
        eng_router_follow(router, r, changes, now_ns);
        if (changes)
            changed(user, r, before, &to);
    }
}

bool eng_router_all_stay(struct eng_router *router, struct eng_request *const *running, int32_t n,
                         struct eng_request *const *parts, int32_t n_parts, int64_t now_ns)
{
    int32_t looked_at = 0;
    eng_router_plan(router, running, n, now_ns);
    for (int32_t i = 0; i < n_parts && looked_at < most_looked_at; i++) {
        struct eng_request *r = parts[i];
        if (!r || !is_due(router, r))
            continue;
        looked_at++;
        if (eng_router_wants(router, r, now_ns, NULL))
            return false;
        eng_router_follow(router, r, false, now_ns);
    }
    return true;
}

// ---- drafts ---------------------------------------------------------------------------------------------------------

int32_t eng_router_verified_rows(const struct eng_router *router, const struct eng_request *r)
{
    const struct eng_block *b = &r->seq.block;
    int32_t rows = eng_rows_worth_verifying(&router->experience, b->confidence, b->rows, r->seq.routing.row_price);
    // Either the text ends with a drafted end, or everything behind it is rejected with it.
    for (int32_t i = 1; i < rows; i++)
        if (eng_seq_ends_with(&r->seq, b->tokens[i]))
            return i;
    return rows;
}

// ---- learning -------------------------------------------------------------------------------------------------------

// What became of the draft; the last token tells of one draft more than there were rows for.
static struct eng_verified verified(const struct eng_seq *q, const struct eng_segment *s, const struct eng_run *run,
                                    int32_t taken)
{
    struct eng_verified v = {.n = run->drafted,
                             .kept = run->accepted < taken ? run->accepted : taken,
                             .judged = s->rows < run->drafted ? s->rows : run->drafted,
                             .ended = q->finish != ENG_FINISH_NONE,
                             .confidence = q->block.confidence};
    return v;
}

void eng_router_learn(struct eng_router *router, struct eng_request *r, const struct eng_segment *s,
                      const struct eng_run *run, int32_t taken, int64_t now_ns)
{
    struct eng_routing *own = &r->seq.routing;
    if (s->kind == ENG_PASS_VERIFY && run->drafted > 0) {
        struct eng_verified v = verified(&r->seq, s, run, taken);
        eng_acceptance_learn(&own->acceptance, &router->experience, &v);
        router->experience.learned_ns = now_ns;
        if (own->trial && v.kept * 2 > v.n)
            router->trial_ns = now_ns;
        int32_t used = v.kept ? 1 : trial_failure;
        own->trial = own->trial > used ? own->trial - used : 0;
    } else if (run->denoise_passes) {
        eng_denoising_learn(&router->experience, s->rows, run->denoise_passes);
        router->experience.learned_ns = now_ns;
    } else if (s->kind == ENG_PASS_AR && ++own->n_plain == plain_tokens) {
        eng_acceptance_forget(&own->acceptance);
    } else {
        return;
    }
    own->n_plain = 0;
    // After its first drafts one more changes little, and looking at it again costs a tenth of a microsecond.
    if (own->acceptance.drafts > first_drafts && (int32_t)own->acceptance.drafts % 4)
        return;
    eng_acceptance_expect(&own->acceptance, &router->experience, own->tokens);
    own->plan = 0; // it may be worth another look
}

void eng_router_note_host(struct eng_router *router, double seconds)
{
    // A pause of the whole process says nothing about the next pass.
    double most = router->host_s > 0 ? 4 * router->host_s : seconds;
    router->host_s += host_rate * ((seconds < most ? seconds : most) - router->host_s);
}
