// The CUDA backend's kernels from the outside: what each reads and writes, and how to start it. C and CUDA C++.
//
// Every krn_cuda_* function below puts kernels on launch.stream and returns 0 or KRN_EDEVICE. Launch shapes depend on
// the arguments alone, never on the pass's content: a captured launch stays right for every pass of its bucket. `rows`
// is the bucket; kernels read the true counts in `pass` and must not write rows beyond them to the KV store, while rows
// of activations up to the bucket may hold anything (no value crosses from one row to another).
//
// Layouts. STATE: f32 [rows][width]. INPUT: bf16 [rows][KRN_PAD(width)], the padding zero. OUTPUT: struct krn_dev_sums.
// Weights: rows of krn_weight_stride elements, the padding zero (quant.h, which has the order of fp8 and q4 in a row).
// KV: see struct krn_dev_kv.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "device_pass.h"
#include "launch.h"

#ifdef __cplusplus
extern "C" {
#endif

#define KRN_PAD_TO(n, to) (((n) + (to)-1) / (to) * (to))
#define KRN_PAD(n) KRN_PAD_TO(n, 32)

// Rows that a product reads and writes at once; activations are allocated in multiples of it.
enum { KRN_ROW_TILE = 64 };

// What a product leaves: the value of [r][i] is
//     data[0][r][i] + data[1][r][i] + ... + data[n - 1][r][i]  (in this order)  (+ data[n][r][i] where extra and
//     adapter_rows[r]),
// each matrix f32 [rows][width], `stride` floats apart.
struct krn_dev_sums {
    float *data;
    int64_t stride;
    int32_t n;
    int32_t width;
    int32_t extra; // 1: the adapter's addition is in data[n], for the rows whose flag is set
};

struct krn_dev_weight {
    const void *data;   // [rows][padded cols]
    const void *scales; // fp8: f32 [rows]; q4: bf16 [rows][KRN_PAD_TO(cols, 128) / 32]
    int32_t type;       // enum krn_type: KRN_BF16, KRN_FP8, KRN_Q4
    int32_t rows, cols;
};

// [layer][page][kv_head][slot][KRN_KV_DIM(head_dim)], bf16 or e4m3; scales f32 [layer][page][kv_head][slot] (e4m3).
#define KRN_KV_DIM(head_dim) ((head_dim) <= 32 ? 32 : (head_dim) <= 64 ? 64 : 128)
struct krn_dev_kv {
    void *k, *v;
    float *k_scales, *v_scales; // NULL for bf16
    int32_t fp8;
    int32_t n_pages, page_size, n_kv_heads, head_dim; // head_dim even, at most 128
};

// ---- rows (rows.cu) -------------------------------------------------------------------------------------------------

// x[r] = table[token of r]; resolves links through last_choices and writes every row's token to row_tokens.
struct krn_embed_args {
    const struct krn_dev_pass *pass;
    const void *table; // bf16 or f32 [n_vocab][padded hidden]
    int32_t table_f32, hidden, table_stride, rows;
    float *x;                                  // [rows][hidden]
    const struct krn_dev_choice *last_choices; // of the pass before
    int32_t *row_tokens;                       // [rows]
};
int krn_cuda_embed(struct krn_cuda_launch how, const struct krn_embed_args *args);

// x += add; y = x / sqrt(mean(x^2) + eps) * weight. add.data NULL: nothing is added; y NULL: no norm.
struct krn_norm_args {
    const struct krn_dev_pass *pass;
    float *x; // [rows][width]
    struct krn_dev_sums add;
    uint16_t *y; // INPUT
    const void *weight;
    int32_t weight_f32, rows, width;
    float eps;
};
int krn_cuda_norm(struct krn_cuda_launch how, const struct krn_norm_args *args);

// y[j] = x[wanted_rows[first + j]], j < rows (rows beyond the pass's wanted are left alone).
struct krn_gather_args {
    const struct krn_dev_pass *pass;
    const float *x;
    float *y;
    int32_t first, rows, width;
};
int krn_cuda_gather(struct krn_cuda_launch how, const struct krn_gather_args *args);

// y = silu(gate) * up, for products made by the library. y INPUT.
struct krn_swiglu_args {
    struct krn_dev_sums gate, up;
    uint16_t *y;
    int32_t rows, width;
};
int krn_cuda_swiglu(struct krn_cuda_launch how, const struct krn_swiglu_args *args);

// y = bf16 of the sums: the low-rank inner vector of the adapter becomes the input of its second product. y INPUT.
struct krn_round_args {
    struct krn_dev_sums x;
    uint16_t *y;
    int32_t rows, width;
};
int krn_cuda_round(struct krn_cuda_launch how, const struct krn_round_args *args);

// x[r][i] = sums of [r][i] as one plain matrix in sums.data[0] (for the all-reduce of tensor parallelism).
struct krn_flatten_args {
    const struct krn_dev_pass *pass;
    struct krn_dev_sums x;
    int32_t rows;
};
int krn_cuda_flatten(struct krn_cuda_launch how, const struct krn_flatten_args *args);

// ---- products (linear.cu) -------------------------------------------------------------------------------------------

// y_i = x W_i^T for up to 4 matrices of one type and one input width, y_i OUTPUT.
//
// K of matrix i is cut into y[i].n parts (1 .. KRN_LINEAR_SUMS_MAX), one partial matrix each. The caller takes that
// number from krn_cuda_linear_sums, or 1 where a plain matrix is wanted: never from the number of rows, so the order of
// every sum depends on the weight's shape and type alone. gated: two matrices of one shape, in one part each; the
// result silu(x W_0^T) * (x W_1^T) is written to `gated_y` as INPUT and nothing to y.
struct krn_linear_args {
    const uint16_t *x; // INPUT [rows][KRN_PAD(cols)], allocated to a multiple of KRN_ROW_TILE rows
    int32_t rows, cols, n;
    struct krn_dev_weight w[4];
    struct krn_dev_sums y[4];
    uint16_t *gated_y; // NULL: plain
    float scale;       // of everything; 1 but for the adapter's second product
};
// Into how many parts K of a weight of this shape is best cut to fill a GPU: a function of the shape alone.
enum { KRN_LINEAR_SUMS_MAX = 8 };
int32_t krn_cuda_linear_sums(int32_t outputs, int32_t cols);
int krn_cuda_linear(struct krn_cuda_launch how, const struct krn_linear_args *args);

// ---- rope, KV, attention (rope.cu, attention.cu) --------------------------------------------------------------------

// cos and sin of every row's position, computed in double once a pass: table[r][i] = {cos, sin} * attention_factor,
// i < head_dim / 2; q_scale[r] = 1 + query_beta * ln(1 + floor(pos / query_original_max)).
struct krn_rope_table_args {
    const struct krn_dev_pass *pass;
    const float *inv_freq; // device, [head_dim / 2]
    float attention_factor, query_beta;
    int32_t query_original_max, head_dim, rows;
    float *table;   // [rows][head_dim / 2][2]
    float *q_scale; // [rows]
};
int krn_cuda_rope_table(struct krn_cuda_launch how, const struct krn_rope_table_args *args);

// Sums q, k, v; rotates q and k; stores k and v into the pages; leaves q as bf16 [rows][n_heads][KRN_KV_DIM(head_dim)]
// (padding zero) in q_out, multiplied by log2(e) / sqrt(head_dim) so that scores are exponents of 2.
struct krn_rope_write_args {
    const struct krn_dev_pass *pass;
    struct krn_dev_sums q, k, v;
    uint16_t *q_out;
    const float *table, *q_scale;
    struct krn_dev_kv kv;
    int32_t layer, n_heads, rows;
};
int krn_cuda_rope_write(struct krn_cuda_launch how, const struct krn_rope_write_args *args);

struct krn_attention_args {
    const struct krn_dev_pass *pass;
    const uint16_t *q; // q_out above
    uint16_t *y;       // INPUT [rows][KRN_PAD(n_heads * head_dim)]
    struct krn_dev_kv kv;
    int32_t layer, n_heads, rows;
    int32_t blocks; // of the persistent grid
    float *sums;    // [slots][krn_cuda_attention_slot]: one query's values, largest score, total; aligned to 16
};
int krn_cuda_attention(struct krn_cuda_launch how, const struct krn_attention_args *args);
// Floats of one slot.
int64_t krn_cuda_attention_slot(int32_t head_dim);

// ---- choices (select.cu) --------------------------------------------------------------------------------------------

struct krn_select_args {
    const struct krn_dev_pass *pass;
    const float *logits; // [rows][n_vocab]
    float *work;         // [rows][n_vocab]: adjusted logits of rows that need them
    int32_t n_vocab, banned_id;
    int32_t first, rows;            // wanted rows first .. first + rows of the pass
    struct krn_dev_choice *choices; // of the whole pass
    struct krn_dev_top *tops;       // of the whole pass
};
int krn_cuda_select(struct krn_cuda_launch how, const struct krn_select_args *args);

struct krn_accept_args {
    const struct krn_dev_pass *pass;
    const int32_t *row_tokens;
    const struct krn_dev_choice *choices;
    struct krn_dev_accepted *accepted; // [accepts]
    int32_t accepts;                   // bucket
};
int krn_cuda_accept(struct krn_cuda_launch how, const struct krn_accept_args *args);

// ---- weights on their way in (pack.cu) ------------------------------------------------------------------------------

// Rows [first, first + rows) of a matrix, dense f32 or bf16 in `from`, into its device layout and type.
struct krn_pack_args {
    const void *from; // [rows][cols]
    int32_t from_f32;
    int32_t first, rows, cols;
    int32_t type;   // KRN_F32 (norms, embeddings of f32 files), KRN_BF16, KRN_FP8, KRN_Q4
    void *data;     // the whole matrix
    void *scales;   // likewise, or NULL
    int32_t stride; // elements of a row of data
};
int krn_cuda_pack(struct krn_cuda_launch how, const struct krn_pack_args *args);

#ifdef __cplusplus
}
#endif
