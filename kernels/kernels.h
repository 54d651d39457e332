// The backend interface: what the engine may ask of a device.
//
// A backend owns device memory and runs the operations of forward passes. The engine never asks which backend it has:
// everything it needs is in `struct krn_backend`. Rules that hold for every entry:
//
//   * Every op accepts zero rows, allocates nothing, and returns 0 or a negative KRN_E* code.
//   * Every op may be asynchronous; results are visible to the host only after `wait`.
//   * The ops of a pass stand between `begin` and `submit`. A backend may have recorded a pass of the same shape and
//     play it again: `begin` then returns KRN_REPLAY and no op is called before `submit`.
//   * A row's result is the same bits whatever the other rows are and however many there are (batch invariance).
//   * The element type of activations is the backend's (f32 on the CPU); weights have the type of their `krn_tensor`.
//   * Only rope_write and attention know about segments; every other op sees one flat matrix [rows][width].
//   * A backend is used by one thread at a time (the engine's). Its own pool is an inner matter.
//
// This header compiles alone and includes nothing of ours.
#pragma once

#include <stdbool.h>
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

enum krn_type {
    KRN_F32,
    KRN_BF16,
    KRN_FP8, // e4m3, one f32 scale a row
    KRN_Q4,  // 4-bit integers -8 .. 7, one bf16 scale for every 32 consecutive elements of a row
    KRN_Q8,  // of keys and values only: 8-bit integers -127 .. 127, one f32 scale a row
    KRN_N_TYPES
};
enum { KRN_Q4_GROUP = 32 };

// "f32", "bf16", "fp8", "q4", "q8".
const char *krn_type_name(enum krn_type type);
// Bytes of one element; of types with scales the element alone (q4: 0, two share one).
size_t krn_type_size(enum krn_type type);
// Bytes of a dense matrix with its scales.
int64_t krn_matrix_bytes(enum krn_type type, int64_t rows, int64_t cols);

// A weight matrix [rows][cols], row-major, in device memory. cols is the input width of a linear. On the host
// (checkpoint files) it is dense; in device memory rows may be padded (the backend's matter).
struct krn_tensor {
    const void *data; // address, aligned to the element type only (weights are mapped as they lie in the file)
    enum krn_type type;
    int32_t rows, cols;
    const void *scales; // KRN_FP8: f32 [rows]; KRN_Q4: bf16 [rows][ceil(cols / 32)]; else NULL
};

