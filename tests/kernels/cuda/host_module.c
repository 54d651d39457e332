// trimode-cuda-host.so: the CUDA backend over the device that is not there, behind the same door as the real module.
// With TRIMODE_CUDA_MODULE naming it, `trimode serve --backend cuda` and every test of the engine run the kernels,
// graphs and host logic of the GPU on any machine, slowly.
//
// Work is deferred to the first wait, as on a GPU, so a result that is read too early is wrong here too.
//
// Tests set, in the environment (the server takes TRIMODE_TEST_* for nobody's settings):
//   TRIMODE_TEST_GPU_MEMORY=BYTES  of the device; 2 GiB otherwise
//   TRIMODE_TEST_GPU_FAIL_AT=N     the Nth launch of a recorded pass loses the device for good
#include "backend.h"
#include "fake_driver.h"
#include "module.h"

#include <stdio.h>
#include <stdlib.h>

static int64_t number(const char *name, int64_t otherwise)
{
    const char *text = getenv(name);
    return text && *text ? atoll(text) : otherwise;
}

__attribute__((visibility("default"))) krn_cuda_module_open_fn krn_cuda_module_open;

int krn_cuda_module_open(uint64_t abi, const struct krn_cuda_options *options, struct krn_backend **ret, char *err,
                         size_t err_size)
{
    if (abi != KRN_CUDA_MODULE_ABI) {
        snprintf(err, err_size, "it was built from another version of trimode");
        return KRN_ENOTSUP;
    }
    struct fake_driver_options fake = {.memory = number("TRIMODE_TEST_GPU_MEMORY", (int64_t)2 << 30), .deferred = true};
    struct krn_cuda_driver driver;
    int rc = fake_driver_open(&fake, &driver);
    if (rc < 0)
        return rc;
    fake_driver_fail(&driver, FAKE_GRAPH_LAUNCH, number("TRIMODE_TEST_GPU_FAIL_AT", 0), KRN_EDEVICE);
    return krn_cuda_backend_open(&driver, options, ret, err, err_size);
}
