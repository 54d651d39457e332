// The backend interface: what the engine may ask of a device.
//
// A backend owns device memory and runs the operations of one forward pass. The engine never asks which backend it
// has: everything it needs is in `struct krn_backend`. Rules that hold for every entry:
//
//   * Every op accepts zero rows, allocates nothing, and returns 0 or a negative KRN_E* code.
//   * Every op may be asynchronous; results are visible to the host only after `wait`.
//   * A row's result is the same bits whatever the other rows are and however many there are (batch invariance).
//   * Activations are f32 here (the CPU); weights have the type of their `krn_tensor`.
//   * Only rope, kv_write and attention know about segments; every other op sees one flat matrix [rows][width].
//   * A backend is used by one thread at a time (the engine's). Its own pool is an inner matter.
//
// This header compiles alone and includes nothing of ours.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// ---- errors ---------------------------------------------------------------------------------------------------------

#define KRN_ERRORS(X)                                   \
    X(KRN_ENOMEM, -1, "out of device memory")           \
    X(KRN_EINVAL, -2, "argument out of range")          \
    X(KRN_ENOTSUP, -3, "not supported by this backend") \
    X(KRN_EDEVICE, -4, "device failure")

enum krn_error {
#define X(name, code, text) name = code,
    KRN_ERRORS(X)
#undef X
};

// One lower-case phrase for a code; never NULL.
const char *krn_strerror(int code);

// ---- data -----------------------------------------------------------------------------------------------------------

enum krn_type { KRN_F32, KRN_BF16 };

// Bytes of one element.
size_t krn_type_size(enum krn_type type);

// A weight matrix [rows][cols], row-major and dense, in device memory. cols is the input width of a linear.
struct krn_tensor {
    const void *data; // device address, aligned to the element type only (weights are mapped as they lie in the file)
    enum krn_type type;
    int32_t rows, cols;
};

// Low-rank addition to a linear: y += scale * (x A^T) B^T on the rows whose flag is set.
struct krn_adapter {
    struct krn_tensor a; // [rank][in]
    struct krn_tensor b; // [out][rank]
    float scale;
};

enum krn_mask {
    KRN_MASK_CAUSAL, // a row sees positions 0 .. its own
    KRN_MASK_BLOCK,  // a row sees positions 0 .. the segment's last (bidirectional inside the block)
};

// Consecutive rows of one sequence in the flat matrix. Their positions are first_pos, first_pos + 1, ...
// Every position below first_pos must already hold final KV.
struct krn_segment {
    int32_t row;       // index of its first row in the flat matrix
    int32_t rows;      // > 0
    int32_t first_pos; // position of the first row, >= 0
    enum krn_mask mask;
    const int32_t *pages; // host array: page numbers covering positions 0 .. first_pos + rows - 1
};

// The paged KV store of one model. Layout of `k` and of `v` (f32): [layer][page][kv_head][slot][head_dim].
struct krn_kv {
    void *k, *v;
    int32_t n_layers, n_pages, page_size, n_kv_heads, head_dim;
};

// Rotary embedding: half-split (NeoX). inv_freq has head_dim / 2 entries (YaRN already applied); q and k are multiplied
// by attention_factor; q also by 1 + query_beta * ln(1 + floor(pos / query_original_max)) (query_beta 0: no scaling).
struct krn_rope {
    const float *inv_freq; // host
    int32_t head_dim;
    float attention_factor;
    float query_beta;
    int32_t query_original_max;
};

// ---- select: from logits to a token ---------------------------------------------------------------------------------

// History of one token id, for penalties.
struct krn_token_count {
    int32_t token;
    int32_t in_output; // occurrences among the generated tokens
    int32_t in_prompt; // occurrences in the prompt (repetition penalty looks at both)
};

struct krn_token_bias {
    int32_t token;
    float bias;
};

// How one row's token is chosen. Order: raw logits -> log-probability (mask id excluded) ->
//   allowed mask -> repetition, frequency, presence penalties -> bias -> confidence (softmax of these, temperature 1)
//   -> temperature -> top-k -> top-p -> min-p -> + Gumbel noise -> argmax, lowest id on a tie.
struct krn_select_row {
    int32_t row;              // row of the logits matrix
    float temperature;        // 0: argmax
    int32_t top_k;            // 0: all
    float top_p;              // 1: all
    float min_p;              // 0: all
    float repetition_penalty; // 1: none
    float frequency_penalty, presence_penalty;
    uint64_t seed;                        // of the request
    int64_t position;                     // absolute position of the token being chosen: the noise's counter
    const uint32_t *allowed;              // host bitmap over the vocabulary, bit set = allowed; NULL: all
    const struct krn_token_count *counts; // host
    int32_t n_counts;
    const struct krn_token_bias *biases; // host; -100 or less forbids
    int32_t n_biases;
    int32_t n_top; // how many top log-probabilities are wanted, 0 .. KRN_TOP_MAX
};

enum { KRN_TOP_MAX = 20 };

