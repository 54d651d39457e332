// The one resident copy of the weights: tensors by role, in the memory of a backend.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels.h"
#include "model/config.h"

struct eng_layer {
    struct krn_tensor input_norm, post_norm; // [1][hidden]
    struct krn_tensor q, k, v, o;            // [n_heads * head_dim][hidden], [kv][hidden], [kv][hidden], [hidden][q]
    struct krn_tensor gate, up, down;        // [ff][hidden], [ff][hidden], [hidden][ff]
    struct krn_adapter adapter_o;            // of the draft adapter; a.data NULL when there is none
};

struct eng_weights {
    struct eng_config config;
    struct krn_tensor embed, norm,
        head; // [n_vocab][hidden], [1][hidden], [n_vocab][hidden] (== embed when tied and of one type)
    struct eng_layer *layers;
    bool has_adapter, block_adapter;
    int32_t adapter_rank;   // largest rank; 0: none
    int64_t resident_bytes; // what the tensors above occupy, each counted once, the adapter included
    int64_t file_bytes;     // bytes of the tensors in the files, the adapter included
    int64_t parameters;     // of the checkpoint, the adapter left out
    enum krn_type type;     // of most bytes of the large matrices
    void *owner;            // mappings and buffers; private
};

// Loads dir (model.safetensors or shards through the index). weights: "auto" (the backend's choice for the file's
// type), "f32", "bf16", or "fp8" or "q4": the layers' matrices and the head in that type, the embedding in bf16. Norms
// keep their file's type, the adapter has the backend's choice for it. adapter: "auto", "none" or a folder. progress
// (may be NULL) goes by bytes. Every tensor that is missing, has the wrong shape or type, or is left over is an error
// naming it.
int eng_weights_load(const char *dir, const char *weights, const char *adapter, struct krn_backend *backend,
                     void (*progress)(void *user, const char *what, double fraction), void *user,
                     struct eng_weights **ret, char *err, size_t err_size);
void eng_weights_free(struct eng_weights *w, struct krn_backend *backend);
