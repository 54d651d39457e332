// 3 QUEUE  Requests: every parameter is checked with the name of its field, then everything is copied.
//
// Any thread; a request is not shared before it is submitted.
#include "request.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/err.h"
#include "events.h"
#include "text/utf8.h"

static const char *const mode_names[ENG_N_MODES] = {"auto", "ar", "diffusion", "self_speculation"};
static const char *const policy_names[ENG_N_COMMIT] = {"confidence", "schedule", "leftmost"};

const char *eng_mode_name(enum eng_mode mode)
{
    return mode_names[mode];
}

const char *eng_commit_policy_name(enum eng_commit_policy p)
{
    return policy_names[p];
}

static int parse(const char *const *names, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (!strcmp(names[i], name))
            return i;
    return -1;
}

int eng_mode_parse(const char *name)
{
    return parse(mode_names, ENG_N_MODES, name);
}

int eng_commit_policy_parse(const char *name)
{
    return parse(policy_names, ENG_N_COMMIT, name);
}

struct eng_params eng_params_default(void)
{
    return (struct eng_params){
        .max_tokens = 16,
        .top_p = 1.0f,
        .repetition_penalty = 1.0f,
        .n_top = -1,
        .skip_special = true,
    };
}

// ---- checks ---------------------------------------------------------------------------------------------------------

struct check {
    const char **ret_param;
    char *err;
    size_t err_size;
};

__attribute__((format(printf, 3, 4))) static int bad(const struct check *c, const char *param, const char *format, ...)
{
    if (c->ret_param)
        *c->ret_param = param;
    if (c->err_size) {
        va_list args;
        va_start(args, format);
        vsnprintf(c->err, c->err_size, format, args);
        va_end(args);
    }
    return ENG_EINVAL;
}

// NaN fails every comparison, so it is refused too.
static bool within(double x, double low, double high)
{
    return x >= low && x <= high;
}

static int check_sampling(const struct check *c, const struct eng_params *p)
{
    if (!within(p->temperature, 0, 2))
        return bad(c, "temperature", "temperature must be between 0 and 2, not %g", p->temperature);
    if (p->top_k < 0)
        return bad(c, "top_k", "top_k must be at least 0, not %d", p->top_k);
    if (!(p->top_p > 0 && p->top_p <= 1))
        return bad(c, "top_p", "top_p must be above 0 and at most 1, not %g", p->top_p);
    if (!within(p->min_p, 0, 1))
        return bad(c, "min_p", "min_p must be between 0 and 1, not %g", p->min_p);
    if (!(p->repetition_penalty > 0 && isfinite(p->repetition_penalty)))
        return bad(c, "repetition_penalty", "repetition_penalty must be above 0, not %g", p->repetition_penalty);
    if (!within(p->frequency_penalty, -2, 2))
        return bad(c, "frequency_penalty", "frequency_penalty must be between -2 and 2, not %g", p->frequency_penalty);
    if (!within(p->presence_penalty, -2, 2))
        return bad(c, "presence_penalty", "presence_penalty must be between -2 and 2, not %g", p->presence_penalty);
    return 0;
}

