// The tests' caller of the engine.
#include "client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cjson/cJSON.h>
#include <cmocka.h>

uint32_t test_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

static void notify(void *user)
{
    struct client *c = user;
    pthread_mutex_lock(&c->mutex);
    c->notified = true;
    pthread_cond_signal(&c->ready);
    pthread_mutex_unlock(&c->mutex);
}

struct eng_options client_options(void)
{
    struct eng_options o = eng_options_default();
    o.max_sequences = 8;
    o.max_step_rows = 64;
    o.max_queue = 100000;
    return o;
}

static void init(struct client *c, struct eng_options *o)
{
    *c = (struct client){0};
    pthread_mutex_init(&c->mutex, NULL);
    pthread_cond_init(&c->ready, NULL);
    o->notify = notify;
    o->user = c;
}

void client_open(struct client *c, struct fake_model *f, struct eng_options options, int32_t max_context,
                 const struct eng_tokenizer *tokenizer)
{
    char err[200] = "";
    init(c, &options);
    c->fake = f;
    f->shares = options.prefix_cache;
    int32_t most = f->n_pages * f->page_size;
    struct eng_parts parts = {
        .model = fake_model_open(f),
        .tokenizer = tokenizer,
        .eos_ids = &f->end_id,
        .n_eos = f->end_id >= 0,
        .info = {.cost = f->cost,
                 .n_pages = f->n_pages,
                 .page_size = f->page_size,
                 .max_context = max_context  ? max_context
                                : most < 200 ? most
                                             : 200},
    };
    int rc = eng_open_model(&options, &parts, &c->engine, err, sizeof err);
    if (rc)
        fail_msg("eng_open_model: %s", err);
}

int client_open_dir(struct client *c, struct eng_options options, char *err, size_t err_size)
{
    init(c, &options);
    return eng_open(&options, &c->engine, err, err_size);
}

void client_close(struct client *c)
{
    client_wait(c);
    bool pages = eng_kv_check(&c->engine->sched.kv);
    struct eng_stats st;
    // The last step's numbers are published before its events, so they are there.
    eng_stats(c->engine, &st);
    struct eng_live live;
    int32_t n_live = eng_live(c->engine, &live, 1);
    eng_close(c->engine);
    pthread_mutex_destroy(&c->mutex);
    pthread_cond_destroy(&c->ready);
    assert_string_equal(c->fault, "");
    if (c->fake)
        assert_string_equal(c->fake->fault, "");
    assert_true(pages);
    assert_int_equal(st.pages_used, 0);
    assert_int_equal(st.waiting, 0);
    assert_int_equal(n_live, 0);
}

void client_submit(struct client *c, struct answer *a, const struct eng_params *params, const int32_t *prompt,
                   size_t n_prompt)
{
    char err[200] = "";
    *a = (struct answer){0};
    struct eng_params p = *params;
    p.user = a;
    if (eng_request_new(c->engine, &p, prompt, n_prompt, &a->request, NULL, err, sizeof err))
        fail_msg("eng_request_new: %s", err);
    int rc = eng_submit(c->engine, a->request);
    if (rc)
        fail_msg("eng_submit: %s", eng_strerror(rc));
    c->n_open++;
}

static void handle_draft(struct client *c, struct answer *a, const struct eng_event *ev)
{
    const struct eng_draft *d = ev->draft;
    if (ev->n_tokens || ev->text_len || ev->finish || ev->stats)
        snprintf(c->fault, sizeof c->fault, "a draft carries more than a draft");
    if (d->from_token != a->n_tokens || d->n < 0 || d->n > 64)
        snprintf(c->fault, sizeof c->fault, "a draft of %d from %d after %d tokens", d->n, d->from_token, a->n_tokens);
    a->n_drafts++;
    a->last_n = d->n;
    a->last_from = d->from_token;
    for (int32_t i = 0; i < d->n; i++) {
        bool masked = d->masked >> i & 1;
        a->n_masked += masked;
        a->n_drafted += !masked;
        a->last_draft[i] = masked ? -1 : d->ids[i];
    }
}

