// Opens the CUDA backend from its module, so that the executable itself needs no driver and no CUDA library.
//
// The module is looked for where the user says, then beside the executable as the build leaves it, then where an
// installation has it. Without one, or without a driver or a GPU, this is not an error of anybody: the caller gets
// KRN_ENOTSUP and one sentence, and takes the CPU. The module is never unloaded: the CUDA runtime does not like it.
#include "cuda/module.h"
#include "kernels.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int refuse(char *err, size_t err_size, int code, const char *format, ...) __attribute__((format(printf, 4, 5)));
static int refuse(char *err, size_t err_size, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    if (err && err_size > 0)
        vsnprintf(err, err_size, format, args);
    va_end(args);
    return code;
}

// The folder of the executable, without the last slash; "" if the system does not say.
static void executable_folder(char *ret, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", ret, size - 1);
    ret[n < 0 ? 0 : n] = '\0';
    char *slash = strrchr(ret, '/');
    if (slash)
        *slash = '\0';
    else
        ret[0] = '\0';
}

// Writes the path of the module. False: there is none in the usual places.
static bool find_module(char *ret, size_t size)
{
    static const char *const places[] = {"kernels/cuda/trimode-cuda.so", "trimode-cuda.so",
                                         "../lib/trimode/trimode-cuda.so"};
    char folder[PATH_MAX];
    executable_folder(folder, sizeof folder);
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        int n = snprintf(ret, size, "%s/%s", folder, places[i]);
        if (n > 0 && (size_t)n < size && access(ret, R_OK) == 0)
            return true;
    }
    return false;
}

int krn_open_cuda(const struct krn_cuda_options *options, struct krn_backend **ret_backend, char *err, size_t err_size)
{
    static const struct krn_cuda_options defaults;
    char found[PATH_MAX + 64], why[256] = "";
    options = options ? options : &defaults;
    const char *path = options->module ? options->module : getenv("TRIMODE_CUDA_MODULE");
    if (path && !*path) // dlopen takes "" for the executable itself
        path = NULL;
    if (!path && !find_module(found, sizeof found))
        return refuse(err, err_size, KRN_ENOTSUP, "there is no trimode-cuda.so beside the executable");
    // The module brings a library of half a gigabyte with it: not for nothing, where nobody asked for it by name. What
    // opens stays open for the module.
    if (!path && !dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL))
        return refuse(err, err_size, KRN_ENOTSUP, "no NVIDIA driver here (there is no libcuda.so.1)");
    path = path ? path : found;
    void *module = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!module) {
        const char *reason = dlerror();
        return refuse(err, err_size, KRN_ENOTSUP, "the cuda module does not load: %s", reason ? reason : path);
    }
    // POSIX's own way around C's lack of a conversion from an object's to a function's address.
    krn_cuda_module_open_fn *open_module;
    *(void **)&open_module = dlsym(module, KRN_CUDA_MODULE_SYMBOL);
    if (!open_module) {
        dlclose(module);
        return refuse(err, err_size, KRN_ENOTSUP, "%s is not a cuda module of trimode", path);
    }
    int rc = open_module(KRN_CUDA_MODULE_ABI, options, ret_backend, why, sizeof why);
    return rc < 0 ? refuse(err, err_size, rc, "%s", why[0] ? why : krn_strerror(rc)) : 0;
}
