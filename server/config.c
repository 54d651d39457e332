// Settings. One table names every flag, config key and environment variable with its range; parsing, checking, help and
// --print-config all read it. An unknown key, a value out of range or an unusable combination gives one sentence that
// names the key, the value and what is allowed. Runs before any thread.
#include "config.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "config_file.h"
#include "config_table.h"
#include "engine.h"

// The number and how it ended; false when there is none.
static bool parse_number(const char *text, double *ret, const char **ret_end)
{
    if (!*text || strspn(text, "0123456789.eE+-") == 0)
        return false;
    char *end;
    *ret = strtod(text, &end);
    *ret_end = end;
    return end != text && isfinite(*ret);
}

static bool set_number(const struct srv_option *o, void *at, const char *value)
{
    double v = 0;
    const char *end = "";
    bool is_auto = o->zero_is_auto && !strcmp(value, "auto");
    if (!is_auto && !parse_number(value, &v, &end))
        return false;
    if (o->type == SRV_SIZE && !is_auto) {
        double unit = !strcmp(end, "KiB")   ? 1024.0
                      : !strcmp(end, "MiB") ? 1048576.0
                      : !strcmp(end, "GiB") ? 1073741824.0
                      : !*end               ? 1.0
                                            : -1.0;
        if (unit < 0)
            return false;
        v *= unit;
        end = "";
    }
    if (*end || !(is_auto || (v >= o->min && v <= o->max)))
        return false;
    if (o->type == SRV_SECONDS || o->type == SRV_NUMBER) {
        *(double *)at = v;
        return true;
    }
    if (v != floor(v))
        return false;
    *(int64_t *)at = (int64_t)v;
    return o->type != SRV_BLOCK || v == 4 || v == 8 || v == 16 || v == 32 || v == 64;
}

static bool set_word(const struct srv_option *o, void *at, const char *value)
{
    static const char *const words[] = {
        "auto",   "cpu",  "cuda", "f32",  "bf16", "fp8",   "q4",   "q8",   "ar",    "diffusion", "self_speculation",
        "native", "vllm", "both", "text", "json", "debug", "info", "warn", "error", "off"};
    size_t n = strlen(value);
    for (const char *p = o->words; n; p++) {
        size_t len = strcspn(p, "|");
        if (len == n && !memcmp(p, value, n))
            break;
        p += len;
        if (!*p)
            return false;
    }
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcmp(words[i], value)) {
            *(const char **)at = words[i];
            return true;
        }
    return false;
}

static bool set_modes(void *at, const char *value)
{
    int64_t bits = 0;
    for (const char *p = value;; p++) {
        p += strspn(p, " ");
        char name[32];
        size_t n = strcspn(p, ", ");
        if (n == 0 || n >= sizeof name)
            return false;
        memcpy(name, p, n);
        name[n] = 0;
        int mode = eng_mode_parse(name);
        if (mode <= ENG_MODE_AUTO)
            return false;
        bits |= 1 << mode;
        p += n;
        p += strspn(p, " ");
        if (!*p)
            break;
        if (*p != ',')
            return false;
    }
    *(int64_t *)at = bits;
    return true;
}

static bool set_mask(void *at, const char *value)
{
    if (!strcmp(value, "all")) {
        *(int64_t *)at = UINT32_MAX;
        return true;
    }
    char *end;
    errno = 0;
    unsigned long long v = strtoull(value, &end, 0);
    if (*value < '0' || *value > '9' || *end || errno || v > UINT32_MAX)
        return false;
    *(int64_t *)at = (int64_t)v;
    return true;
}

