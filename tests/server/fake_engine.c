// The scripted engine behind the server's tests. Events are queued under one lock by whoever speaks (a test, or
// eng_submit itself when replies are automatic) and taken by the loop thread.
#include "fake_engine.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_REQUESTS = 4096, MAX_RUN = 64 };

struct eng_request {
    struct eng_params params;
    char *prompt;
    size_t n_prompt;
    int said; // bytes so far
    bool finished;
    char *stop;
};

struct owned_event { // an event and what it points to
    struct eng_event event;
    char text[4096];
    struct eng_token tokens[4096];
    int32_t top_ids[32];
    float top_logprobs[32];
    struct eng_request_stats stats;
    char error[128];
};

struct owned_draft {
    struct eng_event event;
    struct eng_draft draft;
    int32_t ids[64];
};

struct eng_engine {
    struct eng_options options;
    struct eng_info info;
    struct eng_event *head, **tail;
    bool draining;
};

struct fake_control fake;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct eng_engine *the_engine;
static struct eng_request *submitted[MAX_REQUESTS]; // NULL once freed
static struct eng_params asked[MAX_REQUESTS];
static char *prompts[MAX_REQUESTS];
static atomic_bool cancelled[MAX_REQUESTS];
static int n_submitted, n_unfinished, n_live;

static void pause_ms(int ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

void fake_reset(void)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_submitted; i++) {
        free(prompts[i]);
        prompts[i] = NULL;
        submitted[i] = NULL;
        atomic_store(&cancelled[i], false);
    }
    n_submitted = n_unfinished = n_live = 0;
    fake = (struct fake_control){.queue_limit = 1000, .reply = "Hello, world", .run = 5};
    pthread_mutex_unlock(&lock);
}

bool fake_wait_submitted(int n, int timeout_ms)
{
    for (int ms = 0; ms <= timeout_ms; ms++) {
        pthread_mutex_lock(&lock);
        bool there = n_submitted >= n;
        pthread_mutex_unlock(&lock);
        if (there)
            return true;
        pause_ms(1);
    }
    return false;
}

bool fake_cancelled(int i)
{
    return atomic_load(&cancelled[i]);
}

int fake_wait_cancelled(int i, int timeout_ms)
{
    for (int ms = 0; ms <= timeout_ms; ms++) {
        if (fake_cancelled(i))
            return ms;
        pause_ms(1);
    }
    return -1;
}

struct eng_params fake_params(int i)
{
    return asked[i];
}

const char *fake_prompt(int i)
{
    return prompts[i];
}

int fake_live(void)
{
    pthread_mutex_lock(&lock);
    int n = n_live;
    pthread_mutex_unlock(&lock);
    return n;
}

// ---- events, under the lock -----------------------------------------------------------------------------------------

