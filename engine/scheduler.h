// 4 SCHEDULE  Who runs, and which rows of whom make up the next forward pass.
//
// Engine thread. Owns slots, pages, those that wait (tenants.c) and the batch; borrows the requests.
//
// Admission. The one whose turn it is (tenants.h) starts when a slot and pages for its prompt and one block are there,
// and for everyone who runs room for 16 more positions (an eighth of all pages, if that is less), so that nobody has to
// give way at once. max_tokens reserves nothing. Nobody overtakes it; whoever was preempted comes back only when
// everyone who runs has room for 65 more. When no slot is free and its tenant runs less than its share of them (slots /
// tenants), it gets the next one, and if nobody ends with its next token, the tenant that runs the most and more
// than its share gives one up at once. A tenant left with less than its share cannot come of that, so this never goes
// to and fro.
//
// Preemption. When pages run out, running sequences give all of theirs back and are computed again later; tokens and
// the mode's state stay, so the text does not change. Victims: the lowest priority, then the tenant that is most over
// its share of the pages, then the youngest; but never the first: of all that run, the one whose turn (turn_ns, then
// age) is the earliest.
//
// Progress. The first is never preempted and fits alone (max_context fits n_pages), budget.c gives it rows within a
// bounded number of passes, and a later arrival is before it only if it came within 10 s for each level of priority
// between them, so a finite number ever is: it ends, and so does the next. Hence slots come free again and again, each
// tenant has its turn in every round, and within it, of those that were preempted, the earliest is in the end the first
// of all. So everything ends, whatever else arrives.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "batch.h"
#include "budget.h"
#include "decode.h"
#include "kv.h"
#include "request.h"
#include "tenants.h"

struct eng_scheduler_limits {
    int32_t max_sequences, max_step_rows;
    int32_t piece_rows;   // of a prompt in one step while others decode, where time does not bound it
    double prompt_budget; // budget.h: stretch
    int32_t n_pages, page_size, max_context;
    bool prefix_cache;                // finished pages are shared by content
    const struct eng_cost *cost;      // NULL: no model
    const struct eng_cost_live *live; // its correction
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
    struct eng_step steps[KRN_PASSES_AHEAD]; // one is planned while the other runs
    struct eng_tenants tenants;              // and those that wait
    struct eng_budget budget;
    struct eng_request **running; // [n_running]; who is served first comes first
    int32_t n_running;
    int32_t *free_slots, n_free_slots;
    struct eng_request **parts; // [max_sequences] scratch: the participants of the step being filled
    uint64_t n_preemptions;
    uint64_t lost_rows;                   // computed, then lost by preemptions
    uint64_t prefix_queries, prefix_hits; // tokens looked up at admissions, and found
};

// max_context must fit n_pages, so that one sequence alone can always end. 0 or ENG_ENOMEM, ENG_EINVAL.
int eng_scheduler_init(struct eng_scheduler *s, const struct eng_scheduler_limits *limits);
void eng_scheduler_done(struct eng_scheduler *s);

// A request waits from now on.
void eng_scheduler_add(struct eng_scheduler *s, struct eng_request *r);
// Starts waiting requests while there is room (above), counting what the prefix cache has as there. Whole pages found
// there are not computed, but for the prompt's last token. No step may be under way. NULL, or a request that could not
// be started for want of memory: it is in no list any more, and the caller ends it and calls again.
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
