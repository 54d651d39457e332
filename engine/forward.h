// 5 FORWARD  The model as the engine sees it: a function from a batch to choices. The real one runs the layers through
// krn_*; the tests put a fake in its place.
#pragma once

#include "batch.h"

struct eng_model {
    // Starts a pass: computes every row, writes KV, fills batch->choices and batch->accepted. The batch stays unchanged
    // until the pass was waited for; its segments' pages and what wanted rows point to may change once this returns. 0
    // or a negative code: the backend is then lost, but for KRN_ENOMEM, which refuses this batch alone.
    int (*submit)(void *ctx, struct eng_batch *batch);
    // Until this batch, the oldest that was submitted and not waited for, is done. At most KRN_PASSES_AHEAD are under
    // way. 0 or a negative code.
    int (*wait)(void *ctx, struct eng_batch *batch);
    // One sentence on the failure behind a code of submit or wait; lives until the next call.
    const char *(*error)(void *ctx, int code);
    void (*close)(void *ctx); // may be NULL
    void *ctx;
    bool async; // submit returns before the pass is done: planning the next one meanwhile pays
    int32_t n_vocab;
    int32_t mask_id;
    bool block_adapter; // adapter_config's "trimode_rows": "block" - on for denoise rows too
    bool has_adapter;
};

// Submits and waits.
int eng_model_forward(const struct eng_model *model, struct eng_batch *batch);

// What the real model needs to be opened (engine/model/ loads it).
struct eng_weights;

struct eng_forward_sizes {
    int32_t max_rows, max_segments; // of one pass
    int32_t n_pages, page_size;     // of the KV store; n_pages 0: eng_forward_open_kv comes later
    int64_t max_pages;              // of all segments of one pass together; 0: n_pages
    enum krn_type kv_type;          // KRN_N_TYPES: the backend's choice
};

// The real model over a backend: takes the memory of its passes and prepares the backend for them. Takes ownership of
// nothing: backend and weights must outlive it. ret->close frees its buffers. On failure *ret is untouched.
int eng_forward_open(struct krn_backend *backend, const struct eng_weights *weights,
                     const struct eng_forward_sizes *sizes, struct eng_model *ret, char *err, size_t err_size);
// The KV store, once it is known how many pages there is memory for.
int eng_forward_open_kv(struct eng_model *model, int32_t n_pages, char *err, size_t err_size);

// The type that the KV store has.
enum krn_type eng_forward_kv_type(const struct eng_model *model);
// Device bytes of KV that one page needs, or a negative code: KRN_ENOTSUP when the backend has no KV of this type.
int64_t eng_forward_page_bytes(const struct krn_backend *backend, const struct eng_weights *weights, int32_t page_size,
                               enum krn_type kv_type);

// Test only: as forward, but also copies the logits of the wanted rows to the host, [n_wanted][n_vocab]. No more rows
// may be wanted than the logits buffer has.
int eng_forward_logits(struct eng_model *model, struct eng_batch *batch, float *logits);
// Test only: chooses for at most `rows` rows at a time, 1 .. what was allocated, as a large vocabulary makes it do.
void eng_forward_limit_chunk(struct eng_model *model, int32_t rows);
