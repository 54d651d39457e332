// The numbers behind /metrics: counted by the engine thread, copied out under a mutex between two steps.
#pragma once

#include <pthread.h>

#include "engine.h"

struct eng_counters {
    struct eng_stats now; // engine thread only
    pthread_mutex_t mutex;
    struct eng_stats shown; // under the mutex
};

int eng_counters_init(struct eng_counters *c);
void eng_counters_done(struct eng_counters *c);
// Makes `now` the copy that readers get.
void eng_counters_publish(struct eng_counters *c);
// Any thread.
void eng_counters_read(struct eng_counters *c, struct eng_stats *ret);

void eng_hist_add(struct eng_hist *h, double value);
