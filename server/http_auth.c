// 1 REQUEST: bearer keys from files. Comparison looks at every byte of every key, so that its time tells nothing.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "http.h"

int srv_http_keys_load(struct srv_keys *keys, const char *setting, const char *path, char *err, size_t err_size)
{
    if (!*path)
        return 0;
    FILE *file = fopen(path, "r");
    if (!file) {
        snprintf(err, err_size, "%s: '%s' cannot be read; allowed: a file with one key a line", setting, path);
        return -1;
    }
    char *line = NULL;
    size_t size = 0;
    ssize_t n;
    int status = 0;
    while (!status && (n = getline(&line, &size, file)) >= 0) {
        if (strlen(line) != (size_t)n) { // UTF-16, for example; it would be cut, down to a key of no bytes
            snprintf(err, err_size, "%s: '%s' holds a zero byte; allowed: a text file with one key a line", setting,
                     path);
            status = -1;
            continue;
        }
        while (n > 0 && strchr("\r\n\t ", line[n - 1]))
            line[--n] = 0;
        const char *key = line + strspn(line, "\t ");
        if (!*key || *key == '#')
            continue;
        char **grown = realloc(keys->keys, (keys->n + 1) * sizeof *grown);
        char *copy = strdup(key);
        if (grown)
            keys->keys = grown;
        if (!grown || !copy) {
            free(copy);
            status = -1;
            snprintf(err, err_size, "out of memory");
        } else {
            keys->keys[keys->n++] = copy;
        }
    }
    free(line);
    fclose(file);
    if (!status && keys->n == 0) {
        snprintf(err, err_size, "%s: '%s' holds no key; allowed: a file with one key a line", setting, path);
        status = -1;
    }
    return status;
}

void srv_http_keys_free(struct srv_keys *keys)
{
    for (size_t i = 0; i < keys->n; i++)
        free(keys->keys[i]);
    free(keys->keys);
    *keys = (struct srv_keys){0};
}

int srv_http_keys_find(const struct srv_keys *keys, const char *authorization)
{
    if (!authorization || strncasecmp(authorization, "Bearer ", 7))
        return -1;
    const char *given = authorization + 7;
    given += strspn(given, " ");
    size_t n = strlen(given);
    int found = -1;
    for (size_t k = 0; k < keys->n; k++) {
        const char *key = keys->keys[k];
        size_t n_key = strlen(key);
        volatile unsigned difference = n ^ n_key ? 1 : 0;
        for (size_t i = 0; i < n; i++)
            difference |= (unsigned char)given[i] ^ (unsigned char)key[i % n_key];
        found = difference ? found : (int)k;
    }
    return found;
}