static void push(struct eng_request *r, const char *text, enum eng_finish finish, const char *error)
{
    struct owned_event *o = calloc(1, sizeof *o);
    assert(o && strlen(text) < sizeof o->text);
    struct eng_event *ev = &o->event;
    strcpy(o->text, text);
    ev->user = r->params.user;
    ev->request = r;
    ev->text = o->text;
    ev->text_len = strlen(text);
    ev->tokens = o->tokens;
    ev->n_tokens = (int32_t)ev->text_len;
    ev->stop_id = -1;
    ev->finish = finish;
    for (int k = 0; k < 32; k++) {
        o->top_ids[k] = 'a' + k;
        o->top_logprobs[k] = -1.0f - (float)k;
    }
    for (int32_t i = 0; i < ev->n_tokens; i++)
        o->tokens[i] = (struct eng_token){.id = (unsigned char)text[i],
                                          .logprob = -0.5f,
                                          .text_end = (size_t)i + 1,
                                          .n_top = r->params.n_top > 0 ? r->params.n_top : 0,
                                          .top_ids = o->top_ids,
                                          .top_logprobs = o->top_logprobs};
    r->said += ev->n_tokens;
    if (finish) {
        r->finished = true;
        n_unfinished--;
        snprintf(o->error, sizeof o->error, "%s", error ? error : "");
        ev->error = error ? o->error : NULL;
        if (finish == ENG_FINISH_STOP && r->stop)
            ev->stop = r->stop;
        else if (finish == ENG_FINISH_STOP)
            ev->stop_id = FAKE_EOS;
        o->stats = (struct eng_request_stats){.prompt_tokens = (int32_t)r->n_prompt,
                                              .completion_tokens = r->said,
                                              .forward_passes = r->said / 2 + 1,
                                              .first_token_ms = 2,
                                              .total_ms = 5,
                                              .mode = r->params.mode ? r->params.mode : ENG_MODE_SELF_SPECULATION,
                                              .block_length = 16,
                                              .n_spans = 1,
                                              .cause = r->params.mode == ENG_MODE_AUTO ? ENG_CAUSE_FASTEST
                                                                                       : ENG_CAUSE_REQUESTED};
        o->stats.spans[0] = (struct eng_span){0, o->stats.mode, 16};
        strcpy(o->stats.reason, "scripted");
        ev->stats = &o->stats;
    }
    *the_engine->tail = ev;
    the_engine->tail = &ev->next;
}

static void notify(void)
{
    if (the_engine->options.notify)
        the_engine->options.notify(the_engine->options.user);
}

void fake_say(int i, const char *text)
{
    pthread_mutex_lock(&lock);
    if (submitted[i] && !submitted[i]->finished)
        push(submitted[i], text, ENG_FINISH_NONE, NULL);
    notify();
    pthread_mutex_unlock(&lock);
}

void fake_draft(int i, const char *tokens)
{
    pthread_mutex_lock(&lock);
    struct eng_request *r = submitted[i];
    if (r && !r->finished) {
        struct owned_draft *o = calloc(1, sizeof *o);
        assert(o && strlen(tokens) <= 64);
        o->draft = (struct eng_draft){ENG_MODE_DIFFUSION, r->said, 2, (int32_t)strlen(tokens), 0, o->ids};
        for (int32_t k = 0; k < o->draft.n; k++) {
            o->ids[k] = (unsigned char)tokens[k];
            o->draft.masked |= (uint64_t)(tokens[k] == '_') << k;
        }
        o->event.user = r->params.user;
        o->event.request = r;
        o->event.text = "";
        o->event.stop_id = -1;
        o->event.draft = &o->draft;
        *the_engine->tail = &o->event;
        the_engine->tail = &o->event.next;
    }
    notify();
    pthread_mutex_unlock(&lock);
}

void fake_finish(int i, enum eng_finish finish, const char *error)
{
    pthread_mutex_lock(&lock);
    if (submitted[i] && !submitted[i]->finished)
        push(submitted[i], "", finish, error);
    notify();
    pthread_mutex_unlock(&lock);
}

static void reply(struct eng_request *r)
{
    char part[MAX_RUN + 1];
    size_t n = strlen(fake.reply), limit = (size_t)r->params.max_tokens;
    enum eng_finish finish = n > limit ? ENG_FINISH_LENGTH : ENG_FINISH_STOP;
    n = n < limit ? n : limit;
    for (size_t at = 0; at < n;) {
        size_t run = n - at < (size_t)fake.run ? n - at : (size_t)fake.run;
        memcpy(part, fake.reply + at, run);
        part[run] = 0;
        at += run;
        push(r, part, at == n ? finish : ENG_FINISH_NONE, NULL);
    }
    if (n == 0)
        push(r, "", finish, NULL);
}

// ---- engine.h -------------------------------------------------------------------------------------------------------

const char *eng_strerror(int code)
{
    return code == ENG_EBUSY ? "the queue is full" : "an error";
}

static const char *const mode_names[] = {"auto", "ar", "diffusion", "self_speculation"};
const char *eng_mode_name(enum eng_mode mode)
{
    return mode_names[mode];
}

