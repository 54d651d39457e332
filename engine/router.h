// 4 ROUTE  Which mode and block length a request uses for its next cycle, and why.
//
// A plan for everyone (route_plan.h) says how long blocks may be at this load; within it each request takes what its
// own drafts (acceptance.h) make the most of. A forced mode is always honoured. AR and self-speculation give the same
// text, so moving between them is always allowed; diffusion gives another text, is chosen only where the client or the
// configuration allows it, and only between two blocks.
//
// Where AR is best by what is known of drafts, but blocks would be if drafts were good, a new request now and then
// tries a few, for at most a fiftieth of the passes; while they turn out well, the next one tries at once.
//
// Without change of load a request changes at most once in two seconds. Engine thread. Nothing here allocates.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "acceptance.h"
#include "route_plan.h"

struct eng_request;
struct eng_run;
struct eng_segment;

struct eng_router {
    struct eng_plan_rules rules; // constant
    struct eng_experience experience;
    struct eng_plan plan;
    int64_t trial_ns; // when a new request may try blocks next
    double host_s;    // between the end of a pass and the submission of the next, a running mean
};

struct eng_route {
    enum eng_mode mode; // never AUTO
    int32_t block_length;
    enum eng_cause cause;
    char reason[160]; // one sentence with numbers
};

// Told of a request that has taken another mode or block length. before: the mode it had; AUTO: this is its first.
typedef void eng_router_changed(void *user, struct eng_request *r, enum eng_mode before, const struct eng_route *to);

// Decides for those running requests that stand between two cycles. With a new plan some 64 of them are looked at, the
// others in the next calls, so that no step waits for all.
void eng_router_route(struct eng_router *router, struct eng_request *const *running, int32_t n, int64_t now_ns,
                      eng_router_changed *changed, void *user);
// None of `parts` (n_parts, some may be NULL; all of them run) that stands between two cycles would be sent to another
// mode now. As above, some 64 of them are looked at.
bool eng_router_all_stay(struct eng_router *router, struct eng_request *const *running, int32_t n,
                         struct eng_request *const *parts, int32_t n_parts, int64_t now_ns);

// The parts of these. First a new plan, if the running requests are others in number, or the present one is older than
// a millisecond for each of them (at most 50).
void eng_router_plan(struct eng_router *router, struct eng_request *const *running, int32_t n, int64_t now_ns);
// Then: another mode or block length than it has, now, between two cycles? ret, if not NULL, is filled when it is true.
bool eng_router_wants(const struct eng_router *router, const struct eng_request *r, int64_t now_ns,
                      struct eng_route *ret);
// Last, what the request carries of the plan (price of a row, predicted speed); changed: it has just taken another mode
// or block length.
void eng_router_follow(const struct eng_router *router, struct eng_request *r, bool changed, int64_t now_ns);

// A draft has come back: how many of its rows are worth verifying, 1 .. rows. None behind a drafted end of the text.
int32_t eng_router_verified_rows(const struct eng_router *router, const struct eng_request *r);
// A verification, or the last denoise pass of a block, was committed; taken: tokens of the run before the end.
void eng_router_learn(struct eng_router *router, struct eng_request *r, const struct eng_segment *s,
                      const struct eng_run *run, int32_t taken, int64_t now_ns);
// So long after the end of a pass the next one was submitted.
void eng_router_note_host(struct eng_router *router, double seconds);
