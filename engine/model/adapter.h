// The draft adapter: a PEFT LoRA folder for o_proj (MODEL.md 1).
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"
#include "model/config.h"
#include "model/safetensors.h"

struct eng_adapter {
    struct eng_safetensors *file; // holds what `layers` points to
    struct krn_adapter *layers;   // [config.n_layers], addresses of the mapped file (host memory)
    int32_t rank;
    bool block_rows; // "trimode_rows": "block"
};

// 0 or ENG_EIO, ENG_EFORMAT, ENG_ENOTSUP, ENG_ENOMEM with err naming the key or the tensor; *ret is then untouched.
int eng_adapter_load(const char *dir, const struct eng_config *config, struct eng_adapter *ret, char *err,
                     size_t err_size);
// Frees the mapping and the list; takes a zeroed struct.
void eng_adapter_done(struct eng_adapter *a);