static bool set_value(const struct srv_option *o, void *at, const char *value)
{
    size_t n = strlen(value);
    switch (o->type) {
    case SRV_TEXT: {
        if (n < (size_t)o->min || n > (size_t)o->max)
            return false;
        char *copy = strdup(value);
        if (!copy)
            return false;
        free(*(char **)at);
        *(char **)at = copy;
        return true;
    }
    case SRV_WORD:
        return set_word(o, at, value);
    case SRV_MODES:
        return set_modes(at, value);
    case SRV_MASK:
        return set_mask(at, value);
    case SRV_SWITCH:
        *(bool *)at = !strcmp(value, "true") || !strcmp(value, "1");
        return *(bool *)at || !strcmp(value, "false") || !strcmp(value, "0");
    default: {
        // Numbers are written only when they pass, so that a refused value leaves the old one.
        union {
            int64_t i;
            double d;
        } parsed;
        if (!set_number(o, &parsed, value))
            return false;
        memcpy(at, &parsed, sizeof parsed);
        return true;
    }
    }
}

int srv_config_set(struct srv_config *c, const char *key, const char *value, enum srv_origin origin, const char *from,
                   char *err, size_t err_size)
{
    int i = srv_config_find(key);
    if (i < 0) {
        snprintf(err, err_size, "%s: there is no setting '%s'; `trimode serve --help` lists what is allowed", from,
                 key);
        return -1;
    }
    if (!set_value(&srv_options[i], srv_option_field(c, &srv_options[i]), value)) {
        char allowed[160];
        srv_option_allowed(&srv_options[i], allowed, sizeof allowed);
        snprintf(err, err_size, "%s: %s cannot be '%s'; allowed: %s", from, key, value, allowed);
        return -1;
    }
    c->origins[i] = origin;
    return 0;
}

int srv_config_default(struct srv_config *c)
{
    struct eng_options e = eng_options_default();
    *c = (struct srv_config){
        .backend = "auto",
        .weights = "auto",
        .kv_type = "auto",
        .tensor_parallel = 1,
        .mode = "auto",
        .metrics_names = "native",
        .log_format = "text",
        .log_level = "info",
        .calibration = "auto",
        .port = 8000,
        .page_size = e.page_size,
        .max_sequences = e.max_sequences,
        .max_step_rows = e.max_step_rows,
        .max_queue = e.max_queue,
        .prompt_budget = e.prompt_budget,
        .prefix_cache = e.prefix_cache,
        .max_body = 32 << 20,
        .auto_modes = e.auto_modes,
        .block_length = e.block_length,
        .threshold = (double)roundf(e.threshold * 1e6f) / 1e6,
        .cpu_mask = UINT32_MAX,
        .request_timeout = 600,
        .drain_timeout = 30,
        .temperature = 1,
        .top_p = 1,
        .runs = 20,
        .prompt_tokens = 128,
        .output_tokens = 64,
        .seconds = 35,
    };
    static const char *const texts[][2] = {
        {"model", "nano"},         {"served_model_name", ""}, {"host", "127.0.0.1"},
        {"adapter", "auto"},       {"cuda_module", ""},       {"api_key_file", ""},
        {"metrics_key_file", ""},  {"cors_origin", ""},       {"system", ""},
        {"rows", "1,8,32"},        {"context", "128"},        {"kind", "ar"},
        {"clients", "1,2,4,8,16"}, {"dataset", ""},           {"url", "http://127.0.0.1:8000"},
        {"cost_model", ""},        {"output", "cost.json"}};
    char err[160];
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (srv_config_set(c, texts[i][0], texts[i][1], SRV_FROM_DEFAULT, "default", err, sizeof err))
            return -1;
    return 0;
}

void srv_config_done(struct srv_config *c)
{
    for (int i = 0; i < srv_n_options; i++)
        if (srv_options[i].type == SRV_TEXT)
            free(*(char **)srv_option_field(c, &srv_options[i]));
    free(c->config);
    free(c->arguments);
    *c = (struct srv_config){0};
}

// Kubernetes sets TRIMODE_PORT=tcp://... and friends when a Service is called trimode; those are not ours.
static bool foreign_variable(const char *name, const char *value)
{
    return !strncmp(name, "SERVICE_", 8) || !strncmp(name, "PORT_", 5) || !strncmp(name, "TEST_", 5) ||
           (!strcmp(name, "PORT") && strstr(value, "://"));
}

