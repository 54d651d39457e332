// 2 PARSE: values of the template interpreter, with Python's rules for truth, equality, order and membership.
#include "text/jinja_inner.h"

#include "base/err.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>

const char *eng_jinja_type_name(struct jinja_value v)
{
    static const char *const names[] = {
        [JINJA_UNDEFINED] = "Undefined", [JINJA_NONE] = "NoneType",
        [JINJA_BOOL] = "bool",           [JINJA_INT] = "int",
        [JINJA_FLOAT] = "float",         [JINJA_STRING] = "str",
        [JINJA_LIST] = "list",           [JINJA_TUPLE] = "tuple",
        [JINJA_DICT] = "dict",           [JINJA_NAMESPACE] = "Namespace",
        [JINJA_FUNCTION] = "function",   [JINJA_LOOP] = "LoopContext",
    };
    return names[v.type];
}

// ---- lists and dicts ------------------------------------------------------------------------------------------------

struct jinja_value eng_jinja_list(struct jinja_env *e, enum jinja_type type, size_t cap)
{
    struct jinja_value v = {.type = type};
    v.list = eng_jinja_alloc(e, sizeof *v.list);
    *v.list = (struct jinja_list){0};
    if (cap) {
        if (cap > SIZE_MAX / sizeof *v.list->items / 2)
            eng_jinja_fail(e, ENG_ELIMIT, "a list is too long");
        v.list->items = eng_jinja_alloc(e, cap * sizeof *v.list->items);
        v.list->cap = cap;
    }
    return v;
}

void eng_jinja_push(struct jinja_env *e, struct jinja_list *list, struct jinja_value v)
{
    if (list->n == list->cap) {
        size_t cap = list->cap ? 2 * list->cap : 8;
        struct jinja_value *items = eng_jinja_alloc(e, cap * sizeof *items);
        if (list->n)
            memcpy(items, list->items, list->n * sizeof *items);
        list->items = items;
        list->cap = cap;
    }
    list->items[list->n++] = v;
}

struct jinja_value eng_jinja_dict(struct jinja_env *e, enum jinja_type type)
{
    struct jinja_value v = {.type = type};
    v.dict = eng_jinja_alloc(e, sizeof *v.dict);
    *v.dict = (struct jinja_dict){0};
    return v;
}

static struct jinja_entry *find_entry(struct jinja_env *e, const struct jinja_dict *d, struct jinja_value key)
{
    if (key.type > JINJA_STRING && key.type != JINJA_TUPLE)
        eng_jinja_fail(e, ENG_EINVAL, "a %s cannot be a key", eng_jinja_type_name(key));
    eng_jinja_steps(e, d->n / 8);
    for (size_t i = 0; i < d->n; i++) {
        struct jinja_value k = d->entries[i].key;
        if (key.type == JINJA_STRING) {
            if (k.type == JINJA_STRING && k.s->len == key.s->len && !memcmp(k.s->data, key.s->data, k.s->len))
                return &d->entries[i];
        } else if (eng_jinja_equal(e, k, key)) {
            return &d->entries[i];
        }
    }
    return NULL;
}

static void append_entry(struct jinja_env *e, struct jinja_dict *d, struct jinja_value key, struct jinja_value v)
{
    if (d->n == d->cap) {
        size_t cap = d->cap ? 2 * d->cap : 8;
        struct jinja_entry *entries = eng_jinja_alloc(e, cap * sizeof *entries);
        if (d->n)
            memcpy(entries, d->entries, d->n * sizeof *entries);
        d->entries = entries;
        d->cap = cap;
    }
    d->entries[d->n++] = (struct jinja_entry){key, v};
}

void eng_jinja_dict_set(struct jinja_env *e, struct jinja_dict *d, struct jinja_value key, struct jinja_value v)
{
    struct jinja_entry *entry = find_entry(e, d, key);
    if (entry)
        entry->value = v;
    else
        append_entry(e, d, key, v);
}

bool eng_jinja_dict_get(struct jinja_env *e, const struct jinja_dict *d, struct jinja_value key,
                        struct jinja_value *ret)
{
    struct jinja_entry *entry = find_entry(e, d, key);
    if (entry)
        *ret = entry->value;
    return entry;
}

// ---- Python's rules -------------------------------------------------------------------------------------------------

