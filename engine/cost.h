// 4 ROUTE  The cost model: how long a forward pass takes, from what is in it.
//
//   seconds = base + rows(n_rows) + segment * n_segments + choice * n_choices + context(sum(c_i))
//             + pair * sum(r_i * c_i) + adapter_row * n_adapter_rows
//
// over segments i of r_i rows that read c_i positions (their own rows included). rows() is piecewise linear and never
// falls: a pass is bound by the reading of the weights while it has few rows and by arithmetic afterwards, with steps
// where a kernel changes its tiling, and no single slope describes that. No coefficient is negative, so a larger pass
// is never predicted to be faster. context() is linear, but may bend upwards where keys and values outgrow a cache.
//
// For the router: build a struct eng_cost_pass with eng_cost_pass_add, one call a segment, and ask eng_cost_expect.
// Everything here is pure; none of it allocates. A struct eng_cost with n_knots 0 is no model: nothing may be
// predicted.
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { ENG_COST_KNOTS = 16, ENG_COST_BENDS = 3, ENG_COST_ROW_CLASSES = 16 };

// Positions read where context() may bend: 2048, 8192, 32768.
static inline int32_t eng_cost_bend(int i)
{
    return 2048 << 2 * i;
}

// What a pass computes.
struct eng_cost_pass {
    int32_t rows, segments;
    int32_t choices;        // rows whose token is chosen
    int32_t adapter_rows;   // rows with the draft adapter on
    int64_t context, pairs; // sum of c_i, sum of r_i * c_i
};

struct eng_cost_sample {
    struct eng_cost_pass pass;
    double seconds;
};

// What a model was measured for. A model of another one must not be used.
struct eng_cost_id {
    char version[32];  // of trimode
    char model[96];    // hash of the configuration and of what the weights and the cache are
    char machine[352]; // CPU, number of cores, backend
};

struct eng_cost {
    int32_t n_knots; // 0: no model
    int32_t knots[ENG_COST_KNOTS];
    double slopes[ENG_COST_KNOTS]; // seconds a row beyond knots[k], up to knots[k + 1]; the last one goes on
    double far[ENG_COST_BENDS];    // more seconds a position beyond eng_cost_bend(i)
    double base, segment, choice, context, pair, adapter_row; // seconds
    int32_t n_samples;
    double median_error, worst_error; // relative, of the fit over its own samples
    struct eng_cost_id id;
};

// Adds a segment of `rows` rows whose first one stands at position first_pos.
void eng_cost_pass_add(struct eng_cost_pass *pass, int32_t rows, int32_t first_pos, int32_t choices, bool adapter);

// Seconds of a pass as it was measured. The model must be one.
double eng_cost_predict(const struct eng_cost *cost, const struct eng_cost_pass *pass);

// Least squares of the relative errors with no negative coefficient, then again with less weight for what does not fit
// (a busy machine makes single samples far too long). Fills all of *ret but id. ENG_EINVAL, and *ret untouched: fewer
// than three samples, or one whose time or rows are not above 0.
int eng_cost_fit(const struct eng_cost_sample *samples, int32_t n, struct eng_cost *ret);

// Requests in `requests` sequences of `context` positions, each making one token a pass (AR) or one block of `block`
// tokens in a draft and a verify pass, every drafted token being accepted with probability `acceptance` (0 .. 1) once
// those before it are. Tokens per second of all together.
double eng_cost_ar_rate(const struct eng_cost *cost, int32_t requests, int32_t context);
double eng_cost_block_rate(const struct eng_cost *cost, int32_t requests, int32_t context, int32_t block,
                           double acceptance);
// The smallest number of active requests at which self-speculation does not beat AR; most + 1: it does up to `most`.
int32_t eng_cost_crossover(const struct eng_cost *cost, int32_t context, int32_t block, double acceptance,
                           int32_t most);

// ---- the correction while running -----------------------------------------------------------------------------------

// Running means of log(predicted / actual), for passes of 2^k .. 2^(k+1) - 1 rows and for all; zeroed: nothing seen.
struct eng_cost_live {
    double all, of_rows[ENG_COST_ROW_CLASSES];
    uint32_t n, n_of_rows[ENG_COST_ROW_CLASSES];
    float trust[ENG_COST_ROW_CLASSES]; // in of_rows: observations, fewer with every second since
};

// One pass took `seconds` (> 0; otherwise it is ignored). A pass counts at most as one that is off by a factor of 1.65
// from what was expected, so that single stalls hardly move the mean, and a lasting change is followed within about a
// hundred passes.
void eng_cost_observe(struct eng_cost_live *live, const struct eng_cost *cost, const struct eng_cost_pass *pass,
                      double seconds);
// Seconds of a pass as this process sees them at present: the prediction, corrected by passes of about as many rows
// as far as there were any of late, else by all: what was slow while somebody else used the machine is not held against
// a mode for ever.
double eng_cost_expect(const struct eng_cost *cost, const struct eng_cost_live *live, const struct eng_cost_pass *pass);
// predicted / actual over all passes; 1 before the first.
double eng_cost_error_ratio(const struct eng_cost_live *live);
