// What trimode-cuda.so shows to the outside: one function. The rest of the module is hidden.
//
// The module carries its own copy of everything it needs, the CUDA runtime included; cuBLASLt and the driver come from
// the machine. Nothing of the executable is called from here.
#include "module.h"

#include "backend.h"
#include "exchange.h"

#include <stdio.h>

__attribute__((visibility("default"))) krn_cuda_module_open_fn krn_cuda_module_open;

int krn_cuda_module_open(uint64_t abi, const struct krn_cuda_options *options, struct krn_backend **ret, char *err,
                         size_t err_size)
{
    if (abi != KRN_CUDA_MODULE_ABI) {
        if (err && err_size > 0)
            snprintf(err, err_size, "the cuda module was built from another version of trimode");
        return KRN_ENOTSUP;
    }
    if (options->tensor_parallel > 1)
        return krn_cuda_open_parallel(options, ret, err, err_size);
    struct krn_cuda_driver driver;
    int rc = krn_cuda_driver_open(options->device, &driver, err, err_size);
    return rc < 0 ? rc : krn_cuda_backend_open(&driver, options, ret, err, err_size);
}
