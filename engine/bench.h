// Benches over any model: what eng_bench_open builds (engine.h) and the tests build on a fake.
#pragma once

#include "core.h"

// Takes the parts over on success only. options: max_sequences and max_step_rows; parts->info gives max_context,
// n_pages and page_size.
int eng_bench_make(const struct eng_options *options, const struct eng_parts *parts, struct eng_bench **ret, char *err,
                   size_t err_size);
// As eng_bench_pass with another number of warm-ups.
int eng_bench_measure(struct eng_bench *b, const struct eng_bench_shape *shape, int warm_ups, int runs,
                      struct eng_bench_time *ret);
// What the pass that was measured last costs.
struct eng_cost_pass eng_bench_cost(const struct eng_bench *b);
// Frees all but the parts, which go back to the caller.
void eng_bench_leave(struct eng_bench *b);
