// 5 FORWARD  The model as the engine sees it: a function from a batch to choices. The real one runs the layers through
// krn_*; the tests put a fake in its place.
#pragma once

#include "batch.h"

struct eng_model {
    // Computes every row, writes KV, fills batch->choices. 0 or a negative code (the backend is then lost).
    int (*forward)(void *ctx, struct eng_batch *batch);
    void (*close)(void *ctx); // may be NULL
    void *ctx;
    int32_t n_vocab;
    int32_t mask_id;
    bool block_adapter; // adapter_config's "trimode_rows": "block" - on for denoise rows too
    bool has_adapter;
};

// What the real model needs to be opened (engine/model/ loads it).
struct eng_weights;

// The real model over a backend. The KV store has n_pages pages of page_size tokens. Takes ownership of nothing:
// backend and weights must outlive it. ret->close frees its buffers.
int eng_forward_open(struct krn_backend *backend, const struct eng_weights *weights, int32_t max_rows, int32_t n_pages,
                     int32_t page_size, struct eng_model *ret, char *err, size_t err_size);

// Device bytes of KV that one page of page_size tokens needs.
int64_t eng_forward_page_bytes(const struct eng_weights *weights, int32_t page_size);

// Test only: as forward, but also copies the logits of the wanted rows to the host, [n_wanted][n_vocab].
int eng_forward_logits(struct eng_model *model, struct eng_batch *batch, float *logits);
// Test only: chooses for at most `rows` rows at a time, 1 .. what was allocated, as a large vocabulary makes it do.
void eng_forward_limit_chunk(struct eng_model *model, int32_t rows);
