// A load of the engine, made from a seed: the engine's settings, the requests, when they come and when they are given
// up. What is drawn stands in tables (workload.c), one line a parameter. The same seed gives the same load; what
// depends on time (who is preempted, whom a timeout ends) may still differ from run to run.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "engine.h"
#include "fake_model.h"

enum { WORKLOAD_CONTEXT = 200, WORKLOAD_POOL = 40 };

// Beginnings of prompts, which requests share. Ids are taken modulo the vocabulary.
struct workload_pool {
    int32_t n, lengths[WORKLOAD_POOL], ids[WORKLOAD_POOL][WORKLOAD_CONTEXT];
};

// What the client does after a submission.
enum workload_pause { PAUSE_NONE, PAUSE_LOOK, PAUSE_EVENT, PAUSE_IDLE, N_PAUSES };

struct workload_request {
    struct eng_params params; // its lists point into this request, which must not move
    int32_t stop_ids[2];
    const char *stops[3];
    struct eng_logit_bias biases[3];

    // The prompt: that of the parent and its answer (-1: no parent) or the beginning of a pool entry, then own ids.
    int32_t parent, entry, n_shared, n_own;
    int32_t own[WORKLOAD_CONTEXT];

    enum workload_pause pause;
    int32_t cancel_after; // tokens; 0: at once; -1: not
    int32_t cancel_with;  // when this later request is submitted; -1: not
};

struct workload {
    uint64_t seed;
    struct eng_options options;
    int32_t max_context;
    struct fake_model fake; // its pages are those of a real model too
    int32_t n_requests;
    struct workload_request *requests;
};

// n_vocab: of the real model; 0: the fake one, whose tokenizer has tokenizer_vocab ids, the letters from `letters` on.
struct workload_vocab {
    int32_t n_vocab, tokenizer_vocab, letters;
};

void workload_make(struct workload *w, uint64_t seed, const struct workload_vocab *vocab,
                   const struct workload_pool *pool);
void workload_done(struct workload *w);
// Writes the request's prompt. parent, n_parent: the ids of the parent's prompt and answer. Returns its length, which
// is at least 1 and leaves room for one token at least.
int32_t workload_prompt(const struct workload *w, const struct workload_request *r, const struct workload_pool *pool,
                        int32_t n_vocab, const int32_t *parent, int32_t n_parent, int32_t *ret_ids);
// The same request for a run in AR.
struct eng_params workload_ar_params(const struct workload_request *r);
