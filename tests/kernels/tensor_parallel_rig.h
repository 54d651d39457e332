// A composite of CPU backends beside one CPU backend: the same weights and rows in both, for the tests of
// tensor_parallel*.c.
#pragma once

#include "cmocka_util.h"
#include "host_comm.h"
#include "kern_util.h"
#include "tensor_parallel_inner.h"

enum { ROWS = 7, HEADS = 8, KV_HEADS = 4, HEAD_DIM = 6, WIDTH = HEADS * HEAD_DIM, FF = 20, VOCAB = 36, RANK = 3 };

struct rig {
    int32_t n;
    struct krn_backend *one, *many, *children[KRN_TENSOR_PARALLEL_MAX];
    struct host_comm *comm;
    struct random random;
    // A pass with one wanted row a row, so that ops may be called.
    int32_t tokens[ROWS], wanted_rows[ROWS];
    struct krn_segment segment;
    struct krn_select_row wanted[ROWS];
    struct krn_choice choices[ROWS];
    struct krn_accept accepts[1];
    struct krn_accepted accepted[1];
    struct krn_pass pass;
};

static const struct krn_limits limits = {.max_rows = ROWS,
                                         .max_segments = ROWS,
                                         .max_chunk = ROWS,
                                         .n_heads = HEADS,
                                         .n_kv_heads = KV_HEADS,
                                         .head_dim = HEAD_DIM,
                                         .n_vocab = VOCAB,
                                         .hidden = WIDTH,
                                         .ff = FF};

static inline void fill_pass(struct rig *rig)
{
    static const int32_t pages[ROWS] = {0};
    for (int32_t i = 0; i < ROWS; i++) {
        rig->tokens[i] = (5 * i + 3) % VOCAB;
        rig->wanted_rows[i] = i;
        rig->wanted[i] = (struct krn_select_row){.row = i, .top_p = 1, .repetition_penalty = 1};
    }
    rig->segment = (struct krn_segment){.rows = ROWS, .pages = pages};
    rig->pass = (struct krn_pass){.n_rows = ROWS,
                                  .tokens = rig->tokens,
                                  .segments = &rig->segment,
                                  .n_segments = 1,
                                  .wanted_rows = rig->wanted_rows,
                                  .wanted = rig->wanted,
                                  .n_wanted = ROWS,
                                  .choices = rig->choices,
                                  .accepted = rig->accepted};
}

static inline void rig_open(struct rig *rig, int32_t n)
{
    *rig = (struct rig){.n = n, .one = open_cpu(1, ~0u), .random = {7u + (uint64_t)n}};
    rig->many = open_tensor_parallel_cpu(n, rig->children, &rig->comm);
    fill_pass(rig);
}

static inline void rig_close(struct rig *rig)
{
    rig->one->close(rig->one->ctx);
    rig->many->close(rig->many->ctx);
}

// The same random weight in both.
struct weight {
    struct krn_tensor host, one, many;
};

static inline struct weight weight_open(struct rig *rig, enum krn_type type, int32_t rows, int32_t cols,
                                        enum krn_split split)
{
    struct weight w = {.host = tensor_random(&rig->random, type, rows, cols)};
    assert_int_equal(rig->one->import_weights(rig->one->ctx, &w.host, type, split, &w.one), 0);
    assert_int_equal(rig->many->import_weights(rig->many->ctx, &w.host, type, split, &w.many), 0);
    assert_int_equal(w.many.rows, rows);
    assert_int_equal(w.many.cols, cols);
    assert_int_equal(w.many.type, type);
    return w;
}

static inline void weight_close(struct rig *rig, struct weight *w)
{
    rig->one->drop_weights(rig->one->ctx, &w->one);
    rig->many->drop_weights(rig->many->ctx, &w->many);
    assert_null(w->many.data);
    tensor_free(&w->host);
}

// A matrix of activations in both, with the same random values: whole on every child, or each child's columns.
struct rows {
    float *one;
    void *many;
};

static inline float *part_of(const struct rows *m, int32_t d)
{
    return ((struct krn_tp_buffer *)m->many)->parts[d];
}

static inline struct rows rows_open(struct rig *rig, int32_t width, bool divided)
{
    struct rows m = {.one = rig->one->alloc_rows(rig->one->ctx, KRN_ROWS_STATE, ROWS, width, "test"),
                     .many = rig->many->alloc_rows(rig->many->ctx, KRN_ROWS_STATE, ROWS, width, "test")};
    int32_t share = divided ? width / rig->n : width;
    assert_non_null(m.many);
    fill_random(&rig->random, m.one, (size_t)ROWS * (size_t)width);
    for (int32_t d = 0; d < rig->n; d++)
        for (int32_t r = 0; r < ROWS; r++)
            memcpy(part_of(&m, d) + r * share, m.one + r * width + (divided ? d * share : 0),
                   (size_t)share * sizeof(float));
    return m;
}

static inline void rows_close(struct rig *rig, struct rows *m)
{
    rig->one->release(rig->one->ctx, m->one);
    rig->many->release(rig->many->ctx, m->many);
}

// Every child has exactly these bits (of its columns).
static inline void assert_same(const struct rig *rig, const struct rows *m, int32_t width, bool divided)
{
    int32_t share = divided ? width / rig->n : width;
    for (int32_t d = 0; d < rig->n; d++)
        for (int32_t r = 0; r < ROWS; r++)
            assert_memory_equal(part_of(m, d) + r * share, m->one + r * width + (divided ? d * share : 0),
                                (size_t)share * sizeof(float));
}

static inline void for_both_sizes(void (*body)(struct rig *rig))
{
    for (int32_t n = 2; n <= 4; n += 2) {
        struct rig rig;
        rig_open(&rig, n);
        body(&rig);
        rig_close(&rig);
    }
}

#define BOTH(rig, call_one, call_many)      \
    do {                                    \
        struct krn_backend *b = (rig)->one; \
        assert_int_equal(call_one, 0);      \
        b = (rig)->many;                    \
        assert_int_equal(call_many, 0);     \
    } while (0)