static int read_environment(struct srv_config *c, char *const *environment, char *err, size_t err_size)
{
    for (; environment && *environment; environment++) {
        const char *equals = strchr(*environment, '=');
        if (!equals || strncmp(*environment, "TRIMODE_", 8))
            continue;
        char name[64], key[64];
        size_t n = (size_t)(equals - *environment);
        if (n >= sizeof name)
            n = sizeof name - 1;
        memcpy(name, *environment, n);
        name[n] = 0;
        size_t k = 0;
        for (const char *p = name + 8; *p; p++)
            key[k++] = *p >= 'A' && *p <= 'Z' ? (char)(*p | 0x20) : *p;
        key[k] = 0;
        if (!strcmp(key, "config") || foreign_variable(name + 8, equals + 1))
            continue;
        if (srv_config_set(c, key, equals + 1, SRV_FROM_ENVIRONMENT, name, err, err_size))
            return -1;
    }
    return 0;
}

// With apply false only --config is looked for.
static int read_flags(struct srv_config *c, enum srv_command command, int argc, char **argv, bool apply, char *err,
                      size_t err_size)
{
    bool only_arguments = false;
    for (int i = 0; i < argc; i++) {
        char *arg = argv[i];
        if (only_arguments || arg[0] != '-' || !arg[1]) {
            if (apply)
                c->arguments[c->n_arguments++] = arg;
            continue;
        }
        if (!strcmp(arg, "--")) {
            only_arguments = true;
            continue;
        }
        char name[64], key[64];
        const char *body = arg + (arg[1] == '-' ? 2 : 1), *equals = strchr(body, '=');
        size_t n = equals ? (size_t)(equals - body) : strlen(body);
        if (n >= sizeof name)
            n = sizeof name - 1;
        memcpy(name, body, n);
        name[n] = 0;
        for (size_t k = 0; k <= n; k++)
            key[k] = name[k] == '-' ? '_' : name[k];
        if (!strcmp(arg, "--help") || !strcmp(arg, "-h")) {
            c->help = true;
            continue;
        }
        if (!strcmp(arg, "--print-config") && command == SRV_SERVE) {
            c->print_config = true;
            continue;
        }
        int option = srv_config_find(key);
        bool is_config = !strcmp(key, "config");
        if (arg[1] != '-' || strchr(name, '_') ||
            (!is_config && (option < 0 || !(srv_options[option].commands & (unsigned)command)))) {
            snprintf(err, err_size, "%s: there is no such flag here; --help lists what is allowed", arg);
            return -1;
        }
        const char *value = equals ? equals + 1 : NULL;
        if (!value && !is_config && srv_options[option].type == SRV_SWITCH)
            value = "true";
        if (!value && i + 1 < argc)
            value = argv[++i];
        if (!value) {
            snprintf(err, err_size, "--%s: the value is missing; --help lists what is allowed", name);
            return -1;
        }
        if (is_config && !apply) {
            free(c->config);
            c->config = strdup(value);
        }
        char flag[80];
        snprintf(flag, sizeof flag, "--%s", name);
        if (!is_config && apply && srv_config_set(c, key, value, SRV_FROM_FLAG, flag, err, err_size))
            return -1;
    }
    return 0;
}

