// One launch of a pass as data: what to start, with which arguments.
//
// Ops make steps and run them at once. While a pass is recorded for a graph they are also kept on a tape: if the
// recording fails, nothing has run, and the tape is what is left to run. Engine thread only.
#pragma once

#include "driver.h"
#include "kernels.h"
#include "ops.h"

enum krn_cuda_step_kind {
    KRN_STEP_EMBED,
    KRN_STEP_NORM,
    KRN_STEP_GATHER,
    KRN_STEP_SWIGLU,
    KRN_STEP_ROUND,
    KRN_STEP_FLATTEN,
    KRN_STEP_LINEAR,
    KRN_STEP_PRODUCT,
    KRN_STEP_ROPE_TABLE,
    KRN_STEP_ROPE_WRITE,
    KRN_STEP_ATTENTION,
    KRN_STEP_SELECT,
    KRN_STEP_ACCEPT,
};

// The library's product; see krn_cuda_driver.product.
struct krn_product_args {
    float *y;
    const void *x, *w;
    int32_t ldy, ldx, ldw, rows, outputs, cols;
};

struct krn_cuda_step {
    enum krn_cuda_step_kind kind;
    union {
        struct krn_embed_args embed;
        struct krn_norm_args norm;
        struct krn_gather_args gather;
        struct krn_swiglu_args swiglu;
        struct krn_round_args round;
        struct krn_flatten_args flatten;
        struct krn_linear_args linear;
        struct krn_product_args product;
        struct krn_rope_table_args rope_table;
        struct krn_rope_write_args rope_write;
        struct krn_attention_args attention;
        struct krn_select_args select;
        struct krn_accept_args accept;
    } as;
};

struct krn_cuda_tape {
    struct krn_cuda_step *steps;
    int32_t n, room;
};

// 0 or a KRN_E* code.
int krn_cuda_step_run(const struct krn_cuda_driver *driver, bool overlap, const struct krn_cuda_step *step);

// KRN_ENOMEM: no host memory.
int krn_cuda_tape_add(struct krn_cuda_tape *tape, const struct krn_cuda_step *step);
// Runs all steps in order; stops at the first failure.
int krn_cuda_tape_run(const struct krn_cuda_tape *tape, const struct krn_cuda_driver *driver, bool overlap);
void krn_cuda_tape_done(struct krn_cuda_tape *tape);