static void handle(struct client *c, const struct eng_event *ev)
{
    struct answer *a = ev->user;
    if (a->n_finishes)
        snprintf(c->fault, sizeof c->fault, "an event after the finish");
    if (ev->request != a->request)
        snprintf(c->fault, sizeof c->fault, "an event of another request");
    if (ev->draft) {
        handle_draft(c, a, ev);
        return;
    }
    a->n_events++;
    if (a->n_tokens + ev->n_tokens > a->cap) {
        a->cap = 2 * (a->n_tokens + ev->n_tokens);
        a->tokens = realloc(a->tokens, (size_t)a->cap * sizeof *a->tokens);
        a->logprobs = realloc(a->logprobs, (size_t)a->cap * sizeof *a->logprobs);
    }
    size_t end = 0;
    for (int32_t i = 0; i < ev->n_tokens; i++) {
        if (ev->tokens[i].text_end < end || ev->tokens[i].text_end > ev->text_len)
            snprintf(c->fault, sizeof c->fault, "text_end out of order");
        end = ev->tokens[i].text_end;
        a->tokens[a->n_tokens] = ev->tokens[i].id;
        a->logprobs[a->n_tokens++] = ev->tokens[i].logprob;
    }
    a->text = realloc(a->text, a->text_len + ev->text_len + 1);
    if (ev->text_len)
        memcpy(a->text + a->text_len, ev->text, ev->text_len);
    a->text_len += ev->text_len;
    a->text[a->text_len] = '\0';
    if (ev->finish == ENG_FINISH_NONE)
        return;
    a->n_finishes++;
    a->finish = ev->finish;
    a->stop_id = ev->stop_id;
    snprintf(a->stop, sizeof a->stop, "%s", ev->stop ? ev->stop : "");
    snprintf(a->error, sizeof a->error, "%s", ev->error ? ev->error : "");
    a->stats = *ev->stats;
    c->n_open--;
    eng_request_free(a->request);
    a->request = NULL;
}

bool client_poll(struct client *c, int timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += timeout_ms / 1000;
    until.tv_nsec += timeout_ms % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_sec++;
        until.tv_nsec -= 1000000000L;
    }
    struct eng_event *ev;
    int rc = 0;
    // A notification may be older than the last taking, so the list itself decides.
    while (!(ev = eng_take_events(c->engine)) && !rc) {
        pthread_mutex_lock(&c->mutex);
        while (!c->notified && !rc)
            rc = pthread_cond_timedwait(&c->ready, &c->mutex, &until);
        c->notified = false;
        pthread_mutex_unlock(&c->mutex);
    }
    bool some = ev;
    for (struct eng_event *next; ev; ev = next) {
        next = ev->next;
        handle(c, ev);
        eng_event_free(ev);
    }
    return some;
}

void client_wait(struct client *c)
{
    while (c->n_open)
        if (!client_poll(c, 60000) && c->n_open)
            fail_msg("%d requests did not finish within a minute", c->n_open);
}

void answer_free(struct answer *a)
{
    free(a->tokens);
    free(a->logprobs);
    free(a->text);
    *a = (struct answer){0};
}

bool answer_equal(const struct answer *a, const struct answer *b)
{
    return a->n_tokens == b->n_tokens && a->finish == b->finish && a->stop_id == b->stop_id &&
           !strcmp(a->stop, b->stop) && a->text_len == b->text_len &&
           (!a->n_tokens || !memcmp(a->tokens, b->tokens, (size_t)a->n_tokens * sizeof *a->tokens)) &&
           (!a->text_len || !memcmp(a->text, b->text, a->text_len));
}

// ---- sums -----------------------------------------------------------------------------------------------------------

