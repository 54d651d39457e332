// The live picture behind /status: who runs, how, how fast. Written by the engine thread between two steps, copied out
// under a mutex.
#pragma once

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "engine.h"

struct eng_request;

struct eng_live_list {
    pthread_mutex_t mutex;
    struct eng_live *shown; // [cap], under the mutex
    int32_t n_shown, cap;
    int64_t shown_ns; // engine thread only: when it was made
};

// cap: requests that may run at once. 0 or ENG_ENOMEM.
int eng_live_init(struct eng_live_list *l, int32_t cap);
void eng_live_done(struct eng_live_list *l);
// Makes the picture anew if it has become old, if somebody has finished (a reader must not find a request that its
// owner may free) or if nobody runs any more. Engine thread; n <= cap.
void eng_live_publish(struct eng_live_list *l, struct eng_request *const *running, int32_t n, bool finished,
                      int64_t now_ns);
// Any thread. Copies at most max and returns how many.
int32_t eng_live_read(struct eng_live_list *l, struct eng_live *ret, int32_t max);