bool eng_jinja_truth(struct jinja_value v)
{
    switch (v.type) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        return false;
    case JINJA_BOOL:
        return v.b;
    case JINJA_INT:
        return v.i != 0;
    case JINJA_FLOAT:
        return v.f != 0;
    case JINJA_STRING:
        return v.s->len != 0;
    case JINJA_LIST:
    case JINJA_TUPLE:
        return v.list->n != 0;
    case JINJA_DICT:
        return v.dict->n != 0;
    default:
        return true;
    }
}

static bool get_number(struct jinja_value v, double *ret)
{
    int64_t i;
    if (v.type == JINJA_FLOAT)
        *ret = v.f;
    else if (jinja_get_int(v, &i))
        *ret = (double)i;
    else
        return false;
    return true;
}

static bool equal_dicts(struct jinja_env *e, const struct jinja_dict *a, const struct jinja_dict *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++) {
        struct jinja_value other;
        if (!eng_jinja_dict_get(e, b, a->entries[i].key, &other) || !eng_jinja_equal(e, a->entries[i].value, other))
            return false;
    }
    return true;
}

static bool equal_lists(struct jinja_env *e, const struct jinja_list *a, const struct jinja_list *b)
{
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!eng_jinja_equal(e, a->items[i], b->items[i]))
            return false;
    return true;
}

bool eng_jinja_equal(struct jinja_env *e, struct jinja_value a, struct jinja_value b)
{
    double x, y;
    int64_t i, j;
    if (jinja_get_int(a, &i) && jinja_get_int(b, &j))
        return i == j;
    if (get_number(a, &x) && get_number(b, &y))
        return x == y;
    if (a.type != b.type)
        return false;
    bool result = false;
    eng_jinja_enter(e);
    switch (a.type) {
    case JINJA_UNDEFINED:
    case JINJA_NONE:
        result = true;
        break;
    case JINJA_STRING:
        result = a.s->len == b.s->len && !memcmp(a.s->data, b.s->data, a.s->len);
        break;
    case JINJA_LIST:
    case JINJA_TUPLE:
        result = equal_lists(e, a.list, b.list);
        break;
    case JINJA_DICT:
        result = equal_dicts(e, a.dict, b.dict);
        break;
    case JINJA_NAMESPACE:
        result = a.dict == b.dict;
        break;
    case JINJA_FUNCTION:
        // Each look-up of a global makes a new value of the same function.
        result =
            a.function == b.function || (a.function->kind == FUNCTION_GLOBAL && b.function->kind == FUNCTION_GLOBAL &&
                                         !strcmp(a.function->name, b.function->name));
        break;
    default:
        result = a.loop == b.loop;
        break;
    }
    eng_jinja_leave(e);
    return result;
}

int eng_jinja_compare(struct jinja_env *e, struct jinja_value a, struct jinja_value b)
{
    int64_t i, j;
    double x, y;
    if (jinja_get_int(a, &i) && jinja_get_int(b, &j))
        return (i > j) - (i < j);
    if (get_number(a, &x) && get_number(b, &y))
        return (x > y) - (x < y);
    if (a.type == JINJA_STRING && b.type == JINJA_STRING) { // UTF-8 sorts as its code points do
        size_t n = a.s->len < b.s->len ? a.s->len : b.s->len;
        int order = n ? memcmp(a.s->data, b.s->data, n) : 0;
        return order ? order : (a.s->len > b.s->len) - (a.s->len < b.s->len);
    }
    if (jinja_is_list(a) && a.type == b.type) {
        size_t n = a.list->n < b.list->n ? a.list->n : b.list->n;
        int order = 0;
        eng_jinja_enter(e);
        for (size_t k = 0; k < n && !order; k++)
            if (!eng_jinja_equal(e, a.list->items[k], b.list->items[k]))
                order = eng_jinja_compare(e, a.list->items[k], b.list->items[k]);
        eng_jinja_leave(e);
        return order ? order : (a.list->n > b.list->n) - (a.list->n < b.list->n);
    }
    const struct jinja_value *undefined = a.type == JINJA_UNDEFINED ? &a : b.type == JINJA_UNDEFINED ? &b : NULL;
    if (undefined)
        eng_jinja_fail(e, ENG_EINVAL, "'%.80s' is undefined", undefined->name);
    eng_jinja_fail(e, ENG_EINVAL, "cannot compare %s with %s", eng_jinja_type_name(a), eng_jinja_type_name(b));
}

