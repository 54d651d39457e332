// bench serve: a load on a server, level by level. A closed loop keeps a number of clients busy, each sending its next
// request when the last answer is complete; an open loop sends at random times (exponential gaps of mean 1 / rate)
// whether or not earlier answers have come. One thread, one libuv loop. A level ends when all its requests have, well
// or not, so it ends: every request has a timeout. Results go to stdout, progress and errors to stderr.
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "bench_client.h"
#include "bench_work.h"
#include "cli.h"

enum { MAX_LEVELS = 32, MAX_CLIENTS = 16384 };

struct run {
    const struct srv_config *config;
    struct srv_bench_target target;
    struct srv_bench_work work;
    uv_loop_t loop;
    uv_timer_t arrivals, progress;
    struct srv_bench_level level;
    struct srv_bench_client **clients; // all that this level opened
    int n_clients;
    int64_t total, issued, ended; // requests of the level
    uint64_t serial;              // requests of the whole run, so that no two have the same prompt
    uint64_t random;
    double started_ms, due_ms; // of the level; of the next arrival
    bool failed, tty;
    char error[640]; // of the request for the models
    struct srv_buf body;
};

// ---- one request ----------------------------------------------------------------------------------------------------

static void issue(struct run *r, struct srv_bench_client *c)
{
    struct srv_bench_expect expect;
    srv_buf_reset(&r->body);
    const char *path = srv_bench_work_request(&r->work, r->serial++, &r->body, &expect);
    r->issued++;
    srv_bench_client_send(c, path, &r->body, &expect);
}

static void count(struct srv_bench_level *l, const struct srv_bench_client *c)
{
    const struct srv_bench_check *k = &c->check;
    l->requests++;
    if (*c->error) {
        srv_bench_level_error(l, c->error);
        return;
    }
    l->tokens += k->tokens;
    l->prompt_tokens += k->prompt_tokens;
    l->cached_tokens += k->cached_tokens;
    l->forward_passes += k->forward_passes;
    for (int m = 0; m < ENG_N_MODES; m++)
        l->mode_tokens[m] += k->mode_tokens[m];
    if (k->first_ms > 0)
        srv_bench_samples_add(&l->ttft, k->first_ms - k->start_ms, 1);
    srv_bench_samples_add(&l->e2e, c->ended_ms - k->start_ms, 1);
    srv_bench_samples_append(&l->itl, &k->gaps);
}

static void one_ended(struct run *r)
{
    if (++r->ended < r->total)
        return;
    r->level.seconds = (srv_bench_now_ms() - r->started_ms) * 1e-3;
    uv_stop(&r->loop);
}

static void on_done(struct srv_bench_client *c)
{
    struct run *r = c->user;
    count(&r->level, c);
    one_ended(r);
    if (r->level.clients && r->issued < r->total)
        issue(r, c);
}

static struct srv_bench_client *new_client(struct run *r)
{
    struct srv_bench_client *c = malloc(sizeof *c);
    if (!c)
        return NULL;
    srv_bench_client_init(c, &r->target);
    c->user = r;
    c->on_done = on_done;
    r->clients[r->n_clients++] = c;
    return c;
}

// ---- the open loop --------------------------------------------------------------------------------------------------

static struct srv_bench_client *idle_client(struct run *r)
{
    for (int i = 0; i < r->n_clients; i++)
        if (!r->clients[i]->busy)
            return r->clients[i];
    return r->n_clients < MAX_CLIENTS ? new_client(r) : NULL;
}

// The timer has milliseconds; arrivals that came due since the last time go out together, late by less than one.
static void on_arrival(uv_timer_t *timer)
{
    struct run *r = timer->data;
    double now = srv_bench_now_ms();
    while (r->issued < r->total && r->due_ms <= now) {
        struct srv_bench_client *c = idle_client(r);
        r->due_ms += -log(srv_bench_random_unit(&r->random)) * 1e3 / r->level.rate;
        if (c) {
            issue(r, c);
            continue;
        }
        r->issued++;
        r->level.requests++;
        srv_bench_level_error(&r->level, "too many requests at once for this client");
        one_ended(r);
    }
    if (r->issued == r->total)
        return;
    double wait = ceil(r->due_ms - srv_bench_now_ms());
    uv_update_time(&r->loop);
    uv_timer_start(timer, on_arrival, wait > 0 ? (uint64_t)wait : 0, 0);
}

