// 4 SCHEDULE  The rows of a pass: which of the running requests take part, and with how many rows.
//
// Three rules, each about the expected time of the pass (cost.h).
//
// Fair. With several tenants, the one whose rows alone would take the least time has all of them in every pass. Each
// other one may add ENG_OTHERS_PART of that time, so passes of n tenants take on average at most 1 + 0.6 (n - 1) times
// as long as one of the lightest alone; that one pays for the reading of the weights, the others only for what they
// add. What is left over, or is not enough for a block, is kept for the next pass (deficit round robin in seconds), and
// who was left out leads it; a tenant that found no room among the rows for any of its blocks has one in the next pass
// before everyone else. One tenant alone has no such limit, but where there were several just now, a pass takes at
// most twice as long as the one before: whoever sends one request after another is away for a moment only, and must not
// come back to a long pass.
//
// Prompts. While anyone decodes, prompts get the rows with which the pass takes at most `stretch` times as long as
// without them, but at least ENG_LEAST_PROMPT_ROWS, so that they progress. With no decoder the pass is theirs. Prompts
// that found less than an eighth of the rows get an eighth of the next pass first, and those of a tenant that found no
// time of its own get half of its time in the next, so that decoders cannot keep newcomers out.
//
// Whole. The rows of a cycle (draft, verification, denoising) are all in a pass or none.
//
// Without a cost model a row stands for an equal piece of time, a pass without rows for ENG_EMPTY_PASS_ROWS of them,
// and prompts come in pieces of `piece_rows` beside decoders.
//
// Engine thread; pure but for the tenants' credits and the requests' step_rows. Memory is taken once, by init.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cost.h"
#include "decode.h"
#include "tenants.h"

enum { ENG_LEAST_PROMPT_ROWS = 1, ENG_EMPTY_PASS_ROWS = 32 };
#define ENG_OTHERS_PART 0.6

struct eng_budget {
    int32_t max_rows;                 // of a pass
    int32_t piece_rows;               // of a prompt beside decoders, where time does not bound it
    double stretch;                   // 0: time does not bound prompts
    const struct eng_cost *cost;      // NULL or n_knots 0: no model
    const struct eng_cost_live *live; // its correction
    bool prompts_waited;              // prompts had too few rows in the last pass
    double ramp;                      // time of the next pass if it is one tenant's

    // Scratch.
    int32_t *next, *want;       // [max_sequences] the tenant's next request; rows of each decoder
    struct eng_tenant **active; // [max_sequences] those with running requests
};

// The numbers and pointers above are set by the caller afterwards. 0 or ENG_ENOMEM.
int eng_budget_init(struct eng_budget *b, int32_t max_sequences);
void eng_budget_done(struct eng_budget *b); // takes a zeroed one

// Sets step_rows of the n running requests, who is served first coming first, and fills parts with those that have
// some. Returns their number: at least 1 where n is.
int32_t eng_budget_choose(struct eng_budget *b, const struct eng_tenants *tenants, const struct eng_decode_env *env,
                          struct eng_request *const *running, int32_t n, struct eng_request **parts);
// Expected seconds of a pass, or the measure that stands for them without a model; 0 for an empty pass.
double eng_budget_time(const struct eng_budget *b, const struct eng_cost_pass *pass);