const char *eng_cause_name(enum eng_cause cause)
{
    static const char *const names[ENG_N_CAUSES] = {"requested", "default",     "only_mode",
                                                    "fastest",   "poor_drafts", "auto_rows"};
    return names[cause];
}

int eng_mode_parse(const char *name)
{
    for (int i = 0; i < ENG_N_MODES; i++)
        if (!strcmp(name, mode_names[i]))
            return i;
    return -1;
}

static const char *const policy_names[] = {"confidence", "schedule", "leftmost"};
const char *eng_commit_policy_name(enum eng_commit_policy p)
{
    return policy_names[p];
}

int eng_commit_policy_parse(const char *name)
{
    for (int i = 0; i < ENG_N_COMMIT; i++)
        if (!strcmp(name, policy_names[i]))
            return i;
    return -1;
}

const char *eng_pass_kind_name(enum eng_pass_kind k)
{
    static const char *const names[] = {"prefill", "ar", "denoise", "seal", "draft", "verify"};
    return names[k];
}

struct eng_options eng_options_default(void)
{
    return (struct eng_options){.backend = "auto",
                                .cpu_mask = ~0u,
                                .weights = "auto",
                                .adapter = "auto",
                                .page_size = 16,
                                .max_sequences = 16,
                                .max_step_rows = 512,
                                .max_queue = 1000,
                                .prompt_budget = 1.6,
                                .prefix_cache = true,
                                .auto_modes = 1u << ENG_MODE_AR | 1u << ENG_MODE_SELF_SPECULATION,
                                .block_length = 32,
                                .threshold = 0.9f};
}

int eng_open(const struct eng_options *options, struct eng_engine **ret, char *err, size_t err_size)
{
    for (int ms = 0; ms < fake.load_ms; ms += 10) {
        if (options->progress)
            options->progress(options->user, "loading", (double)ms / fake.load_ms);
        pause_ms(10);
    }
    if (fake.load_fails) {
        snprintf(err, err_size, "the folder is empty");
        return ENG_EIO;
    }
    struct eng_engine *e = calloc(1, sizeof *e);
    e->options = *options;
    e->tail = &e->head;
    unsigned modes = 1u << ENG_MODE_AR | 1u << ENG_MODE_DIFFUSION;
    e->info = (struct eng_info){.backend = "cpu",
                                .backend_description = "scripted",
                                .backend_reason = "there is no GPU",
                                .kv_type = "f32",
                                .memory = {.n_categories = 2, .categories = {{"weights", 1000}, {"kv", 70}}},
                                .weights_type = "bf16",
                                .weights_bytes = 1000,
                                .file_bytes = 1000,
                                .parameters = 500,
                                .n_vocab = FAKE_VOCAB,
                                .max_context = options->max_context ? options->max_context : FAKE_CONTEXT,
                                .n_pages = 32,
                                .page_size = options->page_size,
                                .modes = modes | (fake.no_adapter ? 0 : 1u << ENG_MODE_SELF_SPECULATION),
                                .has_adapter = !fake.no_adapter,
                                .has_chat_template = true,
                                .cost_origin = fake.no_cost ? "none" : "file"};
    if (!fake.no_cost)
        e->info.cost = (struct eng_cost){.n_knots = 2,
                                         .knots = {1, 24},
                                         .slopes = {0.5, 0.25},
                                         .base = 3,
                                         .far = {0, 8},
                                         .n_samples = 87,
                                         .median_error = 0.0625};
    pthread_mutex_lock(&lock);
    the_engine = e;
    pthread_mutex_unlock(&lock);
    *ret = e;
    return 0;
}

void eng_close(struct eng_engine *e)
{
    if (!e)
        return;
    pthread_mutex_lock(&lock);
    for (struct eng_event *ev = e->head, *next; ev; ev = next) {
        next = ev->next;
        free(ev);
    }
    for (int i = 0; i < n_submitted; i++)
        if (submitted[i]) {
            atomic_store(&cancelled[i], true);
            free(submitted[i]->prompt);
            free(submitted[i]->stop);
            free(submitted[i]);
            submitted[i] = NULL;
        }
    the_engine = NULL;
    pthread_mutex_unlock(&lock);
    free(e);
}

