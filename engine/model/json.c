// Checked reading of a checkpoint's JSON files.
//
// Owns the file reading and the typed getters that config.c, adapter.c and weights.c share, so that every refusal reads
// alike: file, key, value, what was expected. Runs on the thread that opens the engine. Leaves out paths into nested
// objects: the files it reads are at most two levels deep.
#include "model/json.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"

enum { MAX_FILE = 64 << 20 };

int eng_json_fail(char *err, size_t err_size, int code, const char *format, ...)
{
    if (err && err_size > 0) {
        va_list args;
        va_start(args, format);
        vsnprintf(err, err_size, format, args);
        va_end(args);
    }
    return code;
}

#define FAIL(at, code, ...) eng_json_fail((at)->err, (at)->err_size, code, __VA_ARGS__)

int eng_json_parse(const char *bytes, size_t len, const struct eng_json_ctx *at, struct cJSON **ret)
{
    const char *end = NULL;
    cJSON *json = cJSON_ParseWithLengthOpts(bytes, len, &end, 0);
    if (!json) {
        size_t offset = end && end >= bytes ? (size_t)(end - bytes) : 0;
        return FAIL(at, ENG_EFORMAT, "%s is not valid JSON (near byte %zu)", at->file, offset);
    }
    for (; end < bytes + len; end++) {
        if (!strchr(" \t\r\n", *end) || *end == '\0') {
            cJSON_Delete(json);
            return FAIL(at, ENG_EFORMAT, "%s has text after its JSON value (byte %zu)", at->file,
                        (size_t)(end - bytes));
        }
    }
    if (!cJSON_IsObject(json)) {
        cJSON_Delete(json);
        return FAIL(at, ENG_EFORMAT, "%s does not hold a JSON object", at->file);
    }
    *ret = json;
    return 0;
}

static int read_whole(int fd, char *data, size_t size)
{
    size_t have = 0;
    while (have < size) {
        ssize_t n = read(fd, data + have, size - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        have += (size_t)n;
    }
    return 0;
}

int eng_json_load(const char *dir, bool optional, const struct eng_json_ctx *at, struct cJSON **ret)
{
    char *path = NULL, *data = NULL;
    int fd = -1, rc;
    if (asprintf(&path, "%s/%s", dir, at->file) < 0)
        return FAIL(at, ENG_ENOMEM, "no memory to read %s", at->file);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO in the folder must not block the start
    if (fd < 0) {
        rc = 0;
        if (optional && errno == ENOENT)
            *ret = NULL;
        else
            rc = FAIL(at, ENG_EIO, "cannot open %s: %s", path, strerror(errno));
        goto done;
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        rc = FAIL(at, ENG_EIO, "%s is not a regular file", path);
        goto done;
    }
    if (st.st_size > MAX_FILE) {
        rc = FAIL(at, ENG_EFORMAT, "%s is too large (%lld bytes)", path, (long long)st.st_size);
        goto done;
    }
    data = malloc((size_t)st.st_size + 1);
    if (!data) {
        rc = FAIL(at, ENG_ENOMEM, "no memory to read %s", path);
        goto done;
    }
    if (read_whole(fd, data, (size_t)st.st_size) != 0) {
        rc = FAIL(at, ENG_EIO, "cannot read %s", path);
        goto done;
    }
    rc = eng_json_parse(data, (size_t)st.st_size, at, ret);
done:
    if (fd >= 0)
        close(fd);
    free(data);
    free(path);
    return rc;
}

const struct cJSON *eng_json_get(const struct cJSON *object, const char *key)
{
    const cJSON *v = cJSON_GetObjectItemCaseSensitive(object, key);
    return v && !cJSON_IsNull(v) ? v : NULL;
}

const char *eng_json_show(const struct cJSON *value, char *buf, size_t size)
{
    char *text = cJSON_PrintUnformatted(value);
    snprintf(buf, size, "%s", text ? text : "?");
    cJSON_free(text);
    return buf;
}

// The rule for an absent key; found is false when the getter has nothing more to do.
static int lookup(const struct cJSON *object, const char *key, bool required, const struct eng_json_ctx *at,
                  const cJSON **ret)
{
    *ret = eng_json_get(object, key);
    if (!*ret && required)
        return FAIL(at, ENG_EFORMAT, "%s has no \"%s\"", at->file, key);
    return 0;
}

int eng_json_int(const struct cJSON *object, const char *key, bool required, int64_t min, int64_t max,
                 const struct eng_json_ctx *at, int32_t *ret)
{
    char shown[80];
    const cJSON *v;
    int rc = lookup(object, key, required, at, &v);
    if (rc != 0 || !v)
        return rc;
    double d = cJSON_IsNumber(v) ? v->valuedouble : NAN;
    if (!(d >= (double)min && d <= (double)max) || d != floor(d))
        return FAIL(at, ENG_EFORMAT, "%s: \"%s\" is %s, expected an integer from %lld to %lld", at->file, key,
                    eng_json_show(v, shown, sizeof shown), (long long)min, (long long)max);
    *ret = (int32_t)d;
    return 0;
}

int eng_json_double(const struct cJSON *object, const char *key, bool required, bool open_min, double min, double max,
                    const struct eng_json_ctx *at, double *ret)
{
    char shown[80];
    const cJSON *v;
    int rc = lookup(object, key, required, at, &v);
    if (rc != 0 || !v)
        return rc;
    double d = cJSON_IsNumber(v) ? v->valuedouble : NAN;
    if (!(open_min ? d > min : d >= min) || !(d <= max))
        return FAIL(at, ENG_EFORMAT, "%s: \"%s\" is %s, expected a number %s %g and at most %g", at->file, key,
                    eng_json_show(v, shown, sizeof shown), open_min ? "above" : "from", min, max);
    *ret = d;
    return 0;
}

int eng_json_bool(const struct cJSON *object, const char *key, const struct eng_json_ctx *at, bool *ret)
{
    char shown[80];
    const cJSON *v = eng_json_get(object, key);
    if (v && !cJSON_IsBool(v))
        return FAIL(at, ENG_EFORMAT, "%s: \"%s\" is %s, expected true or false", at->file, key,
                    eng_json_show(v, shown, sizeof shown));
    if (v)
        *ret = cJSON_IsTrue(v);
    return 0;
}

int eng_json_string(const struct cJSON *object, const char *key, bool required, const struct eng_json_ctx *at,
                    const char **ret)
{
    char shown[80];
    const cJSON *v;
    int rc = lookup(object, key, required, at, &v);
    if (rc != 0 || !v)
        return rc;
    if (!cJSON_IsString(v))
        return FAIL(at, ENG_EFORMAT, "%s: \"%s\" is %s, expected a string", at->file, key,
                    eng_json_show(v, shown, sizeof shown));
    *ret = v->valuestring;
    return 0;
}
