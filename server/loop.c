// The loop thread: HTTP, JSON and stream buffers live here; it never waits for the model. MHD has no thread of its own:
// its epoll descriptor is polled by libuv, and MHD_run is called when that fires, when MHD's timer ends, and once
// before the loop blocks after anything was resumed (in this polling mode MHD_resume_connection wakes nobody). The
// engine thread reaches the loop only through `wake`; sends coalesce, so one wake-up takes every event.
#include "loop.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "buf.h"
#include "http.h"
#include "log.h"
#include "server.h"
#include "stream.h"

enum {
    BACKLOG = 4096,
    IDLE_TIMEOUT_S = 75,           // longer than the upstream keep-alive of the usual proxies
    CONNECTION_MEMORY = 256 << 10, // bounds a header block (and its table of fields) and one piece of a body
    MAX_CONNECTIONS = 16384,
    DRAIN_TICK_MS = 50,
    CUT_GRACE_MS = 2000, // after the drain timeout, for error events to be flushed
};

int64_t srv_loop_now_ms(const struct srv_server *s)
{
    (void)s;
    return (int64_t)(uv_hrtime() / 1000000);
}

void srv_loop_kick(struct srv_server *s)
{
    s->kick = true;
}

int srv_loop_port(const struct srv_server *s)
{
    return s->port;
}

void srv_loop_url(const struct srv_server *s, char *out, size_t size)
{
    bool v6 = strchr(s->config->host, ':') != NULL;
    snprintf(out, size, "http://%s%s%s:%d", v6 ? "[" : "", s->config->host, v6 ? "]" : "", s->port);
}

// ---- MHD under libuv ------------------------------------------------------------------------------------------------

static void on_mhd_poll(uv_poll_t *handle, int status, int events)
{
    (void)status;
    (void)events;
    ((struct srv_server *)handle->data)->kick = true;
}

static void on_mhd_timer(uv_timer_t *handle)
{
    ((struct srv_server *)handle->data)->kick = true;
}

static bool mhd_timeout(struct MHD_Daemon *daemon, uint64_t *ret_ms)
{
#if MHD_VERSION >= 0x00097701
    return MHD_get_timeout64(daemon, ret_ms) == MHD_YES;
#else
    unsigned long long ms;
    if (MHD_get_timeout(daemon, &ms) != MHD_YES)
        return false;
    *ret_ms = ms;
    return true;
#endif
}

// Runs right before libuv computes how long it may block.
static void on_prepare(uv_prepare_t *handle)
{
    struct srv_server *s = handle->data;
    if (!s->daemon)
        return;
    if (s->kick) {
        s->kick = false;
        MHD_run(s->daemon);
    }
    uint64_t ms;
    if (s->kick)
        uv_timer_start(&s->mhd_timer, on_mhd_timer, 0, 0);
    else if (mhd_timeout(s->daemon, &ms))
        uv_timer_start(&s->mhd_timer, on_mhd_timer, ms, 0);
    else
        uv_timer_stop(&s->mhd_timer);
}

// ---- loading --------------------------------------------------------------------------------------------------------

static void on_progress(void *user, const char *what, double fraction)
{
    struct srv_server *s = user;
    (void)what;
    atomic_store(&s->load_percent, (int)(fraction * 100));
}

// Engine thread.
static void on_notify(void *user)
{
    uv_async_send(&((struct srv_server *)user)->wake);
}

static void load_model(void *user)
{
    struct srv_server *s = user;
    struct eng_options o = srv_config_engine(s->config, s->model_dir);
    o.calibrate = !strcmp(s->config->calibration, "auto");
    o.progress = on_progress;
    o.notify = on_notify;
    o.user = s;
    s->load_status = eng_open(&o, &s->loaded_engine, s->load_error, sizeof s->load_error);
    atomic_store(&s->loaded, true);
    uv_async_send(&s->wake);
}

static void stop_loop(struct srv_server *s, int status)
{
    s->exit_status = status;
    uv_stop(&s->loop);
}

