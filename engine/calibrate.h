// Measuring the cost model: what eng_calibrate and eng_open build, and the tests build on a fake.
#pragma once

#include "core.h"

// Measures on parts that no engine runs yet; they stay the caller's, and their KV pages hold nothing final afterwards.
// options: max_sequences, max_step_rows, progress. *ret is filled but for cost.id. On failure err holds one sentence.
int eng_calibrate_parts(const struct eng_options *options, const struct eng_parts *parts, double seconds,
                        struct eng_calibration *ret, char *err, size_t err_size);

// What a cost model of these parts must be of.
int eng_cost_identify(const char *model_dir, const struct eng_info *info, struct eng_cost_id *ret, char *err,
                      size_t err_size);

// Step of the opening: loads options->cost_model into parts->info, or measures one quickly, or leaves it without.
int eng_cost_open(const struct eng_options *options, struct eng_parts *parts, char *err, size_t err_size);