// How a weight may be divided among several devices.
enum krn_split {
    KRN_SPLIT_NONE,    // every device has it whole
    KRN_SPLIT_OUTPUTS, // by rows: each device computes a part of the outputs
    KRN_SPLIT_INPUTS,  // by columns: each device reads a part of the input; the sums are added
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
// Every position below first_pos must already hold final KV, or get it from an earlier pass that was submitted.
struct krn_segment {
    int32_t row;       // index of its first row in the flat matrix
    int32_t rows;      // > 0
    int32_t first_pos; // position of the first row, >= 0
    enum krn_mask mask;
    const int32_t *pages; // host array: page numbers covering positions 0 .. first_pos + rows - 1
};

// The paged KV store of one model, in the layout of its backend (the CPU: [layer][page][kv_head][slot][head_dim]). Made
// by kv_open. Keys and values are rounded to its type when they are written, and every row reads them from it, its own
// included: so nothing depends on which pass wrote them.
struct krn_kv {
    void *k, *v;
    float *k_scales, *v_scales; // KRN_FP8, KRN_Q8: one scale a vector, [layer][page][kv_head][slot]; else NULL
    enum krn_type type;         // KRN_F32 (auto), KRN_BF16 or KRN_Q8 on the CPU; KRN_BF16 (auto) or KRN_FP8 on CUDA
    int32_t n_layers, n_pages, page_size, n_kv_heads, head_dim;
};

// What a matrix of activations is for; a backend chooses its layout accordingly.
enum krn_rows_kind {
    KRN_ROWS_STATE,  // f32, plain: the residual stream and logits
    KRN_ROWS_INPUT,  // what linears read; written by rms_norm, attention and gated
    KRN_ROWS_OUTPUT, // what linears write; read by rms_norm, add and rope_write
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

// ---- a pass ---------------------------------------------------------------------------------------------------------

// A verified block: are the tokens of rows row + 1 .. row + rows - 1 what rows row .. row + rows - 2 chose?
struct krn_accept {
    int32_t row, rows; // of the pass
    int32_t choice;    // index among the pass's wanted rows of row's choice; the others follow it
};

struct krn_accepted {
    int32_t n;    // tokens that are final: the accepted ones and one more, 1 .. rows; 0: a needed choice had no token
    int32_t seed; // the last of them
};

// All that a pass reads from the host and writes to it. The arrays belong to the caller and stay unchanged from begin
// until the pass was waited for (choices: until the next begin too, which links look at); what segments and wanted
// point to (pages, counts, biases, allowed) only until submit. Ops are given these very arrays (or, select and gather,
// parts of them).
struct krn_pass {
    int32_t n_rows;
    int32_t *tokens;      // [n_rows]; begin may replace linked tokens by what they are linked to
    const int32_t *links; // [n_rows] or NULL; >= 0: the row's token is the choice with this index of the pass submitted
                          // before (of a choice without a token: token 0)
    const struct krn_segment *segments; // in the order of their rows, covering all rows
    int32_t n_segments;
    const uint8_t *adapter_rows;         // [n_rows], or NULL: no row has the adapter on
    const int32_t *wanted_rows;          // [n_wanted] rows of the flat matrix whose token is chosen
    const struct krn_select_row *wanted; // [n_wanted]
    int32_t n_wanted;
    struct krn_choice *choices;       // [n_wanted]
    const struct krn_accept *accepts; // [n_accepts], or NULL
    int32_t n_accepts;
    struct krn_accepted *accepted; // [n_accepts]
};

// Products of the same input, done together.
struct krn_product {
    void *y; // OUTPUT [rows][w->rows]
    const struct krn_tensor *w;
};

// Device memory, for people and for the plan of the KV store.
struct krn_memory_category {
    const char *name;
    int64_t bytes;
};
enum { KRN_MEMORY_CATEGORIES = 12 };
struct krn_memory {
    int64_t total, free;  // of the device now; 0, 0: not limited by the backend (the CPU)
    int64_t reserve;      // what the backend will still take for itself (graphs, library workspaces), measured
    int32_t n_categories; // what was allocated, by purpose
    struct krn_memory_category categories[KRN_MEMORY_CATEGORIES];
};

// What passes will need at most, so that a backend allocates everything before the first of them.
struct krn_limits {
    int32_t max_rows, max_segments; // of one pass; no more choices or accepts than rows and segments
    int32_t max_chunk;              // rows of one gather, head and select
    int64_t max_pages;              // page numbers of all segments of one pass together
    int32_t n_layers, n_heads, n_kv_heads, head_dim, n_vocab, hidden, ff;
    int32_t adapter_rank;        // 0: no adapter
    const struct krn_rope *rope; // what every rope_write will be given; read only during prepare
};

enum { KRN_REPLAY = 1 };

// ---- the backend ----------------------------------------------------------------------------------------------------

struct krn_backend {
    const char *name;        // "cpu", "cuda"
    const char *description; // one line for people: features, threads
    void *ctx;
    bool async; // submit returns before the pass is done, so that planning ahead pays

    // Memory. Device addresses may be offset by the engine but are dereferenced only by the backend.
    // alloc: zeroed, 64-byte aligned, NULL when there is no memory. `purpose` names the category in the memory table.
    void *(*alloc)(void *ctx, size_t bytes, const char *purpose);
    void (*release)(void *ctx, void *ptr);
    // A matrix of activations [rows][width], zeroed. NULL when there is no memory. Freed with release. width: of
    // OUTPUT, that of the widest product written to it.
    void *(*alloc_rows)(void *ctx, enum krn_rows_kind kind, int32_t rows, int32_t width, const char *purpose);
    // Takes a weight matrix: *ret describes it in device memory in the type `type`. host outlives the backend; the CPU
    // reads it where it is if the type is the same (ret->data is host->data then), other backends have read it when
    // this returns. KRN_ENOTSUP: not in this type. Freed with drop_weights.
    int (*import_weights)(void *ctx, const struct krn_tensor *host, enum krn_type type, enum krn_split split,
                          struct krn_tensor *ret);
    void (*drop_weights)(void *ctx, struct krn_tensor *tensor);
    // The type that matrices of a file's type have when the user says "auto". The CPU: the same.
    enum krn_type (*weights_type)(void *ctx, enum krn_type file_type);
    // The KV store: the counts and head_dim of *kv are given, type too (KRN_N_TYPES: the backend's choice).
    // kv_page_bytes is what one page costs in all layers; kv_open allocates (purpose "kv") and fills the rest in;
    // kv_close frees. KRN_ENOTSUP: type or head_dim.
    int64_t (*kv_page_bytes)(void *ctx, const struct krn_kv *kv);
    int (*kv_open)(void *ctx, struct krn_kv *kv);
    void (*kv_close)(void *ctx, struct krn_kv *kv);
    void (*memory)(void *ctx, struct krn_memory *ret);
    int (*upload)(void *ctx, void *dst, const void *host, size_t bytes);
    int (*download)(void *ctx, void *host, const void *src, size_t bytes);

