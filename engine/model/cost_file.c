// The file of a cost model. Everything in it is checked before it is believed: a coefficient that is negative or not
// finite would make the router wrong in silence. Runs on the thread that opens the engine, or in `calibrate`.
#include "model/cost_file.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/err.h"
#include "cost.h"
#include "model/json.h"

static const char format_name[] = "trimode cost model 1";
static const double most_seconds = 3600; // of any coefficient

static const struct {
    const char *key;
    size_t offset;
} numbers[] = {
    {"base", offsetof(struct eng_cost, base)},
    {"segment", offsetof(struct eng_cost, segment)},
    {"choice", offsetof(struct eng_cost, choice)},
    {"context", offsetof(struct eng_cost, context)},
    {"context_beyond_2048", offsetof(struct eng_cost, far[0])},
    {"context_beyond_8192", offsetof(struct eng_cost, far[1])},
    {"context_beyond_32768", offsetof(struct eng_cost, far[2])},
    {"pair", offsetof(struct eng_cost, pair)},
    {"adapter_row", offsetof(struct eng_cost, adapter_row)},
    {"median_error", offsetof(struct eng_cost, median_error)},
    {"worst_error", offsetof(struct eng_cost, worst_error)},
};
enum { N_NUMBERS = sizeof numbers / sizeof *numbers };

// ---- writing --------------------------------------------------------------------------------------------------------

static cJSON *to_json(const struct eng_cost *c)
{
    cJSON *json = cJSON_CreateObject(), *rows = NULL;
    bool ok = json && cJSON_AddStringToObject(json, "format", format_name) &&
              cJSON_AddStringToObject(json, "version", c->id.version) &&
              cJSON_AddStringToObject(json, "model", c->id.model) &&
              cJSON_AddStringToObject(json, "machine", c->id.machine) &&
              cJSON_AddNumberToObject(json, "samples", c->n_samples) &&
              (rows = cJSON_AddArrayToObject(json, "rows")) != NULL;
    for (int i = 0; ok && i < N_NUMBERS; i++)
        ok = cJSON_AddNumberToObject(json, numbers[i].key, *(const double *)((const char *)c + numbers[i].offset));
    for (int32_t k = 0; ok && k < c->n_knots; k++) {
        cJSON *knot = cJSON_CreateObject();
        ok = knot && cJSON_AddNumberToObject(knot, "from", c->knots[k]) &&
             cJSON_AddNumberToObject(knot, "seconds_a_row", c->slopes[k]);
        cJSON_AddItemToArray(rows, knot);
    }
    if (ok)
        return json;
    cJSON_Delete(json);
    return NULL;
}

static int write_file(const char *path, const char *text, char *err, size_t err_size)
{
    char *beside;
    if (asprintf(&beside, "%s.new", path) < 0)
        return eng_json_fail(err, err_size, ENG_ENOMEM, "out of memory");
    FILE *f = fopen(beside, "w");
    bool ok = f && fputs(text, f) >= 0 && fputc('\n', f) != EOF;
    int why = errno;
    if (f && fclose(f) && ok) {
        ok = false;
        why = errno;
    }
    if (ok && rename(beside, path)) {
        ok = false;
        why = errno;
    }
    if (!ok && f)
        unlink(beside);
    free(beside);
    return ok ? 0 : eng_json_fail(err, err_size, ENG_EIO, "cannot write %s: %s", path, strerror(why));
}

int eng_cost_file_save(const char *path, const struct eng_cost *cost, char *err, size_t err_size)
{
    cJSON *json = to_json(cost);
    char *text = json ? cJSON_Print(json) : NULL;
    cJSON_Delete(json);
    if (!text)
        return eng_json_fail(err, err_size, ENG_ENOMEM, "out of memory");
    int rc = write_file(path, text, err, err_size);
    cJSON_free(text);
    return rc;
}

// ---- reading --------------------------------------------------------------------------------------------------------

static int check_same(const cJSON *json, const char *key, const char *what, const char *here,
                      const struct eng_json_ctx *at)
{
    const char *there = NULL;
    int rc = eng_json_string(json, key, true, at, &there);
    if (rc || !strcmp(there, here))
        return rc;
    return eng_json_fail(at->err, at->err_size, ENG_EINVAL,
                         "%s was measured with another %s: \"%s\", this is \"%s\"; run `trimode calibrate` again",
                         at->file, what, there, here);
}

static int read_rows(const cJSON *json, const struct eng_json_ctx *at, struct eng_cost *c)
{
    const cJSON *rows = eng_json_get(json, "rows"), *knot;
    int32_t n = cJSON_IsArray(rows) ? cJSON_GetArraySize(rows) : 0;
    if (n < 1 || n > ENG_COST_KNOTS)
        return eng_json_fail(at->err, at->err_size, ENG_EFORMAT, "%s: \"rows\" must be a list of 1 to %d entries",
                             at->file, ENG_COST_KNOTS);
    cJSON_ArrayForEach(knot, rows)
    {
        int32_t k = c->n_knots++;
        int rc = eng_json_int(knot, "from", true, k ? c->knots[k - 1] + 1 : 1, 1 << 24, at, &c->knots[k]);
        if (!rc)
            rc = eng_json_double(knot, "seconds_a_row", true, false, 0, most_seconds, at, &c->slopes[k]);
        if (rc)
            return rc;
    }
    return 0;
}

static int from_json(const cJSON *json, const struct eng_cost_id *here, const struct eng_json_ctx *at,
                     struct eng_cost *c)
{
    const char *format = NULL;
    int rc = eng_json_string(json, "format", true, at, &format);
    if (!rc && strcmp(format, format_name))
        rc = eng_json_fail(at->err, at->err_size, ENG_EFORMAT, "%s is no cost model: \"format\" is not \"%s\"",
                           at->file, format_name);
    if (!rc)
        rc = check_same(json, "version", "version of trimode", here->version, at);
    if (!rc)
        rc = check_same(json, "model", "model", here->model, at);
    if (!rc)
        rc = check_same(json, "machine", "machine", here->machine, at);
    if (!rc)
        rc = eng_json_int(json, "samples", true, 1, 1 << 24, at, &c->n_samples);
    for (int i = 0; !rc && i < N_NUMBERS; i++)
        rc = eng_json_double(json, numbers[i].key, true, false, 0, most_seconds, at,
                             (double *)((char *)c + numbers[i].offset));
    if (!rc)
        rc = read_rows(json, at, c);
    c->id = *here;
    struct eng_cost_pass least = {.rows = 1, .segments = 1};
    if (!rc && !(eng_cost_predict(c, &least) > 0))
        rc = eng_json_fail(at->err, at->err_size, ENG_EFORMAT, "%s: a pass would take no time", at->file);
    return rc;
}

int eng_cost_file_load(const char *path, const struct eng_cost_id *here, struct eng_cost *ret, char *err,
                       size_t err_size)
{
    const char *slash = strrchr(path, '/');
    struct eng_json_ctx at = {slash ? slash + 1 : path, err, err_size};
    char *dir = slash ? strndup(path, slash == path ? 1 : (size_t)(slash - path)) : strdup(".");
    if (!dir)
        return eng_json_fail(err, err_size, ENG_ENOMEM, "out of memory");
    cJSON *json = NULL;
    int rc = eng_json_load(dir, false, &at, &json);
    struct eng_cost cost = {0};
    if (!rc) {
        at.file = path;
        rc = from_json(json, here, &at, &cost);
    }
    cJSON_Delete(json);
    free(dir);
    if (!rc)
        *ret = cost;
    return rc;
}
