// The event loop of the server: libuv drives libmicrohttpd's epoll descriptor.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "config.h"

struct srv_server;

// Reads the key files, finds the model, binds the port. The model is not loaded yet. 0, or -1 (runtime) or -2 (a
// setting is unusable) with one sentence. The result is freed with srv_loop_close.
int srv_loop_open(const struct srv_config *config, struct srv_server **ret, char *err, size_t err_size);
// Loads the model in a thread while /health already answers, serves until the drain has ended, stops everything in
// order. With signals set, SIGTERM and SIGINT drain and a second one exits at once. Returns the exit status.
int srv_loop_run(struct srv_server *s, bool signals);
// Takes NULL.
void srv_loop_close(struct srv_server *s);

// Starts the drain. Any thread, while srv_loop_run runs.
void srv_loop_drain(struct srv_server *s);
// MHD has something to do (a resume): it runs once before the loop blocks again. Loop thread.
void srv_loop_kick(struct srv_server *s);
int64_t srv_loop_now_ms(const struct srv_server *s);
// The port that was bound.
int srv_loop_port(const struct srv_server *s);
// "http://host:port"
void srv_loop_url(const struct srv_server *s, char *out, size_t size);