// Both sides of what counts by mode: only a request that never changed its mode tells where all its tokens count.
static void check_modes(const struct answer *answers, int32_t n, const struct eng_stats *stats)
{
    uint64_t least[ENG_N_MODES] = {0}, generated = 0, decided = 0, switches = 0;
    uint64_t counted = 0, decisions = 0, counted_switches = 0;
    for (int32_t i = 0; i < n; i++) {
        const struct eng_request_stats *r = &answers[i].stats;
        generated += (uint64_t)r->completion_tokens;
        least[r->mode] += r->switches ? 0 : (uint64_t)r->completion_tokens;
        decided += r->n_spans > 0;
        switches += (uint64_t)r->switches;
    }
    for (int m = 0; m < ENG_N_MODES; m++) {
        assert_true(stats->generated_tokens[m] >= least[m]);
        counted += stats->generated_tokens[m];
        decisions += stats->decisions[m];
        for (int to = 0; to < ENG_N_MODES; to++)
            counted_switches += stats->switches[m][to];
    }
    assert_int_equal(counted, generated);
    assert_int_equal(decisions, decided);
    assert_int_equal(counted_switches, switches);
}

void client_check_sums(const struct answer *answers, int32_t n, const struct eng_stats *stats)
{
    struct eng_stats sum = {0};
    uint64_t passes = 0, counted = 0;
    for (int32_t i = 0; i < n; i++) {
        const struct eng_request_stats *r = &answers[i].stats;
        // A prompt counts once it is computed.
        if (r->completion_tokens || answers[i].finish == ENG_FINISH_LENGTH) {
            sum.prompt_tokens += (uint64_t)r->prompt_tokens;
            sum.cached_prompt_tokens += (uint64_t)r->cached_tokens;
        }
        passes += (uint64_t)r->forward_passes;
        sum.passes[ENG_PASS_DENOISE] += (uint64_t)r->denoise_passes;
        sum.drafted_tokens += (uint64_t)r->drafted_tokens;
        sum.accepted_tokens += (uint64_t)r->accepted_tokens;
        sum.preemptions += (uint64_t)r->preemptions;
    }
    for (int k = ENG_PASS_PREFILL + 1; k < ENG_N_PASS_KINDS; k++)
        counted += stats->passes[k];
    assert_int_equal(counted, passes);
    assert_int_equal(stats->prompt_tokens, sum.prompt_tokens);
    assert_int_equal(stats->cached_prompt_tokens, sum.cached_prompt_tokens);
    assert_true(stats->prefix_hits >= stats->cached_prompt_tokens);
    assert_int_equal(stats->passes[ENG_PASS_DENOISE], sum.passes[ENG_PASS_DENOISE]);
    assert_int_equal(stats->drafted_tokens, sum.drafted_tokens);
    assert_int_equal(stats->accepted_tokens, sum.accepted_tokens);
    assert_int_equal(stats->preemptions, sum.preemptions);
    assert_int_equal(stats->accepted_length.count, stats->passes[ENG_PASS_VERIFY]);
    assert_int_equal(stats->rows.count, stats->steps);
    assert_int_equal(stats->seconds.count, stats->steps);
    check_modes(answers, n, stats);
}

// ---- chats ----------------------------------------------------------------------------------------------------------

int32_t client_chat_prompt(const struct eng_engine *e, FILE *file, int32_t *ret_ids, int32_t max)
{
    char line[8192], err[200];
    while (fgets(line, sizeof line, file)) {
        int32_t *ids;
        size_t n;
        cJSON *one = cJSON_Parse(line), *messages = cJSON_CreateArray(), *message = cJSON_CreateObject();
        assert_non_null(one);
        cJSON_AddStringToObject(message, "role", "user");
        cJSON_AddStringToObject(message, "content", cJSON_GetObjectItem(one, "prompt")->valuestring);
        cJSON_AddItemToArray(messages, message);
        if (eng_chat(e, messages, NULL, true, false, NULL, &ids, &n, err, sizeof err))
            fail_msg("%s", err);
        cJSON_Delete(messages);
        cJSON_Delete(one);
        bool fits = n <= (size_t)max;
        if (fits)
            memcpy(ret_ids, ids, n * sizeof *ids);
        free(ids);
        if (fits)
            return (int32_t)n;
    }
    return 0;
}
