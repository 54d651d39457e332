// What a checkpoint's config.json says, checked. Every value is read from the file (MODEL.md 1); nothing is assumed but
// what the comments say.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ENG_MAX_EOS = 16 };

struct eng_config {
    int32_t hidden, n_layers, ff, n_heads, n_kv_heads, head_dim, n_vocab;
    int32_t max_positions;
    float rms_eps;
    bool tied_head;
    int32_t bos_id;               // -1: none
    int32_t eos_ids[ENG_MAX_EOS]; // of config.json and generation_config.json, without repeats
    int32_t n_eos;
    int32_t mask_id;    // -1: the model has no mask, so AR only
    int32_t block_size; // the file's block_size; 32 when absent
    // rope_parameters (or the older rope_theta / rope_scaling), MODEL.md 1
    bool yarn;
    double rope_theta, yarn_factor, yarn_beta_fast, yarn_beta_slow, yarn_mscale, yarn_mscale_all_dim;
    bool yarn_truncate;             // round the correction range to whole dimensions; true when absent
    double yarn_attention_factor;   // explicit attention_factor; 0: computed from mscale and mscale_all_dim
    int32_t original_max_positions; // max_positions when absent
    double query_beta;              // llama_4_scaling_beta; 0: absent
};

// dir: the checkpoint folder. 0 or ENG_EIO, ENG_EFORMAT, ENG_ENOTSUP with err naming the key and the value.
int eng_config_load(const char *dir, struct eng_config *ret, char *err, size_t err_size);

// inv_freq: head_dim / 2 values, YaRN applied; *ret_attention_factor: multiplies q and k.
void eng_config_rope(const struct eng_config *c, float *inv_freq, float *ret_attention_factor);
