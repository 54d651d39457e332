// 2 PARSE: filters on single values of a template, and the binding of arguments. Filters on lists are in
// jinja_filters_list.c.
#include "text/jinja_inner.h"

#include "base/err.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- arguments ------------------------------------------------------------------------------------------------------

void eng_jinja_bind(struct jinja_env *e, const char *function, const struct jinja_args *args, const char *const *names,
                    size_t n, struct jinja_value *out)
{
    if (args->n > n)
        eng_jinja_fail(e, ENG_EINVAL, "%.40s takes at most %zu arguments", function, n);
    for (size_t i = 0; i < n; i++)
        out[i] = i < args->n ? args->values[i] : jinja_undefined(names[i]);
    for (size_t k = 0; k < args->n_named; k++) {
        size_t i = args->n;
        while (i < n && strcmp(names[i], args->named[k].name))
            i++;
        if (i == n)
            eng_jinja_fail(e, ENG_EINVAL, "%.40s does not take the argument '%.40s'", function, args->named[k].name);
        out[i] = args->named[k].value;
    }
}

const struct jinja_string *eng_jinja_want_string(struct jinja_env *e, const char *function, struct jinja_value v)
{
    if (v.type == JINJA_UNDEFINED)
        eng_jinja_fail(e, ENG_EINVAL, "%.40s: '%.80s' is undefined", function, v.name);
    if (v.type != JINJA_STRING)
        eng_jinja_fail(e, ENG_EINVAL, "%.40s needs a string, not %s", function, eng_jinja_type_name(v));
    return v.s;
}

int64_t eng_jinja_want_int(struct jinja_env *e, const char *function, struct jinja_value v, int64_t otherwise)
{
    int64_t i;
    if (v.type == JINJA_UNDEFINED || v.type == JINJA_NONE)
        return otherwise;
    if (!jinja_get_int(v, &i))
        eng_jinja_fail(e, ENG_EINVAL, "%.40s needs an integer, not %s", function, eng_jinja_type_name(v));
    return i;
}

#define FILTER(name) \
    static struct jinja_value name(struct jinja_env *e, struct jinja_value v, const struct jinja_args *args)
#define BIND(function, n, ...)       \
    struct jinja_value arg[(n) + 1]; \
    eng_jinja_bind(e, function, args, (const char *const[]){__VA_ARGS__, NULL}, (n), arg)
#define NO_ARGUMENTS(function) eng_jinja_bind(e, function, args, NULL, 0, NULL)

// ---- strings --------------------------------------------------------------------------------------------------------

FILTER(filter_trim)
{
    BIND("trim", 1, "chars");
    const struct jinja_string *chars = arg[0].type == JINJA_STRING ? arg[0].s : NULL;
    return eng_jinja_strip(e, eng_jinja_text(e, v).s, chars, true, true);
}

FILTER(filter_upper)
{
    NO_ARGUMENTS("upper");
    return eng_jinja_case(e, eng_jinja_text(e, v).s, CASE_UPPER);
}

FILTER(filter_lower)
{
    NO_ARGUMENTS("lower");
    return eng_jinja_case(e, eng_jinja_text(e, v).s, CASE_LOWER);
}

FILTER(filter_title)
{
    NO_ARGUMENTS("title");
    return eng_jinja_case(e, eng_jinja_text(e, v).s, CASE_TITLE_FILTER);
}

FILTER(filter_capitalize)
{
    NO_ARGUMENTS("capitalize");
    return eng_jinja_case(e, eng_jinja_text(e, v).s, CASE_CAPITALIZE);
}

FILTER(filter_string)
{
    NO_ARGUMENTS("string");
    return eng_jinja_text(e, v);
}

FILTER(filter_safe)
{
    NO_ARGUMENTS("safe");
    return eng_jinja_text(e, v);
}

FILTER(filter_escape)
{
    NO_ARGUMENTS("escape");
    const struct jinja_string *s = eng_jinja_text(e, v).s;
    struct jinja_builder b = {0};
    for (size_t i = 0; i < s->len; i++) {
        char c = s->data[i];
        const char *to = c == '&' ? "&amp;" : c == '<' ? "&lt;" : c == '>' ? "&gt;" : c == '"' ? "&#34;" : NULL;
        to = c == '\'' ? "&#39;" : to;
        if (to)
            eng_jinja_add(e, &b, to, strlen(to), eng_jinja_mark(s, i));
        else
            eng_jinja_add_part(e, &b, s, i, i + 1);
    }
    return eng_jinja_built(e, &b);
}

