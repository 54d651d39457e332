// How GPUs that share a model exchange activations: NCCL moves them, our kernels add them up.
//
// NCCL's own sums are not used: their order depends on the number of elements, and so a row's bits would depend on how
// many rows a pass has. Here every device gets the others' parts and adds them in the order of the devices. Engine
// thread only. Untested on hardware until a machine with several GPUs has run it.
#pragma once

#include "driver.h"
#include "launch.h"
#include "tensor_parallel.h"

#ifdef __cplusplus
extern "C" {
#endif

// ---- kernels (ranks.cu) ---------------------------------------------------------------------------------------------

// y[i] = from[0][i] + from[1][i] + ... + from[n - 1][i], in this order; from: n matrices of `count` floats each.
struct krn_rank_sum_args {
    const float *from;
    float *y;
    int64_t count;
    int32_t n;
};
int krn_cuda_rank_sum(struct krn_cuda_launch how, const struct krn_rank_sum_args *args);

// to[r][d * width + i] = from[d][r][i]; from: n matrices [rows][width], to: [rows][n * width].
struct krn_rank_columns_args {
    const float *from;
    float *to;
    int32_t n, rows, width;
};
int krn_cuda_rank_columns(struct krn_cuda_launch how, const struct krn_rank_columns_args *args);

// ---- NCCL (nccl.c) --------------------------------------------------------------------------------------------------

struct ncclComm;

// What is called of libnccl.so.2; the signatures are nccl.h's, with int for its enumerations.
struct krn_nccl {
    int (*comm_init_all)(struct ncclComm **comms, int n, const int *devices);
    int (*comm_destroy)(struct ncclComm *comm);
    int (*comm_abort)(struct ncclComm *comm);
    int (*comm_get_async_error)(struct ncclComm *comm, int *ret_error);
    int (*all_gather)(const void *send, void *recv, size_t count, int type, struct ncclComm *comm, void *stream);
    int (*send)(const void *send, size_t count, int type, int peer, struct ncclComm *comm, void *stream);
    int (*recv)(void *recv, size_t count, int type, int peer, struct ncclComm *comm, void *stream);
    int (*group_start)(void);
    int (*group_end)(void);
    const char *(*get_error_string)(int error);
};

enum { KRN_NCCL_FLOAT32 = 7, KRN_NCCL_IN_PROGRESS = 7 }; // ncclFloat32, ncclInProgress

// Opens the library, which only several GPUs need. KRN_ENOTSUP with one sentence in err when it is not there. It stays
// loaded: an abort may still be running when everything of ours is closed.
int krn_nccl_load(struct krn_nccl *ret, char *err, size_t err_size);

// ---- the communicator (exchange.c) ----------------------------------------------------------------------------------

enum { KRN_EXCHANGE_FLOATS = 8 << 20 }; // of staging memory on each device: 32 MiB

// A communicator for n backends on these drivers, which both must outlive it; children[d] is on drivers[d], a GPU with
// the number devices[d]. staging_floats (at least 2 n^2): of each device, in its memory table under
// "exchange". Every way of exchanging is tried once before this returns, so that NCCL has connected the devices before
// a pass is recorded, and a sum that comes out wrong is refused. On failure err holds one sentence.
int krn_cuda_exchange_open(const struct krn_nccl *nccl, const struct krn_cuda_driver drivers[],
                           struct krn_backend *const children[], const int devices[], int32_t n, int64_t staging_floats,
                           struct krn_comm *ret, char *err, size_t err_size);

// ---- the whole (parallel.c) -----------------------------------------------------------------------------------------

// One backend over n drivers, which are taken over on success and on failure alike.
int krn_cuda_share(const struct krn_nccl *nccl, const struct krn_cuda_driver drivers[], int32_t n,
                   const struct krn_cuda_options *options, struct krn_backend **ret, char *err, size_t err_size);

// options->tensor_parallel GPUs (2, 4 or 8) from options->device on, as one backend.
int krn_cuda_open_parallel(const struct krn_cuda_options *options, struct krn_backend **ret, char *err,
                           size_t err_size);

#ifdef __cplusplus
}
#endif
