// 8 STREAM  Events: one memory block each, built on the engine thread, taken by the caller as one list.
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "engine.h"
#include "kernels.h"

struct eng_request;

// An event with the memory it owns. `ev` comes first, so an event's address is its block's.
struct eng_event_block {
    struct eng_event ev;
    struct eng_request_stats stats;
    char error[256];
};

// Memory for one finish event, so that a request can always be finished. NULL when there is none.
struct eng_event_block *eng_event_reserve(void);
// Takes NULL.
void eng_event_release(struct eng_event_block *block);

// Collects one run. Its buffers are reused for the next one. Zero-initialise to start.
struct eng_event_builder {
    struct eng_buf text;
    struct eng_token *tokens; // top lists are offsets into `tops` while building
    int32_t n_tokens, cap_tokens;
    struct krn_choice *tops; // [cap_tokens]
};
void eng_event_builder_reset(struct eng_event_builder *b);
void eng_event_builder_done(struct eng_event_builder *b);
// Adds a token whose text (as far as it stands) is already in b->text. n_top: -1 or how many alternatives are wanted.
// choice may be NULL. 0 or ENG_ENOMEM.
int eng_event_builder_token(struct eng_event_builder *b, int32_t id, const struct krn_choice *choice, int32_t n_top);

// Makes the event of a run, or the end when the request's sequence has a finish. NULL when there is no memory; with a
// finish the reserved block is used then and the event carries no text and no tokens, so NULL cannot happen.
struct eng_event *eng_event_build(const struct eng_event_builder *b, struct eng_request *r);

// Makes a draft event of what the request's block holds, after a denoise pass or a draft. NULL when there is no memory.
struct eng_event *eng_event_draft(struct eng_request *r);

// The list that the caller takes. One mutex; the notification is called without it.
struct eng_events {
    pthread_mutex_t mutex;
    struct eng_event *head, **tail;
    void (*notify)(void *user);
    void *user;
};
int eng_events_init(struct eng_events *l, void (*notify)(void *user), void *user);
// Frees events that were not taken, and the requests of those that are finish events.
void eng_events_done(struct eng_events *l);
// Appends a list (linked by next) and notifies. Takes NULL.
void eng_events_publish(struct eng_events *l, struct eng_event *first);
struct eng_event *eng_events_take(struct eng_events *l);
