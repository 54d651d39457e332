#include "client.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "log.h"
#include "loop.h"

static struct srv_server *server;
static pthread_t thread;
static int exit_status;

void test_config(struct srv_config *c)
{
    char err[200];
    fake_reset();
    assert_int_equal(srv_config_default(c), 0);
    assert_int_equal(srv_config_set(c, "port", "0", SRV_FROM_FLAG, "test", err, sizeof err), 0);
    assert_int_equal(srv_config_set(c, "model", ".", SRV_FROM_FLAG, "test", err, sizeof err), 0);
    assert_int_equal(srv_config_set(c, "served_model_name", "fake", SRV_FROM_FLAG, "test", err, sizeof err), 0);
    srv_log_init(SRV_LOG_ERROR + 1, false, 2);
}

static void *run(void *user)
{
    (void)user;
    exit_status = srv_loop_run(server, false);
    return NULL;
}

struct srv_server *test_open(const struct srv_config *c)
{
    char err[400] = "";
    assert_int_equal(srv_loop_open(c, &server, err, sizeof err), 0);
    return server;
}

void test_run(struct srv_server *s)
{
    server = s;
    assert_int_equal(pthread_create(&thread, NULL, run, NULL), 0);
    for (int i = 0; i < 300; i++) {
        struct reply r = http_get("/ready", "");
        int status = r.status;
        reply_free(&r);
        if (status == 200 || fake.load_ms > 100)
            return;
        usleep(5000);
    }
    fail_msg("the server is not ready");
}

struct srv_server *test_start(const struct srv_config *c)
{
    test_open(c);
    test_run(server);
    return server;
}

int test_join(void)
{
    pthread_join(thread, NULL);
    srv_loop_close(server);
    server = NULL;
    return exit_status;
}

void test_begin_drain(void)
{
    srv_loop_drain(server);
}

int test_stop(void)
{
    srv_loop_drain(server);
    return test_join();
}

// ---- sockets --------------------------------------------------------------------------------------------------------

int client_connect(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons((uint16_t)srv_loop_port(server))};
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

void client_send(int fd, const char *bytes, size_t n)
{
    while (n) {
        ssize_t sent = send(fd, bytes, n, MSG_NOSIGNAL);
        if (sent <= 0)
            return; // the server may close early; the answer tells
        bytes += sent;
        n -= (size_t)sent;
    }
}

void client_sendz(int fd, const char *text)
{
    client_send(fd, text, strlen(text));
}

void client_post(int fd, const char *path, const char *extra, const char *json)
{
    char head[1024];
    snprintf(head, sizeof head, "POST %s HTTP/1.1\r\nHost: test\r\n%sContent-Length: %zu\r\n\r\n", path, extra,
             strlen(json));
    client_sendz(fd, head);
    client_sendz(fd, json);
}

static int64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

// Appends what is there; false at the end, on an error or when the time is over.
static bool read_more(int fd, char **data, size_t *len, int64_t deadline)
{
    int64_t left = deadline - now_ms();
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (left <= 0 || poll(&p, 1, (int)left) <= 0)
        return false;
    *data = realloc(*data, *len + 65537);
    ssize_t n = recv(fd, *data + *len, 65536, 0);
    if (n <= 0) {
        (*data)[*len] = 0;
        return false;
    }
    *len += (size_t)n;
    (*data)[*len] = 0;
    return true;
}

char *client_read_until(int fd, const char *until, int timeout_ms)
{
    char *data = calloc(1, 1);
    size_t len = 0;
    int64_t deadline = now_ms() + timeout_ms;
    while (!strstr(data, until) && read_more(fd, &data, &len, deadline))
        ;
    return data;
}

// Decodes chunks; true when the last one was seen.
static bool unchunk(const char *p, char **ret, size_t *ret_len)
{
    *ret = realloc(*ret, strlen(p) + 1);
    *ret_len = 0;
    for (;;) {
        char *end;
        size_t n = strtoul(p, &end, 16);
        if (end == p || strncmp(end, "\r\n", 2) || strlen(end + 2) < n + 2)
            break;
        memcpy(*ret + *ret_len, end + 2, n);
        *ret_len += n;
        (*ret)[*ret_len] = 0;
        p = end + 2 + n + 2;
        if (n == 0)
            return true;
    }
    (*ret)[*ret_len] = 0;
    return false;
}

