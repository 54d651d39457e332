// 2 PARSE: entry points of the template interpreter: they own the arena and are where an error's longjmp lands.
#include "text/jinja.h"

#include "text/fail.h"
#include "text/jinja_inner.h"
#include "text/utf8.h"

#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

struct eng_jinja {
    struct eng_arena *arena; // holds the tree
    struct jinja_node *root;
};

// ---- environment ----------------------------------------------------------------------------------------------------

void eng_jinja_fail(struct jinja_env *e, int code, const char *format, ...)
{
    e->code = code;
    if (e->err_size) {
        va_list args;
        va_start(args, format);
        vsnprintf(e->err, e->err_size, format, args);
        va_end(args);
        // A precision or the buffer's end may have cut a character: the message stays UTF-8.
        for (size_t i = 0, all = strlen(e->err), step; i < all; i += step) {
            uint32_t cp;
            enum eng_utf8_status status;
            step = eng_utf8_next(e->err + i, all - i, &cp, &status);
            if (status != ENG_UTF8_OK)
                memset(e->err + i, '?', step);
        }
        char where[48];
        int n = snprintf(where, sizeof where, " (line %d of the template)", e->line);
        size_t len = strlen(e->err);
        // line 0: the message is the template's own.
        if (e->line && len + (size_t)n < e->err_size)
            memcpy(e->err + len, where, (size_t)n + 1);
    }
    longjmp(e->jump, 1);
}

void *eng_jinja_alloc(struct jinja_env *e, size_t size)
{
    if (size > e->max_memory || eng_arena_used(e->arena) > e->max_memory - size)
        eng_jinja_fail(e, ENG_ELIMIT, "the template takes more than %zu MiB", e->max_memory >> 20);
    void *p = eng_arena_alloc(e->arena, size ? size : 1);
    if (!p)
        eng_jinja_fail(e, ENG_ENOMEM, "out of memory");
    return p;
}

char *eng_jinja_dup(struct jinja_env *e, const char *s, size_t len)
{
    char *p = eng_jinja_alloc(e, len + 1);
    if (len)
        memcpy(p, s, len);
    p[len] = '\0';
    return p;
}

void eng_jinja_steps(struct jinja_env *e, size_t n)
{
    if (n > ENG_JINJA_MAX_STEPS || (e->steps += (int64_t)n) > ENG_JINJA_MAX_STEPS)
        eng_jinja_fail(e, ENG_ELIMIT, "the template takes more than %d steps", ENG_JINJA_MAX_STEPS);
}

void eng_jinja_enter(struct jinja_env *e)
{
    if (++e->depth > ENG_JINJA_MAX_DEPTH)
        eng_jinja_fail(e, ENG_ELIMIT, "the template nests deeper than %d", ENG_JINJA_MAX_DEPTH);
    eng_jinja_steps(e, 1);
}

void eng_jinja_leave(struct jinja_env *e)
{
    e->depth--;
}

// In the arena, not in a local variable: those are not to be relied on after longjmp. NULL when there is no memory.
static struct jinja_env *new_env(struct eng_arena *arena, char *err, size_t err_size)
{
    struct jinja_env *e = eng_arena_alloc(arena, sizeof *e);
    if (!e)
        return NULL;
    memset(e, 0, sizeof *e);
    e->arena = arena;
    e->max_memory = ENG_JINJA_MAX_MEMORY;
    e->err = err;
    e->err_size = err_size;
    return e;
}

// ---- compile --------------------------------------------------------------------------------------------------------

int eng_jinja_compile(const char *src, size_t len, struct eng_jinja **ret, char *err, size_t err_size)
{
    if (len > ENG_JINJA_MAX_SOURCE)
        return fail(ENG_ELIMIT, err, err_size, "the template is larger than %d bytes", ENG_JINJA_MAX_SOURCE);
    if (!eng_utf8_valid(src, len) || (len && memchr(src, 0, len)))
        return fail(ENG_EFORMAT, err, err_size, "the template is not UTF-8 text");
    struct eng_jinja *j = calloc(1, sizeof *j);
    if (j)
        j->arena = eng_arena_new();
    struct jinja_env *e = j && j->arena ? new_env(j->arena, err, err_size) : NULL;
    if (!e) {
        eng_jinja_free(j);
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    }
    if (setjmp(e->jump)) {
        int code = e->code;
        eng_jinja_free(j);
        return code;
    }
    j->root = eng_jinja_parse(e, eng_jinja_lex(e, src, len));
    *ret = j;
    return 0;
}

void eng_jinja_free(struct eng_jinja *j)
{
    if (!j)
        return;
    eng_arena_free(j->arena);
    free(j);
}

// ---- render ---------------------------------------------------------------------------------------------------------

static void set_all(struct jinja_env *e, const cJSON *object, bool from_input)
{
    const cJSON *item;
    cJSON_ArrayForEach(item, object)
    {
        if (item->string)
            eng_jinja_set(e, eng_jinja_dup(e, item->string, strlen(item->string)),
                          eng_jinja_from_json(e, item, from_input));
    }
}

static int copy_out(const struct jinja_builder *b, struct eng_jinja_out *out)
{
    size_t n = 0;
    for (size_t i = 0; i < b->len; i++)
        n += i == 0 || b->marks[i] != b->marks[i - 1];
    struct eng_jinja_out o = {.len = b->len, .n_spans = n};
    o.text = malloc(b->len + 1);
    o.spans = malloc((n + 1) * sizeof *o.spans);
    if (!o.text || !o.spans) {
        eng_jinja_out_free(&o);
        return ENG_ENOMEM;
    }
    if (b->len)
        memcpy(o.text, b->data, b->len);
    o.text[b->len] = '\0';
    for (size_t i = 0, at = 0; i < b->len; at++) {
        size_t end = i + 1;
        while (end < b->len && b->marks[end] == b->marks[i])
            end++;
        o.spans[at] = (struct eng_text_span){i, end, b->marks[i]};
        i = end;
    }
    *out = o;
    return 0;
}

int eng_jinja_render(const struct eng_jinja *j, const cJSON *vars, const cJSON *trusted, struct eng_jinja_out *out,
                     char *err, size_t err_size)
{
    struct eng_arena *arena = eng_arena_new();
    struct jinja_env *e = arena ? new_env(arena, err, err_size) : NULL;
    struct jinja_builder *b = arena ? eng_arena_alloc(arena, sizeof *b) : NULL;
    if (!e || !b) {
        eng_arena_free(arena);
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    }
    if (setjmp(e->jump)) {
        int code = e->code;
        eng_arena_free(arena);
        return code;
    }
    *b = (struct jinja_builder){.max = ENG_JINJA_MAX_OUTPUT};
    eng_jinja_push_scope(e, NULL);
    set_all(e, vars, true);
    set_all(e, trusted, false);
    e->out = b;
    eng_jinja_exec(e, j->root);
    int rc = copy_out(b, out);
    eng_arena_free(arena);
    return rc ? fail(rc, err, err_size, "out of memory") : 0;
}

void eng_jinja_out_free(struct eng_jinja_out *out)
{
    free(out->text);
    free(out->spans);
    *out = (struct eng_jinja_out){0};
}