// ---- a level --------------------------------------------------------------------------------------------------------

static void draw_progress(struct run *r)
{
    char bar[25] = "........................";
    for (int64_t i = 0; i < 24 * r->ended / r->total; i++)
        bar[i] = '#';
    double seconds = (srv_bench_now_ms() - r->started_ms) * 1e-3;
    fprintf(stderr, "\r\033[K%s %g  [%s] %lld/%lld  %.0f tok/s", r->level.clients ? "clients" : "rate",
            r->level.clients ? (double)r->level.clients : r->level.rate, bar, (long long)r->ended, (long long)r->total,
            seconds > 0 ? (double)r->level.tokens / seconds : 0);
    if (r->level.errors)
        fprintf(stderr, "  %lld errors", (long long)r->level.errors);
    fflush(stderr);
}

static void on_progress(uv_timer_t *timer)
{
    draw_progress(timer->data);
}

// Closes what the level opened and lets the loop run out.
static void end_level(struct run *r)
{
    for (int i = 0; i < r->n_clients; i++)
        srv_bench_client_close(r->clients[i]);
    uv_timer_stop(&r->arrivals);
    uv_timer_stop(&r->progress);
    while (uv_run(&r->loop, UV_RUN_DEFAULT)) // more than once when uv_stop was called outside of it
        ;
    for (int i = 0; i < r->n_clients; i++) {
        srv_bench_client_done(r->clients[i]);
        free(r->clients[i]);
    }
    r->n_clients = 0;
    if (r->tty)
        fprintf(stderr, "\r\033[K");
}

static void report(struct run *r)
{
    if (r->config->json) {
        srv_buf_reset(&r->body);
        srv_bench_level_json(&r->level, &r->body);
        fwrite(r->body.data, 1, r->body.len, stdout);
        fflush(stdout);
    } else {
        srv_bench_level_row(&r->level, stdout);
    }
    srv_bench_level_reasons(&r->level, stderr);
}

// clients: 0 for an open loop.
static void run_level(struct run *r, int clients)
{
    const struct srv_config *c = r->config;
    int64_t own = clients ? 8 * (int64_t)clients : (int64_t)ceil(10 * c->rate);
    r->level = (struct srv_bench_level){.clients = clients, .rate = c->rate, .mode = c->mode};
    r->total = c->requests ? c->requests : own > 16 ? own : 16;
    r->issued = r->ended = 0;
    r->started_ms = srv_bench_now_ms();
    if (r->tty)
        uv_timer_start(&r->progress, on_progress, 100, 100);
    if (clients) {
        for (int i = 0; i < clients && r->issued < r->total; i++) {
            struct srv_bench_client *client = new_client(r);
            if (client)
                issue(r, client);
        }
    } else {
        r->due_ms = r->started_ms - log(srv_bench_random_unit(&r->random)) * 1e3 / c->rate;
        on_arrival(&r->arrivals);
    }
    while (r->ended < r->total && uv_run(&r->loop, UV_RUN_DEFAULT))
        ;
    end_level(r);
    report(r);
    r->failed |= r->level.errors || r->ended < r->total;
    srv_bench_level_done(&r->level);
}

// ---- what is asked --------------------------------------------------------------------------------------------------

static int parse_clients(const char *text, int *ret)
{
    int n = 0;
    for (const char *p = text;; p++) {
        char *end;
        long v = strtol(p, &end, 10);
        if (end == p || v < 1 || v > MAX_CLIENTS || (*end && *end != ',') || n == MAX_LEVELS)
            break;
        ret[n++] = (int)v;
        p = end;
        if (!*p)
            return n;
    }
    fprintf(stderr, "trimode: clients cannot be '%s'; allowed: a comma list of at most 32 numbers from 1 to %d\n", text,
            MAX_CLIENTS);
    return -1;
}

