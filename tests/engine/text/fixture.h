// What the tests of text/ share: the small tokenizer of data/, temporary files, a random source,
// templates rendered once.
#pragma once

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/err.h"
#include "text/file.h"
#include "text/jinja.h"
#include "text/tokenizer.h"
#include "text/utf8.h"

#define DATA TRIMODE_SOURCE_DIR "/tests/engine/text/data/"

static inline cJSON *load_json(const char *path)
{
    char *data, err[256] = "";
    size_t len;
    cJSON *json;
    assert_int_equal(eng_text_read_file(path, 16 << 20, &data, &len, err, sizeof err), 0);
    assert_int_equal(eng_text_parse_json(data, len, path, &json, err, sizeof err), 0);
    free(data);
    return json;
}

static inline struct eng_tokenizer *load_tokenizer(void)
{
    char err[256] = "";
    struct eng_tokenizer *t = NULL;
    if (eng_tokenizer_load(DATA "tokenizer.json", &t, err, sizeof err))
        fail_msg("%s", err);
    return t;
}

// A new temporary folder; remove_folder deletes it with the named files.
static inline void make_folder(char path[64])
{
    strcpy(path, "/tmp/trimode-text-XXXXXX");
    assert_non_null(mkdtemp(path));
}

static inline void write_file(const char *folder, const char *name, const char *data, size_t len)
{
    char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    fclose(f);
}

static inline void remove_folder(const char *folder)
{
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"};
    char path[128];
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, names[i]);
        unlink(path);
    }
    rmdir(folder);
}

// Loads data as tokenizer.json: the code, and the error's text in err.
static inline int load_text(const char *data, size_t len, struct eng_tokenizer **ret, char *err, size_t err_size)
{
    char folder[64], path[128];
    make_folder(folder);
    write_file(folder, "tokenizer.json", data, len);
    snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    int rc = eng_tokenizer_load(path, ret, err, err_size);
    remove_folder(folder);
    return rc;
}

// The fixture tokenizer's bytes. Not inlined: gcc 12 then takes the returned pointer for one to the local.
__attribute__((noinline, unused)) static char *fixture_text(size_t *ret_len)
{
    char *data, err[256];
    assert_int_equal(eng_text_read_file(DATA "tokenizer.json", 1 << 20, &data, ret_len, err, sizeof err), 0);
    return data;
}

static inline uint32_t next_random(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33);
}

// Random valid UTF-8 of up to max characters, NUL included.
static inline void random_text(uint64_t *state, struct eng_buf *out, size_t max)
{
    static const uint32_t limits[] = {0x80, 0x80, 0x300, 0x3000, 0x11000, 0x110000};
    eng_buf_reset(out);
    for (size_t n = next_random(state) % (max + 1); n > 0; n--) {
        uint32_t cp = next_random(state) % limits[next_random(state) % 6];
        char text[4];
        assert_int_equal(eng_buf_append(out, text, eng_utf8_encode(cp, text)), 0);
    }
}

// Renders a template once with the members of the JSON object vars: the code; the text in *out, or the error in err.
static inline int jinja_render(const char *source, const char *vars_json, struct eng_jinja_out *out, char *err,
                               size_t err_size)
{
    struct eng_jinja *j = NULL;
    int rc = eng_jinja_compile(source, strlen(source), &j, err, err_size);
    if (rc)
        return rc;
    cJSON *vars = cJSON_Parse(vars_json);
    assert_non_null(vars);
    rc = eng_jinja_render(j, vars, NULL, out, err, err_size);
    cJSON_Delete(vars);
    eng_jinja_free(j);
    return rc;
}

static inline void jinja_check(const char *source, const char *vars_json, const char *want)
{
    struct eng_jinja_out out = {0};
    char err[512] = "";
    int rc = jinja_render(source, vars_json, &out, err, sizeof err);
    if (rc || strlen(want) != out.len || memcmp(out.text, want, out.len))
        fail_msg("%s\nwant: %s\ngot %d: %s", source, want, rc, rc ? err : out.text);
    eng_jinja_out_free(&out);
}

// want: the whole error.
static inline void jinja_check_error(const char *source, const char *vars_json, int code, const char *want)
{
    struct eng_jinja_out out = {0};
    char err[512] = "";
    int rc = jinja_render(source, vars_json, &out, err, sizeof err);
    if (rc != code || strcmp(err, want))
        fail_msg("%s\nwant %d: %s\ngot %d: %s", source, code, want, rc, rc ? err : out.text);
}
