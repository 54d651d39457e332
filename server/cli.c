// generate and chat: the engine without a server. The main thread waits on a semaphore that the engine's notify and
// Ctrl-C post. Text goes to stdout as it is committed; everything else goes to stderr. Ctrl-C cancels the generation
// that runs.
#include "cli.h"

#include <errno.h>
#include <semaphore.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "buf.h"
#include "engine.h"

static sem_t wake;
static volatile sig_atomic_t interrupted;

static void on_interrupt(int number)
{
    (void)number;
    if (interrupted)
        _exit(130);
    interrupted = 1;
    sem_post(&wake);
}

static void on_notify(void *user)
{
    (void)user;
    sem_post(&wake);
}

static void on_progress(void *user, const char *what, double fraction)
{
    (void)user;
    fprintf(stderr, "\r\033[K%s %3.0f %%", what, fraction * 100);
}

static int open_engine(const struct srv_config *c, struct eng_engine **ret)
{
    char *dir = NULL, *name = NULL, err[512] = "";
    if (srv_config_model_dir(c->model, &dir, &name, err, sizeof err)) {
        fprintf(stderr, "trimode: %s\n", err);
        return 2;
    }
    struct eng_options o = srv_config_engine(c, dir);
    bool tty = isatty(2);
    o.max_sequences = 1;
    o.cold = true; // one generation meets few sizes, and someone waits
    o.progress = tty ? on_progress : NULL;
    o.notify = on_notify;
    sem_init(&wake, 0, 0);
    int status = eng_open(&o, ret, err, sizeof err);
    if (tty)
        fprintf(stderr, "\r\033[K");
    free(dir);
    free(name);
    if (status) {
        fprintf(stderr, "trimode: cannot load the model '%s': %s\n", c->model, err);
        return 1;
    }
    const struct eng_info *info = eng_info(*ret);
    if (c->stats && info->backend_reason && *info->backend_reason)
        fprintf(stderr, "backend %s: %s\n", info->backend, info->backend_reason);
    struct sigaction act = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &act, NULL);
    return 0;
}

static void print_stats(const struct eng_request_stats *st)
{
    double seconds = (st->total_ms - st->first_token_ms) * 1e-3;
    fprintf(
        stderr,
        "\nmode %s (%s)\n%d prompt tokens, %d tokens in %d forward passes (%.2f per pass), first token after %.1f ms, "
        "%.1f ms in all, %.1f tok/s\n",
        eng_mode_name(st->mode), st->reason, (int)st->prompt_tokens, (int)st->completion_tokens,
        (int)st->forward_passes, st->forward_passes ? (double)st->completion_tokens / st->forward_passes : 0.0,
        st->first_token_ms, st->total_ms,
        seconds > 0 && st->completion_tokens > 1 ? (st->completion_tokens - 1) / seconds : 0.0);
    if (st->drafted_tokens)
        fprintf(stderr, "%d blocks, %d of %d drafted tokens accepted\n", (int)st->blocks, (int)st->accepted_tokens,
                (int)st->drafted_tokens);
    if (st->denoise_passes)
        fprintf(stderr, "%d blocks, %d denoising passes\n", (int)st->blocks, (int)st->denoise_passes);
}

// Prints what one event brings. True at the end.
static bool show(const struct srv_config *c, const struct eng_event *ev, struct srv_buf *reply, int *ret_status)
{
    fwrite(ev->text, 1, ev->text_len, stdout);
    fflush(stdout);
    if (reply)
        srv_buf_append(reply, ev->text, ev->text_len);
    if (!ev->finish)
        return false;
    fputc('\n', stdout);
    fflush(stdout);
    if (ev->finish == ENG_FINISH_ERROR)
        fprintf(stderr, "trimode: the model failed: %s\n", ev->error ? ev->error : "unknown error");
    *ret_status = ev->finish <= ENG_FINISH_LENGTH ? 0 : ev->finish == ENG_FINISH_CANCELLED ? 130 : 1;
    if (c->stats && ev->stats)
        print_stats(ev->stats);
    return true;
}

