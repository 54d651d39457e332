// Device memory of the backend: what was allocated for what, matrices of activations, weights on their way in.
//
// Everything is counted to the byte under the purpose that the caller named. Engine thread only.
#pragma once

#include "driver.h"
#include "kernels.h"
#include "ops.h"

struct krn_cuda_block; // one allocation

// A matrix of activations that alloc_rows made.
struct krn_cuda_rows {
    void *data;
    enum krn_rows_kind kind;
    int32_t rows;     // allocated: a multiple of KRN_ROW_TILE
    int64_t elements; // OUTPUT: of all partial matrices together
    // OUTPUT: what the last product left here, as the ops of one pass are issued; n 0: nothing.
    struct krn_dev_sums sums;
};

enum { KRN_CUDA_ROWS_MAX = 64 };

// A pair of pinned buffers: one is filled from the mapped file while the other is copied.
struct krn_cuda_loader {
    void *pinned[2], *device[2];
    struct krn_cuda_event *copied[2];
    bool used[2];
    int next;
};

struct krn_cuda_memory {
    const struct krn_cuda_driver *driver;
    struct krn_cuda_block *blocks;
    struct krn_memory_category categories[KRN_MEMORY_CATEGORIES];
    int32_t n_categories;
    struct krn_cuda_rows rows[KRN_CUDA_ROWS_MAX];
    int32_t n_rows;
    struct krn_cuda_loader loader;
    size_t piece_bytes; // of each buffer of the loader; before the first import only
    bool loading;       // work on the load stream that nobody waited for
};

// driver must outlive m.
void krn_cuda_memory_init(struct krn_cuda_memory *m, const struct krn_cuda_driver *driver);
// Frees everything. The device must be idle or lost. A zeroed m is fine.
void krn_cuda_memory_done(struct krn_cuda_memory *m);

// zero: filled with zeros in the order of the driver's stream. 0 or a KRN_E* code; *ret untouched on failure.
int krn_cuda_memory_alloc(struct krn_cuda_memory *m, size_t bytes, const char *purpose, bool zero, void **ret);
// NULL is fine; an address that is not of an allocation is ignored. The device must not use it any more.
void krn_cuda_memory_release(struct krn_cuda_memory *m, void *ptr);

int krn_cuda_memory_alloc_rows(struct krn_cuda_memory *m, enum krn_rows_kind kind, int32_t rows, int32_t width,
                               const char *purpose, void **ret);
// The matrix at this very address, or NULL.
struct krn_cuda_rows *krn_cuda_memory_rows(struct krn_cuda_memory *m, const void *data, enum krn_rows_kind kind);

// Starts a weight's way into device memory (see krn_backend.import_weights). Its end: krn_cuda_memory_settle.
int krn_cuda_memory_import(struct krn_cuda_memory *m, const struct krn_tensor *host, enum krn_type type,
                           struct krn_tensor *ret);
// Waits until all weights are there.
int krn_cuda_memory_settle(struct krn_cuda_memory *m);
// Gives back the pinned buffers of loading, after settling.
int krn_cuda_memory_end_loading(struct krn_cuda_memory *m);

// Copies that are done when they return, after all work on the stream. Any host memory.
int krn_cuda_memory_upload(struct krn_cuda_memory *m, void *dst, const void *host, size_t bytes);
int krn_cuda_memory_download(struct krn_cuda_memory *m, void *host, const void *src, size_t bytes);