FILTER(filter_replace)
{
    BIND("replace", 3, "old", "new", "count");
    const struct jinja_string *from = eng_jinja_text(e, arg[0]).s, *to = eng_jinja_text(e, arg[1]).s;
    return eng_jinja_replace(e, eng_jinja_text(e, v).s, from, to, eng_jinja_want_int(e, "replace", arg[2], -1));
}

FILTER(filter_indent)
{
    BIND("indent", 3, "width", "first", "blank");
    const struct jinja_string *s = eng_jinja_text(e, v).s;
    struct jinja_builder b = {0}, pad = {0};
    if (arg[0].type == JINJA_STRING)
        eng_jinja_add_string(e, &pad, arg[0].s);
    else
        for (int64_t i = 0, n = eng_jinja_want_int(e, "indent", arg[0], 4); i < n; i++)
            eng_jinja_addz(e, &pad, " ");
    const struct jinja_string *width = eng_jinja_built(e, &pad).s;
    for (size_t at = 0, line = 0; at <= s->len; line++) {
        const char *newline = at < s->len ? memchr(s->data + at, '\n', s->len - at) : NULL;
        size_t end = newline ? (size_t)(newline - s->data) : s->len;
        if (line ? end > at || eng_jinja_truth(arg[2]) : eng_jinja_truth(arg[1]))
            eng_jinja_add_string(e, &b, width);
        eng_jinja_add_part(e, &b, s, at, newline ? end + 1 : end);
        at = end + 1;
    }
    return eng_jinja_built(e, &b);
}

FILTER(filter_tojson)
{
    BIND("tojson", 4, "ensure_ascii", "indent", "separators", "sort_keys");
    struct jinja_json_options o = {.indent = eng_jinja_want_int(e, "tojson", arg[1], -1)};
    o.ascii = eng_jinja_truth(arg[0]);
    if (args->n && args->values[0].type == JINJA_INT) { // plain jinja2's first parameter is indent
        o.indent = args->values[0].i;
        o.ascii = false;
    }
    if (o.indent > 64)
        eng_jinja_fail(e, ENG_ELIMIT, "tojson: an indent above 64");
    o.sort_keys = eng_jinja_truth(arg[3]);
    if (jinja_is_list(arg[2]) && arg[2].list->n == 2) {
        o.item_separator = eng_jinja_want_string(e, "tojson", arg[2].list->items[0]);
        o.key_separator = eng_jinja_want_string(e, "tojson", arg[2].list->items[1]);
    }
    return eng_jinja_json(e, v, &o);
}

// ---- numbers --------------------------------------------------------------------------------------------------------

// A number out of text that holds nothing else but white space around it.
static bool parse_number(struct jinja_env *e, const struct jinja_string *s, int base, struct jinja_value *ret)
{
    const char *text = eng_jinja_cstr(e, eng_jinja_strip(e, s, NULL, true, true).s);
    char *end;
    if (!*text || strlen(text) > 64)
        return false;
    if (base == 0) {
        if (strpbrk(text, "xXpP"))
            return false;
        *ret = jinja_float(strtod(text, &end));
        return !*end;
    }
    if (base < 2 || base > 36)
        return false;
    long long i = strtoll(text, &end, base);
    *ret = jinja_int(i);
    return !*end && i != INT64_MAX && i != INT64_MIN;
}

FILTER(filter_int)
{
    BIND("int", 2, "default", "base");
    struct jinja_value number = v, otherwise = arg[0].type == JINJA_UNDEFINED ? jinja_int(0) : arg[0];
    int64_t i;
    if (v.type == JINJA_STRING) {
        int base = (int)eng_jinja_want_int(e, "int", arg[1], 10);
        if (parse_number(e, v.s, base < 2 || base > 36 ? 10 : base, &number))
            return number;
        if (!parse_number(e, v.s, 0, &number))
            return otherwise;
    }
    if (jinja_get_int(number, &i))
        return jinja_int(i);
    if (number.type != JINJA_FLOAT || !(fabs(number.f) < 9.2e18))
        return otherwise;
    return jinja_int((int64_t)number.f);
}

FILTER(filter_float)
{
    BIND("float", 1, "default");
    struct jinja_value number = v;
    int64_t i;
    if (v.type == JINJA_STRING && parse_number(e, v.s, 0, &number))
        return number;
    if (jinja_get_int(v, &i))
        return jinja_float((double)i);
    if (v.type == JINJA_FLOAT)
        return v;
    return arg[0].type == JINJA_UNDEFINED ? jinja_float(0) : arg[0];
}

