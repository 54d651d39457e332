// 7 COMMIT  One generation: its tokens and limits, how far its KV is final, the state of its decoding mode, and its
// numbers.
//
// The state that all modes share, and the only one between two cycles (a cycle: an AR step, a draft with its
// verification, a diffusion block with its seal):
//     tokens[0 .. n_tokens)  are final: prompt and output;
//     KV is final for the positions 0 .. n_kv - 1, and n_kv == n_tokens - 1: the last token (the seed) is still to be
//     computed.
// While a diffusion block is being finished, its left part is already in `tokens` and n_kv stays at the block's start.
// While the prompt is computed, n_kv < prefill_end.
// Engine thread. A sequence does not know pages, batches or other sequences.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "acceptance.h"
#include "engine.h"
#include "kernels.h"
#include "output.h"

struct eng_event_builder;

enum { ENG_MAX_BLOCK = 64 };

// How often each token id occurs, kept only for requests with penalties.
struct eng_history {
    struct krn_token_count *counts; // [cap], in order of first occurrence
    int32_t n, cap;
    int32_t *index; // open addressing, [2 * cap]: counts index + 1, 0: empty
};

// The block of a diffusion or self-speculation cycle.
struct eng_block {
    int32_t start, rows; // positions start .. start + rows - 1; rows 0: no cycle is under way. Row 0 is the seed
    int32_t passes;      // denoise passes done
    int32_t drafted;     // self-speculation: rows of the draft, which is in tokens[1 ..]; verification is next. 0: none
    uint64_t masked;     // diffusion: bit i: position start + i has no token yet. Never read off the ids
    int32_t tokens[ENG_MAX_BLOCK];       // tokens[i] is meaningful where not masked
    float confidence[ENG_MAX_BLOCK - 1]; // self-speculation: of the drafts, tokens[1 ..]
    struct krn_choice *reveals;          // diffusion: [ENG_MAX_BLOCK] the choice that revealed each position
};

// Tokens that a pass made final, and what it cost.
struct eng_run {
    int32_t n;
    int32_t tokens[ENG_MAX_BLOCK];
    const struct krn_choice *choices[ENG_MAX_BLOCK]; // where each came from; borrowed until the next pass
    bool failed;    // a needed choice had no token: no token was allowed, or the logits were not finite
    int32_t blocks; // 1 after a block's first denoise pass, or a self-speculation cycle
    int32_t drafted, accepted, rejected; // verification only
    int32_t denoise_passes;              // of the block that ended
};

// What the router knows of a generation.
struct eng_routing {
    struct eng_acceptance acceptance;
    float tokens[ENG_BLOCK_LENGTHS]; // expected of a block of each length; [0] 0: not known yet
    int32_t trial, trial_block;      // drafts left of a trial, and their block length
    int32_t n_plain;                 // tokens in AR since the acceptance was last looked at
    int64_t changed_ns;              // when mode or block length last changed; 0: never
    int32_t active;                  // requests that ran at the last decision; 0: there was none
    uint32_t plan;                   // the last plan that was followed; 0: look again
    float row_price;                 // tokens that a row of verification has to yield
    float predicted;                 // tokens a second; 0: not known
};

struct eng_seq {
    const struct eng_request *request; // parameters and prompt
    int32_t slot;                      // -1: not running
    uint64_t age;                      // rising with submission

    int32_t *tokens; // [limit + 1]
    int32_t n_tokens, n_prompt;
    int32_t limit;       // n_tokens at which the output is as long as asked or as the context allows
    int32_t max_context; // no position at or beyond
    int32_t n_kv, prefill_end;
    bool started;
    int32_t n_preempted;
    int32_t n_lost; // positions that were computed before a preemption and may have to be again

    enum eng_mode mode; // of the present cycle; AUTO: not decided yet
    int32_t block_length;
    struct eng_block block;
    struct eng_routing routing;
    struct eng_history history;
    struct eng_output output; // text: detokeniser and stop strings

    enum eng_finish finish;
    const char *error, *stop;
    int32_t stop_id;
    struct eng_request_stats stats;
    int64_t submit_ns, admit_ns, first_token_ns;
    int32_t step_rows; // of the step being filled
    bool unserved;     // had no rows in the last step
};

// Takes the memory that a running generation needs; nothing to do the second time. ENG_ENOMEM leaves it as it was.
int eng_seq_start(struct eng_seq *seq);
// Takes a zeroed, half-built or finished object.
void eng_seq_done(struct eng_seq *seq);

// The prompt (or, after a preemption, what had been computed) is not in the cache yet.
bool eng_seq_in_prompt(const struct eng_seq *seq);
// Between two cycles: the mode may change.
bool eng_seq_at_boundary(const struct eng_seq *seq);
// Generated tokens.
int32_t eng_seq_n_output(const struct eng_seq *seq);
// Tokens that may still be added, >= 0.
int32_t eng_seq_wanted(const struct eng_seq *seq);

// Takes a decision of the router, at a boundary or before the prompt. reason is copied.
void eng_seq_set_mode(struct eng_seq *seq, enum eng_mode mode, int32_t block_length, const char *reason);
// Between a draft and its verification: only the first `rows` rows (1 .. those of the draft) are verified.
void eng_seq_cut_draft(struct eng_seq *seq, int32_t rows);
// Its pages are gone: everything it had computed is computed again, as a prompt is. Tokens and mode state stay.
void eng_seq_preempt(struct eng_seq *seq);

// The generation ends with this token.
bool eng_seq_ends_with(const struct eng_seq *seq, int32_t token);
// Appends a run, writing tokens and text to b, until a token ends the generation (finish and its details are then set
// and held-back text is released). *ret_taken: how many tokens of the run counted. 0 or ENG_ENOMEM.
int eng_seq_append(struct eng_seq *seq, const struct eng_run *run, struct eng_event_builder *b, int32_t *ret_taken);
// Ends the generation from outside (cancelled, timeout, error, or length for max_tokens 0). error is kept by address.
void eng_seq_end(struct eng_seq *seq, enum eng_finish finish, const char *error, struct eng_event_builder *b);

// Adds one occurrence. 0 or ENG_ENOMEM.
int eng_history_add(struct eng_history *h, int32_t token, bool in_prompt);
// Index into counts, or -1.
int32_t eng_history_find(const struct eng_history *h, int32_t token);
void eng_history_done(struct eng_history *h);