struct krn_choice {
    int32_t token;    // -1: no token was allowed, or the logits were not finite
    float confidence; // softmax probability of the token at temperature 1, in [0, 1]
    float logprob;    // natural log of the raw softmax probability
    int32_t n_top;
    int32_t top_token[KRN_TOP_MAX]; // by descending raw log-probability, lower id first on a tie
    float top_logprob[KRN_TOP_MAX];
};

// ---- the backend ----------------------------------------------------------------------------------------------------

struct krn_backend {
    const char *name;        // "cpu", "cuda"
    const char *description; // one line for people: features, threads
    void *ctx;

    // Memory. Device addresses may be offset by the engine but are dereferenced only by the backend.
    // alloc: zeroed, 64-byte aligned, NULL when there is no memory. `purpose` names the category in the memory table.
    void *(*alloc)(void *ctx, size_t bytes, const char *purpose);
    void (*release)(void *ctx, void *ptr);
    // Makes host memory that outlives the backend readable by it. The CPU returns the same address (no copy).
    const void *(*import_weights)(void *ctx, const void *host, size_t bytes);
    int (*upload)(void *ctx, void *dst, const void *host, size_t bytes);
    int (*download)(void *ctx, void *host, const void *src, size_t bytes);
    int (*wait)(void *ctx);

    // x[r] = table[tokens[r]] as f32. tokens: host, each in [0, table->rows).
    int (*embed)(void *ctx, float *x, const struct krn_tensor *table, const int32_t *tokens, int32_t rows);

    // y[r][i] = x[r][i] / sqrt(mean(x[r]^2) + eps) * weight[i]. If add is not NULL, first x[r] += add[r] (kept in x).
    int (*rms_norm)(void *ctx, float *y, float *x, const float *add, const struct krn_tensor *weight, float eps,
                    int32_t rows, int32_t width);

    // y[r][o] = sum_i x[r][i] w[o][i] (+ adapter on rows with adapter_rows[r] != 0, host bytes). adapter may be NULL.
    // `scratch`: rows * rank f32 of device memory when adapter is given.
    int (*linear)(void *ctx, float *y, const float *x, const struct krn_tensor *w, int32_t rows,
                  const struct krn_adapter *adapter, const uint8_t *adapter_rows, float *scratch);

    // Rotates q [rows][n_heads][head_dim] and k [rows][n_kv_heads][head_dim] in place; positions come from the
    // segments.
    int (*rope)(void *ctx, float *q, float *k, int32_t n_heads, int32_t n_kv_heads, const struct krn_rope *rope,
                const struct krn_segment *segments, int32_t n_segments);

    // Stores k, v [rows][n_kv_heads][head_dim] into their sequences' pages of one layer.
    int (*kv_write)(void *ctx, const struct krn_kv *kv, int32_t layer, const float *k, const float *v,
                    const struct krn_segment *segments, int32_t n_segments);

    // y[r][h] = softmax(q[r][h] . K / sqrt(head_dim)) V over what the segment's mask lets the row see, read from the
    // pages (kv_write of the same rows comes first). Heads are grouped: query head h reads kv head h / (n_heads /
    // n_kv_heads).
    int (*attention)(void *ctx, float *y, const float *q, int32_t n_heads, const struct krn_kv *kv, int32_t layer,
                     const struct krn_segment *segments, int32_t n_segments);

    // y[r][i] = silu(gate[r][i]) * up[r][i]
    int (*swiglu)(void *ctx, float *y, const float *gate, const float *up, int32_t rows, int32_t width);

    // x[r][i] += y[r][i]
    int (*add)(void *ctx, float *x, const float *y, int32_t rows, int32_t width);

    // y[j] = x[rows[j]] : gathers the rows whose logits are wanted. rows: host.
    int (*gather)(void *ctx, float *y, const float *x, const int32_t *rows, int32_t n, int32_t width);

    // Chooses one token for each of n rows of logits [.][n_vocab]. banned_id (the mask id) is never chosen and is left
    // out of every probability; -1: none. ret: host, valid after `wait`.
    int (*select)(void *ctx, const float *logits, int32_t n_vocab, int32_t banned_id, const struct krn_select_row *rows,
                  int32_t n, struct krn_choice *ret);

    void (*close)(void *ctx); // frees everything; the backend struct too
};

// Opens the CPU backend. threads: 0 = physical cores. cpu_mask: ANDed with the features found (KRN_CPU_*), ~0u = all,
// 0 = reference versions only. On success *ret_backend is owned by the caller (backend->close). On failure it is
// untouched and err (may be NULL) holds one sentence.
int krn_open_cpu(int threads, uint32_t cpu_mask, struct krn_backend **ret_backend, char *err, size_t err_size);

enum krn_cpu_feature {
    KRN_CPU_AVX2 = 1u << 0,   // AVX2 + FMA
    KRN_CPU_AVX512 = 1u << 1, // AVX-512 F, BW, DQ, VL
};

// What this machine's CPU offers (KRN_CPU_*).
uint32_t krn_cpu_features(void);

#ifdef __cplusplus
}
#endif
