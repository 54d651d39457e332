// 4 ROUTE  The plan for everyone together (route_plan.h).
#include "route_plan.h"

#include <math.h>

#include "request.h"

static const double doubt = 1.25; // a request's own drafts are so few that they may be that much better
static const double stay = 1.04;  // how much better another cap must be

// ---- what a request may do ------------------------------------------------------------------------------------------

unsigned eng_plan_modes(const struct eng_plan_rules *rules, const struct eng_request *r)
{
    const struct eng_params *p = &r->params;
    if (r->mode != ENG_MODE_AUTO)
        return 1u << r->mode;
    unsigned modes = rules->auto_modes;
    if (p->allow_diffusion)
        modes |= 1u << ENG_MODE_DIFFUSION;
    if (p->lossless)
        modes &= ~(1u << ENG_MODE_DIFFUSION);
    modes &= rules->modes;
    // A request that may do nothing else of all that is decoded in AR, which every model can.
    return modes ? modes : 1u << ENG_MODE_AR;
}

static bool may(unsigned modes, enum eng_mode mode)
{
    return modes >> mode & 1;
}

static struct eng_route_option plain(const struct eng_request *r)
{
    return (struct eng_route_option){ENG_MODE_AR, r->params.block_length, 1, {1, 1}};
}

static const float *tokens_of(const struct eng_experience *all, const struct eng_seq *q)
{
    return all->hoped[0] > 0 ? all->hoped : q->routing.tokens;
}

// A block is no longer than the whole answer. How much is left of it does not count: whoever ends is followed by
// another, and a decision is to last.
struct eng_route_option eng_plan_speculation(const struct eng_experience *all, const struct eng_request *r,
                                             int32_t block_length)
{
    const struct eng_seq *q = &r->seq;
    int32_t answer = q->limit - q->n_prompt, rows = answer < block_length ? answer : block_length;
    if (rows < 2)
        return (struct eng_route_option){ENG_MODE_SELF_SPECULATION, block_length, 1, {1, 1}};
    float tokens = tokens_of(all, q)[eng_block_index(rows)];
    int32_t verified = (int32_t)((float)rows * eng_verified_share(all, rows) + 0.5f);
    return (struct eng_route_option){ENG_MODE_SELF_SPECULATION,
                                     block_length,
                                     (tokens < (float)rows ? tokens : (float)rows) / 2,
                                     {rows, verified > 1 ? verified : 1}};
}

struct eng_route_option eng_plan_diffusion(const struct eng_experience *all, const struct eng_request *r)
{
    int32_t rows = r->params.block_length;
    return (struct eng_route_option){ENG_MODE_DIFFUSION, rows, eng_denoising_tokens(all, rows), {rows, rows}};
}

struct eng_route_option eng_plan_option(const struct eng_plan_rules *rules, const struct eng_experience *all,
                                        const struct eng_request *r, int32_t cap)
{
    unsigned modes = eng_plan_modes(rules, r);
    bool ar = may(modes, ENG_MODE_AR), diffusion = may(modes, ENG_MODE_DIFFUSION);
    int32_t given = r->params.block_length;
    struct eng_route_option best = plain(r);
    // Without AR among its modes a request uses blocks whatever the cap says, as short as it may.
    if (may(modes, ENG_MODE_SELF_SPECULATION)) {
        bool given_stands = !r->block_free || !rules->cost->n_knots;
        int32_t block = given_stands || given < cap ? given : cap > 0 ? cap : eng_block_length(0);
        if (!ar || block <= cap)
            best = eng_plan_speculation(all, r, block);
    }
    if (diffusion && (given <= cap || (!ar && best.mode == ENG_MODE_AR))) {
        struct eng_route_option other = eng_plan_diffusion(all, r);
        if (best.mode == ENG_MODE_AR || other.tokens > best.tokens)
            best = other;
    }
    return best;
}

// ---- passes put together --------------------------------------------------------------------------------------------

// What would follow.
struct outlook {
    double seconds, tokens; // a pass
    double rate;            // tokens a second
    double least;           // fewest tokens a pass of a request that could be in AR
    int32_t blocks;         // requests of auto that use blocks
    double rows;            // a pass
    struct eng_cost_pass verify;
};

static void add(const struct eng_plan_rules *rules, const struct eng_seq *q, const struct eng_route_option *o,
                struct eng_cost_pass pass[2])
{
    int32_t at = q->n_kv > q->prefill_end ? q->n_kv : q->prefill_end;
    int32_t choices[2] = {1, 1};
    bool adapter[2] = {false, false};
    if (o->mode == ENG_MODE_SELF_SPECULATION && o->rows[0] > 1) {
        choices[0] = o->rows[0] - 1;
        choices[1] = o->rows[1];
        adapter[0] = rules->draft_adapter;
    } else if (o->mode == ENG_MODE_DIFFUSION) {
        choices[0] = choices[1] = o->rows[0] / 2 + 1; // half of a block is masked, on average
        adapter[0] = adapter[1] = rules->block_adapter;
    }
    for (int i = 0; i < 2; i++)
        eng_cost_pass_add(&pass[i], o->rows[i], at, choices[i], adapter[i]);
}

