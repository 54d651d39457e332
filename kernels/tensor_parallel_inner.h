// Tensor parallelism from the inside, shared by its three files: tensor_parallel.c (opening, the order of passes),
// tensor_parallel_memory.c (what the composite gives out) and tensor_parallel_ops.c (what it passes on). The functions
// are the entries of struct krn_backend; ctx is the struct krn_tp.
#pragma once

#include "tensor_parallel.h"

enum { KRN_TP_SLOTS = KRN_PASSES_AHEAD + 1 };

enum krn_tp_kind { KRN_TP_BUFFER, KRN_TP_WEIGHT, KRN_TP_KV };

// Stands first in everything that is given out, so that close can free what was not given back.
struct krn_tp_handle {
    struct krn_tp_handle *next, **prev_next;
    enum krn_tp_kind kind;
    void *copies[KRN_TENSOR_PARALLEL_MAX]; // host memory that goes with it
};

struct krn_tp_buffer {
    struct krn_tp_handle handle;
    void *parts[KRN_TENSOR_PARALLEL_MAX];
};

struct krn_tp_weight {
    struct krn_tp_handle handle;
    enum krn_split split;
    int32_t outputs; // of the whole
    struct krn_tensor parts[KRN_TENSOR_PARALLEL_MAX];
};

struct krn_tp_kv {
    struct krn_tp_handle handle;
    struct krn_kv parts[KRN_TENSOR_PARALLEL_MAX];
};

// A pass as each child sees it: the same, but only child 0 writes to the caller's results.
struct krn_tp_slot {
    const struct krn_pass *pass;                     // the caller's, child 0's
    struct krn_pass copies[KRN_TENSOR_PARALLEL_MAX]; // of the other children; [0] is unused
};

struct krn_tp {
    struct krn_backend backend;
    int32_t n;
    struct krn_backend *children[KRN_TENSOR_PARALLEL_MAX];
    struct krn_comm comm;
    struct krn_tp_handle *handles;

    // Of prepare.
    int32_t max_rows, max_segments, max_chunk, n_vocab; // 0 before
    void *logits[KRN_TENSOR_PARALLEL_MAX];              // a split head's: STATE [max_chunk][n_vocab / n]; else NULL
    struct krn_choice *choices;                         // [KRN_TP_SLOTS][n - 1][max_rows]
    struct krn_accepted *accepted;                      // [KRN_TP_SLOTS][n - 1][max_segments]

    struct krn_tp_slot slots[KRN_TP_SLOTS]; // used in turn
    int32_t slot, n_ahead;                  // the next to be begun; how many before it are submitted and not waited for
    bool begun;                             // slots[slot] is between begin and submit
    int lost;                               // code of the failure after which nothing is begun, or 0
    char description[192];
    char text[256]; // of the last failure; "" none yet
};

// Every function below that fails leaves its sentence in tp->text; these return rc.
int krn_tp_fail(struct krn_tp *tp, int rc, const char *format, ...) __attribute__((format(printf, 3, 4)));
int krn_tp_child_failed(struct krn_tp *tp, int32_t d, int rc);
int krn_tp_comm_failed(struct krn_tp *tp, int rc); // the composite is lost

// tensor_parallel_memory.c
void *krn_tp_alloc(void *ctx, size_t bytes, const char *purpose);
void krn_tp_release(void *ctx, void *ptr);
void *krn_tp_alloc_rows(void *ctx, enum krn_rows_kind kind, int32_t rows, int32_t width, const char *purpose);
int krn_tp_import_weights(void *ctx, const struct krn_tensor *host, enum krn_type type, enum krn_split split,
                          struct krn_tensor *ret);
void krn_tp_drop_weights(void *ctx, struct krn_tensor *tensor);
enum krn_type krn_tp_weights_type(void *ctx, enum krn_type file_type);
int64_t krn_tp_kv_page_bytes(void *ctx, const struct krn_kv *kv);
int krn_tp_kv_open(void *ctx, struct krn_kv *kv);
void krn_tp_kv_close(void *ctx, struct krn_kv *kv);
void krn_tp_memory(void *ctx, struct krn_memory *ret);
int krn_tp_upload(void *ctx, void *dst, const void *host, size_t bytes);
int krn_tp_download(void *ctx, void *host, const void *src, size_t bytes);
// Was a weight with so many outputs imported to be split by them?
bool krn_tp_has_split(const struct krn_tp *tp, int32_t outputs);
void krn_tp_free_handles(struct krn_tp *tp); // the composite's own memory; the children free theirs

// tensor_parallel_ops.c
int krn_tp_embed(void *ctx, void *x, const struct krn_tensor *table, const int32_t *tokens, int32_t rows);
int krn_tp_rms_norm(void *ctx, void *y, void *x, const void *add, const struct krn_tensor *weight, float eps,
                    int32_t rows, int32_t width);
int krn_tp_linear(void *ctx, void *y, const void *x, const struct krn_tensor *w, int32_t rows,
                  const struct krn_adapter *adapter, const uint8_t *adapter_rows, void *scratch);
int krn_tp_project(void *ctx, const struct krn_product *products, int32_t n, const void *x, int32_t rows);
int krn_tp_gated(void *ctx, void *y, const void *x, const struct krn_tensor *gate, const struct krn_tensor *up,
                 int32_t rows, void *const scratch[2]);
int krn_tp_head(void *ctx, float *logits, const void *x, const struct krn_tensor *w, int32_t rows);
int krn_tp_rope_write(void *ctx, void *q, void *k, void *v, int32_t n_heads, const struct krn_rope *rope,
                      const struct krn_kv *kv, int32_t layer, const struct krn_segment *segments, int32_t n_segments);
int krn_tp_attention(void *ctx, void *y, const void *q, int32_t n_heads, const struct krn_kv *kv, int32_t layer,
                     const struct krn_segment *segments, int32_t n_segments);
int krn_tp_add(void *ctx, void *x, const void *y, int32_t rows, int32_t width);
int krn_tp_gather(void *ctx, void *y, const void *x, const int32_t *rows, int32_t n, int32_t width);
int krn_tp_select(void *ctx, const float *logits, int32_t n_vocab, int32_t banned_id, const struct krn_select_row *rows,
                  int32_t n, struct krn_choice *ret);
int krn_tp_accept(void *ctx, const struct krn_accept *accepts, int32_t n, struct krn_accepted *ret);
