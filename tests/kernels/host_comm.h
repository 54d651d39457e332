// Tensor parallelism over CPU backends: a communicator for devices that are all plain host memory. It counts and fails
// on demand.
#pragma once

#include "tensor_parallel.h"

#include <stdlib.h>

struct host_comm {
    int32_t n;
    int reductions, gathers, passes; // passes: submitted and not finished
    int64_t floats;                  // of each device's part in the last exchange
    int fail_in;                     // > 0: the exchange with this number from now fails; 0: none
    bool aborted;
    int *closed; // counts, when given
};

static inline bool host_comm_fails(struct host_comm *comm)
{
    return comm->aborted || (comm->fail_in > 0 && --comm->fail_in == 0);
}

static inline int host_comm_all_reduce(void *ctx, float *const parts[], int64_t count)
{
    struct host_comm *comm = ctx;
    if (host_comm_fails(comm))
        return KRN_EDEVICE;
    comm->reductions++;
    comm->floats = count;
    for (int64_t i = 0; i < count; i++) {
        float sum = parts[0][i];
        for (int32_t d = 1; d < comm->n; d++)
            sum += parts[d][i];
        for (int32_t d = 0; d < comm->n; d++)
            parts[d][i] = sum;
    }
    return 0;
}

static inline int host_comm_all_gather_columns(void *ctx, float *const to[], const float *const parts[], int32_t rows,
                                               int32_t width)
{
    struct host_comm *comm = ctx;
    if (host_comm_fails(comm))
        return KRN_EDEVICE;
    comm->gathers++;
    comm->floats = (int64_t)rows * width;
    for (int32_t e = 0; e < comm->n; e++)
        for (int32_t r = 0; r < rows; r++)
            for (int32_t d = 0; d < comm->n; d++)
                for (int32_t i = 0; i < width; i++)
                    to[e][((int64_t)r * comm->n + d) * width + i] = parts[d][(int64_t)r * width + i];
    return 0;
}

static inline int host_comm_submitted(void *ctx)
{
    ((struct host_comm *)ctx)->passes++;
    return 0;
}

static inline int host_comm_finish(void *ctx)
{
    ((struct host_comm *)ctx)->passes--;
    return 0;
}

static inline void host_comm_abort(void *ctx)
{
    ((struct host_comm *)ctx)->aborted = true;
}

static inline const char *host_comm_error(void *ctx)
{
    (void)ctx;
    return "the exchange broke off";
}

static inline void host_comm_close(void *ctx)
{
    struct host_comm *comm = ctx;
    if (comm->closed)
        ++*comm->closed;
    free(comm);
}

static inline struct krn_comm host_comm_open(int32_t n)
{
    struct host_comm *comm = calloc(1, sizeof *comm);
    if (!comm)
        abort();
    *comm = (struct host_comm){.n = n};
    return (struct krn_comm){
        .ctx = comm,
        .all_reduce = host_comm_all_reduce,
        .all_gather_columns = host_comm_all_gather_columns,
        .submitted = host_comm_submitted,
        .finish = host_comm_finish,
        .abort = host_comm_abort,
        .error = host_comm_error,
        .close = host_comm_close,
    };
}

// n CPU backends of one thread each as one. *ret_comm (may be NULL): the communicator, to look at until the close.
static inline struct krn_backend *open_tensor_parallel_cpu(int32_t n, struct krn_backend *ret_children[],
                                                           struct host_comm **ret_comm)
{
    struct krn_backend *children[KRN_TENSOR_PARALLEL_MAX], *backend = NULL;
    struct krn_comm comm = host_comm_open(n);
    for (int32_t d = 0; d < n; d++) {
        if (krn_open_cpu(1, ~0u, &children[d], NULL, 0) != 0)
            abort();
        if (ret_children)
            ret_children[d] = children[d];
    }
    if (krn_open_tensor_parallel(children, n, &comm, &backend, NULL, 0) != 0)
        abort();
    if (ret_comm)
        *ret_comm = comm.ctx;
    return backend;
}
