// Reading a model's small files (tokenizer.json, tokenizer_config.json, templates), with the checks that cJSON leaves
// out.
#include "text/file.h"

#include "text/fail.h"
#include "text/utf8.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int eng_text_read_file(const char *path, size_t max, char **ret_data, size_t *ret_len, char *err, size_t err_size)
{
    int rc = 0;
    char *data = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a FIFO in the folder must not block the start
    FILE *file = fd < 0 ? NULL : fdopen(fd, "rb");
    if (!file) {
        rc = fail(ENG_EIO, err, err_size, "cannot open %s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return rc;
    }
    struct stat st;
    if (fstat(fileno(file), &st) || !S_ISREG(st.st_mode)) {
        rc = fail(ENG_EIO, err, err_size, "%s is not a regular file", path);
        goto done;
    }
    if ((uintmax_t)st.st_size > max) {
        rc = fail(ENG_ELIMIT, err, err_size, "%s is larger than %zu bytes", path, max);
        goto done;
    }
    size_t len = (size_t)st.st_size;
    data = malloc(len + 1);
    if (!data) {
        rc = fail(ENG_ENOMEM, err, err_size, "out of memory reading %s", path);
        goto done;
    }
    if (fread(data, 1, len, file) != len) {
        rc = fail(ENG_EIO, err, err_size, "cannot read %s", path);
        goto done;
    }
    data[len] = '\0';
    *ret_data = data;
    *ret_len = len;
    data = NULL;
done:
    free(data);
    fclose(file);
    return rc;
}

static bool has_nul_escape(const char *data, size_t len)
{
    const char *p = data, *end = data + len;
    while ((p = memmem(p, (size_t)(end - p), "\\u0000", 6))) {
        size_t n = 0; // backslashes before: an odd number makes this one the second half of an escaped backslash
        while (p - n > data && p[-1 - (ptrdiff_t)n] == '\\')
            n++;
        if (n % 2 == 0)
            return true;
        p++;
    }
    return false;
}

int eng_text_parse_json(const char *data, size_t len, const char *name, cJSON **ret, char *err, size_t err_size)
{
    if (memchr(data, 0, len) || !eng_utf8_valid(data, len))
        return fail(ENG_EFORMAT, err, err_size, "%s is not valid UTF-8 text", name);
    if (has_nul_escape(data, len))
        return fail(ENG_EFORMAT, err, err_size, "%s has a string with a NUL character", name);
    const char *end = data;
    cJSON *json = cJSON_ParseWithLengthOpts(data, len + 1, &end, 1);
    if (!json)
        return fail(ENG_EFORMAT, err, err_size, "%s is not valid JSON near byte %zu", name, (size_t)(end - data));
    *ret = json;
    return 0;
}