// The first line of the file that is not empty.
static int read_key(struct run *r, const char *path)
{
    if (!*path)
        return 0;
    FILE *f = fopen(path, "r");
    char *key = r->target.key;
    while (f && !*key && fgets(key, sizeof r->target.key, f))
        key[strcspn(key, " \t\r\n")] = 0;
    if (f)
        fclose(f);
    if (*key)
        return 0;
    fprintf(stderr, "trimode: api_key_file: '%s' cannot be read or has no key\n", path);
    return -1;
}

static void on_models(struct srv_bench_client *c)
{
    struct run *r = c->user;
    if (*c->error)
        snprintf(r->error, sizeof r->error, "GET /v1/models at %s: %s", r->target.host, c->error);
    else
        srv_bench_work_models(&r->work, c->body.data ? c->body.data : "", c->body.len, r->error, sizeof r->error);
    uv_stop(&r->loop);
}

// 0, or 1: the server was asked and cannot be used.
static int ask_models(struct run *r)
{
    struct srv_bench_client *c = new_client(r);
    if (!c)
        return 1;
    c->on_done = on_models;
    srv_bench_client_send(c, "/v1/models", NULL, NULL);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    end_level(r);
    if (*r->error)
        fprintf(stderr, "trimode: %s\n", r->error);
    return *r->error != 0;
}

static int prepare(struct run *r, const struct srv_config *c)
{
    char err[640] = "";
    struct rlimit files;
    if (!getrlimit(RLIMIT_NOFILE, &files)) { // a socket a client
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    signal(SIGPIPE, SIG_IGN); // a server that hangs up is an error of that request
    uv_loop_init(&r->loop);
    uv_timer_init(&r->loop, &r->arrivals);
    uv_timer_init(&r->loop, &r->progress);
    r->arrivals.data = r->progress.data = r;
    r->config = c;
    r->tty = isatty(2);
    r->random = (uint64_t)c->seed;
    r->target.loop = &r->loop;
    r->target.timeout_ms = (uint64_t)ceil(c->request_timeout * 1e3);
    r->clients = malloc(MAX_CLIENTS * sizeof(struct srv_bench_client *));
    if (!r->clients || srv_bench_work_open(&r->work, c, err, sizeof err) ||
        srv_bench_target_open(&r->target, c->url, err, sizeof err)) {
        fprintf(stderr, "trimode: %s\n", *err ? err : "out of memory");
        return 2;
    }
    return read_key(r, c->api_key_file) ? 2 : ask_models(r);
}

static void cleanup(struct run *r)
{
    uv_close((uv_handle_t *)&r->arrivals, NULL);
    uv_close((uv_handle_t *)&r->progress, NULL);
    uv_run(&r->loop, UV_RUN_DEFAULT);
    uv_loop_close(&r->loop);
    srv_bench_work_done(&r->work);
    srv_buf_free(&r->body);
    free(r->clients);
    free(r);
}

int srv_cli_bench_serve(const struct srv_config *c)
{
    int levels[MAX_LEVELS], n = 0; // none: an open loop
    if (c->n_arguments != 1 || strcmp(c->arguments[0], "serve")) {
        fprintf(stderr, "trimode bench serve: takes flags only; --help says more\n");
        return 2;
    }
    if (c->rate <= 0 && (n = parse_clients(c->clients, levels)) < 0)
        return 2;
    struct run *r = calloc(1, sizeof *r); // the read buffer is large
    if (!r)
        return 1;
    int status = prepare(r, c);
    if (!status) {
        if (!c->json)
            srv_bench_table_head(stdout);
        for (int i = 0; i < n; i++)
            run_level(r, levels[i]);
        if (!n)
            run_level(r, 0);
        status = r->failed;
    }
    cleanup(r);
    return status;
}
