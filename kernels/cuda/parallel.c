// Several GPUs as one backend: a driver and a backend for each, NCCL between them, tensor_parallel.c above.
//
// One process and one thread: the children's work is asynchronous, so all GPUs run at once. Everything that was opened
// is closed again when a later step fails. Leaves out machines that cannot reach each other's memory: NCCL then goes
// through the host's by itself.
#include "backend.h"
#include "exchange.h"

#include <stdio.h>

static int refuse(int rc, const char *why, char *err, size_t err_size)
{
    if (err && err_size > 0)
        snprintf(err, err_size, "%s", why);
    return rc;
}

static void close_children(struct krn_backend *const children[], int32_t n)
{
    for (int32_t d = 0; d < n; d++)
        children[d]->close(children[d]->ctx);
}

// All drivers are taken over: those of children that were not opened are closed too.
static int open_children(const struct krn_cuda_driver drivers[], int32_t n, const struct krn_cuda_options *options,
                         struct krn_backend *children[], char *err, size_t err_size)
{
    struct krn_cuda_options one = *options;
    one.tensor_parallel = 1;
    // Whether a kernel may overlap the end of an exchange between GPUs is not proven on hardware, so none does.
    one.no_overlap = true;
    for (int32_t d = 0; d < n; d++) {
        one.device = options->device + d;
        int rc = krn_cuda_backend_open(&drivers[d], &one, &children[d], err, err_size);
        if (rc < 0) {
            for (int32_t e = d + 1; e < n; e++)
                drivers[e].close(drivers[e].ctx);
            close_children(children, d);
            return rc;
        }
    }
    return 0;
}

int krn_cuda_share(const struct krn_nccl *nccl, const struct krn_cuda_driver drivers[], int32_t n,
                   const struct krn_cuda_options *options, struct krn_backend **ret, char *err, size_t err_size)
{
    struct krn_backend *children[KRN_TENSOR_PARALLEL_MAX] = {0};
    int devices[KRN_TENSOR_PARALLEL_MAX] = {0};
    struct krn_comm comm;
    for (int32_t d = 0; d < n; d++)
        devices[d] = options->device + d;
    int rc = open_children(drivers, n, options, children, err, err_size);
    if (rc < 0)
        return rc;
    rc = krn_cuda_exchange_open(nccl, drivers, children, devices, n, KRN_EXCHANGE_FLOATS, &comm, err, err_size);
    if (rc < 0) {
        close_children(children, n);
        return rc;
    }
    rc = krn_open_tensor_parallel(children, n, &comm, ret, err, err_size);
    if (rc < 0) {
        comm.close(comm.ctx);
        close_children(children, n);
    }
    return rc;
}

int krn_cuda_open_parallel(const struct krn_cuda_options *options, struct krn_backend **ret, char *err, size_t err_size)
{
    int32_t n = options->tensor_parallel;
    struct krn_cuda_driver drivers[KRN_TENSOR_PARALLEL_MAX];
    struct krn_nccl nccl;
    if (n != 2 && n != 4 && n != 8)
        return refuse(KRN_EINVAL, "a model can be shared by 2, 4 or 8 GPUs", err, err_size);
    int rc = krn_nccl_load(&nccl, err, err_size);
    if (rc < 0)
        return rc;
    for (int32_t d = 0; d < n; d++) {
        rc = krn_cuda_driver_open(options->device + d, &drivers[d], err, err_size);
        if (rc < 0) {
            while (d-- > 0)
                drivers[d].close(drivers[d].ctx);
            return rc;
        }
    }
    return krn_cuda_share(&nccl, drivers, n, options, ret, err, err_size);
}
