// 2 PARSE: values to text: Python's str() and repr(), and JSON as json.dumps(ensure_ascii=False) writes it.
#include "text/jinja_inner.h"

#include "base/err.h"
#include "text/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void repr(struct jinja_env *e, struct jinja_builder *b, struct jinja_value v);

// Shortest decimal that reads back as f, in Python's notation.
static void format_float(double f, char out[40])
{
    char digits[32];
    int precision = 1;
    do
        snprintf(digits, sizeof digits, "%.*e", precision - 1, f);
    while (strtod(digits, NULL) != f && precision++ < 17);
    int exponent = atoi(strchr(digits, 'e') + 1);
    if (exponent >= -4 && exponent < 16) {
        int decimals = precision - 1 - exponent;
        snprintf(out, 40, "%.*f", decimals > 1 ? decimals : 1, f);
    } else {
        snprintf(out, 40, "%.*ee%c%02d", precision - 1, f, exponent < 0 ? '-' : '+', abs(exponent));
        // %e wrote its own exponent before ours.
        char *first = strchr(out, 'e'), *last = strrchr(out, 'e');
        memmove(first, last, strlen(last) + 1);
    }
}

static void add_float(struct jinja_env *e, struct jinja_builder *b, double f, bool json)
{
    char text[40];
    if (isnan(f))
        eng_jinja_addz(e, b, json ? "NaN" : "nan");
    else if (isinf(f))
        eng_jinja_addz(e, b, json ? (f < 0 ? "-Infinity" : "Infinity") : (f < 0 ? "-inf" : "inf"));
    else {
        format_float(f, text);
        eng_jinja_addz(e, b, text);
    }
}

static void add_int(struct jinja_env *e, struct jinja_builder *b, int64_t i)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRId64, i);
    eng_jinja_addz(e, b, text);
}

// ---- repr -----------------------------------------------------------------------------------------------------------

static void repr_string(struct jinja_env *e, struct jinja_builder *b, const struct jinja_string *s)
{
    char quote = memchr(s->data, '\'', s->len) && !memchr(s->data, '"', s->len) ? '"' : '\'';
    eng_jinja_add(e, b, &quote, 1, false);
    size_t start = 0;
    for (size_t i = 0; i < s->len; i++) {
        unsigned char c = (unsigned char)s->data[i];
        if (c >= 0x20 && c != 0x7F && c != '\\' && c != (unsigned char)quote)
            continue;
        eng_jinja_add_part(e, b, s, start, i);
        start = i + 1;
        char text[8];
        const char *named = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : NULL;
        if (named)
            snprintf(text, sizeof text, "%s", named);
        else if (c < 0x20 || c == 0x7F)
            snprintf(text, sizeof text, "\\x%02x", c);
        else
            snprintf(text, sizeof text, "\\%c", c);
        eng_jinja_add(e, b, text, strlen(text), eng_jinja_mark(s, i));
    }
    eng_jinja_add_part(e, b, s, start, s->len);
    eng_jinja_add(e, b, &quote, 1, false);
}

static void repr_list(struct jinja_env *e, struct jinja_builder *b, const struct jinja_list *list, bool tuple)
{
    eng_jinja_addz(e, b, tuple ? "(" : "[");
    for (size_t i = 0; i < list->n; i++) {
        if (i)
            eng_jinja_addz(e, b, ", ");
        repr(e, b, list->items[i]);
    }
    eng_jinja_addz(e, b, !tuple ? "]" : list->n == 1 ? ",)" : ")");
}

static void repr_dict(struct jinja_env *e, struct jinja_builder *b, const struct jinja_dict *dict)
{
    eng_jinja_addz(e, b, "{");
    for (size_t i = 0; i < dict->n; i++) {
        if (i)
            eng_jinja_addz(e, b, ", ");
        repr(e, b, dict->entries[i].key);
        eng_jinja_addz(e, b, ": ");
        repr(e, b, dict->entries[i].value);
    }
    eng_jinja_addz(e, b, "}");
}

