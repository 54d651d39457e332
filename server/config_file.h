// The YAML config file.
#pragma once

#include <stddef.h>

struct srv_config;

// Reads `key: value` pairs of one mapping into c. A list of plain values counts as its members joined by commas.
int srv_config_file(struct srv_config *c, const char *path, char *err, size_t err_size);
