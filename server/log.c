// Log lines. A line is built in memory and leaves in one write, so lines of two threads never mix. Library code below
// the server does not log; the server logs a request once, where it ends. Line breaks that came from outside are
// escaped, so that nobody can forge a line.
#include "log.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "buf.h"

static const char *const level_names[] = {"debug", "info", "warn", "error"};
static enum srv_log_level min_level = SRV_LOG_INFO;
static bool as_json;
static int out_fd = 2;

void srv_log_init(enum srv_log_level level, bool json, int fd)
{
    min_level = level;
    as_json = json;
    out_fd = fd;
}

bool srv_log_enabled(enum srv_log_level level)
{
    return level >= min_level;
}

static void append_time(struct srv_buf *b)
{
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    char text[40];
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    srv_buf_printf(b, "%s.%03ldZ", text, now.tv_nsec / 1000000);
}

void srv_log(enum srv_log_level level, const char *request_id, const char *format, ...)
{
    if (level < min_level)
        return;
    char message[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof message, format, args);
    va_end(args);

    struct srv_buf line = {0};
    if (as_json) {
        srv_buf_puts(&line, "{\"time\":\"");
        append_time(&line);
        srv_buf_printf(&line, "\",\"level\":\"%s\"", level_names[level]);
        if (request_id) {
            srv_buf_puts(&line, ",\"request_id\":");
            srv_buf_jsonz(&line, request_id);
        }
        srv_buf_puts(&line, ",\"message\":");
        srv_buf_jsonz(&line, message);
        srv_buf_puts(&line, "}\n");
    } else {
        for (char *p = message; *p; p++)
            if ((unsigned char)*p < 0x20 || *p == 0x7F)
                *p = ' ';
        append_time(&line);
        srv_buf_printf(&line, " %-5s ", level_names[level]);
        if (request_id)
            srv_buf_printf(&line, "[%s] ", request_id);
        srv_buf_printf(&line, "%s\n", message);
    }
    if (!line.failed) {
        ssize_t written = write(out_fd, line.data, line.len);
        (void)written; // a log that cannot be written has nowhere to complain
    }
    srv_buf_free(&line);
}