static int check_mode(const struct check *c, const struct eng_request_limits *l, const struct eng_params *p)
{
    if ((int)p->mode < 0 || p->mode >= ENG_N_MODES)
        return bad(c, "mode", "mode %d is not known", (int)p->mode);
    if (p->mode != ENG_MODE_AUTO && !(l->modes & 1u << p->mode))
        return bad(c, "mode", "this model cannot decode in mode %s", mode_names[p->mode]);
    if (p->mode == ENG_MODE_DIFFUSION && p->lossless)
        return bad(c, "lossless", "lossless excludes mode diffusion, whose text differs from ar");
    if (p->lossless && p->allow_diffusion)
        return bad(c, "lossless", "lossless excludes diffusion, whose text differs from ar");
    if (p->block_length != 0 && p->block_length != 4 && p->block_length != 8 && p->block_length != 16 &&
        p->block_length != 32 && p->block_length != 64)
        return bad(c, "block_length", "block_length must be 4, 8, 16, 32 or 64, not %d", p->block_length);
    if (!within(p->threshold, 0, 1))
        return bad(c, "threshold", "threshold must be above 0 and at most 1, not %g", p->threshold);
    if (p->steps < 0 || p->steps > ENG_MAX_BLOCK)
        return bad(c, "steps", "steps must be between 1 and %d, not %d", ENG_MAX_BLOCK, p->steps);
    if (p->threshold > 0 && p->steps > 0)
        return bad(c, "steps", "steps and threshold exclude each other");
    if ((int)p->commit_policy < 0 || p->commit_policy >= ENG_N_COMMIT)
        return bad(c, "commit_policy", "commit_policy %d is not known", (int)p->commit_policy);
    if (p->commit_policy == ENG_COMMIT_SCHEDULE && p->steps == 0)
        return bad(c, "commit_policy", "commit_policy schedule needs steps");
    if (p->threshold > 0 && p->commit_policy != ENG_COMMIT_CONFIDENCE)
        return bad(c, "threshold", "threshold is for commit_policy confidence, not for %s",
                   policy_names[p->commit_policy]);
    if (p->mode == ENG_MODE_AR || p->mode == ENG_MODE_SELF_SPECULATION) {
        const char *name = p->threshold > 0                            ? "threshold"
                           : p->steps > 0                              ? "steps"
                           : p->commit_policy != ENG_COMMIT_CONFIDENCE ? "commit_policy"
                                                                       : NULL;
        if (name)
            return bad(c, name, "%s is for mode diffusion, not for %s", name, mode_names[p->mode]);
    }
    return 0;
}

static int check_lists(const struct check *c, const struct eng_request_limits *l, const struct eng_params *p)
{
    for (size_t i = 0; i < p->n_stop_ids; i++)
        if (p->stop_ids[i] < 0 || p->stop_ids[i] >= l->n_vocab)
            return bad(c, "stop_token_ids", "stop_token_ids[%zu] is %d; ids are 0 to %d", i, p->stop_ids[i],
                       l->n_vocab - 1);
    for (size_t i = 0; i < p->n_stops; i++)
        if (!p->stops[i] || !p->stops[i][0] || !eng_utf8_valid(p->stops[i], strlen(p->stops[i])))
            return bad(c, "stop", "stop[%zu] must be UTF-8 text that is not empty", i);
    for (size_t i = 0; i < p->n_biases; i++) {
        if (p->biases[i].token < 0 || p->biases[i].token >= l->n_vocab)
            return bad(c, "logit_bias", "logit_bias names token %d; ids are 0 to %d", p->biases[i].token,
                       l->n_vocab - 1);
        if (!within(p->biases[i].bias, -100, 100))
            return bad(c, "logit_bias", "logit_bias of token %d must be between -100 and 100, not %g",
                       p->biases[i].token, p->biases[i].bias);
    }
    return 0;
}