// One line for whoever plans the machine's memory.
static void log_memory(const struct eng_memory *m)
{
    struct srv_buf line = {0};
    for (int32_t i = 0; i < m->n_categories; i++)
        srv_buf_printf(&line, "%s%s %.1f MiB", i ? ", " : "", m->categories[i].name,
                       (double)m->categories[i].bytes / 1048576.0);
    if (m->total)
        srv_buf_printf(&line, "; %.1f of %.1f MiB are free", (double)m->free / 1048576.0, (double)m->total / 1048576.0);
    srv_log(SRV_LOG_INFO, NULL, "memory: %s", line.data ? line.data : "");
    srv_buf_free(&line);
}

static void take_model(struct srv_server *s)
{
    uv_thread_join(&s->loader);
    s->loader_running = false;
    if (s->load_status) {
        srv_log(SRV_LOG_ERROR, NULL, "cannot load the model '%s': %s", s->model_dir, s->load_error);
        stop_loop(s, 1);
        return;
    }
    s->engine = s->loaded_engine;
    s->info = eng_info(s->engine);
    int mode = eng_mode_parse(s->config->mode);
    if (mode > ENG_MODE_AUTO && !(s->info->modes & 1u << mode)) {
        srv_log(SRV_LOG_ERROR, NULL, "mode: '%s' cannot be used with this model; allowed: auto or a mode it has",
                s->config->mode);
        stop_loop(s, 2);
        return;
    }
    for (int32_t id = 0; id < s->info->n_vocab; id++) {
        size_t n = 0;
        if (eng_token_bytes(s->engine, id, &n) && n > s->longest_token)
            s->longest_token = n;
    }
    if (s->state == SRV_LOADING)
        s->state = SRV_READY;
    srv_log(SRV_LOG_INFO, NULL, "ready: %s on %s (%s), %s weights, %d tokens of context", s->model_name,
            s->info->backend, s->info->backend_description, s->info->weights_type, (int)s->info->max_context);
    if (s->info->backend_reason && *s->info->backend_reason)
        srv_log(SRV_LOG_INFO, NULL, "backend %s: %s", s->info->backend, s->info->backend_reason);
    log_memory(&s->info->memory);
}

// ---- draining -------------------------------------------------------------------------------------------------------

static void begin_drain(struct srv_server *s)
{
    if (s->drain_end_ms)
        return;
    s->state = SRV_DRAINING;
    s->drain_end_ms = srv_loop_now_ms(s) + (int64_t)(s->config->drain_timeout * 1000);
    srv_log(SRV_LOG_INFO, NULL, "draining: %d requests still run, at most %g s", s->n_streams,
            s->config->drain_timeout);
    if (s->engine)
        eng_drain(s->engine);
    uv_timer_set_repeat(&s->tick_timer, DRAIN_TICK_MS);
    uv_timer_again(&s->tick_timer);
}

static void check_drain(struct srv_server *s)
{
    if (s->loader_running)
        return;
    int64_t now = srv_loop_now_ms(s);
    int status = s->engine && eng_failure(s->engine) ? 1 : 0;
    if (s->n_streams == 0) {
        stop_loop(s, status);
    } else if (!s->drain_cut && now >= s->drain_end_ms) {
        srv_log(SRV_LOG_WARN, NULL, "drain timeout: cancelling %d requests", s->n_streams);
        s->drain_cut = true;
        srv_stream_fail_all(s);
    } else if (s->drain_cut && now >= s->drain_end_ms + CUT_GRACE_MS) {
        stop_loop(s, status);
    }
}

// A lost backend does not come back: whoever watches the process starts another one.
static void check_failure(struct srv_server *s)
{
    const char *failure = eng_failure(s->engine);
    if (!failure || s->drain_end_ms)
        return;
    srv_log(SRV_LOG_ERROR, NULL, "the %s backend failed, the server stops: %s", s->info->backend, failure);
    begin_drain(s);
}

static void on_tick(uv_timer_t *handle)
{
    struct srv_server *s = handle->data;
    srv_stream_tick(s);
    if (s->engine) // one that was lost while nobody had a request sends no event
        check_failure(s);
    if (s->drain_end_ms)
        check_drain(s);
}

