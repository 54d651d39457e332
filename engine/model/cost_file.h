// The file of a cost model: JSON that `trimode calibrate` writes and `serve --cost-model` reads.
#pragma once

#include <stddef.h>

struct eng_cost;
struct eng_cost_id;

// Writes a new file beside path and renames it, so that a reader never sees half of one. 0, ENG_EIO or ENG_ENOMEM with
// one sentence.
int eng_cost_file_save(const char *path, const struct eng_cost *cost, char *err, size_t err_size);
// 0 and *ret; ENG_EIO: cannot be read; ENG_EFORMAT: not such a file, or a value out of range; ENG_EINVAL: measured with
// another version, model or machine than `here`. The sentence names the file and the reason; *ret is then untouched.
int eng_cost_file_load(const char *path, const struct eng_cost_id *here, struct eng_cost *ret, char *err,
                       size_t err_size);
