// Sub-commands that are no server.
#pragma once

#include "config.h"

// One completion of the text in config->arguments; returns the exit status.
int srv_cli_generate(const struct srv_config *config);
// A conversation, one line each; returns the exit status.
int srv_cli_chat(const struct srv_config *config);
// Times of forward passes (cli_bench.c); returns the exit status.
int srv_cli_bench(const struct srv_config *config);
// A load on a server (bench_serve.c), which needs no engine; the exit status is 1 when a request failed.
int srv_cli_bench_serve(const struct srv_config *config);
// The cost model of this machine and model (cli_calibrate.c); returns the exit status.
int srv_cli_calibrate(const struct srv_config *config);