static int check_all(const struct check *c, const struct eng_request_limits *l, const struct eng_params *p,
                     const int32_t *prompt, size_t n_prompt)
{
    if (p->max_tokens < 0)
        return bad(c, "max_tokens", "max_tokens must be at least 0, not %d", p->max_tokens);
    if (p->min_tokens < 0 || p->min_tokens > p->max_tokens)
        return bad(c, "min_tokens", "min_tokens must be between 0 and max_tokens (%d), not %d", p->max_tokens,
                   p->min_tokens);
    if (p->n_top < -1 || p->n_top > KRN_TOP_MAX)
        return bad(c, "top_logprobs", "top_logprobs must be between 0 and %d, not %d", KRN_TOP_MAX, p->n_top);
    if (p->timeout_ms < 0 || p->timeout_ms > INT64_MAX / 1000000 / 4)
        return bad(c, "timeout_ms", "timeout_ms must be at least 0 and reasonable, not %lld", (long long)p->timeout_ms);
    if (p->priority < -ENG_MAX_PRIORITY || p->priority > ENG_MAX_PRIORITY)
        return bad(c, "priority", "priority must be between %d and %d, not %d", -ENG_MAX_PRIORITY, ENG_MAX_PRIORITY,
                   p->priority);
    if (p->tenant < 0 || p->tenant >= ENG_MAX_TENANTS)
        return bad(c, "tenant", "tenant must be between 0 and %d, not %d", ENG_MAX_TENANTS - 1, p->tenant);
    if (n_prompt < 1)
        return bad(c, "prompt", "the prompt must have at least one token");
    if (n_prompt > (size_t)l->max_context - 1)
        return bad(c, "prompt", "the prompt has %zu tokens; the context of %d tokens allows %d", n_prompt,
                   l->max_context, l->max_context - 1);
    for (size_t i = 0; i < n_prompt; i++)
        if (prompt[i] < 0 || prompt[i] >= l->n_vocab)
            return bad(c, "prompt", "prompt token %zu is %d; ids are 0 to %d", i, prompt[i], l->n_vocab - 1);
    int rc = check_sampling(c, p);
    if (!rc)
        rc = check_mode(c, l, p);
    if (!rc)
        rc = check_lists(c, l, p);
    return rc;
}

// ---- copies ---------------------------------------------------------------------------------------------------------

static void *copy_of(const void *src, size_t n, size_t size)
{
    if (!n)
        return NULL;
    void *p = malloc(n * size);
    if (p)
        memcpy(p, src, n * size);
    return p;
}

// One block: the pointers, then the strings.
static const char *const *copy_strings(const char *const *strings, size_t n)
{
    size_t bytes = n * sizeof(char *);
    for (size_t i = 0; i < n; i++)
        bytes += strlen(strings[i]) + 1;
    char **copy = malloc(bytes);
    if (!copy)
        return NULL;
    char *at = (char *)(copy + n);
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(strings[i]) + 1;
        copy[i] = memcpy(at, strings[i], len);
        at += len;
    }
    return (const char *const *)copy;
}

static uint32_t *all_allowed(int32_t n_vocab)
{
    size_t words = ((size_t)n_vocab + 31) / 32;
    uint32_t *bits = malloc(words * sizeof *bits);
    if (bits)
        memset(bits, 0xff, words * sizeof *bits);
    return bits;
}

static void forbid(uint32_t *bits, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        bits[ids[i] / 32] &= ~(1u << ids[i] % 32);
}

static bool contains(const int32_t *ids, size_t n, int32_t id)
{
    for (size_t i = 0; i < n; i++)
        if (ids[i] == id)
            return true;
    return false;
}

// End ids and the two maps of allowed tokens.
static int make_ends(struct eng_request *r, const struct eng_request_limits *l)
{
    const struct eng_params *p = &r->params;
    r->end_ids = malloc((p->n_stop_ids + (size_t)l->n_eos + 1) * sizeof *r->end_ids);
    if (!r->end_ids)
        return ENG_ENOMEM;
    for (size_t i = 0; i < p->n_stop_ids; i++)
        r->end_ids[r->n_end_ids++] = p->stop_ids[i];
    for (int32_t i = 0; i < l->n_eos && !p->ignore_eos; i++)
        r->end_ids[r->n_end_ids++] = l->eos_ids[i];
    if (p->ignore_eos && l->n_eos) {
        r->allowed = all_allowed(l->n_vocab);
        if (!r->allowed)
            return ENG_ENOMEM;
        // An end-of-text id that the client itself names as a stop id stays one.
        for (int32_t i = 0; i < l->n_eos; i++)
            if (!contains(p->stop_ids, p->n_stop_ids, l->eos_ids[i]))
                forbid(r->allowed, &l->eos_ids[i], 1);
    }
    if (p->min_tokens > 0) {
        r->allowed_early = all_allowed(l->n_vocab);
        if (!r->allowed_early)
            return ENG_ENOMEM;
        forbid(r->allowed_early, l->eos_ids, (size_t)l->n_eos);
        forbid(r->allowed_early, p->stop_ids, p->n_stop_ids);
    }
    return 0;
}