    // Allocates what passes within these limits need and measures memory's reserve. Called once, after the weights and
    // before the first pass (before kv_open where the KV store is to take what memory is left). KRN_ENOMEM;
    // KRN_ENOTSUP: a shape that the backend has no kernels for. begin refuses a pass beyond the limits with KRN_EINVAL.
    int (*prepare)(void *ctx, const struct krn_limits *limits);

    // Order. begin: takes the pass (which outlives its wait); KRN_REPLAY, 0 or an error. What it answers is a function
    // of the passes before and this one: devices that share a model must agree. submit: starts it. wait: until the
    // oldest pass submitted and not waited for is done and its choices are there (none: until all work is done). At
    // most KRN_PASSES_AHEAD passes are submitted and not waited for. A failed op ends with abandon instead of submit.
    int (*begin)(void *ctx, const struct krn_pass *pass);
    int (*submit)(void *ctx);
    void (*abandon)(void *ctx);
    int (*wait)(void *ctx);
    // One sentence on the last failure (KRN_EDEVICE above all), never NULL. Lives until the next call.
    const char *(*error)(void *ctx);

    // x[r] = table[token of r] as f32. x: STATE. tokens: the pass's, each in [0, table->rows).
    int (*embed)(void *ctx, void *x, const struct krn_tensor *table, const int32_t *tokens, int32_t rows);

    // y[r][i] = x[r][i] / sqrt(mean(x[r]^2) + eps) * weight[i]. If add is not NULL, first x[r] += add[r] (kept in x).
    // y: INPUT, x: STATE, add: OUTPUT.
    int (*rms_norm)(void *ctx, void *y, void *x, const void *add, const struct krn_tensor *weight, float eps,
                    int32_t rows, int32_t width);

    // y[r][o] = sum_i x[r][i] w[o][i] (+ adapter on rows with adapter_rows[r] != 0, the pass's). adapter may be NULL.
    // y: OUTPUT, x: INPUT. `scratch`: OUTPUT [rows][rank] when adapter is given.
    int (*linear)(void *ctx, void *y, const void *x, const struct krn_tensor *w, int32_t rows,
                  const struct krn_adapter *adapter, const uint8_t *adapter_rows, void *scratch);
    // Up to 3 linears of one input.
    int (*project)(void *ctx, const struct krn_product *products, int32_t n, const void *x, int32_t rows);
    // y[r][o] = silu(x[r] . gate[o]) * (x[r] . up[o]). y: INPUT, x: INPUT; scratch: 2 OUTPUT [rows][gate->rows].
    int (*gated)(void *ctx, void *y, const void *x, const struct krn_tensor *gate, const struct krn_tensor *up,
                 int32_t rows, void *const scratch[2]);
    // logits[r][o] = x[r] . w[o], as plain f32: STATE.
    int (*head)(void *ctx, float *logits, const void *x, const struct krn_tensor *w, int32_t rows);

    // Rotates q [rows][n_heads][head_dim] (in place) and k [rows][n_kv_heads][head_dim], then stores k and v into their
    // sequences' pages of one layer; positions come from the segments. q, k, v: OUTPUT; q is then only fit for
    // attention.
    int (*rope_write)(void *ctx, void *q, void *k, void *v, int32_t n_heads, const struct krn_rope *rope,
                      const struct krn_kv *kv, int32_t layer, const struct krn_segment *segments, int32_t n_segments);

