// What the files of server/ share: one struct, owned by the loop thread. No other thread reads it, with the exceptions
// that are marked.
#pragma once

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

#include <microhttpd.h>
#include <uv.h>

#include "config.h"
#include "engine.h"
#include "metrics.h"

#ifndef TRIMODE_VERSION
#define TRIMODE_VERSION "0.0.0"
#endif

struct srv_stream;

enum srv_state { SRV_LOADING, SRV_READY, SRV_DRAINING };

struct srv_keys { // accepted bearer tokens; none: everybody may
    char **keys;
    size_t n;
};

struct srv_server {
    const struct srv_config *config; // lives longer than the server
    char *model_dir, *model_name;
    struct srv_keys api_keys, metrics_keys;
    time_t started;

    struct eng_engine *engine; // NULL until the model is loaded
    const struct eng_info *info;
    size_t longest_token; // bytes; bounds the tokens of a text from below without tokenising it
    enum srv_state state;
    struct srv_metrics metrics;

    struct srv_stream *streams; // every generation whose exchange or engine requests still live
    int n_streams;
    size_t max_outbox;             // bytes a reader may stay behind before its request is cancelled
    int64_t heartbeat_ms, tick_ms; // silence before a ping; how often silence and draining are looked at

    // loop.c
    uv_loop_t loop;
    uv_poll_t mhd_poll;
    uv_prepare_t prepare;
    uv_timer_t mhd_timer, tick_timer;
    uv_async_t wake;
    uv_signal_t sigterm, sigint;
    struct MHD_Daemon *daemon;
    int listen_fd, port;
    bool kick; // MHD must run before the loop blocks
    bool has_signals;
    int64_t drain_end_ms; // 0 until the drain has begun
    bool drain_cut;       // the drain timeout has passed and the rest was cancelled
    int exit_status;

    // The loader thread writes these, then sets loaded; the loop thread reads them after it saw loaded.
    uv_thread_t loader;
    bool loader_running;
    struct eng_engine *loaded_engine;
    int load_status;
    char load_error[512];
    atomic_int load_percent;  // written by the loader, read by /ready; a number for people, so no lock
    atomic_bool loaded;       // written once by the loader
    atomic_bool drain_wanted; // written by any thread through srv_loop_drain
};
