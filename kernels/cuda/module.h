// The one symbol of trimode-cuda.so, as open_cuda.c looks it up. Compiled on both sides.
#pragma once

#include "kernels.h"

// Changes whenever the two sides could disagree about the interface: by hand where only a meaning changes, by itself
// where a struct that crosses it changes its size.
#define KRN_CUDA_MODULE_ABI                                                                   \
    (((uint64_t)1 << 48) + ((uint64_t)sizeof(struct krn_backend) << 32) +                     \
     ((uint64_t)sizeof(struct krn_pass) + sizeof(struct krn_limits) + sizeof(struct krn_kv) + \
      sizeof(struct krn_tensor) + sizeof(struct krn_select_row) + sizeof(struct krn_choice) + \
      sizeof(struct krn_memory) + sizeof(struct krn_cuda_options) + sizeof(struct krn_segment)))

#define KRN_CUDA_MODULE_SYMBOL "krn_cuda_module_open"

// abi: the caller's KRN_CUDA_MODULE_ABI. Otherwise as krn_open_cuda.
typedef int krn_cuda_module_open_fn(uint64_t abi, const struct krn_cuda_options *options, struct krn_backend **ret,
                                    char *err, size_t err_size);
