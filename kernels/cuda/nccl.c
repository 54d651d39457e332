// libnccl.so.2, opened at run time: the module itself does not need it, and a machine with one GPU need not have it.
//
// The signatures are declared in exchange.h; where nccl.h is there when this is compiled, they are checked against it.
#include "exchange.h"

#include <dlfcn.h>
#include <stdio.h>

#if __has_include(<nccl.h>) && __has_include(<cuda_runtime.h>)
#include <nccl.h>

#define SAME(name, ...) _Static_assert(_Generic(&(name), __VA_ARGS__ : 1, default : 0), #name)
SAME(ncclCommInitAll, ncclResult_t (*)(struct ncclComm **, int, const int *));
SAME(ncclCommDestroy, ncclResult_t (*)(struct ncclComm *));
SAME(ncclCommAbort, ncclResult_t (*)(struct ncclComm *));
SAME(ncclCommGetAsyncError, ncclResult_t (*)(struct ncclComm *, ncclResult_t *));
SAME(ncclAllGather,
     ncclResult_t (*)(const void *, void *, size_t, ncclDataType_t, struct ncclComm *, struct CUstream_st *));
SAME(ncclSend, ncclResult_t (*)(const void *, size_t, ncclDataType_t, int, struct ncclComm *, struct CUstream_st *));
SAME(ncclRecv, ncclResult_t (*)(void *, size_t, ncclDataType_t, int, struct ncclComm *, struct CUstream_st *));
SAME(ncclGetErrorString, const char *(*)(ncclResult_t));
_Static_assert(sizeof(ncclResult_t) == sizeof(int) && sizeof(ncclDataType_t) == sizeof(int), "enumerations are ints");
_Static_assert((int)ncclSuccess == 0 && (int)ncclFloat32 == (int)KRN_NCCL_FLOAT32 &&
                   (int)ncclInProgress == (int)KRN_NCCL_IN_PROGRESS,
               "values");
#endif

int krn_nccl_load(struct krn_nccl *ret, char *err, size_t err_size)
{
    struct krn_nccl nccl = {0};
    void *library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    const struct {
        const char *name;
        void **to;
    } symbols[] = {
        {"ncclCommInitAll", (void **)&nccl.comm_init_all},
        {"ncclCommDestroy", (void **)&nccl.comm_destroy},
        {"ncclCommAbort", (void **)&nccl.comm_abort},
        {"ncclCommGetAsyncError", (void **)&nccl.comm_get_async_error},
        {"ncclAllGather", (void **)&nccl.all_gather},
        {"ncclSend", (void **)&nccl.send},
        {"ncclRecv", (void **)&nccl.recv},
        {"ncclGroupStart", (void **)&nccl.group_start},
        {"ncclGroupEnd", (void **)&nccl.group_end},
        {"ncclGetErrorString", (void **)&nccl.get_error_string},
    };
    const char *missing = library ? NULL : dlerror();
    for (size_t i = 0; !missing && i < sizeof symbols / sizeof *symbols; i++)
        if (!(*symbols[i].to = dlsym(library, symbols[i].name)))
            missing = dlerror();
    if (missing) {
        if (err && err_size > 0)
            snprintf(err, err_size, "several GPUs need NCCL, which cannot be opened: %s", missing);
        if (library)
            dlclose(library);
        return KRN_ENOTSUP;
    }
    *ret = nccl;
    return 0;
}