// need: tokens a pass that a block must yield for a request of auto to use it.
static struct outlook look(const struct eng_plan_rules *rules, const struct eng_experience *all,
                           struct eng_request *const *running, int32_t n, double host_s, int32_t cap, double need)
{
    struct outlook o = {.least = INFINITY};
    struct eng_cost_pass pass[2] = {{0}};
    for (int32_t i = 0; i < n; i++) {
        const struct eng_request *r = running[i];
        bool ar = may(eng_plan_modes(rules, r), ENG_MODE_AR);
        struct eng_route_option option = eng_plan_option(rules, all, r, cap);
        if (ar && option.tokens * doubt < need)
            option = plain(r);
        double least = option.tokens * (option.mode == ENG_MODE_AR ? 1 : doubt);
        o.blocks += ar && option.mode != ENG_MODE_AR;
        o.tokens += option.tokens;
        if (ar && least < o.least)
            o.least = least;
        add(rules, &r->seq, &option, pass);
    }
    double seconds = 0;
    for (int i = 0; i < 2; i++)
        seconds += eng_cost_expect(rules->cost, rules->live, &pass[i]) / 2;
    o.seconds = seconds + host_s;
    o.rate = o.tokens / o.seconds;
    o.rows = (pass[0].rows + pass[1].rows) / 2.0;
    o.verify = pass[1];
    return o;
}

// With blocks up to cap, where those that would be slower than in AR stay there if all gain by it.
static struct outlook look_with_blocks(const struct eng_plan_rules *rules, const struct eng_experience *all,
                                       struct eng_request *const *running, int32_t n, double host_s, int32_t cap,
                                       const struct outlook *ar)
{
    struct outlook o = look(rules, all, running, n, host_s, cap, 0);
    double need = o.seconds / ar->seconds;
    if (!o.blocks || o.least >= need)
        return o;
    struct outlook chosen = look(rules, all, running, n, host_s, cap, need);
    return chosen.blocks && chosen.rate > o.rate ? chosen : o;
}

// Tokens of everyone together that could be made in the time of one more row of each verification.
static float row_price(const struct eng_plan_rules *rules, const struct outlook *o)
{
    enum { MORE = 4 };
    struct eng_cost_pass more = o->verify;
    int32_t rows = MORE * more.segments;
    more.rows += rows;
    more.choices += rows;
    more.pairs += rows * (more.context / more.segments);
    double longer =
        eng_cost_expect(rules->cost, rules->live, &more) - eng_cost_expect(rules->cost, rules->live, &o->verify);
    return longer > 0 ? (float)(o->rate * longer / rows) : 0;
}

static void plan_by_rows(const struct eng_plan_rules *rules, struct eng_request *const *running, int32_t n,
                         struct eng_plan *plan)
{
    for (int32_t i = 0; i < n; i++)
        plan->all_rows += running[i]->params.block_length;
    plan->cap = plan->all_rows <= rules->auto_rows ? eng_block_length(ENG_BLOCK_LENGTHS - 1) : 0;
}

void eng_plan_make(const struct eng_plan_rules *rules, const struct eng_experience *all,
                   struct eng_request *const *running, int32_t n, double host_s, int64_t now_ns, struct eng_plan *plan)
{
    int32_t cap_before = plan->number ? plan->cap : -1;
    *plan = (struct eng_plan){.number = plan->number + 1 ? plan->number + 1 : 1, .made_ns = now_ns, .active = n};
    if (!n)
        return;
    if (!rules->cost->n_knots) {
        plan_by_rows(rules, running, n, plan);
        return;
    }
    int32_t longest = 0;
    for (int32_t i = 0; i < n; i++)
        if (running[i]->params.block_length > longest)
            longest = running[i]->params.block_length;
    struct outlook ar = look(rules, all, running, n, host_s, 0, 0), best = ar, other = {0};
    double best_score = ar.rate * (cap_before == 0 ? stay : 1);
    for (int k = 0; k < ENG_BLOCK_LENGTHS && eng_block_length(k) <= longest; k++) {
        int32_t cap = eng_block_length(k);
        struct outlook o = look_with_blocks(rules, all, running, n, host_s, cap, &ar);
        if (o.rate > other.rate) {
            other = o;
            plan->other_cap = cap;
        }
        double score = o.rate * (cap_before == cap ? stay : 1);
        if (score > best_score && o.least / o.seconds >= ENG_LEAST_SPEED / ar.seconds) {
            best = o;
            best_score = score;
            plan->cap = cap;
        }
    }
    plan->measured = true;
    plan->rate = best.rate;
    plan->seconds = best.seconds;
    plan->ar_rate = ar.rate;
    plan->ar_seconds = ar.seconds;
    plan->other_rate = other.rate;
    plan->hindered = !plan->cap && other.rate > ar.rate * stay;
    const struct outlook *blocks = plan->cap ? &best : &other;
    if (blocks->rows > ar.rows)
        plan->row_s = (blocks->seconds - ar.seconds) / (blocks->rows - ar.rows);
    plan->row_price = row_price(rules, &best);
}

int32_t eng_plan_hope(const struct eng_plan_rules *rules, struct eng_request *const *running, int32_t n, double host_s)
{
    struct eng_experience all = {0};
    struct eng_plan plan = {0};
    eng_acceptance_hope(all.hoped);
    eng_plan_make(rules, &all, running, n, host_s, 0, &plan);
    return plan.cap;
}
