// The table of settings, and what is printed from it. A setting that is not here does not exist: not as a flag, not in
// the file, not in the environment.
#include "config_table.h"

#include <string.h>

#include "buf.h"
#include "engine.h"

#define AT(field) offsetof(struct srv_config, field)
#define ALL (SRV_SERVE | SRV_GENERATE | SRV_CHAT | SRV_BENCH | SRV_CALIBRATE)
#define LOCAL (SRV_GENERATE | SRV_CHAT)
#define LOAD SRV_BENCH_SERVE
#define GIB 1073741824.0

const struct srv_option srv_options[] = {
    {"model", SRV_TEXT, AT(model), ALL, 1, 4096, false, NULL, "a Hugging Face folder, or the name of a bundled model"},
    {"served_model_name", SRV_TEXT, AT(served_model_name), SRV_SERVE | LOAD, 0, 256, false, NULL,
     "the name clients use (default: the folder's; of a load: the first that the server lists)"},
    {"host", SRV_TEXT, AT(host), SRV_SERVE, 1, 255, false, NULL, "address to listen on"},
    {"port", SRV_INTEGER, AT(port), SRV_SERVE, 0, 65535, false, NULL,
     "port to listen on; 0 picks a free one and prints it"},
    {"backend", SRV_WORD, AT(backend), ALL, 0, 0, false, "auto|cpu|cuda",
     "where the model runs; auto: cuda where it can be had"},
    {"cuda_module", SRV_TEXT, AT(cuda_module), ALL, 0, 4096, false, NULL,
     "path of trimode-cuda.so; looked for beside the executable when empty"},
    {"device", SRV_INTEGER, AT(device), ALL, 0, 63, false, NULL, "number of the (first) GPU"},
    {"tensor_parallel", SRV_INTEGER, AT(tensor_parallel), ALL, 1, 8, false, NULL,
     "GPUs that share the model: 1, 2, 4 or 8"},
    {"deterministic", SRV_SWITCH, AT(deterministic), ALL, 0, 0, false, NULL,
     "on a GPU, no product whose bits depend on what else runs (slower for prompts)"},
    {"threads", SRV_INTEGER, AT(threads), ALL, 0, 1024, true, NULL, "kernel threads; auto: physical cores"},
    {"weights", SRV_WORD, AT(weights), ALL, 0, 0, false, "auto|f32|bf16|fp8|q4",
     "type of the resident weights; auto: as in the file, on a GPU bf16"},
    {"max_context", SRV_INTEGER, AT(max_context), ALL, 0, 16777216, true, NULL,
     "prompt and output, tokens; auto: the model's"},
    {"kv_type", SRV_WORD, AT(kv_type), ALL, 0, 0, false, "auto|f32|bf16|fp8|q8",
     "type of keys and values; CPU: f32 (auto), bf16, q8; GPU: bf16 (auto), fp8"},
    {"kv_memory", SRV_SIZE, AT(kv_memory), ALL, 0, 16384 * GIB, true, NULL,
     "memory for keys and values; auto: what they can use, at most a quarter of the machine's or what the GPU has "
     "left"},
    {"page_size", SRV_INTEGER, AT(page_size), ALL, 1, 256, false, NULL, "tokens of one page of keys and values"},
    {"prefix_cache", SRV_SWITCH, AT(prefix_cache), SRV_SERVE, 0, 0, false, NULL,
     "keep finished pages and share them by content, so that a chat's next turn computes its new part only; on unless "
     "--prefix-cache=false"},
    {"max_sequences", SRV_INTEGER, AT(max_sequences), SRV_SERVE, 1, 1024, false, NULL, "requests decoding at once"},
    {"max_step_rows", SRV_INTEGER, AT(max_step_rows), ALL, 64, 65536, false, NULL, "rows of one forward pass"},
    {"max_queue", SRV_INTEGER, AT(max_queue), SRV_SERVE, 0, 1000000, false, NULL,
     "requests waiting beyond max_sequences"},
    {"prompt_budget", SRV_NUMBER, AT(prompt_budget), SRV_SERVE, 0, 100, false, NULL,
     "times that new prompts may stretch a pass in which others decode (at least 1); 0: no such bound"},
    {"request_timeout", SRV_SECONDS, AT(request_timeout), SRV_SERVE | LOAD, 0, 86400, false, NULL,
     "seconds a request may take; 0: no limit"},
    {"drain_timeout", SRV_SECONDS, AT(drain_timeout), SRV_SERVE, 0, 86400, false, NULL,
     "seconds that running requests get after SIGTERM"},
    {"max_body", SRV_SIZE, AT(max_body), SRV_SERVE, 1024, GIB, false, NULL, "largest request body"},
    {"mode", SRV_WORD, AT(mode), ALL | LOAD, 0, 0, false, "auto|ar|diffusion|self_speculation",
     "mode of requests that name none"},
    {"auto_modes", SRV_MODES, AT(auto_modes), ALL, 0, 0, false, NULL,
     "what auto may choose: a list of ar, self_speculation, diffusion (which changes the text)"},
    {"block_length", SRV_BLOCK, AT(block_length), ALL | LOAD, 4, 64, false, NULL,
     "tokens of a block of diffusion; the longest that auto and self-speculation take by themselves"},
    {"threshold", SRV_NUMBER, AT(threshold), ALL | LOAD, 0, 1, false, NULL,
     "confidence at which diffusion reveals a token"},
    {"adapter", SRV_TEXT, AT(adapter), ALL, 1, 4096, false, NULL, "draft adapter: auto, none or a folder"},
    {"cost_model", SRV_TEXT, AT(cost_model), SRV_SERVE, 0, 4096, false, NULL,
     "file of `trimode calibrate`; measured at the start when empty"},
    {"calibration", SRV_WORD, AT(calibration), SRV_SERVE, 0, 0, false, "auto|off",
     "auto: without cost_model, time a few passes at the start (under two seconds with a small model)"},
    {"api_key_file", SRV_TEXT, AT(api_key_file), SRV_SERVE | LOAD, 0, 4096, false, NULL,
     "accepted keys, one a line; off when empty. A load uses the first"},
    {"metrics_key_file", SRV_TEXT, AT(metrics_key_file), SRV_SERVE, 0, 4096, false, NULL,
     "keys for /metrics and /status, one a line; off when empty"},
    {"metrics_names", SRV_WORD, AT(metrics_names), SRV_SERVE, 0, 0, false, "native|vllm|both",
     "names of the series in /metrics: trimode_..., vLLM's, or both"},
    {"cors_origin", SRV_TEXT, AT(cors_origin), SRV_SERVE, 0, 1024, false, NULL,
     "Access-Control-Allow-Origin; off when empty"},
    {"log_format", SRV_WORD, AT(log_format), SRV_SERVE, 0, 0, false, "text|json", "form of log lines"},
    {"log_level", SRV_WORD, AT(log_level), SRV_SERVE, 0, 0, false, "debug|info|warn|error",
     "lowest level that is logged"},
    {"cpu_mask", SRV_MASK, AT(cpu_mask), ALL, 0, 4294967295.0, false, NULL,
     "bits of CPU features that may be used; all, or a number"},
    {"max_tokens", SRV_INTEGER, AT(max_tokens), LOCAL, 0, 16777216, true, NULL,
     "tokens to generate; auto: what the context has left"},
    {"temperature", SRV_NUMBER, AT(temperature), LOCAL | LOAD, 0, 2, false, NULL, "0: always the most probable token"},
    {"top_p", SRV_NUMBER, AT(top_p), LOCAL, 0, 1, false, NULL, "nucleus of the choice"},
    {"top_k", SRV_INTEGER, AT(top_k), LOCAL, 0, 1000000, false, NULL, "most probable tokens to choose from; 0: all"},
    {"seed", SRV_INTEGER, AT(seed), LOCAL | LOAD, 0, 9007199254740992.0, true, NULL,
     "seed of the choices; auto: random. Of a load also of prompts and arrivals; auto: 0"},
    {"system", SRV_TEXT, AT(system), LOCAL, 0, 65536, false, NULL, "system message"},
    {"stats", SRV_SWITCH, AT(stats), LOCAL, 0, 0, false, NULL, "print numbers of the decoding to stderr"},
    {"raw", SRV_SWITCH, AT(raw), SRV_GENERATE, 0, 0, false, NULL, "no chat template: continue the text as it is"},
    {"rows", SRV_TEXT, AT(rows), SRV_BENCH, 1, 256, false, NULL, "rows of a pass, a comma list"},
    {"context", SRV_TEXT, AT(context), SRV_BENCH, 1, 256, false, NULL, "positions before the rows, a comma list"},
    {"kind", SRV_TEXT, AT(kind), SRV_BENCH, 1, 256, false, NULL,
     "kinds of pass, a comma list of prefill, ar, denoise, seal, draft, verify"},
    {"runs", SRV_INTEGER, AT(runs), SRV_BENCH, 1, 1000, false, NULL, "timed passes of each shape"},
    {"limit_gbps", SRV_NUMBER, AT(limit_gbps), SRV_BENCH, 0, 1000000, false, NULL,
     "read bandwidth of this machine; prints each pass's share of it"},
    {"output", SRV_TEXT, AT(output), SRV_CALIBRATE, 1, 4096, false, NULL, "file to write"},
    {"seconds", SRV_NUMBER, AT(seconds), SRV_CALIBRATE, 1, 600, false, NULL, "time to measure for, about"},
    {"url", SRV_TEXT, AT(url), LOAD, 1, 1024, false, NULL, "server of the load: http://HOST[:PORT][/PREFIX]"},
    {"clients", SRV_TEXT, AT(clients), LOAD, 1, 256, false, NULL,
     "clients that each send one request after another; a comma list, one load level each"},
    {"rate", SRV_NUMBER, AT(rate), LOAD, 0, 1000000, false, NULL,
     "requests a second, at random times, instead of clients; 0: clients"},
    {"requests", SRV_INTEGER, AT(requests), LOAD, 0, 100000000, true, NULL,
     "of each level; auto: 8 a client, or 10 seconds of the rate, but at least 16"},
    {"prompt_tokens", SRV_INTEGER, AT(prompt_tokens), LOAD, 1, 16777216, false, NULL, "length of the random prompts"},
    {"output_tokens", SRV_INTEGER, AT(output_tokens), LOAD, 1, 16777216, false, NULL,
     "tokens of every answer; with a dataset at most that many, unless its line has max_tokens"},
    {"dataset", SRV_TEXT, AT(dataset), LOAD, 0, 4096, false, NULL,
     "JSON lines with prompt (text or token ids) or messages, instead of random prompts"},
    {"vocab", SRV_INTEGER, AT(vocab), LOAD, 0, 2147483647, true, NULL,
     "random prompts take token ids below it; auto: what /v1/models says"},
    {"json", SRV_SWITCH, AT(json), SRV_BENCH | LOAD, 0, 0, false, NULL, "one JSON object a line"},
};
enum { N_OPTIONS = sizeof srv_options / sizeof *srv_options };
const int srv_n_options = N_OPTIONS;
_Static_assert((int)N_OPTIONS <= (int)SRV_MAX_OPTIONS, "origins has an entry for every option");