FILTER(filter_abs)
{
    NO_ARGUMENTS("abs");
    int64_t i;
    if (v.type == JINJA_FLOAT)
        return jinja_float(fabs(v.f));
    if (!jinja_get_int(v, &i))
        eng_jinja_fail(e, ENG_EINVAL, "abs needs a number, not %s", eng_jinja_type_name(v));
    return i < 0 ? eng_jinja_operate(e, OP_SUB, jinja_int(0), jinja_int(i)) : jinja_int(i);
}

// To tens, hundreds and so on, halves to the even one; an integer stays one.
static struct jinja_value round_int(struct jinja_env *e, int64_t i, int64_t precision)
{
    int64_t unit = 1;
    for (; precision < 0 && unit <= INT64_MAX / 10; precision++)
        unit *= 10;
    if (precision < 0)
        return jinja_int(0);
    int64_t below = i / unit - (i % unit < 0), rest = i % unit + (i % unit < 0 ? unit : 0); // i = below * unit + rest
    below += rest > unit - rest || (rest == unit - rest && below % 2 != 0);
    return eng_jinja_operate(e, OP_MUL, jinja_int(below), jinja_int(unit));
}

FILTER(filter_round)
{
    BIND("round", 2, "precision", "method");
    int64_t i = 0, precision = eng_jinja_want_int(e, "round", arg[0], 0);
    double x = v.type == JINJA_FLOAT ? v.f : 0;
    if (v.type != JINJA_FLOAT) {
        if (!jinja_get_int(v, &i))
            eng_jinja_fail(e, ENG_EINVAL, "round needs a number, not %s", eng_jinja_type_name(v));
        x = (double)i;
    }
    bool common = arg[1].type != JINJA_STRING || eng_jinja_is(arg[1].s, "common");
    if (v.type != JINJA_FLOAT && common && precision >= 0)
        return v;
    if (v.type != JINJA_FLOAT && common)
        return round_int(e, i, precision);
    if (precision > 15 || !isfinite(x))
        return jinja_float(x);
    if (precision < -300)
        return jinja_float(0);
    if (common && precision >= 0) { // printf rounds the exact value, as Python does
        char text[400];
        snprintf(text, sizeof text, "%.*f", (int)precision, x);
        return jinja_float(strtod(text, NULL));
    }
    double scale = pow(10, (double)precision);
    if (common)
        return jinja_float(nearbyint(x * scale) / scale);
    if (eng_jinja_is(arg[1].s, "ceil"))
        return jinja_float(ceil(x * scale) / scale);
    if (eng_jinja_is(arg[1].s, "floor"))
        return jinja_float(floor(x * scale) / scale);
    eng_jinja_fail(e, ENG_EINVAL, "round: the method must be common, ceil or floor");
}

// ---- any value ------------------------------------------------------------------------------------------------------

FILTER(filter_default)
{
    BIND("default", 2, "default_value", "boolean");
    if (v.type == JINJA_UNDEFINED || (eng_jinja_truth(arg[1]) && !eng_jinja_truth(v)))
        return arg[0].type == JINJA_UNDEFINED && !args->n ? eng_jinja_stringz(e, "") : arg[0];
    return v;
}

FILTER(filter_length)
{
    NO_ARGUMENTS("length");
    return jinja_int(eng_jinja_length(e, v));
}

FILTER(filter_attr)
{
    BIND("attr", 1, "name");
    return eng_jinja_attribute(e, v, eng_jinja_cstr(e, eng_jinja_want_string(e, "attr", arg[0])));
}

jinja_filter_fn eng_jinja_find_filter(const char *name)
{
    static const struct {
        const char *name;
        jinja_filter_fn fn;
    } filters[] = {
        {"abs", filter_abs},       {"attr", filter_attr},       {"capitalize", filter_capitalize},
        {"count", filter_length},  {"d", filter_default},       {"default", filter_default},
        {"e", filter_escape},      {"escape", filter_escape},   {"float", filter_float},
        {"indent", filter_indent}, {"int", filter_int},         {"length", filter_length},
        {"lower", filter_lower},   {"replace", filter_replace}, {"round", filter_round},
        {"safe", filter_safe},     {"string", filter_string},   {"title", filter_title},
        {"tojson", filter_tojson}, {"trim", filter_trim},       {"upper", filter_upper},
    };
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (!strcmp(filters[i].name, name))
            return filters[i].fn;
    return eng_jinja_find_list_filter(name);
}