static void repr(struct jinja_env *e, struct jinja_builder *b, struct jinja_value v)
{
    eng_jinja_enter(e);
    switch (v.type) {
    case JINJA_UNDEFINED:
        eng_jinja_addz(e, b, "Undefined");
        break;
    case JINJA_NONE:
        eng_jinja_addz(e, b, "None");
        break;
    case JINJA_BOOL:
        eng_jinja_addz(e, b, v.b ? "True" : "False");
        break;
    case JINJA_INT:
        add_int(e, b, v.i);
        break;
    case JINJA_FLOAT:
        add_float(e, b, v.f, false);
        break;
    case JINJA_STRING:
        repr_string(e, b, v.s);
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
        repr_list(e, b, v.list, v.type == JINJA_TUPLE);
        break;
    case JINJA_DICT:
        repr_dict(e, b, v.dict);
        break;
    case JINJA_NAMESPACE:
        eng_jinja_addz(e, b, "<Namespace ");
        repr_dict(e, b, v.dict);
        eng_jinja_addz(e, b, ">");
        break;
    case JINJA_FUNCTION:
        eng_jinja_addz(e, b, v.function->kind == FUNCTION_MACRO ? "<Macro '" : "<function '");
        eng_jinja_addz(e, b, v.function->name);
        eng_jinja_addz(e, b, "'>");
        break;
    case JINJA_LOOP:
        eng_jinja_addz(e, b, "<LoopContext>");
        break;
    }
    eng_jinja_leave(e);
}

struct jinja_value eng_jinja_text(struct jinja_env *e, struct jinja_value v)
{
    if (v.type == JINJA_STRING)
        return v;
    struct jinja_builder b = {0};
    if (v.type != JINJA_UNDEFINED)
        repr(e, &b, v);
    return eng_jinja_built(e, &b);
}

// ---- JSON -----------------------------------------------------------------------------------------------------------

struct json {
    struct jinja_env *e;
    struct jinja_builder b;
    const struct jinja_json_options *o;
    int level;
};

static void json_value(struct json *j, struct jinja_value v);

// Punctuation counts as input: it stands between parts of a value that the template did not write.
static void json_add(struct json *j, const char *text)
{
    eng_jinja_add(j->e, &j->b, text, strlen(text), true);
}

static void json_unicode(struct json *j, uint32_t cp, bool from_input)
{
    char text[16];
    if (cp >= 0x10000)
        snprintf(text, sizeof text, "\\u%04x\\u%04x", (unsigned)(0xD7C0 + (cp >> 10)),
                 (unsigned)(0xDC00 + (cp & 0x3FF)));
    else
        snprintf(text, sizeof text, "\\u%04x", (unsigned)cp);
    eng_jinja_add(j->e, &j->b, text, strlen(text), from_input);
}

static void json_string(struct json *j, const struct jinja_string *s)
{
    json_add(j, "\"");
    size_t start = 0;
    for (size_t i = 0, n = 1; i < s->len; i += n) {
        static const char from[] = "\"\\\n\r\t\f\b", to[] = "\"\\nrtfb";
        unsigned char c = (unsigned char)s->data[i];
        const char *escape = strchr(from, c);
        n = 1;
        if (c >= 0x20 && !escape && (c < 0x7F || !j->o->ascii))
            continue;
        eng_jinja_add_part(j->e, &j->b, s, start, i);
        bool mark = eng_jinja_mark(s, i);
        if (escape && c) {
            char text[2] = {'\\', to[escape - from]};
            eng_jinja_add(j->e, &j->b, text, 2, mark);
        } else {
            uint32_t cp;
            enum eng_utf8_status status;
            n = eng_utf8_next(s->data + i, s->len - i, &cp, &status);
            json_unicode(j, cp, mark);
        }
        start = i + n;
    }
    eng_jinja_add_part(j->e, &j->b, s, start, s->len);
    json_add(j, "\"");
}

static void json_newline(struct json *j)
{
    if (j->o->indent < 0)
        return;
    json_add(j, "\n");
    for (int64_t i = 0; i < j->o->indent * j->level; i++)
        json_add(j, " ");
}