bool eng_jinja_contains(struct jinja_env *e, struct jinja_value container, struct jinja_value v)
{
    if (container.type == JINJA_STRING) {
        if (v.type != JINJA_STRING)
            eng_jinja_fail(e, ENG_EINVAL, "'in <string>' requires a string, not %s", eng_jinja_type_name(v));
        eng_jinja_steps(e, container.s->len / 64);
        return eng_jinja_find(container.s, v.s, 0) != SIZE_MAX;
    }
    if (jinja_is_dict(container)) {
        struct jinja_value found;
        return eng_jinja_dict_get(e, container.dict, v, &found);
    }
    const struct jinja_list *list = eng_jinja_iterate(e, container);
    for (size_t i = 0; i < list->n; i++)
        if (eng_jinja_equal(e, list->items[i], v))
            return true;
    return false;
}

const struct jinja_list *eng_jinja_iterate(struct jinja_env *e, struct jinja_value v)
{
    if (jinja_is_list(v)) {
        eng_jinja_steps(e, v.list->n);
        return v.list;
    }
    struct jinja_value items = eng_jinja_list(e, JINJA_LIST, 0);
    if (v.type == JINJA_DICT) {
        eng_jinja_steps(e, v.dict->n);
        for (size_t i = 0; i < v.dict->n; i++)
            eng_jinja_push(e, items.list, v.dict->entries[i].key);
    } else if (v.type == JINJA_STRING) {
        eng_jinja_steps(e, v.s->len);
        for (size_t i = 0, end; i < v.s->len; i = end) {
            for (end = i + 1; end < v.s->len && ((unsigned char)v.s->data[end] & 0xC0) == 0x80; end++)
                ;
            eng_jinja_push(e, items.list, eng_jinja_substring(e, v.s, i, end));
        }
    } else if (v.type != JINJA_UNDEFINED) {
        eng_jinja_fail(e, ENG_EINVAL, "'%s' object is not iterable", eng_jinja_type_name(v));
    }
    return items.list;
}

int64_t eng_jinja_length(struct jinja_env *e, struct jinja_value v)
{
    switch (v.type) {
    case JINJA_UNDEFINED:
        return 0;
    case JINJA_STRING: {
        int64_t n = 0;
        for (size_t i = 0; i < v.s->len; i++)
            n += ((unsigned char)v.s->data[i] & 0xC0) != 0x80;
        eng_jinja_steps(e, v.s->len / 64);
        return n;
    }
    case JINJA_LIST:
    case JINJA_TUPLE:
        return (int64_t)v.list->n;
    case JINJA_DICT:
        return (int64_t)v.dict->n;
    case JINJA_LOOP:
        return (int64_t)v.loop->items->n;
    default:
        eng_jinja_fail(e, ENG_EINVAL, "object of type '%s' has no length", eng_jinja_type_name(v));
    }
}

struct jinja_value eng_jinja_from_json(struct jinja_env *e, const cJSON *json, bool from_input)
{
    struct jinja_value v = jinja_none();
    const cJSON *item;
    eng_jinja_enter(e);
    if (cJSON_IsBool(json)) {
        v = jinja_bool(cJSON_IsTrue(json));
    } else if (cJSON_IsNumber(json)) {
        double d = json->valuedouble;
        v = d == floor(d) && fabs(d) <= 9007199254740992.0 ? jinja_int((int64_t)d) : jinja_float(d);
    } else if (cJSON_IsString(json)) {
        size_t len = strlen(json->valuestring);
        v = eng_jinja_string(e, eng_jinja_dup(e, json->valuestring, len), len, from_input);
    } else if (cJSON_IsArray(json)) {
        v = eng_jinja_list(e, JINJA_LIST, 0);
        cJSON_ArrayForEach(item, json) eng_jinja_push(e, v.list, eng_jinja_from_json(e, item, from_input));
    } else if (cJSON_IsObject(json)) {
        v = eng_jinja_dict(e, JINJA_DICT);
        cJSON_ArrayForEach(item, json)
        {
            // Of a key that stands twice, look-ups find the first, as cJSON does.
            size_t len = item->string ? strlen(item->string) : 0;
            struct jinja_value key = eng_jinja_string(e, eng_jinja_dup(e, item->string, len), len, from_input);
            append_entry(e, v.dict, key, eng_jinja_from_json(e, item, from_input));
        }
    }
    eng_jinja_leave(e);
    return v;
}