void *srv_option_field(const struct srv_config *c, const struct srv_option *o)
{
    return (char *)(uintptr_t)c + o->offset;
}

int srv_config_find(const char *key)
{
    for (int i = 0; i < srv_n_options; i++)
        if (!strcmp(srv_options[i].key, key))
            return i;
    return -1;
}

void srv_option_allowed(const struct srv_option *o, char *out, size_t size)
{
    const char *also = o->zero_is_auto ? "auto, or " : "";
    switch (o->type) {
    case SRV_TEXT:
        snprintf(out, size, "%s", o->min > 0 ? "a text that is not empty" : "a text");
        break;
    case SRV_WORD:
        snprintf(out, size, "%s", o->words);
        break;
    case SRV_INTEGER:
        snprintf(out, size, "%san integer from %.0f to %.0f", also, o->min, o->max);
        break;
    case SRV_BLOCK:
        snprintf(out, size, "4, 8, 16, 32 or 64");
        break;
    case SRV_SIZE:
        snprintf(out, size, "%sbytes, or a number with KiB, MiB or GiB, from %.0f to %.0f bytes", also, o->min, o->max);
        break;
    case SRV_SECONDS:
        snprintf(out, size, "seconds from %g to %g", o->min, o->max);
        break;
    case SRV_NUMBER:
        snprintf(out, size, "a number from %g to %g", o->min, o->max);
        break;
    case SRV_MODES:
        snprintf(out, size, "a comma list of ar, self_speculation, diffusion");
        break;
    case SRV_MASK:
        snprintf(out, size, "all, or a number from 0 to 0xffffffff");
        break;
    case SRV_SWITCH:
        snprintf(out, size, "true or false");
        break;
    }
}

