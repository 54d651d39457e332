// How many KV pages there are: from the options, the model's shape and the memory that the backend has left.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "engine.h"
#include "kernels.h"

struct eng_weights;

struct eng_kv_plan {
    enum krn_type type; // KRN_N_TYPES: the backend's choice
    int32_t page_size;
    int32_t context;    // tokens of one sequence, as asked or as the model has them
    int64_t page_bytes; // in all layers
    int64_t most_pages; // that can be of use, and that the options allow
};

// Checks the options that concern KV and bounds the pages. After the weights were loaded. 0 or ENG_EINVAL, ENG_ENOTSUP.
int eng_kv_plan_begin(const struct eng_options *o, const struct krn_backend *backend, const struct eng_weights *weights,
                      struct eng_kv_plan *ret, char *err, size_t err_size);
// Decides, once everything else has its memory: *ret_pages, *ret_context. ENG_ENOMEM, with what is needed and what
// there is, when a device has too little.
int eng_kv_plan_end(const struct eng_options *o, const struct krn_backend *backend, const struct eng_kv_plan *plan,
                    int32_t *ret_pages, int32_t *ret_context, char *err, size_t err_size);
