// 4 SCHEDULE  The ragged batch of one forward pass: what the scheduler fills and the model computes.
//
// Prompt pieces, AR rows, denoise rows, draft rows and verify rows of different requests stand one after the other in
// one flat list of rows. Engine thread only; all memory is sized when it is made.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "cost.h"
#include "engine.h"
#include "kernels.h"

// Consecutive rows of one sequence. The rows' tokens are batch->tokens[row .. row + rows).
// Rules: KV of every position below first_pos is final. The rows' own KV is written to the sequence's pages at their
// positions. `keep` rows may become final (commit says how many); the others' slots are overwritten before anything
// reads them.
struct eng_segment {
    int32_t slot; // which sequence (index below max_sequences)
    enum eng_pass_kind kind;
    int32_t row, rows;
    int32_t first_pos;
    enum krn_mask mask;
    bool keep;                      // causal KV of these rows is meant to stay
    bool adapter;                   // draft adapter on
    const int32_t *pages;           // page numbers for positions 0 .. first_pos + rows - 1
    int32_t first_wanted, n_wanted; // range in batch->wanted
    int32_t accept;                 // its answer in batch->accepted, or -1
};

struct eng_batch {
    int32_t n_rows, max_rows;
    int32_t *tokens; // [max_rows]
    int32_t *links;  // [max_rows] -1, or the row's token is this choice of the batch submitted before
    int32_t n_links; // rows that have one
    int32_t n_segments, max_segments;
    struct eng_segment *segments;
    int32_t n_wanted;              // rows whose token is chosen, at most max_rows
    struct krn_select_row *wanted; // [max_rows]; .row is a row of the batch
    struct krn_choice *choices;    // [max_rows], filled by the model: choices[i] answers wanted[i]
    int32_t n_accepts;
    struct krn_accept *accepts;    // [max_segments]; the verified blocks
    struct krn_accepted *accepted; // [max_segments], filled by the model
};

int eng_batch_init(struct eng_batch *b, int32_t max_rows, int32_t max_segments);
void eng_batch_done(struct eng_batch *b);
void eng_batch_reset(struct eng_batch *b);

// Appends a segment of `rows` rows at the next free row, its positions starting at first_pos, with nothing wanted. The
// rows' tokens (batch->tokens + segment->row) are the caller's to fill. NULL when rows or segments are used up. The
// address is valid until eng_batch_reset.
struct eng_segment *eng_batch_add(struct eng_batch *b, int32_t slot, enum eng_pass_kind kind, int32_t first_pos,
                                  int32_t rows);
// Asks for the choice of the segment's row `i` (0 .. rows - 1); the segment must be the last one added and rows come in
// rising order. The result has .row set and is the caller's to fill.
struct krn_select_row *eng_batch_want(struct eng_batch *b, struct eng_segment *segment, int32_t i);
// Asks for the length of the segment's verified prefix: every row of it must be wanted. It must be the last one added.
void eng_batch_accept(struct eng_batch *b, struct eng_segment *segment);
// The token of row `row` is choice `choice` of the batch submitted before this one.
void eng_batch_link(struct eng_batch *b, int32_t row, int32_t choice);
// What the batch costs (cost.h).
struct eng_cost_pass eng_batch_cost(const struct eng_batch *b);
