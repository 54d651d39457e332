// 4 SCHEDULE  Who runs, and which rows of whom make up the next forward pass.
//
// Engine thread. Owns slots, pages, the waiting list and the batch; borrows the requests. Order is by age (submission):
// the oldest never gives way to a younger one, which is why everything ends.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "batch.h"
#include "decode.h"
#include "kv.h"
#include "request.h"

struct eng_scheduler_limits {
    int32_t max_sequences, max_step_rows;
    int32_t piece_rows; // of a prompt in one step while others decode
    int32_t n_pages, page_size, max_context;
    bool prefix_cache; // finished pages are shared by content
};

// One pass: its batch and who takes part.
struct eng_step {
    struct eng_batch batch;
    struct eng_request **planned; // [batch.n_segments]: whose segment it is; NULL: it ended after it was planned
    int64_t submit_ns;
};

struct eng_scheduler {
    struct eng_scheduler_limits limits;
    struct eng_kv kv;
    struct eng_step steps[KRN_PASSES_AHEAD];     // one is planned while the other runs
    struct eng_request *waiting, **waiting_tail; // oldest first
    int32_t n_waiting;
    struct eng_request **running; // [n_running]; who is served first comes first
    int32_t n_running;
    int32_t *free_slots, n_free_slots;
    struct eng_request **parts; // [max_sequences] scratch: the participants of the step being filled
    bool prompts_waited;        // prompts had too few rows in the last step
    uint64_t n_preemptions;
    uint64_t prefix_queries, prefix_hits; // tokens looked up at admissions, and found
};

// max_context must fit n_pages, so that one sequence alone can always end. 0 or ENG_ENOMEM, ENG_EINVAL.
int eng_scheduler_init(struct eng_scheduler *s, const struct eng_scheduler_limits *limits);
void eng_scheduler_done(struct eng_scheduler *s);

// Adds a request behind the youngest.
void eng_scheduler_add(struct eng_scheduler *s, struct eng_request *r);
// Starts waiting requests, oldest first, while a slot is free and pages for the prompt and a block are, less those that
// the prefix cache has. Whole pages found there are not computed, but for the prompt's last token. NULL, or a request
// that could not be started for want of memory: it is in no list any more, and the caller ends it and calls
// again.
struct eng_request *eng_scheduler_admit(struct eng_scheduler *s);
// Takes a request out of whatever list holds it, and out of the steps that are planned, and frees its slot and pages. A
// pass that runs may still write to these pages; whoever gets them next writes them in a later pass.
void eng_scheduler_remove(struct eng_scheduler *s, struct eng_request *r);
// Fills the step's batch; no other step may be under way. NULL, or a request whose rows could not be planned for want
// of memory: it was not removed; the caller ends it and calls again. With running requests the batch has at least one
// segment.
struct eng_request *eng_scheduler_fill(struct eng_scheduler *s, const struct eng_decode_env *env,
                                       struct eng_step *step);
// Fills `next` with what follows `flying`, which was submitted and not committed, for everyone who runs. False, and an
// empty batch, when that depends on flying's choices, a waiting request could start instead, or pages are short; also
// when nobody goes on.
bool eng_scheduler_fill_ahead(struct eng_scheduler *s, const struct eng_step *flying, struct eng_step *next);
// After a commit: the sequence's final KV, whose whole pages others may use from now on. cut: give back the pages of
// rejected rows. Also for a sequence that has just ended, before it is removed, unless it failed: then its KV may not
// be worth sharing.
void eng_scheduler_committed(struct eng_scheduler *s, struct eng_request *r, bool cut);
