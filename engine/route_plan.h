// 4 ROUTE  The plan for everyone together: how long blocks may be at this load, and what a row is worth.
//
// For each cap on the block length (none: all in AR) the passes that would follow are put together from every running
// request's expected tokens and rows, and their time is taken from the cost model. The cap with the most tokens per
// second wins among those under which no running request is slower than if everyone were in AR. Within it a request
// whose own drafts are so poor that blocks would make it slower than AR stays there. Pure functions of their arguments.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "acceptance.h"
#include "cost.h"
#include "engine.h"

struct eng_request;

// Of the speed that AR would give a request, what it must have under another plan: less than 1 by the error that a
// prediction has.
#define ENG_LEAST_SPEED 0.95

// How a request may be decoded in the next cycles. Two passes make a cycle of self-speculation; the other modes do the
// same in both.
struct eng_route_option {
    enum eng_mode mode;
    int32_t block_length; // also of AR, where it is not used
    float tokens;         // expected, a pass
    int32_t rows[2];      // of the cycle's passes
};

struct eng_plan_rules {
    unsigned modes, auto_modes;        // what the model can do, and what auto may choose: bits of enum eng_mode
    int32_t auto_rows;                 // without a cost model: blocks while all of them fit so many rows
    bool draft_adapter, block_adapter; // the adapter is on in draft passes, in denoise passes
    const struct eng_cost *cost;       // n_knots 0: no model
    const struct eng_cost_live *live;
};

struct eng_plan {
    uint32_t number; // rising; 0: none was made yet
    int64_t made_ns;
    int32_t active;             // running requests that it was made for
    bool measured;              // by the cost model; false: by auto_rows, and the numbers below are 0
    int32_t cap;                // longest block that auto uses; 0: none
    double rate, seconds;       // tokens a second of everyone together; a pass takes so long
    double ar_rate, ar_seconds; // the same with auto in AR
    int32_t other_cap;          // of the best choice with blocks, if cap is 0
    double other_rate;
    bool hindered;    // the other choice is faster in all, but some request would be slower than with AR
    double row_s;     // seconds a row of a block makes a pass longer
    float row_price;  // tokens that a row of verification has to yield to be worth its time
    int32_t all_rows; // not measured: sum of the block lengths
};

// Modes that the request may be decoded in: one if it is forced.
unsigned eng_plan_modes(const struct eng_plan_rules *rules, const struct eng_request *r);
// What the request does where blocks may have up to `cap` tokens (0: AR where it may).
struct eng_route_option eng_plan_option(const struct eng_plan_rules *rules, const struct eng_experience *all,
                                        const struct eng_request *r, int32_t cap);
// Blocks of so many tokens in self-speculation; diffusion in blocks of the request's length.
struct eng_route_option eng_plan_speculation(const struct eng_experience *all, const struct eng_request *r,
                                             int32_t block_length);
struct eng_route_option eng_plan_diffusion(const struct eng_experience *all, const struct eng_request *r);
// Makes *plan anew for these requests; *plan holds the one before, whose cap stays unless another is clearly better.
// host_s: seconds between two passes that the model knows nothing of. O(n).
void eng_plan_make(const struct eng_plan_rules *rules, const struct eng_experience *all,
                   struct eng_request *const *running, int32_t n, double host_s, int64_t now_ns, struct eng_plan *plan);
// Would blocks pay if every draft were as good as one hopes where nothing is known? The cap of that plan, or 0.
int32_t eng_plan_hope(const struct eng_plan_rules *rules, struct eng_request *const *running, int32_t n, double host_s);