// The value as the config file has it. A text that is more than one word is a JSON string, which YAML reads as such.
static void format_value(const struct srv_config *c, const struct srv_option *o, struct srv_buf *out)
{
    const void *at = srv_option_field(c, o);
    int64_t i = 0;
    if (o->type != SRV_TEXT && o->type != SRV_WORD && o->type != SRV_SWITCH)
        memcpy(&i, at, sizeof i);
    switch (o->type) {
    case SRV_TEXT:
    case SRV_WORD: {
        const char *text = *(const char *const *)at;
        size_t n = strlen(text);
        bool word = strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_/0123456789.-") == n;
        if (word && strspn(text, "0123456789.-") != n)
            srv_buf_puts(out, text);
        else
            srv_buf_jsonz(out, text);
        break;
    }
    case SRV_SECONDS:
    case SRV_NUMBER:
        srv_buf_printf(out, "%.15g", *(const double *)at);
        break;
    case SRV_MODES: {
        static const enum eng_mode modes[] = {ENG_MODE_AR, ENG_MODE_SELF_SPECULATION, ENG_MODE_DIFFUSION};
        for (size_t k = 0, n = 0; k < sizeof modes / sizeof *modes; k++)
            if (i & 1 << modes[k])
                srv_buf_printf(out, "%s%s", n++ ? "," : "", eng_mode_name(modes[k]));
        break;
    }
    case SRV_MASK:
        if (i == UINT32_MAX)
            srv_buf_puts(out, "all");
        else
            srv_buf_printf(out, "0x%llx", (long long)i);
        break;
    case SRV_SWITCH:
        srv_buf_puts(out, *(const bool *)at ? "true" : "false");
        break;
    default:
        if (!i && o->zero_is_auto)
            srv_buf_puts(out, "auto");
        else if (o->type == SRV_SIZE && i && i % (1 << 20) == 0)
            srv_buf_printf(out, "%lldMiB", (long long)(i >> 20));
        else
            srv_buf_printf(out, "%lld", (long long)i);
    }
}

