// 7 COMMIT  Decoding modes: what the next pass of a sequence computes, and which tokens its choices make final.
//
// A mode is a few functions over one sequence. None of them calls kernels, touches pages or knows other sequences.
// `plan` may be called again for the same pass after a step that did not happen (a preemption): it changes nothing in
// the sequence but to begin a cycle. The two for planning ahead change nothing at all: they stand between a segment and
// its commit, and say what follows it whatever its choices are.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "batch.h"
#include "seq.h"

struct eng_sampler;

// What the modes need to know of the model, and where rows may put their counts.
struct eng_decode_env {
    int32_t mask_id; // stands at masked positions of the batch; -1: AR only
    bool has_adapter;
    bool block_adapter; // the adapter is on for denoise rows too
    struct eng_sampler *sampler;
};

struct eng_decode {
    enum eng_mode mode;
    // Rows of the next pass, which need KV slots up to *ret_end (exclusive).
    int32_t (*rows)(const struct eng_seq *seq, int32_t *ret_end);
    // Appends the next segment to the batch. 0, ENG_ELIMIT when it does not fit there, or ENG_ENOMEM.
    int (*plan)(struct eng_seq *seq, const struct eng_decode_env *env, struct eng_batch *batch);
    // Rows of the pass after `flying`, the sequence's segment in a batch that was submitted and not committed, and the
    // KV slots they need. 0: that depends on the choices. Never asked when `flying` is certain to be the last.
    int32_t (*rows_ahead)(const struct eng_seq *seq, const struct eng_segment *flying, int32_t *ret_end);
    // Appends that pass, its unknown tokens as links into flying's batch, which the model runs right before.
    int (*plan_ahead)(const struct eng_seq *seq, const struct eng_segment *flying, struct eng_batch *batch);
    // Takes what the model answered to the planned segment of the batch. Advances n_kv; *run is zeroed by the caller.
    void (*commit)(struct eng_seq *seq, const struct eng_batch *batch, const struct eng_segment *segment,
                   struct eng_run *run);
};

// The functions of a mode; never of AUTO.
const struct eng_decode *eng_decode_of(enum eng_mode mode);
extern const struct eng_decode eng_decode_ar, eng_decode_diffusion, eng_decode_self_speculation;

// The prompt, in every mode: at most max_rows rows, causal; the last row of the last piece gives the first token.
int32_t eng_decode_prompt_rows(const struct eng_seq *seq, int32_t max_rows);
int eng_decode_prompt_plan(struct eng_seq *seq, const struct eng_decode_env *env, struct eng_batch *batch,
                           int32_t rows);
void eng_decode_prompt_commit(struct eng_seq *seq, const struct eng_segment *segment, const struct krn_choice *choices,
                              struct eng_run *run);

// Which masked positions of a block a denoise pass reveals.
struct eng_commit_view {
    uint64_t masked;                  // at least one bit
    const struct krn_choice *choices; // of the masked positions, in rising order
    float threshold;
    int32_t steps;  // passes per block; 0: by threshold
    int32_t passes; // done before this one
};
// Bits to reveal: a subset of masked, never empty.
uint64_t eng_decode_reveal(enum eng_commit_policy policy, const struct eng_commit_view *view);