    // y[r][h] = softmax(q[r][h] . K / sqrt(head_dim)) V over what the segment's mask lets the row see, read from the
    // pages (rope_write of the same rows comes first). Heads are grouped: query head h reads kv head h / (n_heads /
    // n_kv_heads). y: INPUT; q: what rope_write left.
    int (*attention)(void *ctx, void *y, const void *q, int32_t n_heads, const struct krn_kv *kv, int32_t layer,
                     const struct krn_segment *segments, int32_t n_segments);

    // x[r][i] += y[r][i]. x: STATE, y: OUTPUT.
    int (*add)(void *ctx, void *x, const void *y, int32_t rows, int32_t width);

    // Makes y (OUTPUT, rows of a row-split product) one plain f32 matrix [rows][width] in place, so that the parts of
    // several devices can be added up there: *ret_plain is its device address. Whatever reads y next reads that matrix
    // alone. NULL: this backend cannot be one of several (tensor_parallel.h). The CPU: y itself.
    int (*flatten)(void *ctx, void *y, int32_t rows, int32_t width, float **ret_plain);
    // How many rows an op on `rows` rows really works on: as many or more. A recorded pass serves other passes of its
    // bucket, so what devices exchange between ops must cover all rows of it. The CPU: rows.
    int32_t (*bucket)(void *ctx, int32_t rows);

    // y[j] = x[rows[j]] : gathers the rows whose logits are wanted. y, x: STATE. rows: the pass's wanted_rows or a
    // part.
    int (*gather)(void *ctx, void *y, const void *x, const int32_t *rows, int32_t n, int32_t width);

    // Chooses one token for each of n rows of logits [.][n_vocab] (rows[i].row: row of the logits). banned_id (the mask
    // id) is never chosen and is left out of every probability; -1: none. rows: the pass's wanted, or a part of it
    // where there are more than limits.max_chunk (a recorded pass relies on that). ret: host, the pass's choices from
    // the same index; valid after `wait`.
    int (*select)(void *ctx, const float *logits, int32_t n_vocab, int32_t banned_id, const struct krn_select_row *rows,
                  int32_t n, struct krn_choice *ret);
    // The pass's accepts, after its last select: fills pass->accepted (valid after `wait`).
    int (*accept)(void *ctx, const struct krn_accept *accepts, int32_t n, struct krn_accepted *ret);

    void (*close)(void *ctx); // frees everything; the backend struct too
};

enum { KRN_PASSES_AHEAD = 2 };

// Opens the CPU backend. threads: 0 = physical cores. cpu_mask: ANDed with the features found (KRN_CPU_*), ~0u = all,
// 0 = reference versions only. On success *ret_backend is owned by the caller (backend->close). On failure it is
// untouched and err (may be NULL) holds one sentence.
int krn_open_cpu(int threads, uint32_t cpu_mask, struct krn_backend **ret_backend, char *err, size_t err_size);

enum krn_cpu_feature {
    KRN_CPU_AVX2 = 1u << 0,   // AVX2 + FMA
    KRN_CPU_AVX512 = 1u << 1, // AVX-512 F, BW, DQ, VL
};

// How the CUDA backend is opened. Zero-initialise for the defaults.
struct krn_cuda_options {
    const char *module; // path of trimode-cuda.so; NULL: TRIMODE_CUDA_MODULE, beside the executable, ../lib/trimode
    int32_t device;     // ordinal of the (first) GPU
    int32_t tensor_parallel; // GPUs that share the model: 0 or 1, 2, 4, 8
    bool deterministic;      // no library products whose bits depend on the number of rows
    bool no_graphs;          // every pass is launched op by op
    bool no_overlap; // kernels do not start before the one before them ended (programmatic dependent launch off)
};

// Opens the CUDA backend from its module. KRN_ENOTSUP: no module, driver or GPU here; err then says why in one
// sentence.
int krn_open_cuda(const struct krn_cuda_options *options, struct krn_backend **ret_backend, char *err, size_t err_size);

// What this machine's CPU offers (KRN_CPU_*).
uint32_t krn_cpu_features(void);

#ifdef __cplusplus
}
#endif
