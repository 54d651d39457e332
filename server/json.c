// 2 PARSE: bodies to cJSON trees; typed getters. An error names the JSON path (messages[2].content), the kind that was
// sent and the kind or range that is allowed. Loop thread only.
#include "json.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "json_scan.h"

static void error_fill(struct srv_error *e, int status, const char *type, const char *code, const char *param)
{
    *e = (struct srv_error){.status = status, .type = type, .code = code};
    if (param)
        snprintf(e->param, sizeof e->param, "%s", param);
}

int srv_error_set(struct srv_error *e, const char *code, const char *param, const char *format, ...)
{
    error_fill(e, 400, "invalid_request_error", code, param);
    va_list args;
    va_start(args, format);
    vsnprintf(e->message, sizeof e->message, format, args);
    va_end(args);
    return -1;
}

int srv_error_status(struct srv_error *e, int status, const char *type, const char *code, const char *format, ...)
{
    error_fill(e, status, type, code, NULL);
    va_list args;
    va_start(args, format);
    vsnprintf(e->message, sizeof e->message, format, args);
    va_end(args);
    return -1;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int check_keys(const cJSON *object, struct srv_error *e)
{
    size_t n = 0;
    const cJSON *item;
    cJSON_ArrayForEach(item, object) n++;
    if (n < 2)
        return 0;
    const char **keys = malloc(n * sizeof *keys);
    if (!keys)
        return srv_error_status(e, 500, "server_error", NULL, "Out of memory.");
    n = 0;
    cJSON_ArrayForEach(item, object) keys[n++] = item->string;
    qsort(keys, n, sizeof *keys, compare_keys);
    int status = 0;
    for (size_t i = 1; i < n && !status; i++)
        if (!strcmp(keys[i - 1], keys[i]))
            status = srv_error_set(e, NULL, keys[i], "The request body has the key '%.80s' twice.", keys[i]);
    free(keys);
    return status;
}

// Depth is bounded by the scan, so recursion is.
static int check_tree(const cJSON *item, struct srv_error *e)
{
    if (cJSON_IsNumber(item) && !isfinite(item->valuedouble))
        return srv_error_set(e, NULL, item->string, "The request body has a number that is too large.");
    if (cJSON_IsObject(item) && check_keys(item, e))
        return -1;
    const cJSON *child;
    cJSON_ArrayForEach(child, item)
    {
        if (check_tree(child, e))
            return -1;
    }
    return 0;
}

int srv_json_parse(const char *body, size_t len, cJSON **ret, struct srv_error *e)
{
    const char *why;
    size_t at;
    if (!srv_json_scan(body, len, &why, &at))
        return srv_error_set(e, NULL, NULL, "The request body is not valid JSON: %s at byte %zu.", why, at);
    cJSON *root = cJSON_ParseWithLengthOpts(body, len + 1, NULL, 1);
    if (!root)
        return srv_error_set(e, NULL, NULL, "The request body could not be parsed as JSON.");
    if (!cJSON_IsObject(root)) {
        srv_error_set(e, NULL, NULL, "The request body must be a JSON object, not %s.", srv_json_kind(root));
    } else if (!check_tree(root, e)) {
        *ret = root;
        return 0;
    }
    cJSON_Delete(root);
    return -1;
}

const char *srv_json_kind(const cJSON *item)
{
    switch (item ? item->type & 0xFF : cJSON_NULL) {
    case cJSON_False:
    case cJSON_True:
        return "a boolean";
    case cJSON_Number:
        return item->valuedouble == floor(item->valuedouble) ? "an integer" : "a decimal number";
    case cJSON_String:
        return "a string";
    case cJSON_Array:
        return "an array";
    case cJSON_Object:
        return "an object";
    default:
        return "null";
    }
}

const cJSON *srv_json_get(const cJSON *obj, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(obj, key);
    return item && !cJSON_IsNull(item) ? item : NULL;
}

static void join_path(char *out, size_t size, const char *path, const char *key)
{
    snprintf(out, size, "%s%s%s", path, *path && *key != '[' ? "." : "", key);
}

static int wrong_type(const cJSON *item, const char *path, const char *key, const char *wanted, struct srv_error *e)
{
    char full[128];
    join_path(full, sizeof full, path, key);
    return srv_error_set(e, "invalid_type", full, "Invalid type for '%s': expected %s, but got %s instead.", full,
                         wanted, srv_json_kind(item));
}

bool srv_json_exact(const cJSON *item, int64_t *ret)
{
    double v = item->valuedouble;
    if (!cJSON_IsNumber(item) || v != floor(v) || fabs(v) > 9007199254740992.0)
        return false;
    *ret = (int64_t)v;
    return true;
}

int srv_json_int(const cJSON *obj, const char *path, const char *key, int64_t min, int64_t max, int64_t *ret,
                 struct srv_error *e)
{
    const cJSON *item = srv_json_get(obj, key);
    if (!item)
        return 0;
    if (!cJSON_IsNumber(item) || item->valuedouble != floor(item->valuedouble))
        return wrong_type(item, path, key, "an integer", e);
    int64_t value = 0;
    if (!srv_json_exact(item, &value) || value < min || value > max) {
        char full[128];
        join_path(full, sizeof full, path, key);
        return srv_error_set(e, "invalid_value", full, "Invalid value for '%s': %.17g is not between %lld and %lld.",
                             full, item->valuedouble, (long long)min, (long long)max);
    }
    *ret = value;
    return 1;
}

int srv_json_number(const cJSON *obj, const char *path, const char *key, double min, double max, bool lo_open,
                    double *ret, struct srv_error *e)
{
    const cJSON *item = srv_json_get(obj, key);
    if (!item)
        return 0;
    if (!cJSON_IsNumber(item))
        return wrong_type(item, path, key, "a number", e);
    double value = item->valuedouble;
    // Written so that a NaN fails.
    if (!(value >= min && value <= max) || (lo_open && value == min)) {
        char full[128];
        join_path(full, sizeof full, path, key);
        return srv_error_set(e, "invalid_value", full, "Invalid value for '%s': %g is not %s %g and at most %g.", full,
                             value, lo_open ? "above" : "at least", min, max);
    }
    *ret = value;
    return 1;
}

int srv_json_bool(const cJSON *obj, const char *path, const char *key, bool *ret, struct srv_error *e)
{
    const cJSON *item = srv_json_get(obj, key);
    if (!item)
        return 0;
    if (!cJSON_IsBool(item))
        return wrong_type(item, path, key, "a boolean", e);
    *ret = cJSON_IsTrue(item);
    return 1;
}

int srv_json_string(const cJSON *obj, const char *path, const char *key, const char **ret, struct srv_error *e)
{
    const cJSON *item = srv_json_get(obj, key);
    if (!item)
        return 0;
    if (!cJSON_IsString(item))
        return wrong_type(item, path, key, "a string", e);
    *ret = item->valuestring;
    return 1;
}

int srv_json_int64_raw(const char *body, size_t len, const char *key, int64_t *ret, struct srv_error *e)
{
    const char *raw;
    size_t n;
    if (!srv_json_scan_key(body, len, key, &raw, &n) || (n == 4 && !memcmp(raw, "null", 4)))
        return 0;
    char text[64] = "";
    if (n < sizeof text)
        memcpy(text, raw, n);
    if (n == 0 || n >= sizeof text || strspn(text, "-0123456789") != n)
        return srv_error_set(e, "invalid_type", key, "Invalid type for '%s': expected an integer.", key);
    errno = 0;
    long long value = strtoll(text, NULL, 10);
    if (errno)
        return srv_error_set(e, "invalid_value", key, "Invalid value for '%s': %s is not between %lld and %lld.", key,
                             text, (long long)INT64_MIN, (long long)INT64_MAX);
    *ret = value;
    return 1;
}