const struct eng_info *eng_info(const struct eng_engine *e)
{
    return &e->info;
}

int eng_encode(const struct eng_engine *e, const char *text, size_t len, bool parse_special, int32_t **ret_ids,
               size_t *ret_n)
{
    (void)e;
    (void)parse_special;
    *ret_ids = calloc(len + 1, sizeof **ret_ids);
    *ret_n = len;
    for (size_t i = 0; i < len; i++)
        (*ret_ids)[i] = (unsigned char)text[i];
    return 0;
}

int eng_decode(const struct eng_engine *e, const int32_t *ids, size_t n, bool skip_special, char **ret_text,
               size_t *ret_len)
{
    (void)e;
    (void)skip_special;
    *ret_text = calloc(n + 1, 1);
    *ret_len = n;
    for (size_t i = 0; i < n; i++)
        (*ret_text)[i] = (char)(ids[i] < 128 ? ids[i] : '?');
    return 0;
}

const char *eng_token_bytes(const struct eng_engine *e, int32_t id, size_t *ret_len)
{
    static char bytes[256];
    (void)e;
    if (id < 0 || id >= FAKE_VOCAB)
        return NULL;
    if (id >= 256) {
        *ret_len = 5;
        return id == FAKE_EOS ? "<eos>" : "<pad>";
    }
    bytes[id] = (char)id;
    *ret_len = 1;
    return &bytes[id];
}

int eng_chat(const struct eng_engine *e, const struct cJSON *messages, const struct cJSON *tools, bool generation,
             bool proceed, const struct cJSON *kwargs, int32_t **ret_ids, size_t *ret_n, char *err, size_t err_size)
{
    (void)tools;
    char text[8192] = "";
    const cJSON *m;
    if (cJSON_IsTrue(cJSON_GetObjectItem(kwargs, "fail"))) {
        snprintf(err, err_size, "the template says no");
        return ENG_EINVAL;
    }
    cJSON_ArrayForEach(m, messages)
    {
        strncat(text, cJSON_GetObjectItem(m, "role")->valuestring, 16);
        strcat(text, ":");
        strncat(text, cJSON_GetObjectItem(m, "content")->valuestring, 1024);
        strcat(text, m->next || !proceed ? "\n" : "");
    }
    strcat(text, generation ? "assistant:" : "");
    return eng_encode(e, text, strlen(text), false, ret_ids, ret_n);
}

struct eng_params eng_params_default(void)
{
    return (struct eng_params){
        .temperature = 1, .top_p = 1, .repetition_penalty = 1, .n_top = -1, .skip_special = true};
}

int eng_request_new(const struct eng_engine *e, const struct eng_params *params, const int32_t *prompt, size_t n_prompt,
                    struct eng_request **ret, const char **ret_param, char *err, size_t err_size)
{
    if (n_prompt < 1 || n_prompt >= (size_t)e->info.max_context || params->max_tokens < 0) {
        if (ret_param)
            *ret_param = "prompt";
        snprintf(err, err_size, "the prompt has %zu tokens", n_prompt);
        return ENG_EINVAL;
    }
    if (params->steps > 0 && params->steps > (params->block_length ? params->block_length : 32)) {
        if (ret_param)
            *ret_param = "steps";
        snprintf(err, err_size, "steps is more than the block length");
        return ENG_EINVAL;
    }
    struct eng_request *r = calloc(1, sizeof *r);
    r->params = *params;
    r->n_prompt = n_prompt;
    r->prompt = calloc(n_prompt + 1, 1);
    for (size_t i = 0; i < n_prompt; i++)
        r->prompt[i] = (char)prompt[i];
    r->stop = params->n_stops ? strdup(params->stops[0]) : NULL;
    *ret = r;
    return 0;
}

