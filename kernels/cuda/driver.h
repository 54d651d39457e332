// The calls that the backend makes to a device, as a table: the real one (driver_cuda.cu) speaks to the CUDA runtime
// and cuBLASLt, the fake one (tests/kernels/cuda/fake_driver.cc) keeps device memory on the host, runs kernels through
// simt_host.h, records graphs and fails on demand. All logic of the host stands above this table, in C.
//
// Every call returns 0 or a negative KRN_E* code and is made from the engine's thread. Work on a stream is
// asynchronous: an error of it may be returned by any later call. Once the device is lost every call returns
// KRN_EDEVICE (`lost` says why).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "launch.h"

#ifdef __cplusplus
extern "C" {
#endif

struct krn_cuda_device {
    char name[128];
    int32_t multiprocessors, major, minor; // compute capability
    int64_t memory, l2_bytes;
    int64_t workspace; // bytes of device memory that the driver table took for its library
};

struct krn_cuda_event;
struct krn_cuda_graph; // an instantiated graph

struct krn_cuda_driver {
    void *ctx;
    struct krn_cuda_device device;
    void *stream;      // the backend's one stream for passes
    void *load_stream; // for weights on their way in

    // Makes the device the calling thread's, before kernels are launched on its streams. NULL: there is nothing to do.
    int (*use)(void *ctx);

    // Memory. alloc: not zeroed, 256-byte aligned. host_alloc: pinned.
    int (*alloc)(void *ctx, size_t bytes, void **ret);
    void (*release)(void *ctx, void *ptr);
    int (*host_alloc)(void *ctx, size_t bytes, void **ret);
    void (*host_release)(void *ctx, void *ptr);
    int (*memory)(void *ctx, int64_t *ret_free, int64_t *ret_total);

    // On a stream, in order. Host memory of copies must be pinned and stay unchanged until the copy was done.
    int (*copy_in)(void *ctx, void *stream, void *dst, const void *host, size_t bytes);
    int (*copy_out)(void *ctx, void *stream, void *host, const void *src, size_t bytes);
    int (*fill)(void *ctx, void *stream, void *dst, int byte, size_t bytes);
    int (*sync)(void *ctx, void *stream);

    int (*event_new)(void *ctx, struct krn_cuda_event **ret);
    void (*event_free)(void *ctx, struct krn_cuda_event *event);
    int (*event_record)(void *ctx, struct krn_cuda_event *event, void *stream);
    int (*event_wait)(void *ctx, struct krn_cuda_event *event); // the host waits
    // 1: what came before the event is done; 0: not yet. Does not wait.
    int (*event_query)(void *ctx, struct krn_cuda_event *event);

    // From capture_begin on, launches, copies and fills on the stream are recorded and not run. capture_end makes the
    // graph; capture_end with NULL drops what was recorded.
    int (*capture_begin)(void *ctx, void *stream);
    int (*capture_end)(void *ctx, void *stream, struct krn_cuda_graph **ret);
    int (*graph_launch)(void *ctx, struct krn_cuda_graph *graph, void *stream);
    void (*graph_free)(void *ctx, struct krn_cuda_graph *graph);

    // y[rows][outputs] (f32, ldy) = x[rows][cols] (bf16, ldx) w[outputs][cols]^T (bf16, ldw), by the library.
    // KRN_ENOTSUP when there is none. Its bits depend on `rows`.
    int (*product)(void *ctx, void *stream, float *y, int32_t ldy, const void *x, int32_t ldx, const void *w,
                   int32_t ldw, int32_t rows, int32_t outputs, int32_t cols);

    // One sentence on the last failure; never NULL.
    const char *(*error)(void *ctx);
    void (*close)(void *ctx);
};

// The real table for one GPU. KRN_ENOTSUP without a driver or a device, with the reason in err.
int krn_cuda_driver_open(int32_t device, struct krn_cuda_driver *ret, char *err, size_t err_size);

#ifdef __cplusplus
}
#endif
