// Lines to stderr: text for people or JSON for collectors.
#pragma once

#include <stdbool.h>

enum srv_log_level { SRV_LOG_DEBUG, SRV_LOG_INFO, SRV_LOG_WARN, SRV_LOG_ERROR };

// Before any thread starts. fd: where lines go (2 in the program, a pipe in tests).
void srv_log_init(enum srv_log_level level, bool json, int fd);
bool srv_log_enabled(enum srv_log_level level);
// One line, written by one write(2). request_id may be NULL. Any thread.
void srv_log(enum srv_log_level level, const char *request_id, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
