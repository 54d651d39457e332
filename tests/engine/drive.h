// One sequence stepped by hand over the fake model: no thread, no scheduler, pages in order. For tests of a single
// mode.
#pragma once

#include "core.h"
#include "fake_model.h"

struct drive {
    struct fake_model fake;
    struct eng_model model;
    struct eng_batch batch;
    struct eng_sampler sampler;
    struct eng_decode_env env;
    struct eng_event_builder builder;
    struct eng_request_limits limits;
    struct eng_request *r;
    int32_t pages[64];
    struct eng_run run; // of the last step
    int32_t taken;      // of the last step
};

// Opens the fake and starts one request. The context is 200 tokens unless limits.max_context is changed before by
// `context`.
void drive_open(struct drive *d, struct fake_model fake, const struct eng_params *params, const int32_t *prompt,
                size_t n_prompt, int32_t context);
// One pass in the request's mode (prompts in pieces of at most 64 rows). Returns the kind of the pass.
enum eng_pass_kind drive_step(struct drive *d);
// Steps until the generation ends.
void drive_to_end(struct drive *d);
// Fails the test on a fault of the model.
void drive_close(struct drive *d);
