// A model whose choices are a known function of the tokens that a row sees, for tests of the engine without weights.
//
// It keeps what was written to every KV slot and checks, as the real model could not, that each prefix a segment reads
// was written by causal rows that were meant to stay, token by token, by the same sequence or, with `shares`, in
// finished pages by any; that masks, adapter and wanted rows are as MODEL.md says; and that no row of another segment
// overwrote them. A choice depends on every token of the prefix, so that a page of other tokens shows in the text. With
// `async` the choices of a pass are not there before it was waited for, and passes may be submitted ahead; links are
// resolved and checked, and a batch must not change while it runs. The first fault is kept as a sentence.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "forward.h"

struct fake_entry { // one KV slot
    int32_t token, position, owner;
    bool final;
    uint64_t chain; // hash of all tokens up to this one
};

// A pass that was submitted and not waited for.
struct fake_pass {
    struct eng_batch *batch;
    uint64_t sum; // of everything in the batch that must not change
    int32_t n_wanted, n_accepts, cap;
    struct krn_choice *choices;
    struct krn_accepted *accepted;
};

struct fake_model {
    // To be set before fake_model_open.
    int32_t n_vocab, mask_id, n_pages, page_size;
    int32_t first_id; // no token below is chosen, but for end_id
    double agree;     // how often a draft is what AR will choose; halved without the adapter
    bool has_adapter, block_adapter;
    int32_t end_id; // chosen more often than others; -1: none
    double end_rate;
    int32_t fail_at_step; // the backend is lost at this step; 0: never
    int32_t full_at_step; // this step's batch is refused for want of memory; 0: never
    int32_t poison;       // sequences whose prompt begins with this token get no finite logits; -1: none
    int32_t step_us;      // pretended time of a pass
    bool async;           // passes may be submitted ahead
    struct eng_cost cost; // what the engine is told of the time of passes; zeroed: nothing
    bool shares;          // sequences may read whole pages that others wrote

    // Filled while running; read after the engine was closed.
    char fault[256];
    uint64_t steps, rows[ENG_N_PASS_KINDS], passes[ENG_N_PASS_KINDS], max_segments;
    uint64_t foreign;      // reads of positions that another slot wrote
    uint64_t ahead, links; // passes submitted while another one ran; rows that took their token from it

    // Inside.
    struct fake_pass flying[KRN_PASSES_AHEAD]; // by turns
    int n_flying, next_pass;
    int32_t *tokens; // [max_rows] of the pass, links resolved
    int32_t cap_tokens;
    struct fake_entry *kv; // [n_pages * page_size]
};

// Fills the defaults: vocabulary 97, mask id 5, all drafts good in 3 of 4 cases, no end token; async where the
// environment has TRIMODE_TEST_ASYNC, so that a whole test program can be run on such a model.
struct fake_model fake_model_default(void);
// The model's face. close frees the KV record.
struct eng_model fake_model_open(struct fake_model *f);

// The hash of a token sequence, and one more token.
uint64_t fake_chain(const int32_t *tokens, int32_t n);
uint64_t fake_chain_next(uint64_t chain, int32_t token);
// What a causal row chooses that sees exactly the tokens of `chain`.
void fake_choose(const struct fake_model *f, uint64_t chain, const struct krn_select_row *row, struct krn_choice *ret);
