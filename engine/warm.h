// Passes that nobody asked for, run once before the first request.
#pragma once

#include "forward.h"

struct eng_warm_limits {
    int32_t max_rows, max_segments; // of one pass
    int32_t n_pages, page_size;
};

// Runs passes of every small size and every kind: a backend that records passes then has those that decoding needs, and
// no request waits for a recording. Writes KV that nobody owns. The model must be idle. progress may be NULL. 0 or the
// model's code.
int eng_model_warm(const struct eng_model *model, const struct eng_warm_limits *limits,
                   void (*progress)(void *user, const char *what, double fraction), void *user);
