// Settings of every sub-command: defaults < config file < TRIMODE_* environment < flags.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

enum srv_command {
    SRV_SERVE = 1,
    SRV_GENERATE = 2,
    SRV_CHAT = 4,
    SRV_BENCH = 8,
    SRV_BENCH_SERVE = 16,
    SRV_CALIBRATE = 32
};

enum srv_origin { SRV_FROM_DEFAULT, SRV_FROM_FILE, SRV_FROM_ENVIRONMENT, SRV_FROM_FLAG };

enum { SRV_MAX_OPTIONS = 96 };

// Values after the last source; see the table in config_table.c for ranges. Sizes and counts: 0 stands for `auto`.
struct srv_config {
    char *config; // the file that was read, or NULL
    char *model, *served_model_name, *host, *adapter, *cuda_module, *api_key_file, *metrics_key_file, *cors_origin,
        *system, *cost_model, *output;
    char *rows, *context, *kind;   // comma lists of bench forward
    char *url, *clients, *dataset; // of bench serve
    const char *backend, *weights, *kv_type, *mode, *metrics_names, *log_format, *log_level,
        *calibration; // one of the allowed words
    int64_t port, threads, max_context, kv_memory, page_size, max_sequences, max_step_rows, max_queue, max_body;
    int64_t auto_modes; // bits of enum eng_mode
    int64_t block_length, cpu_mask, device, tensor_parallel, max_tokens, top_k, seed, runs, requests, prompt_tokens,
        output_tokens, vocab;
    double request_timeout, drain_timeout; // seconds
    double threshold, temperature, top_p, limit_gbps, rate, seconds, prompt_budget;
    bool deterministic, prefix_cache, stats, raw, json;
    bool print_config, help; // flags only
    enum srv_origin origins[SRV_MAX_OPTIONS];
    char **arguments; // what is not a flag; borrowed from argv
    int n_arguments;
};

// Fills every field; err holds one sentence when this returns -1 (the program then exits with status 2). argv starts
// after the sub-command; environment is a list like environ. The result is released with srv_config_done in any case.
int srv_config_read(struct srv_config *c, enum srv_command command, int argc, char **argv, char *const *environment,
                    char *err, size_t err_size);
struct eng_options;
// What the settings say to the engine that opens the model in dir; callbacks are left out. Points into c and dir.
struct eng_options srv_config_engine(const struct srv_config *c, const char *dir);

// Only the defaults.
int srv_config_default(struct srv_config *c);
void srv_config_done(struct srv_config *c);

// One setting as text, checked. `from` names the source in the error: "--port", "TRIMODE_PORT", "trimode.yaml:3".
int srv_config_set(struct srv_config *c, const char *key, const char *value, enum srv_origin origin, const char *from,
                   char *err, size_t err_size);
// -1 for an unknown key (with `_`); otherwise the index into origins.
int srv_config_find(const char *key);
// Combinations that no single range can refuse.
int srv_config_check(const struct srv_config *c, char *err, size_t err_size);

// `key: value  # origin`, a valid config file.
void srv_config_print(const struct srv_config *c, enum srv_command command, FILE *out);
// The flags of a command with ranges and defaults.
void srv_config_help(enum srv_command command, FILE *out);

// The folder of a model: a path, or the name of a bundled model looked up relative to the executable. 0 and *ret_dir
// (freed with free) and *ret_name (the last part of the name), or -1 and one sentence.
int srv_config_model_dir(const char *model, char **ret_dir, char **ret_name, char *err, size_t err_size);