static void on_wake(uv_async_t *handle)
{
    struct srv_server *s = handle->data;
    if (s->loader_running && atomic_load(&s->loaded))
        take_model(s);
    if (atomic_load(&s->drain_wanted))
        begin_drain(s);
    if (s->engine) {
        srv_stream_take_events(s);
        check_failure(s);
    }
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct srv_server *s = handle->data;
    if (s->drain_end_ms) {
        srv_log(SRV_LOG_WARN, NULL, "second signal %d: exiting at once", number);
        _exit(1);
    }
    if (s->loader_running)
        _exit(0); // nothing was promised to anybody yet, and loading cannot be interrupted
    begin_drain(s);
}

void srv_loop_drain(struct srv_server *s)
{
    atomic_store(&s->drain_wanted, true);
    uv_async_send(&s->wake);
}

// ---- opening and closing --------------------------------------------------------------------------------------------

static int listen_on(struct srv_server *s, char *err, size_t err_size)
{
    const struct srv_config *c = s->config;
    char port[16];
    snprintf(port, sizeof port, "%d", (int)c->port);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE}, *list;
    int status = getaddrinfo(c->host, port, &hints, &list);
    if (status) {
        snprintf(err, err_size, "host: '%s' cannot be resolved (%s); allowed: an address of this machine", c->host,
                 gai_strerror(status));
        return -2;
    }
    int one = 1;
    s->listen_fd = socket(list->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    struct sockaddr_storage bound;
    socklen_t size = sizeof bound;
    status = s->listen_fd < 0 || setsockopt(s->listen_fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) ||
                     bind(s->listen_fd, list->ai_addr, list->ai_addrlen) || listen(s->listen_fd, BACKLOG) ||
                     getsockname(s->listen_fd, (struct sockaddr *)&bound, &size)
                 ? -1
                 : 0;
    if (status)
        snprintf(err, err_size, "port: cannot listen on %s port %s: %s; allowed: a free port, or 0", c->host, port,
                 strerror(errno));
    freeaddrinfo(list);
    char text[16] = "";
    if (!status && !getnameinfo((struct sockaddr *)&bound, size, NULL, 0, text, sizeof text, NI_NUMERICSERV))
        s->port = atoi(text);
    return status;
}

static void mhd_log(void *user, const char *format, va_list args) __attribute__((format(printf, 2, 0)));
static void mhd_log(void *user, const char *format, va_list args)
{
    (void)user;
    char text[512];
    vsnprintf(text, sizeof text, format, args);
    srv_log(SRV_LOG_DEBUG, NULL, "libmicrohttpd: %s", text);
}

static int start_daemon(struct srv_server *s)
{
    struct rlimit files;
    unsigned connections = MAX_CONNECTIONS;
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        rlim_t wanted = files.rlim_max < 65536 ? files.rlim_max : 65536;
        if (files.rlim_cur < wanted) {
            files.rlim_cur = wanted;
            setrlimit(RLIMIT_NOFILE, &files);
            getrlimit(RLIMIT_NOFILE, &files);
        }
        if (files.rlim_cur < 2 * MAX_CONNECTIONS)
            connections = (unsigned)files.rlim_cur / 2;
    }
    // The logger comes first, so that complaints about the other options reach it.
    s->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG, 0, NULL, NULL, srv_http_handle, s,
        MHD_OPTION_EXTERNAL_LOGGER, mhd_log, s, MHD_OPTION_LISTEN_SOCKET, s->listen_fd, MHD_OPTION_NOTIFY_COMPLETED,
        srv_http_completed, s, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_TIMEOUT_S,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY, MHD_OPTION_CONNECTION_LIMIT, connections,
        MHD_OPTION_STRICT_FOR_CLIENT, 1, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_END);
    return s->daemon ? 0 : -1;
}