void eng_request_free(struct eng_request *r)
{
    if (!r)
        return;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_submitted; i++)
        if (submitted[i] == r) {
            assert(r->finished);
            submitted[i] = NULL;
            n_live--;
        }
    pthread_mutex_unlock(&lock);
    free(r->prompt);
    free(r->stop);
    free(r);
}

int eng_submit(struct eng_engine *e, struct eng_request *r)
{
    int status = 0;
    pthread_mutex_lock(&lock);
    if (e->draining) {
        status = ENG_ECLOSED;
    } else if (n_unfinished >= fake.queue_limit || n_submitted >= MAX_REQUESTS) {
        status = ENG_EBUSY;
    } else {
        asked[n_submitted] = r->params;
        prompts[n_submitted] = strdup(r->prompt);
        submitted[n_submitted++] = r;
        n_unfinished++;
        n_live++;
        if (!fake.hold)
            reply(r);
        notify();
    }
    pthread_mutex_unlock(&lock);
    return status;
}

void eng_cancel(struct eng_request *r)
{
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_submitted; i++)
        if (submitted[i] == r && !r->finished) {
            atomic_store(&cancelled[i], true);
            push(r, "", ENG_FINISH_CANCELLED, NULL);
        }
    notify();
    pthread_mutex_unlock(&lock);
}

void eng_drain(struct eng_engine *e)
{
    pthread_mutex_lock(&lock);
    e->draining = true;
    pthread_mutex_unlock(&lock);
}

struct eng_event *eng_take_events(struct eng_engine *e)
{
    pthread_mutex_lock(&lock);
    struct eng_event *list = e->head;
    e->head = NULL;
    e->tail = &e->head;
    pthread_mutex_unlock(&lock);
    return list;
}

void eng_event_free(struct eng_event *ev)
{
    free(ev); // the event opens what owns it
}

const char *eng_failure(const struct eng_engine *e)
{
    (void)e;
    return fake.failure;
}

int32_t eng_live(const struct eng_engine *e, struct eng_live *ret, int32_t max)
{
    (void)e;
    int32_t n = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < n_submitted && n < max; i++)
        if (submitted[i] && !submitted[i]->finished && submitted[i]->said)
            ret[n++] = (struct eng_live){.user = submitted[i]->params.user,
                                         .mode = ENG_MODE_SELF_SPECULATION,
                                         .block_length = 16,
                                         .prompt_tokens = (int32_t)submitted[i]->n_prompt,
                                         .computed_tokens = 9,
                                         .completion_tokens = submitted[i]->said,
                                         .forward_passes = 4,
                                         .drafted_tokens = 8,
                                         .accepted_tokens = 6,
                                         .tokens_per_second = 123.4,
                                         .predicted_tokens_per_second = 150.5,
                                         .reason = "scripted"};
    pthread_mutex_unlock(&lock);
    return n;
}

void eng_stats(const struct eng_engine *e, struct eng_stats *ret)
{
    static const double bounds[] = {1, 2, 4};
    *ret = (struct eng_stats){.pages_total = 32,
                              .pages_used = 8,
                              .prompt_tokens = 7,
                              .waiting = 2,
                              .preemptions = 3,
                              .drafted_tokens = 12,
                              .accepted_tokens = 9,
                              .pages_cached = 10,
                              .cached_prompt_tokens = 4,
                              .prefix_queries = 9,
                              .prefix_hits = 5};
    ret->has_cost = e->info.cost.n_knots > 0;
    ret->step_error_ratio = 1.25;
    ret->running[ENG_MODE_AR] = 1;
    ret->generated_tokens[ENG_MODE_AR] = 10;
    ret->generated_tokens[ENG_MODE_DIFFUSION] = 20;
    ret->passes[ENG_PASS_VERIFY] = 4;
    ret->rows = (struct eng_hist){.bounds = bounds, .n_bounds = 3, .counts = {1, 2, 0, 1}, .sum = 13, .count = 4};
    ret->seconds = ret->accepted_length = ret->denoise_passes = ret->rows;
}
