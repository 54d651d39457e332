// The inner operations of the CPU backend: what a thread does on its share of an op.
//
// A task is an op's arguments, already checked; each function works on a range of the task's units (named beside it)
// and may be called for any partition of the units, by any threads. A unit's result never depends on the partition:
// that is where batch invariance comes from. Ops with several versions are in `struct krn_ops`, filled once by
// krn_ops_init; the others exist as reference only and are called directly.
#pragma once

#include "kernels.h"

#include <stdbool.h>

// The name of this translation unit's version of an op: krn_add_ref, or krn_add_avx512 where meson.build compiles the
// same file for AVX-512. Files compiled so use single IEEE operations in a fixed order, so that all versions have the
// same bits.
#ifndef KRN_ISA
#define KRN_ISA ref
#endif
#define KRN_PASTE(op, isa) op##_##isa
#define KRN_PASTE_VALUES(op, isa) KRN_PASTE(op, isa)
#define KRN_VERSION(op) KRN_PASTE_VALUES(op, KRN_ISA)

// ---- linear: units are outputs (rows of w) --------------------------------------------------------------------------

struct krn_linear_task {
    float *y;                   // [rows][ldy]
    const float *x;             // [rows][cols]
    const struct krn_tensor *w; // [outputs][cols]
    int32_t rows, ldy;
    bool add; // false: y = x w^T; true: y += scale * (x w^T)
    float scale;
};

// ---- attention: units are counted by krn_attention_units ------------------------------------------------------------

struct krn_attention_task {
    float *y;       // [rows][n_heads][head_dim]
    const float *q; // [rows][n_heads][head_dim]
    int32_t n_heads;
    const struct krn_kv *kv;
    int32_t layer;
    const struct krn_segment *segments;
    int32_t n_segments;
};

// Query vectors handled together in one unit: they share the loads of keys and values, nothing else.
enum { KRN_ATTENTION_QUERIES = 32 };

// One unit: rows [row, row + rows) of a segment (relative to the segment), query heads [head, head + heads) of kv_head.
struct krn_attention_unit {
    const struct krn_segment *segment;
    int32_t kv_head, head, heads, row, rows;
};

// How a task is cut into units: groups of heads that share a kv head, blocks of rows. Units are ordered by kv head
// first, so that an even split over threads is even for sequences of different lengths.
struct krn_attention_shape {
    int32_t heads;       // query heads a unit takes, at most
    int32_t head_groups; // units per kv head and block of rows
    int32_t rows;        // rows a unit takes, at most
    int64_t per_kv_head; // units per kv head
    int64_t units;       // all
};

struct krn_attention_shape krn_attention_shape(const struct krn_attention_task *task);
struct krn_attention_unit krn_attention_unit(const struct krn_attention_task *task,
                                             const struct krn_attention_shape *shape, int64_t index);

// The number of a position's vector of one head: its scale is there in kv->k_scales (kv->v_scales), and its elements
// start at this number * head_dim in kv->k (kv->v).
static inline size_t krn_kv_vector(const struct krn_kv *kv, int32_t layer, const int32_t *pages, int32_t kv_head,
                                   int32_t pos)
{
    size_t page = (size_t)layer * (size_t)kv->n_pages + (size_t)pages[pos / kv->page_size];
    return (page * (size_t)kv->n_kv_heads + (size_t)kv_head) * (size_t)kv->page_size + (size_t)(pos % kv->page_size);
}

// ---- ops whose reference is compiled for each instruction set -------------------------------------------------------

struct krn_rms_norm_task {
    float *y, *x;                    // [rows][width]; y may be x
    const float *add;                // [rows][width] or NULL
    const struct krn_tensor *weight; // width elements
    float eps;
    int32_t width;
};

// Units are rows.
typedef void krn_rms_norm_fn(const struct krn_rms_norm_task *task, int64_t begin, int64_t end);