static void json_separator(struct json *j, bool first)
{
    if (!first) {
        if (j->o->item_separator)
            eng_jinja_add_string(j->e, &j->b, j->o->item_separator);
        else
            json_add(j, j->o->indent < 0 ? ", " : ",");
    }
    json_newline(j);
}

static void json_list(struct json *j, const struct jinja_list *list)
{
    json_add(j, "[");
    j->level++;
    for (size_t i = 0; i < list->n; i++) {
        json_separator(j, i == 0);
        json_value(j, list->items[i]);
    }
    j->level--;
    if (list->n)
        json_newline(j);
    json_add(j, "]");
}

static double key_number(struct jinja_value key)
{
    int64_t i;
    return jinja_get_int(key, &i) ? (double)i : key.type == JINJA_FLOAT ? key.f : 0;
}

// Of keys that eng_jinja_compare takes: all strings or all numbers.
static int by_key(const void *a, const void *b)
{
    const struct jinja_entry *x = a, *y = b;
    if (x->key.type != JINJA_STRING)
        return (key_number(x->key) > key_number(y->key)) - (key_number(x->key) < key_number(y->key));
    size_t n = x->key.s->len < y->key.s->len ? x->key.s->len : y->key.s->len;
    int order = n ? memcmp(x->key.s->data, y->key.s->data, n) : 0;
    return order ? order : (x->key.s->len > y->key.s->len) - (x->key.s->len < y->key.s->len);
}

static void json_dict(struct json *j, const struct jinja_dict *dict)
{
    struct jinja_entry *entries = eng_jinja_alloc(j->e, (dict->n + 1) * sizeof *entries);
    for (size_t i = 0; i < dict->n; i++) {
        entries[i] = dict->entries[i];
        if (entries[i].key.type == JINJA_TUPLE)
            eng_jinja_fail(j->e, ENG_EINVAL, "tojson: a tuple cannot be a key");
        if (j->o->sort_keys && i)
            eng_jinja_compare(j->e, entries[0].key, entries[i].key); // fails if they have no order
    }
    if (j->o->sort_keys && dict->n)
        qsort(entries, dict->n, sizeof *entries, by_key);
    for (size_t i = 0; i < dict->n; i++) {
        if (entries[i].key.type == JINJA_STRING)
            continue;
        struct json text = {.e = j->e, .o = j->o}; // a number, bool or null becomes its own text
        json_value(&text, entries[i].key);
        entries[i].key = eng_jinja_built(j->e, &text.b);
    }
    json_add(j, "{");
    j->level++;
    for (size_t i = 0; i < dict->n; i++) {
        json_separator(j, i == 0);
        json_string(j, entries[i].key.s);
        if (j->o->key_separator)
            eng_jinja_add_string(j->e, &j->b, j->o->key_separator);
        else
            json_add(j, ": ");
        json_value(j, entries[i].value);
    }
    j->level--;
    if (dict->n)
        json_newline(j);
    json_add(j, "}");
}

static void json_value(struct json *j, struct jinja_value v)
{
    eng_jinja_enter(j->e);
    switch (v.type) {
    case JINJA_NONE:
        json_add(j, "null");
        break;
    case JINJA_BOOL:
        json_add(j, v.b ? "true" : "false");
        break;
    case JINJA_INT:
        add_int(j->e, &j->b, v.i);
        break;
    case JINJA_FLOAT:
        add_float(j->e, &j->b, v.f, true);
        break;
    case JINJA_STRING:
        json_string(j, v.s);
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
        json_list(j, v.list);
        break;
    case JINJA_DICT:
        json_dict(j, v.dict);
        break;
    default:
        eng_jinja_fail(j->e, ENG_EINVAL, "tojson: object of type %s is not JSON serializable", eng_jinja_type_name(v));
    }
    eng_jinja_leave(j->e);
}

struct jinja_value eng_jinja_json(struct jinja_env *e, struct jinja_value v, const struct jinja_json_options *o)
{
    struct json j = {.e = e, .o = o};
    json_value(&j, v);
    return eng_jinja_built(e, &j.b);
}
