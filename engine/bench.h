// Benches over any model: what eng_bench_open builds (engine.h) and the tests build on a fake.
#pragma once

#include "core.h"

// Takes the parts over on success only. options: max_sequences and max_step_rows; parts->info gives max_context,
// n_pages and page_size.
int eng_bench_make(const struct eng_options *options, const struct eng_parts *parts, struct eng_bench **ret, char *err,
                   size_t err_size);
