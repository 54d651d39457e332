// 2 PARSE: global functions of a template.
#include "text/jinja_inner.h"

#include "base/err.h"

#include <string.h>
#include <time.h>

enum { MAX_RANGE = 100000 }; // as jinja2's sandbox

typedef struct jinja_value (*global_fn)(struct jinja_env *e, const struct jinja_args *args);

static struct jinja_value global_range(struct jinja_env *e, const struct jinja_args *args)
{
    int64_t bounds[3] = {0, 0, 1};
    if (args->n < 1 || args->n > 3 || args->n_named)
        eng_jinja_fail(e, ENG_EINVAL, "range takes one to three integers");
    for (size_t i = 0; i < args->n; i++)
        if (!jinja_get_int(args->values[i], &bounds[args->n == 1 ? 1 : i]))
            eng_jinja_fail(e, ENG_EINVAL, "range needs integers, not %s", eng_jinja_type_name(args->values[i]));
    int64_t step = bounds[2];
    if (step == 0)
        eng_jinja_fail(e, ENG_EINVAL, "range: the step must not be zero");
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, 0);
    for (int64_t i = bounds[0]; step > 0 ? i < bounds[1] : i > bounds[1];) {
        if (out.list->n == MAX_RANGE)
            eng_jinja_fail(e, ENG_ELIMIT, "range is longer than %d", MAX_RANGE);
        eng_jinja_push(e, out.list, jinja_int(i));
        if (__builtin_add_overflow(i, step, &i))
            break;
    }
    return out;
}

// dict(a=1) and namespace(a=1), both also of a mapping.
static struct jinja_value new_dict(struct jinja_env *e, const struct jinja_args *args, enum jinja_type type)
{
    struct jinja_value out = eng_jinja_dict(e, type);
    for (size_t i = 0; i < args->n; i++) {
        if (args->values[i].type == JINJA_DICT) {
            const struct jinja_dict *d = args->values[i].dict;
            for (size_t k = 0; k < d->n; k++)
                eng_jinja_dict_set(e, out.dict, d->entries[k].key, d->entries[k].value);
            continue;
        }
        const struct jinja_list *pairs = eng_jinja_iterate(e, args->values[i]);
        for (size_t k = 0; k < pairs->n; k++) {
            const struct jinja_list *pair = eng_jinja_iterate(e, pairs->items[k]);
            if (pair->n != 2)
                eng_jinja_fail(e, ENG_EINVAL, "a dict is made of pairs");
            eng_jinja_dict_set(e, out.dict, pair->items[0], pair->items[1]);
        }
    }
    for (size_t i = 0; i < args->n_named; i++)
        eng_jinja_dict_set(e, out.dict, eng_jinja_stringz(e, args->named[i].name), args->named[i].value);
    return out;
}

static struct jinja_value global_dict(struct jinja_env *e, const struct jinja_args *args)
{
    return new_dict(e, args, JINJA_DICT);
}

static struct jinja_value global_namespace(struct jinja_env *e, const struct jinja_args *args)
{
    return new_dict(e, args, JINJA_NAMESPACE);
}

static struct jinja_value global_raise_exception(struct jinja_env *e, const struct jinja_args *args)
{
    if (args->n != 1)
        eng_jinja_fail(e, ENG_EINVAL, "raise_exception takes one message");
    const struct jinja_string *message = eng_jinja_text(e, args->values[0]).s;
    e->line = 0; // the message is for the client: no place is added
    eng_jinja_fail(e, ENG_EINVAL, "%.*s", (int)(message->len < 1000 ? message->len : 1000), message->data);
}

static struct jinja_value global_strftime_now(struct jinja_env *e, const struct jinja_args *args)
{
    if (args->n != 1)
        eng_jinja_fail(e, ENG_EINVAL, "strftime_now takes one format");
    const char *format = eng_jinja_cstr(e, eng_jinja_want_string(e, "strftime_now", args->values[0]));
    time_t now = time(NULL);
    struct tm local;
    char text[512];
    if (!localtime_r(&now, &local))
        eng_jinja_fail(e, ENG_EINVAL, "strftime_now: the time is not known");
    size_t n = strftime(text, sizeof text, format, &local); // 0: empty or too long
    return eng_jinja_string(e, eng_jinja_dup(e, text, n), n, false);
}

static const struct {
    const char *name;
    global_fn fn;
} globals[] = {
    {"dict", global_dict},   {"namespace", global_namespace},       {"raise_exception", global_raise_exception},
    {"range", global_range}, {"strftime_now", global_strftime_now},
};

static global_fn find_global(const char *name)
{
    for (size_t i = 0; i < sizeof globals / sizeof *globals; i++)
        if (!strcmp(globals[i].name, name))
            return globals[i].fn;
    return NULL;
}

bool eng_jinja_has_global(const char *name)
{
    return find_global(name);
}

struct jinja_value eng_jinja_call_global(struct jinja_env *e, const char *name, const struct jinja_args *args)
{
    return find_global(name)(e, args);
}