static int copy_all(struct eng_request *r, const struct eng_request_limits *l, const struct eng_params *params,
                    const int32_t *prompt, size_t n_prompt)
{
    struct eng_params *p = &r->params;
    *p = *params;
    p->stop_ids = NULL;
    p->stops = NULL;
    p->biases = NULL;
    p->cache_salt = NULL;
    r->prompt = copy_of(prompt, n_prompt, sizeof *prompt);
    r->n_prompt = n_prompt;
    p->stop_ids = copy_of(params->stop_ids, params->n_stop_ids, sizeof *params->stop_ids);
    if (params->n_stops)
        p->stops = copy_strings(params->stops, params->n_stops);
    if (params->cache_salt)
        p->cache_salt = strdup(params->cache_salt);
    if (params->n_biases)
        r->biases = malloc(params->n_biases * sizeof *r->biases);
    r->last = eng_event_reserve();
    if (!r->prompt || !r->last || (params->n_stop_ids && !p->stop_ids) || (params->n_stops && !p->stops) ||
        (params->cache_salt && !p->cache_salt) || (params->n_biases && !r->biases))
        return ENG_ENOMEM;
    for (size_t i = 0; i < params->n_biases; i++)
        r->biases[i] = (struct krn_token_bias){params->biases[i].token, params->biases[i].bias};
    if (!(p->threshold > 0))
        p->threshold = l->threshold;
    r->mode = p->mode;
    if (r->mode == ENG_MODE_AUTO && !(p->lossless && l->mode == ENG_MODE_DIFFUSION) && l->modes & 1u << l->mode)
        r->mode = l->mode;
    r->block_free = !p->block_length && r->mode != ENG_MODE_DIFFUSION;
    if (!p->block_length)
        p->block_length = l->block_length;
    r->tokenizer = l->tokenizer;
    r->n_vocab = l->n_vocab;
    return make_ends(r, l);
}

static void init_seq(struct eng_request *r, const struct eng_request_limits *l)
{
    struct eng_seq *s = &r->seq;
    int32_t n_prompt = (int32_t)r->n_prompt;
    int32_t room = l->max_context - n_prompt;
    s->request = r;
    s->slot = -1;
    s->n_tokens = s->n_prompt = s->prefill_end = n_prompt;
    s->limit = n_prompt + (r->params.max_tokens < room ? r->params.max_tokens : room);
    s->max_context = l->max_context;
    s->mode = ENG_MODE_AUTO;
    s->stop_id = -1;
    s->stats.prompt_tokens = n_prompt;
}

int eng_request_make(const struct eng_request_limits *limits, const struct eng_params *params, const int32_t *prompt,
                     size_t n_prompt, struct eng_request **ret_request, const char **ret_param, char *err,
                     size_t err_size)
{
    struct check c = {ret_param, err, err ? err_size : 0};
    if (ret_param)
        *ret_param = NULL;
    int rc = check_all(&c, limits, params, prompt, n_prompt);
    if (rc)
        return rc;
    struct eng_request *r = calloc(1, sizeof *r);
    rc = r ? copy_all(r, limits, params, prompt, n_prompt) : ENG_ENOMEM;
    if (rc) {
        eng_request_free(r);
        if (c.err_size)
            snprintf(c.err, c.err_size, "out of memory");
        return rc;
    }
    atomic_init(&r->cancelled, false);
    init_seq(r, limits);
    *ret_request = r;
    return 0;
}

void eng_request_free(struct eng_request *r)
{
    if (!r)
        return;
    eng_seq_done(&r->seq);
    eng_event_release(r->last);
    free(r->prompt);
    free(r->end_ids);
    free(r->biases);
    free(r->allowed);
    free(r->allowed_early);
    free((void *)r->params.stop_ids);
    free((void *)r->params.stops);
    free((void *)r->params.cache_salt);
    free(r);
}
