// The requests of a load: random prompts, or those of a file.
#pragma once

#include <cjson/cJSON.h>

#include "bench_check.h"
#include "buf.h"
#include "config.h"

struct srv_bench_work {
    const struct srv_config *config; // lives longer
    char *model;                     // the name requests carry
    int64_t n_vocab;
    uint64_t seed;
    cJSON **items; // of the dataset; n_items = 0: random prompts
    size_t n_items;
};

// Next number of the sequence that *state stands in; equal on every machine.
uint64_t srv_bench_random(uint64_t *state);
// The same as a number from 0 to 1, both left out.
double srv_bench_random_unit(uint64_t *state);

// Reads the dataset if there is one; -1 and one sentence. Released with srv_bench_work_done in any case.
int srv_bench_work_open(struct srv_bench_work *w, const struct srv_config *c, char *err, size_t err_size);
// Takes the model's name and the size of its vocabulary from the answer to GET /v1/models, unless the settings say.
int srv_bench_work_models(struct srv_bench_work *w, const char *answer, size_t n, char *err, size_t err_size);
// The body of request i (from 0), what its stream must keep to, and the path it goes to (a constant).
const char *srv_bench_work_request(const struct srv_bench_work *w, uint64_t i, struct srv_buf *ret_body,
                                   struct srv_bench_expect *ret_expect);
void srv_bench_work_done(struct srv_bench_work *w);