struct krn_swiglu_task {
    float *y;               // [rows][width]; may be gate or up
    const float *gate, *up; // [rows][width]
    int32_t rows, width;
};

// Units are columns, of all rows.
typedef void krn_swiglu_fn(const struct krn_swiglu_task *task, int64_t begin, int64_t end);

// Units are elements.
typedef void krn_add_fn(float *x, const float *y, int64_t begin, int64_t end);

struct krn_select_task {
    const float *logits; // [.][n_vocab]
    int32_t n_vocab;
    int32_t banned_id;
    const struct krn_select_row *rows;
    struct krn_choice *choices;
};

// Working memory of one thread, for n_vocab tokens.
struct krn_select_scratch {
    float *value;  // logits after mask, penalties and bias
    float *scaled; // value / temperature
    int32_t *ids;  // candidates
    int32_t n_vocab;
};

// Units are choices.
typedef void krn_select_fn(const struct krn_select_task *task, struct krn_select_scratch *scratch, int64_t begin,
                           int64_t end);

// ---- the table ------------------------------------------------------------------------------------------------------

struct krn_ops {
    const char *linear_version, *attention_version;
    void (*linear)(const struct krn_linear_task *task, int64_t begin, int64_t end);
    void (*attention)(const struct krn_attention_task *task, int64_t begin, int64_t end);
    krn_rms_norm_fn *rms_norm;
    krn_swiglu_fn *swiglu;
    krn_add_fn *add;
    krn_select_fn *select;
};

// Fills the table with the best versions whose features (KRN_CPU_*) are all in `features`.
void krn_ops_init(struct krn_ops *ret_ops, uint32_t features);

void krn_linear_ref(const struct krn_linear_task *task, int64_t begin, int64_t end);
void krn_linear_avx2(const struct krn_linear_task *task, int64_t begin, int64_t end);
void krn_linear_avx512(const struct krn_linear_task *task, int64_t begin, int64_t end);
void krn_attention_ref(const struct krn_attention_task *task, int64_t begin, int64_t end);
void krn_attention_avx2(const struct krn_attention_task *task, int64_t begin, int64_t end);
void krn_attention_avx512(const struct krn_attention_task *task, int64_t begin, int64_t end);

krn_rms_norm_fn krn_rms_norm_ref, krn_rms_norm_avx2, krn_rms_norm_avx512;
krn_swiglu_fn krn_swiglu_ref, krn_swiglu_avx2, krn_swiglu_avx512;
krn_add_fn krn_add_ref, krn_add_avx2, krn_add_avx512;
krn_select_fn krn_select_ref, krn_select_avx2, krn_select_avx512;

// ---- ops with a reference only --------------------------------------------------------------------------------------

// Units are rows.
void krn_embed_ref(float *x, const struct krn_tensor *table, const int32_t *tokens, int64_t begin, int64_t end);

struct krn_rope_task {
    float *q, *k;
    int32_t n_heads, n_kv_heads;
    const struct krn_rope *rope;
    const struct krn_segment *segments;
    int32_t n_segments;
};

// Cosines and sines of recent positions; each thread has its own. Values are computed in double, so they are the same
// whoever computes them.
struct krn_rope_cache;

struct krn_rope_cache *krn_rope_cache_open(void); // NULL: no memory
void krn_rope_cache_close(struct krn_rope_cache *cache);

enum { KRN_ROPE_DIM_MAX = 512 }; // head_dim

// Units are rows of all segments, in the order of the segments.
void krn_rope_ref(const struct krn_rope_task *task, struct krn_rope_cache *cache, int64_t begin, int64_t end);

void krn_kv_write_ref(const struct krn_kv *kv, int32_t layer, const float *k, const float *v,
                      const struct krn_segment *segment);

// Units are gathered rows.
void krn_gather_ref(float *y, const float *x, const int32_t *rows, int32_t width, int64_t begin, int64_t end);