int srv_loop_open(const struct srv_config *config, struct srv_server **ret, char *err, size_t err_size)
{
    struct srv_server *s = calloc(1, sizeof *s);
    if (!s) {
        snprintf(err, err_size, "out of memory");
        return -1;
    }
    s->config = config;
    s->listen_fd = -1;
    s->started = time(NULL);
    s->max_outbox = 4 << 20;
    s->heartbeat_ms = 15000;
    s->tick_ms = 1000;
    srv_metrics_init(&s->metrics);
    int status = -2;
    if (srv_http_keys_load(&s->api_keys, "api_key_file", config->api_key_file, err, err_size) ||
        srv_http_keys_load(&s->metrics_keys, "metrics_key_file", config->metrics_key_file, err, err_size) ||
        srv_config_model_dir(config->model, &s->model_dir, &s->model_name, err, err_size) ||
        (status = listen_on(s, err, err_size)))
        goto fail;
    if (*config->served_model_name) {
        free(s->model_name);
        s->model_name = strdup(config->served_model_name);
    }
    if (!s->model_name || start_daemon(s)) {
        status = -1;
        snprintf(err, err_size, "cannot start the HTTP server");
        goto fail;
    }
    *ret = s;
    return 0;
fail:
    srv_loop_close(s);
    return status;
}

static int start_handles(struct srv_server *s)
{
    int fd = MHD_get_daemon_info(s->daemon, MHD_DAEMON_INFO_EPOLL_FD)->epoll_fd;
    if (uv_loop_init(&s->loop))
        return -1;
    uv_poll_init(&s->loop, &s->mhd_poll, fd);
    uv_prepare_init(&s->loop, &s->prepare);
    uv_timer_init(&s->loop, &s->mhd_timer);
    uv_timer_init(&s->loop, &s->tick_timer);
    uv_async_init(&s->loop, &s->wake, on_wake);
    uv_signal_init(&s->loop, &s->sigterm);
    uv_signal_init(&s->loop, &s->sigint);
    s->mhd_poll.data = s->prepare.data = s->mhd_timer.data = s->tick_timer.data = s->wake.data = s->sigterm.data =
        s->sigint.data = s;
    uv_poll_start(&s->mhd_poll, UV_READABLE, on_mhd_poll);
    uv_prepare_start(&s->prepare, on_prepare);
    uv_timer_start(&s->tick_timer, on_tick, (uint64_t)s->tick_ms, (uint64_t)s->tick_ms);
    if (s->has_signals) {
        uv_signal_start(&s->sigterm, on_signal, SIGTERM);
        uv_signal_start(&s->sigint, on_signal, SIGINT);
    }
    return 0;
}

static void close_handle(uv_handle_t *handle, void *user)
{
    (void)user;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

// Order: nothing suspended when the daemon stops; the engine stops before the streams that its events point to are
// freed; its notify uses `wake`, so that is closed last.
static void stop_all(struct srv_server *s)
{
    s->state = SRV_DRAINING;
    srv_stream_fail_all(s);
    srv_stream_resume_all(s);
    for (int i = 0; i < 3; i++)
        MHD_run(s->daemon);
    MHD_stop_daemon(s->daemon); // closes the listening socket
    s->daemon = NULL;
    s->listen_fd = -1;
    eng_close(s->engine);
    s->engine = NULL;
    s->info = NULL;
    srv_stream_free_all(s);
    uv_walk(&s->loop, close_handle, NULL);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    uv_loop_close(&s->loop);
}

int srv_loop_run(struct srv_server *s, bool signals)
{
    signal(SIGPIPE, SIG_IGN);
    s->has_signals = signals;
    if (start_handles(s))
        return 1;
    s->loader_running = true;
    if (uv_thread_create(&s->loader, load_model, s)) {
        s->loader_running = false;
        s->exit_status = 1;
    } else {
        uv_run(&s->loop, UV_RUN_DEFAULT);
    }
    if (s->loader_running) {
        uv_thread_join(&s->loader);
        s->engine = s->loaded_engine;
    }
    stop_all(s);
    return s->exit_status;
}

void srv_loop_close(struct srv_server *s)
{
    if (!s)
        return;
    if (s->daemon)
        MHD_stop_daemon(s->daemon);
    else if (s->listen_fd >= 0)
        close(s->listen_fd);
    srv_http_keys_free(&s->api_keys);
    srv_http_keys_free(&s->metrics_keys);
    free(s->model_dir);
    free(s->model_name);
    free(s);
}