void srv_config_print(const struct srv_config *c, enum srv_command command, FILE *out)
{
    static const char *const origin_names[] = {"default", "config file", "environment", "flag"};
    struct srv_buf value = {0};
    for (int i = 0; i < srv_n_options; i++) {
        if (!(srv_options[i].commands & (unsigned)command))
            continue;
        srv_buf_reset(&value);
        format_value(c, &srv_options[i], &value);
        fprintf(out, "%s: %s  # %s\n", srv_options[i].key, value.data ? value.data : "", origin_names[c->origins[i]]);
    }
    srv_buf_free(&value);
}

void srv_config_help(enum srv_command command, FILE *out)
{
    struct srv_config defaults;
    struct srv_buf value = {0};
    if (srv_config_default(&defaults))
        return;
    for (int i = 0; i < srv_n_options; i++) {
        const struct srv_option *o = &srv_options[i];
        if (!(o->commands & (unsigned)command))
            continue;
        char flag[64], allowed[160];
        snprintf(flag, sizeof flag, "%s", o->key);
        for (char *p = flag; *p; p++)
            if (*p == '_')
                *p = '-';
        srv_buf_reset(&value);
        format_value(&defaults, o, &value);
        srv_option_allowed(o, allowed, sizeof allowed);
        if (o->type == SRV_SWITCH)
            fprintf(out, "  --%-18s %s\n", flag, o->help);
        else
            fprintf(out, "  --%-18s %s\n  %20s %s; default %s\n", flag, o->help, "", allowed,
                    value.data ? value.data : "");
    }
    srv_buf_free(&value);
    fprintf(out, "  --%-18s %s\n", "config", "YAML file with the same settings as keys (_ for -)");
    if (command == SRV_SERVE)
        fprintf(out, "  --%-18s %s\n", "print-config", "print the settings and where each came from, then exit");
    fprintf(out, "Each is also an environment variable: TRIMODE_ and the name in upper case with _ for -.\n"
                 "Flags beat the environment, which beats the file, which beats the default.\n");
    srv_config_done(&defaults);
}
