// 3 QUEUE  The bounded submit list, and how the engine thread sleeps.
//
// `mutex` protects every field. Any thread submits and wakes; only the engine thread takes and waits.
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct eng_request;

struct eng_queue {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    struct eng_request *head, **tail;
    int32_t n_live, max_live; // submitted and not yet finished
    bool woken;               // a cancel, or the end of the engine, that the engine thread has not seen
    int refuse;               // 0, or the code that submit answers
    uint64_t next_age;
};

int eng_queue_init(struct eng_queue *q, int32_t max_live);
void eng_queue_done(struct eng_queue *q);

// 0, ENG_EBUSY when max_live are live, or the code of eng_queue_refuse. On success the queue owns r.
int eng_queue_submit(struct eng_queue *q, struct eng_request *r);
// From now on submit answers code. The first code stays, unless the new one is ENG_EDEVICE.
void eng_queue_refuse(struct eng_queue *q, int code);
// Makes the engine thread look: take returns at once.
void eng_queue_wake(struct eng_queue *q);
// The whole list in order. wait: sleep until there is something to take or someone woke us. *ret_woken: someone did.
struct eng_request *eng_queue_take(struct eng_queue *q, bool wait, bool *ret_woken);
// Submitted and not yet finished. Any thread.
int32_t eng_queue_live(struct eng_queue *q);
// n requests have finished.
void eng_queue_finished(struct eng_queue *q, int32_t n);
