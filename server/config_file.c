// The YAML config file through libyaml's event API: one mapping of plain settings, lists of plain values. Refused, with
// file and line: unknown keys, duplicates, nested mappings, anchors, aliases, tags, a second document.
#include "config_file.h"

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <yaml.h>

#include "buf.h"
#include "config.h"

struct reader {
    struct srv_config *config;
    const char *path;
    yaml_parser_t yaml;
    bool seen[SRV_MAX_OPTIONS];
    char *err;
    size_t err_size;
};

static int fail(struct reader *r, size_t line, const char *what)
{
    snprintf(r->err, r->err_size, "%s:%zu: %s", r->path, line + 1, what);
    return -1;
}

// The caller deletes the event, also after a failure.
static int next(struct reader *r, yaml_event_t *ev)
{
    if (!yaml_parser_parse(&r->yaml, ev)) {
        memset(ev, 0, sizeof *ev);
        snprintf(r->err, r->err_size, "%s:%zu: not valid YAML: %s", r->path, r->yaml.problem_mark.line + 1,
                 r->yaml.problem ? r->yaml.problem : "unreadable");
        return -1;
    }
    size_t line = ev->start_mark.line;
    if (ev->type == YAML_ALIAS_EVENT ||
        (ev->type == YAML_SCALAR_EVENT && (ev->data.scalar.anchor || ev->data.scalar.tag)) ||
        (ev->type == YAML_SEQUENCE_START_EVENT && (ev->data.sequence_start.anchor || ev->data.sequence_start.tag)) ||
        (ev->type == YAML_MAPPING_START_EVENT && (ev->data.mapping_start.anchor || ev->data.mapping_start.tag)))
        return fail(r, line, "anchors, aliases and tags are not allowed; write the value itself");
    return 0;
}

static int read_list(struct reader *r, struct srv_buf *value)
{
    for (;;) {
        yaml_event_t ev;
        int status = next(r, &ev);
        bool end = !status && ev.type == YAML_SEQUENCE_END_EVENT;
        if (!status && !end && ev.type != YAML_SCALAR_EVENT)
            status = fail(r, ev.start_mark.line, "a list may hold plain values only");
        if (!status && !end) {
            if (value->len)
                srv_buf_append(value, ",", 1);
            srv_buf_append(value, ev.data.scalar.value, ev.data.scalar.length);
        }
        yaml_event_delete(&ev);
        if (status || end)
            return status;
    }
}

static int read_setting(struct reader *r, const char *key, size_t line)
{
    char from[512], sentence[512];
    snprintf(from, sizeof from, "%s:%zu", r->path, line + 1);
    int index = srv_config_find(key);
    if (index >= 0 && r->seen[index]) {
        snprintf(sentence, sizeof sentence, "the key '%s' is there twice", key);
        return fail(r, line, sentence);
    }
    if (index >= 0)
        r->seen[index] = true;
    struct srv_buf value = {0};
    yaml_event_t ev;
    int status = next(r, &ev);
    if (!status && ev.type == YAML_SCALAR_EVENT)
        srv_buf_append(&value, ev.data.scalar.value, ev.data.scalar.length);
    else if (!status && ev.type == YAML_SEQUENCE_START_EVENT)
        status = read_list(r, &value);
    else if (!status) {
        snprintf(sentence, sizeof sentence, "the value of '%s' must be a plain value or a list", key);
        status = fail(r, line, sentence);
    }
    yaml_event_delete(&ev);
    if (!status && (value.failed || strlen(value.data ? value.data : "") != value.len))
        status = fail(r, line, "a value with a zero byte");
    if (!status)
        status = srv_config_set(r->config, key, value.data ? value.data : "", SRV_FROM_FILE, from, r->err, r->err_size);
    srv_buf_free(&value);
    return status;
}

static int read_document(struct reader *r)
{
    bool in_mapping = false, had_document = false;
    for (;;) {
        yaml_event_t ev;
        int status = next(r, &ev);
        size_t line = ev.start_mark.line;
        bool end = false;
        if (!status) {
            switch (ev.type) {
            case YAML_DOCUMENT_START_EVENT:
                if (had_document)
                    status = fail(r, line, "a second document; only one is allowed");
                had_document = true;
                break;
            case YAML_MAPPING_START_EVENT:
                if (in_mapping) // as a key
                    status = fail(r, line, "the file must hold `key: value` lines");
                in_mapping = true;
                break;
            case YAML_SCALAR_EVENT:
                if (in_mapping)
                    status = read_setting(r, (const char *)ev.data.scalar.value, line);
                else if (ev.data.scalar.length)
                    status = fail(r, line, "the file must hold `key: value` lines");
                break;
            case YAML_SEQUENCE_START_EVENT:
                status = fail(r, line, "the file must hold `key: value` lines");
                break;
            case YAML_STREAM_END_EVENT:
                end = true;
                break;
            default:
                break;
            }
        }
        yaml_event_delete(&ev);
        if (status || end)
            return status;
    }
}

int srv_config_file(struct srv_config *c, const char *path, char *err, size_t err_size)
{
    FILE *file = fopen(path, "rb");
    if (!file) {
        snprintf(err, err_size, "config: '%s' cannot be read; allowed is the path of a YAML file", path);
        return -1;
    }
    struct reader r = {.config = c, .path = path, .err = err, .err_size = err_size};
    int status = -1;
    if (yaml_parser_initialize(&r.yaml)) {
        yaml_parser_set_input_file(&r.yaml, file);
        status = read_document(&r);
        yaml_parser_delete(&r.yaml);
    } else {
        snprintf(err, err_size, "config: out of memory");
    }
    fclose(file);
    return status;
}