// Generates from a prompt. reply may be NULL.
static int generate(const struct srv_config *c, struct eng_engine *engine, const int32_t *ids, size_t n,
                    struct srv_buf *reply)
{
    struct eng_params p = eng_params_default();
    int64_t rest = eng_info(engine)->max_context - (int64_t)n;
    p.max_tokens = (int32_t)(c->max_tokens > 0 ? c->max_tokens : rest > 0 ? rest : 1);
    p.mode = (enum eng_mode)eng_mode_parse(c->mode);
    p.temperature = (float)c->temperature;
    p.top_p = (float)c->top_p;
    p.top_k = (int32_t)c->top_k;
    p.seed = (uint64_t)c->seed;
    if (!c->seed && getrandom(&p.seed, sizeof p.seed, 0) != (ssize_t)sizeof p.seed)
        p.seed = 1;
    char err[400] = "";
    struct eng_request *r = NULL;
    int status = eng_request_new(engine, &p, ids, n, &r, NULL, err, sizeof err);
    if (!status && (status = eng_submit(engine, r)))
        eng_request_free(r);
    if (status) {
        fprintf(stderr, "trimode: %s\n", *err ? err : eng_strerror(status));
        return 1;
    }
    bool end = false, cancelled = false;
    while (!end) {
        while (sem_wait(&wake) && errno == EINTR)
            ;
        struct eng_event *ev = eng_take_events(engine), *next;
        for (; ev; ev = next) {
            next = ev->next;
            end |= show(c, ev, reply, &status);
            eng_event_free(ev);
        }
        if (interrupted && !end && !cancelled) {
            cancelled = true;
            eng_cancel(r);
        }
    }
    eng_request_free(r);
    return status;
}

static int add_message(cJSON *messages, const char *role, const char *content)
{
    cJSON *m = cJSON_CreateObject();
    if (m && cJSON_AddStringToObject(m, "role", role) && cJSON_AddStringToObject(m, "content", content) &&
        cJSON_AddItemToArray(messages, m))
        return 0;
    cJSON_Delete(m);
    return -1;
}

static int reply_to(const struct srv_config *c, struct eng_engine *engine, const cJSON *messages, struct srv_buf *reply)
{
    int32_t *ids = NULL;
    size_t n = 0;
    char err[400] = "";
    int status = eng_chat(engine, messages, NULL, true, false, NULL, &ids, &n, err, sizeof err);
    if (status) {
        fprintf(stderr, "trimode: %s\n", *err ? err : eng_strerror(status));
        return 1;
    }
    status = generate(c, engine, ids, n, reply);
    free(ids);
    return status;
}

int srv_cli_generate(const struct srv_config *c)
{
    if (c->n_arguments != 1 || !*c->arguments[0]) {
        fprintf(stderr, "trimode generate: expects one text, in quotes; --help says more\n");
        return 2;
    }
    const char *text = c->arguments[0];
    struct eng_engine *engine = NULL;
    int status = open_engine(c, &engine);
    if (status)
        return status;
    if (c->raw || !eng_info(engine)->has_chat_template) {
        int32_t *ids = NULL;
        size_t n = 0;
        status = eng_encode(engine, text, strlen(text), true, &ids, &n);
        if (status)
            fprintf(stderr, "trimode: the text cannot be tokenized: %s\n", eng_strerror(status));
        status = status ? 1 : generate(c, engine, ids, n, NULL);
        free(ids);
    } else {
        cJSON *messages = cJSON_CreateArray();
        status = messages && (!*c->system || !add_message(messages, "system", c->system)) &&
                         !add_message(messages, "user", text)
                     ? reply_to(c, engine, messages, NULL)
                     : 1;
        cJSON_Delete(messages);
    }
    eng_close(engine);
    return status;
}

int srv_cli_chat(const struct srv_config *c)
{
    if (c->n_arguments) {
        fprintf(stderr, "trimode chat: takes no text; --help says more\n");
        return 2;
    }
    struct eng_engine *engine = NULL;
    int status = open_engine(c, &engine);
    if (status)
        return status;
    if (!eng_info(engine)->has_chat_template) {
        fprintf(stderr, "trimode: this model has no chat template; use `trimode generate --raw`\n");
        eng_close(engine);
        return 1;
    }
    cJSON *messages = cJSON_CreateArray();
    char *line = NULL;
    size_t size = 0;
    bool tty = isatty(0);
    if (messages && *c->system && add_message(messages, "system", c->system))
        status = 1;
    if (tty)
        fprintf(stderr, "One line is one message; an empty line or Ctrl-D ends the conversation.\n");
    while (messages && !status) {
        if (tty)
            fprintf(stderr, "> ");
        interrupted = 0;
        ssize_t n = getline(&line, &size, stdin);
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            line[--n] = 0;
        if (n <= 0)
            break;
        struct srv_buf reply = {0};
        if (add_message(messages, "user", line))
            status = 1;
        else
            status = reply_to(c, engine, messages, &reply);
        if (status == 130)
            status = 0; // only this answer was interrupted
        if (!status && add_message(messages, "assistant", reply.data ? reply.data : ""))
            status = 1;
        srv_buf_free(&reply);
    }
    free(line);
    cJSON_Delete(messages);
    eng_close(engine);
    return status;
}
