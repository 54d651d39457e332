// A model of two layers with random weights, run through a backend as the engine does it: the same on every backend.
#pragma once

#include "kern_util.h"
#include "kernels.h"

enum {
    TINY_LAYERS = 2,
    TINY_HIDDEN = 40,
    TINY_HEADS = 4,
    TINY_KV_HEADS = 2,
    TINY_DIM = 10,
    TINY_FF = 56,
    TINY_VOCAB = 67,
    TINY_RANK = 3,
    TINY_PAGE = 4,
    TINY_PAGES = 64,
    TINY_ROWS = 80, // more than our own product takes at once
};

enum tiny_matrix {
    TINY_Q,
    TINY_K,
    TINY_V,
    TINY_O,
    TINY_GATE,
    TINY_UP,
    TINY_DOWN,
    TINY_NORM1,
    TINY_NORM2,
    TINY_PER_LAYER
};

// Host weights, all bf16. The same for every model of one seed.
struct tiny_weights {
    struct krn_tensor layers[TINY_LAYERS][TINY_PER_LAYER], embed, norm, head;
    struct krn_tensor a[TINY_LAYERS], b[TINY_LAYERS];
};

struct tiny_model {
    struct krn_backend *backend;
    struct tiny_weights w; // on the device
    struct krn_kv kv;
    struct krn_rope rope;
    float inv_freq[TINY_DIM / 2];
    int32_t chunk;
    void *x, *n, *q, *k, *v, *att, *add, *gate, *up, *ff, *scratch, *wanted_x, *logits;
};

struct tiny_options {
    int32_t chunk;         // 0: TINY_ROWS
    enum krn_type weights; // KRN_F32 (0): what the backend makes of bf16
    enum krn_type kv;      // KRN_F32 (0): the backend's choice
};

void tiny_weights_make(struct tiny_weights *ret);
void tiny_weights_free(struct tiny_weights *weights);

// 0 or what the backend answered; on failure nothing but the backend is left to close.
int tiny_open(struct tiny_model *ret, struct krn_backend *backend, const struct tiny_weights *host,
              const struct tiny_options *options);

// The ops of a pass that was begun.
int tiny_ops(struct tiny_model *m, const struct krn_pass *pass);
// begin, ops if asked for, submit. Returns begin's answer (0 or KRN_REPLAY) or a failure. After a failed op: abandon.
int tiny_start(struct tiny_model *m, const struct krn_pass *pass);
// tiny_start and wait.
int tiny_pass(struct tiny_model *m, const struct krn_pass *pass);

// ---- passes of several sequences ------------------------------------------------------------------------------------

enum tiny_wants { TINY_WANTS_NONE, TINY_WANTS_LAST, TINY_WANTS_ALL };
enum { TINY_SEQUENCES = 8, TINY_SEGMENTS = 32 };

// A pass and all its arrays; does not move. Sequences share the pages evenly, each in an order of its own.
struct tiny_plan {
    struct krn_pass pass;
    int32_t tokens[TINY_ROWS], links[TINY_ROWS];
    struct krn_segment segments[TINY_SEGMENTS];
    int32_t pages[TINY_SEGMENTS][TINY_PAGES];
    uint8_t adapter[TINY_ROWS];
    int32_t wanted_rows[TINY_ROWS];
    struct krn_select_row wanted[TINY_ROWS];
    struct krn_choice choices[TINY_ROWS];
    struct krn_accept accepts[TINY_SEGMENTS];
    struct krn_accepted accepted[TINY_SEGMENTS];
    int32_t n_sequences, chunk;
};

void tiny_plan_start(struct tiny_plan *p, int32_t n_sequences, int32_t chunk);
// Rows of one sequence. Its tokens are a function of sequence and position. Returns the first row.
int32_t tiny_plan_add(struct tiny_plan *p, int32_t sequence, int32_t first_pos, int32_t rows, enum krn_mask mask,
                      enum tiny_wants wants);
// The adapter for these rows.
void tiny_plan_adapt(struct tiny_plan *p, int32_t row, int32_t rows);
