// The CPU backend's inside, shared by its four files: backend_cpu.c (opening, the order of passes), memory_cpu.c,
// ops_cpu.c and products_cpu.c. The functions are the entries of struct krn_backend; ctx is the struct krn_cpu.
#pragma once

#include "kernels.h"
#include "ops.h"
#include "threadpool.h"

// What each thread of the pool owns; reached by its number.
struct krn_cpu_thread {
    struct krn_rope_cache *rope_cache;
    struct krn_select_scratch select;
};

// Stands before every buffer; keeps the list of what close must free.
struct krn_cpu_allocation {
    struct krn_cpu_allocation *next, **prev_next;
    void *raw; // what calloc returned
    int64_t bytes;
    int32_t category; // index into memory.categories
};

struct krn_cpu {
    struct krn_backend backend;
    struct krn_ops ops;
    struct krn_pool *pool;
    struct krn_cpu_thread *threads; // one per thread of the pool
    int n_threads;
    struct krn_cpu_allocation *allocations;
    struct krn_memory memory;     // what was allocated and imported, by purpose
    const struct krn_pass *pass;  // between begin and submit, else NULL
    const struct krn_choice *old; // choices of the pass submitted last, which links point into
    int32_t n_old;
    int n_ahead;                    // passes submitted and not waited for
    int32_t max_rows, max_segments; // of prepare; 0 before
    char description[128];
};

// memory_cpu.c
void *krn_cpu_alloc(void *ctx, size_t bytes, const char *purpose);
void krn_cpu_release(void *ctx, void *ptr);
void *krn_cpu_alloc_rows(void *ctx, enum krn_rows_kind kind, int32_t rows, int32_t width, const char *purpose);
int krn_cpu_import_weights(void *ctx, const struct krn_tensor *host, enum krn_type type, enum krn_split split,
                           struct krn_tensor *ret);
void krn_cpu_drop_weights(void *ctx, struct krn_tensor *tensor);
enum krn_type krn_cpu_weights_type(void *ctx, enum krn_type file_type);
int64_t krn_cpu_kv_page_bytes(void *ctx, const struct krn_kv *kv);
int krn_cpu_kv_open(void *ctx, struct krn_kv *kv);
void krn_cpu_kv_close(void *ctx, struct krn_kv *kv);
void krn_cpu_memory(void *ctx, struct krn_memory *ret);
int krn_cpu_upload(void *ctx, void *dst, const void *host, size_t bytes);
int krn_cpu_download(void *ctx, void *host, const void *src, size_t bytes);
void krn_cpu_free_all(struct krn_cpu *cpu);

// ops_cpu.c
// Into how many chunks an op is cut that has this much work (units: ops_cpu.c).
int krn_cpu_chunks(const struct krn_cpu *cpu, double work);
bool krn_cpu_good_tensor(const struct krn_tensor *tensor);
int krn_cpu_embed(void *ctx, void *x, const struct krn_tensor *table, const int32_t *tokens, int32_t rows);
int krn_cpu_rms_norm(void *ctx, void *y, void *x, const void *add, const struct krn_tensor *weight, float eps,
                     int32_t rows, int32_t width);
int krn_cpu_rope_write(void *ctx, void *q, void *k, void *v, int32_t n_heads, const struct krn_rope *rope,
                       const struct krn_kv *kv, int32_t layer, const struct krn_segment *segments, int32_t n_segments);
int krn_cpu_attention(void *ctx, void *y, const void *q, int32_t n_heads, const struct krn_kv *kv, int32_t layer,
                      const struct krn_segment *segments, int32_t n_segments);
int krn_cpu_add(void *ctx, void *x, const void *y, int32_t rows, int32_t width);
int krn_cpu_flatten(void *ctx, void *y, int32_t rows, int32_t width, float **ret_plain);
int32_t krn_cpu_bucket(void *ctx, int32_t rows);
int krn_cpu_gather(void *ctx, void *y, const void *x, const int32_t *rows, int32_t n, int32_t width);
int krn_cpu_select(void *ctx, const float *logits, int32_t n_vocab, int32_t banned_id,
                   const struct krn_select_row *rows, int32_t n, struct krn_choice *ret);
int krn_cpu_accept(void *ctx, const struct krn_accept *accepts, int32_t n, struct krn_accepted *ret);

// products_cpu.c
int krn_cpu_linear(void *ctx, void *y, const void *x, const struct krn_tensor *w, int32_t rows,
                   const struct krn_adapter *adapter, const uint8_t *adapter_rows, void *scratch);
int krn_cpu_project(void *ctx, const struct krn_product *products, int32_t n, const void *x, int32_t rows);
int krn_cpu_gated(void *ctx, void *y, const void *x, const struct krn_tensor *gate, const struct krn_tensor *up,
                  int32_t rows, void *const scratch[2]);
int krn_cpu_head(void *ctx, float *logits, const void *x, const struct krn_tensor *w, int32_t rows);
