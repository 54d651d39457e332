// 6 SAMPLE  The parameters of a choice: from a request and the tokens before it to struct krn_select_row.
//
// Engine thread. The choice itself is made on the device (krn_backend.select); the model bans its mask id there.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "base/arena.h"
#include "kernels.h"

struct eng_params;
struct eng_seq;

// Memory of the counts that rows of the present step point to. Zero-initialise to start.
struct eng_sampler {
    struct eng_arena *arena; // NULL while no row needed any
};

// Frees what the last step's rows pointed to.
void eng_sampler_reset(struct eng_sampler *s);

// The request has penalties, so a choice depends on which tokens came before.
bool eng_sample_needs_history(const struct eng_params *p);

// What a choice looks back on.
struct eng_lookback {
    const struct krn_token_count *counts; // in the sampler's memory or the sequence's
    int32_t n;
};
// The sequence's final tokens and n_extra more output tokens. Without penalties the result is empty. 0 or ENG_ENOMEM.
int eng_sample_lookback(struct eng_sampler *s, const struct eng_seq *seq, const int32_t *extra, int32_t n_extra,
                        struct eng_lookback *ret);

// Fills everything but .row. position: absolute position of the token being chosen (the noise's counter).
void eng_sample_row(const struct eng_seq *seq, int32_t position, struct eng_lookback lookback,
                    struct krn_select_row *row);
