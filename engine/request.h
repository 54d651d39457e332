// 3 QUEUE  A request inside the engine: checked parameters, the prompt, and the generation made from them.
//
// The caller owns it until eng_submit and again once the finish event is taken; between the two it belongs to the
// engine thread, except for `cancelled`.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "engine.h"
#include "kernels.h"
#include "seq.h"

struct eng_event_block;
struct eng_queue;
struct eng_tokenizer;

// What a request is checked against.
struct eng_request_limits {
    int32_t n_vocab;
    int32_t max_context;
    const int32_t *eos_ids;
    int32_t n_eos;
    unsigned modes;                        // bits of enum eng_mode that the model can do
    enum eng_mode mode;                    // for requests that say AUTO
    int32_t block_length;                  // for requests that say 0
    float threshold;                       // for requests that say 0
    const struct eng_tokenizer *tokenizer; // may be NULL
};

struct eng_request {
    struct eng_params params; // with defaults filled in; its pointers lead into `memory` and the arrays below
    enum eng_mode mode;       // forced, or AUTO
    bool block_free;          // nobody asked for a block length, and it changes no text: it is the router's to choose
    int32_t *prompt;
    size_t n_prompt;
    int32_t *end_ids; // what ends the generation: the model's, unless ignored, and the request's
    size_t n_end_ids;
    struct krn_token_bias *biases; // [params.n_biases]
    uint32_t *allowed;             // tokens allowed in general; NULL: all
    uint32_t *allowed_early;       // tokens allowed before min_tokens; NULL: as later
    const struct eng_tokenizer *tokenizer;
    int32_t n_vocab;

    atomic_bool cancelled;    // written by any thread, read by the engine thread; only ever becomes true, so no lock
    struct eng_queue *queue;  // where it was submitted
    int64_t deadline_ns;      // 0: none
    struct eng_request *next; // in the submit list or among those that wait
    struct eng_request *prev, *child, *sibling, *up; // where it waits (tenants.c)
    int64_t turn_ns;                                 // whose turn is earlier comes first (tenants.h)
    struct eng_event_block *last;                    // memory reserved for the finish event; NULL once used
    struct eng_seq seq;
};

// eng_request_new against given limits.
int eng_request_make(const struct eng_request_limits *limits, const struct eng_params *params, const int32_t *prompt,
                     size_t n_prompt, struct eng_request **ret_request, const char **ret_param, char *err,
                     size_t err_size);