struct eng_options srv_config_engine(const struct srv_config *c, const char *dir)
{
    struct eng_options o = eng_options_default();
    o.model_dir = dir;
    o.backend = c->backend;
    o.threads = (int)c->threads;
    o.cpu_mask = (uint32_t)c->cpu_mask;
    o.cuda_module = c->cuda_module;
    o.device = (int32_t)c->device;
    o.tensor_parallel = (int32_t)c->tensor_parallel;
    o.deterministic = c->deterministic;
    o.weights = c->weights;
    o.adapter = c->adapter;
    o.max_context = (int32_t)c->max_context;
    o.kv_type = c->kv_type;
    o.kv_memory = c->kv_memory;
    o.page_size = (int32_t)c->page_size;
    o.prefix_cache = c->prefix_cache;
    o.max_sequences = (int32_t)c->max_sequences;
    o.max_step_rows = (int32_t)c->max_step_rows;
    o.max_queue = (int32_t)c->max_queue;
    o.prompt_budget = c->prompt_budget;
    o.cost_model = c->cost_model;
    o.auto_modes = (unsigned)c->auto_modes;
    o.block_length = (int32_t)c->block_length;
    o.threshold = (float)c->threshold;
    o.mode = ENG_MODE_AUTO; // the default for requests that name none is applied while parsing them
    return o;
}

int srv_config_check(const struct srv_config *c, char *err, size_t err_size)
{
    if (!strcmp(c->mode, "self_speculation") && !strcmp(c->adapter, "none")) {
        snprintf(
            err, err_size,
            "mode: 'self_speculation' needs a draft adapter and adapter is 'none'; allowed: another mode, or adapter "
            "auto or a folder");
        return -1;
    }
    if (c->auto_modes == 1 << ENG_MODE_SELF_SPECULATION && !strcmp(c->adapter, "none")) {
        snprintf(err, err_size,
                 "auto_modes: 'self_speculation' alone needs a draft adapter and adapter is 'none'; allowed: ar or "
                 "diffusion as well, or adapter auto or a folder");
        return -1;
    }
    if (!(c->threshold > 0)) {
        snprintf(err, err_size, "threshold: '%g' would reveal tokens blindly; allowed: above 0 and at most 1",
                 c->threshold);
        return -1;
    }
    if (c->prompt_budget > 0 && c->prompt_budget < 1) {
        snprintf(err, err_size, "prompt_budget: '%g' would leave prompts no time; allowed: 0, or from 1 to 100",
                 c->prompt_budget);
        return -1;
    }
    if (!(c->top_p > 0)) {
        snprintf(err, err_size, "top_p: '%g' leaves no token to choose; allowed: above 0 and at most 1", c->top_p);
        return -1;
    }
    if (c->tensor_parallel & (c->tensor_parallel - 1)) {
        snprintf(err, err_size, "tensor_parallel: '%lld' cannot divide a model evenly; allowed: 1, 2, 4 or 8",
                 (long long)c->tensor_parallel);
        return -1;
    }
    if (c->tensor_parallel > 1 && !strcmp(c->backend, "cpu")) {
        snprintf(err, err_size,
                 "tensor_parallel: '%lld' needs several GPUs and backend is 'cpu'; allowed: 1, or backend auto or cuda",
                 (long long)c->tensor_parallel);
        return -1;
    }
    if (c->max_context && c->max_context < 2) {
        snprintf(err, err_size,
                 "max_context: '%lld' has no room for a prompt and an output; allowed: auto, or at least 2",
                 (long long)c->max_context);
        return -1;
    }
    return 0;
}

int srv_config_read(struct srv_config *c, enum srv_command command, int argc, char **argv, char *const *environment,
                    char *err, size_t err_size)
{
    c->arguments = NULL;
    if (srv_config_default(c) || !(c->arguments = calloc((size_t)argc + 1, sizeof *c->arguments))) {
        snprintf(err, err_size, "out of memory");
        return -1;
    }
    if (read_flags(c, command, argc, argv, false, err, err_size))
        return -1;
    for (char *const *p = environment; !c->config && p && *p; p++)
        if (!strncmp(*p, "TRIMODE_CONFIG=", 15) && (*p)[15])
            c->config = strdup(*p + 15);
    if (c->config && srv_config_file(c, c->config, err, err_size))
        return -1;
    if (read_environment(c, environment, err, err_size) || read_flags(c, command, argc, argv, true, err, err_size))
        return -1;
    return srv_config_check(c, err, err_size);
}
