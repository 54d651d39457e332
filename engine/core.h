// The engine's inside: what engine.c runs and open.c builds.
#pragma once

#include <pthread.h>
#include <stdatomic.h>

#include "decode.h"
#include "engine.h"
#include "events.h"
#include "forward.h"
#include "live.h"
#include "queue.h"
#include "request.h"
#include "router.h"
#include "sample.h"
#include "scheduler.h"
#include "stats.h"

struct eng_chat;
struct eng_tokenizer;

// What an engine is made of besides its options. The pointers must outlive the engine, or be freed by `release`.
struct eng_parts {
    struct eng_model model;                // closed with the engine
    const struct eng_tokenizer *tokenizer; // NULL: no text
    const struct eng_chat *chat;           // NULL: no template
    const int32_t *eos_ids;
    int32_t n_eos;
    struct eng_info info;         // modes is filled in by eng_open_model
    void (*release)(void *owner); // after the model was closed; may be NULL
    void *owner;
};

struct eng_engine {
    // Constant while the engine lives; read by any thread.
    struct eng_parts parts;
    struct eng_request_limits limits;
    struct eng_router router;
    int32_t eos_ids[16];

    // Hand-overs.
    struct eng_queue queue;
    struct eng_events events;
    struct eng_counters counters;
    struct eng_live_list live;
    atomic_bool closing; // written by eng_close, read by the engine thread
    atomic_bool failed;  // the backend is lost: set once by the engine thread after `failure`, read by any thread
    char failure[256];

    // Engine thread only.
    struct eng_scheduler sched;
    struct eng_decode_env env;
    struct eng_sampler sampler;
    struct eng_event_builder builder;
    struct eng_event *outbox, **outbox_tail; // published at the end of the step
    int32_t n_finished;                      // finish events in the outbox
    int64_t next_deadline_ns;                // no live request times out before
    struct eng_step *flying;                 // submitted ahead; the step that the next round begins with
    int64_t done_ns;                         // when the last step was done
    bool busy;                               // the thread has not slept since
    struct eng_cost_live cost_live;          // parts.info.cost against what steps take

    pthread_t thread;
};

// Starts an engine over any model. options: the fields that concern loading are ignored; info gives n_vocab,
// max_context, n_pages and page_size. Takes model and release over on success only.
int eng_open_model(const struct eng_options *options, const struct eng_parts *parts, struct eng_engine **ret_engine,
                   char *err, size_t err_size);

// A checkpoint as the parts of an engine (load.c). On failure *ret is untouched.
int eng_load(const struct eng_options *options, struct eng_parts *ret, char *err, size_t err_size);

// The engine thread.
void *eng_engine_run(void *engine);
