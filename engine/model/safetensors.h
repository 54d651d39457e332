// Tensors in mapped safetensors files: one file, or the shards an index names.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"

enum { ENG_SAFETENSORS_MAX_DIMS = 4 };

struct eng_safetensor {
    const char *name; // owned by the set
    const char *file; // base name of its file, for errors
    enum krn_type type;
    int32_t n_dims;
    int64_t dims[ENG_SAFETENSORS_MAX_DIMS];
    const void *data; // inside the mapping, aligned to the element
    int64_t bytes;
    bool used; // set by eng_safetensors_take
};

struct eng_safetensors;

// Maps dir/single, or when that does not exist and `index` is not NULL, every shard that dir/index names. Every
// tensor's dtype, shape and byte range is checked before this returns: inside the file, no overlap, no hole. 0 or
// ENG_EIO, ENG_EFORMAT, ENG_ENOTSUP (a dtype other than BF16 and F32), ENG_ENOMEM; on failure *ret is untouched. The
// files must not be truncated while they are mapped.
int eng_safetensors_open(const char *dir, const char *single, const char *index, struct eng_safetensors **ret,
                         char *err, size_t err_size);
// Takes NULL. The tensors' data goes with it.
void eng_safetensors_close(struct eng_safetensors *s);

// NULL when there is no such tensor.
const struct eng_safetensor *eng_safetensors_find(const struct eng_safetensors *s, const char *name);
// As find, and marks it used.
const struct eng_safetensor *eng_safetensors_take(struct eng_safetensors *s, const char *name);
// A tensor nobody took; NULL when all were. The first by name, so that the error is the same every time.
const struct eng_safetensor *eng_safetensors_unused(const struct eng_safetensors *s);
// Bytes of all tensors (not the headers).
int64_t eng_safetensors_bytes(const struct eng_safetensors *s);
