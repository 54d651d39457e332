// 4 SCHEDULE  The waiting requests, by tenant: whose turn it is to start.
//
// A tenant is whoever shares one part of the machine: an API key. Among tenants the turn goes by deficit round robin in
// positions, so that one that sends a thousand requests gets no more than one that sends two, but those come first that
// run less than their share of the slots. Within a tenant the order is: who was preempted, then by `turn_ns`, which is
// the time of submission plus ENG_PRIORITY_NS for each level of priority. So a level is worth ten seconds of waiting,
// however much arrives, and nobody waits for ever behind what is more urgent.
//
// Engine thread. The lists run through the requests; memory is taken once, by init. Adding is O(1), taking and removing
// O(log n) amortised (a pairing heap), plus O(tenants that wait) for a turn.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

struct eng_request;

#define ENG_PRIORITY_NS INT64_C(10000000000)

struct eng_tenant {
    int32_t n_running, n_waiting;
    struct eng_request *heap;       // of those that wait
    int64_t deficit;                // positions it may still start in this round
    struct eng_tenant *next, *prev; // in the round of those that wait

    // Of the pass being filled (budget.c).
    double credit, alone; // time it may still add; time of its rows without the others
    bool served;          // has rows
    bool no_room;         // some of its blocks did not fit what the others left of the rows
    bool squeezed;        // that was so in the last pass, and nothing of it was served
    bool prompts_waited;  // had prompts and no rows for them in the last pass
    int32_t first, last;  // its running requests, a chain of indices
    int32_t n_decoders, n_prompts;
    // Of a preemption (scheduler.c).
    int32_t n_pages;
};

struct eng_tenants {
    struct eng_tenant *all;          // [ENG_MAX_TENANTS]
    struct eng_tenant *first, *last; // those that wait; the first has the turn
    struct eng_request *head, *tail; // every waiting request, in no order that means anything
    int32_t n_waiting, n_active;     // requests that wait; tenants with any request, running or waiting
    int32_t n_slots;                 // what they share
};

// 0 or ENG_ENOMEM.
int eng_tenants_init(struct eng_tenants *w, int32_t n_slots);
void eng_tenants_done(struct eng_tenants *w); // takes a zeroed one

struct eng_tenant *eng_tenants_of(const struct eng_tenants *w, const struct eng_request *r);
// Slots of each while all that are active want some, at least 1.
int32_t eng_tenants_share(const struct eng_tenants *w);

// A request waits from now on. Sets its turn_ns.
void eng_tenants_add(struct eng_tenants *w, struct eng_request *r);
// It waits no more, wherever it stood.
void eng_tenants_remove(struct eng_tenants *w, struct eng_request *r);
// Who starts next, or NULL; the same one until the next change.
struct eng_request *eng_tenants_next(struct eng_tenants *w);
// Removes what eng_tenants_next gave, which starts: its tenant pays for it. A preempted one has paid.
void eng_tenants_take(struct eng_tenants *w, struct eng_request *r);
// r runs from now on, or does not any more.
void eng_tenants_started(struct eng_tenants *w, const struct eng_request *r);
void eng_tenants_stopped(struct eng_tenants *w, const struct eng_request *r);

// a came before b: by turn_ns, then age.
bool eng_tenants_before(const struct eng_request *a, const struct eng_request *b);
