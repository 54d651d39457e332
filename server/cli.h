// Sub-commands that use the engine in this process, without HTTP.
#pragma once

#include "config.h"

// One completion of the text in config->arguments; returns the exit status.
int srv_cli_generate(const struct srv_config *config);
// A conversation, one line each; returns the exit status.
int srv_cli_chat(const struct srv_config *config);
// Times of forward passes (cli_bench.c); returns the exit status.
int srv_cli_bench(const struct srv_config *config);