struct reply client_reply(int fd)
{
    struct reply r = {.raw = calloc(1, 1), .body = calloc(1, 1)};
    size_t len = 0;
    int64_t deadline = now_ms() + 10000;
    char *head;
    while (!(head = strstr(r.raw, "\r\n\r\n")) && read_more(fd, &r.raw, &len, deadline))
        ;
    if (!head)
        return r;
    r.status = atoi(r.raw + 9);
    const char *length = header_of(&r, "Content-Length");
    r.chunked = header_of(&r, "Transfer-Encoding") != NULL;
    size_t wanted = length ? strtoul(length, NULL, 10) : 0;
    for (;;) {
        head = strstr(r.raw, "\r\n\r\n") + 4;
        if (r.chunked) {
            r.complete = unchunk(head, &r.body, &r.body_len);
        } else {
            r.body_len = len - (size_t)(head - r.raw);
            r.body = realloc(r.body, r.body_len + 1);
            memcpy(r.body, head, r.body_len + 1);
            r.complete = r.body_len >= wanted;
        }
        if (r.complete || !read_more(fd, &r.raw, &len, deadline))
            return r;
    }
}

void reply_free(struct reply *r)
{
    free(r->raw);
    free(r->body);
    *r = (struct reply){0};
}

struct reply http_get(const char *path, const char *extra)
{
    char head[1024];
    int fd = client_connect();
    snprintf(head, sizeof head, "GET %s HTTP/1.1\r\nHost: test\r\n%s\r\n", path, extra);
    client_sendz(fd, head);
    struct reply r = client_reply(fd);
    close(fd);
    return r;
}

struct reply http_post(const char *path, const char *json)
{
    int fd = client_connect();
    client_post(fd, path, "Content-Type: application/json\r\n", json);
    struct reply r = client_reply(fd);
    close(fd);
    return r;
}

static cJSON *parse(struct reply *r, int status)
{
    if (r->status != status)
        fail_msg("status %d instead of %d: %s", r->status, status, r->body);
    cJSON *json = cJSON_Parse(r->body);
    assert_non_null(json);
    reply_free(r);
    return json;
}

cJSON *post_json(const char *path, const char *json, int status)
{
    struct reply r = http_post(path, json);
    return parse(&r, status);
}

cJSON *get_json(const char *path, int status)
{
    struct reply r = http_get(path, "");
    return parse(&r, status);
}

const cJSON *at(const cJSON *root, const char *path)
{
    char part[64];
    while (root && *path) {
        size_t n = strcspn(path, ".");
        memcpy(part, path, n);
        part[n] = 0;
        path += n + (path[n] == '.');
        root =
            cJSON_IsArray(root) ? cJSON_GetArrayItem(root, atoi(part)) : cJSON_GetObjectItemCaseSensitive(root, part);
    }
    return root;
}

const char *text_at(const cJSON *root, const char *path)
{
    const cJSON *item = at(root, path);
    return cJSON_IsString(item) ? item->valuestring : "(none)";
}

double number_at(const cJSON *root, const char *path)
{
    const cJSON *item = at(root, path);
    return cJSON_IsNumber(item) ? item->valuedouble : -1e9;
}

const char *header_of(const struct reply *r, const char *name)
{
    static char value[512];
    size_t n = strlen(name);
    for (const char *p = strstr(r->raw, "\r\n"); p && strncmp(p, "\r\n\r\n", 4); p = strstr(p + 2, "\r\n")) {
        if (strncasecmp(p + 2, name, n) || p[2 + n] != ':')
            continue;
        p += 3 + n;
        p += strspn(p, " ");
        snprintf(value, sizeof value, "%.*s", (int)strcspn(p, "\r"), p);
        return value;
    }
    return NULL;
}

int event_count(const struct reply *r)
{
    int n = 0;
    for (const char *p = r->body; (p = strstr(p, "data: ")); p++)
        n++;
    return n;
}

cJSON *event_at(const struct reply *r, int n)
{
    const char *p = r->body;
    for (int i = 0; (p = strstr(p, "data: ")); i++, p++)
        if (i == n)
            return cJSON_ParseWithLength(p + 6, strcspn(p + 6, "\n"));
    return NULL;
}
