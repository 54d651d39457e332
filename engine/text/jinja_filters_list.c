// 2 PARSE: filters of a template on lists and dicts. What jinja2 makes a generator is a list here.
#include "text/jinja_inner.h"

#include "base/err.h"

#include <string.h>

#define FILTER(name) \
    static struct jinja_value name(struct jinja_env *e, struct jinja_value v, const struct jinja_args *args)
#define BIND(function, n, ...)       \
    struct jinja_value arg[(n) + 1]; \
    eng_jinja_bind(e, function, args, (const char *const[]){__VA_ARGS__, NULL}, (n), arg)
#define NO_ARGUMENTS(function) eng_jinja_bind(e, function, args, NULL, 0, NULL)

// "a.b.0" of an item; path an integer: that item. undefined: the item itself.
static struct jinja_value follow(struct jinja_env *e, struct jinja_value v, struct jinja_value path)
{
    if (path.type == JINJA_INT)
        return eng_jinja_item(e, v, path);
    if (path.type != JINJA_STRING)
        return v;
    const struct jinja_string *s = path.s;
    for (size_t at = 0; at <= s->len;) {
        const char *dot = at < s->len ? memchr(s->data + at, '.', s->len - at) : NULL;
        size_t end = dot ? (size_t)(dot - s->data) : s->len, digits = 0;
        while (at + digits < end && s->data[at + digits] >= '0' && s->data[at + digits] <= '9')
            digits++;
        struct jinja_value key = eng_jinja_substring(e, s, at, end);
        if (digits && at + digits == end && digits < 10) {
            int64_t i = 0;
            for (size_t k = at; k < end; k++)
                i = 10 * i + (s->data[k] - '0');
            key = jinja_int(i);
        }
        v = eng_jinja_item(e, v, key);
        at = end + 1;
    }
    return v;
}

// ---- elements -------------------------------------------------------------------------------------------------------

FILTER(filter_first)
{
    NO_ARGUMENTS("first");
    const struct jinja_list *list = eng_jinja_iterate(e, v);
    return list->n ? list->items[0] : jinja_undefined("the first item of an empty sequence");
}

FILTER(filter_last)
{
    NO_ARGUMENTS("last");
    const struct jinja_list *list = eng_jinja_iterate(e, v);
    return list->n ? list->items[list->n - 1] : jinja_undefined("the last item of an empty sequence");
}

FILTER(filter_list)
{
    NO_ARGUMENTS("list");
    const struct jinja_list *list = eng_jinja_iterate(e, v);
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, list->n);
    for (size_t i = 0; i < list->n; i++)
        eng_jinja_push(e, out.list, list->items[i]);
    return out;
}

FILTER(filter_reverse)
{
    NO_ARGUMENTS("reverse");
    if (v.type == JINJA_STRING)
        return eng_jinja_slice(e, v, NULL, NULL, -1);
    const struct jinja_list *list = eng_jinja_iterate(e, v);
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, list->n);
    for (size_t i = list->n; i-- > 0;)
        eng_jinja_push(e, out.list, list->items[i]);
    return out;
}

FILTER(filter_join)
{
    BIND("join", 2, "d", "attribute");
    const struct jinja_list *list = eng_jinja_iterate(e, v);
    struct jinja_value with = arg[0].type == JINJA_UNDEFINED ? eng_jinja_stringz(e, "") : eng_jinja_text(e, arg[0]);
    if (arg[1].type == JINJA_UNDEFINED)
        return eng_jinja_join(e, list, with.s);
    struct jinja_value parts = eng_jinja_list(e, JINJA_LIST, list->n);
    for (size_t i = 0; i < list->n; i++)
        eng_jinja_push(e, parts.list, follow(e, list->items[i], arg[1]));
    return eng_jinja_join(e, parts.list, with.s);
}

static struct jinja_value pair(struct jinja_env *e, const struct jinja_entry *entry)
{
    struct jinja_value out = eng_jinja_list(e, JINJA_TUPLE, 2);
    eng_jinja_push(e, out.list, entry->key);
    eng_jinja_push(e, out.list, entry->value);
    return out;
}

FILTER(filter_items)
{
    NO_ARGUMENTS("items");
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, 0);
    if (v.type == JINJA_UNDEFINED)
        return out;
    if (v.type != JINJA_DICT)
        eng_jinja_fail(e, ENG_EINVAL, "items needs a mapping, not %s", eng_jinja_type_name(v));
    eng_jinja_steps(e, v.dict->n);
    for (size_t i = 0; i < v.dict->n; i++)
        eng_jinja_push(e, out.list, pair(e, &v.dict->entries[i]));
    return out;
}

// ---- choosing -------------------------------------------------------------------------------------------------------

FILTER(filter_map)
{
    const struct jinja_list *list = eng_jinja_iterate(e, v);
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, list->n);
    if (args->n) { // map("filter", its arguments)
        const char *name = eng_jinja_cstr(e, eng_jinja_want_string(e, "map", args->values[0]));
        jinja_filter_fn filter = eng_jinja_find_filter(name);
        if (!filter)
            eng_jinja_fail(e, ENG_EINVAL, "there is no filter '%.40s'", name);
        struct jinja_args rest = *args;
        rest.values++;
        rest.n--;
        eng_jinja_enter(e); // map may name map
        for (size_t i = 0; i < list->n; i++)
            eng_jinja_push(e, out.list, filter(e, list->items[i], &rest));
        eng_jinja_leave(e);
        return out;
    }
    BIND("map", 2, "attribute", "default");
    if (arg[0].type == JINJA_UNDEFINED)
        eng_jinja_fail(e, ENG_EINVAL, "map needs a filter or an attribute");
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_value item = follow(e, list->items[i], arg[0]);
        eng_jinja_push(e, out.list, item.type == JINJA_UNDEFINED ? arg[1] : item);
    }
    return out;
}

// The items whose (attribute's) test answers `wanted`; without a test, whose truth does.
static struct jinja_value choose(struct jinja_env *e, struct jinja_value v, const struct jinja_args *args,
                                 const char *function, bool by_attribute, bool wanted)
{
    const struct jinja_list *list = eng_jinja_iterate(e, v);
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, 0), attribute = jinja_none();
    struct jinja_args rest = *args;
    if (by_attribute) {
        if (!rest.n)
            eng_jinja_fail(e, ENG_EINVAL, "%s needs an attribute", function);
        attribute = *rest.values++;
        rest.n--;
    }
    jinja_test_fn test = NULL;
    if (rest.n) {
        const char *name = eng_jinja_cstr(e, eng_jinja_want_string(e, function, rest.values[0]));
        test = eng_jinja_find_test(name);
        if (!test)
            eng_jinja_fail(e, ENG_EINVAL, "there is no test '%.40s'", name);
        rest.values++;
        rest.n--;
    }
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_value item = follow(e, list->items[i], attribute);
        if ((test ? test(e, item, &rest) : eng_jinja_truth(item)) == wanted)
            eng_jinja_push(e, out.list, list->items[i]);
    }
    return out;
}

FILTER(filter_select)
{
    return choose(e, v, args, "select", false, true);
}

FILTER(filter_reject)
{
    return choose(e, v, args, "reject", false, false);
}

FILTER(filter_selectattr)
{
    return choose(e, v, args, "selectattr", true, true);
}

FILTER(filter_rejectattr)
{
    return choose(e, v, args, "rejectattr", true, false);
}

// ---- order ----------------------------------------------------------------------------------------------------------

// What an item is compared by: its attribute, without letter case unless case_sensitive.
static struct jinja_value sort_key(struct jinja_env *e, struct jinja_value item, struct jinja_value attribute,
                                   bool case_sensitive)
{
    struct jinja_value key = follow(e, item, attribute);
    return key.type == JINJA_STRING && !case_sensitive ? eng_jinja_case(e, key.s, CASE_LOWER) : key;
}

FILTER(filter_unique)
{
    BIND("unique", 2, "case_sensitive", "attribute");
    const struct jinja_list *list = eng_jinja_iterate(e, v);
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, 0), keys = eng_jinja_list(e, JINJA_LIST, 0);
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_value key = sort_key(e, list->items[i], arg[1], eng_jinja_truth(arg[0]));
        if (!eng_jinja_contains(e, keys, key)) {
            eng_jinja_push(e, keys.list, key);
            eng_jinja_push(e, out.list, list->items[i]);
        }
    }
    return out;
}

// Stable merge sort of (key, item) pairs; reverse keeps equal items in their order, as Python does.
static void merge_sort(struct jinja_env *e, struct jinja_entry *a, struct jinja_entry *scratch, size_t n, bool reverse)
{
    if (n < 2)
        return;
    size_t half = n / 2, i = 0, j = half;
    merge_sort(e, a, scratch, half, reverse);
    merge_sort(e, a + half, scratch, n - half, reverse);
    eng_jinja_steps(e, n);
    for (size_t k = 0; k < n; k++) {
        bool left = j >= n;
        if (i < half && j < n) {
            int order = eng_jinja_compare(e, a[i].key, a[j].key);
            left = reverse ? order >= 0 : order <= 0;
        }
        scratch[k] = left ? a[i++] : a[j++];
    }
    memcpy(a, scratch, n * sizeof *a);
}

static struct jinja_value sort(struct jinja_env *e, const struct jinja_list *list, struct jinja_value attribute,
                               bool case_sensitive, bool reverse)
{
    struct jinja_entry *entries = eng_jinja_alloc(e, (list->n + 1) * sizeof *entries);
    struct jinja_entry *scratch = eng_jinja_alloc(e, (list->n + 1) * sizeof *scratch);
    for (size_t i = 0; i < list->n; i++)
        entries[i] = (struct jinja_entry){sort_key(e, list->items[i], attribute, case_sensitive), list->items[i]};
    merge_sort(e, entries, scratch, list->n, reverse);
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, list->n);
    for (size_t i = 0; i < list->n; i++)
        eng_jinja_push(e, out.list, entries[i].value);
    return out;
}

FILTER(filter_sort)
{
    BIND("sort", 3, "reverse", "case_sensitive", "attribute");
    return sort(e, eng_jinja_iterate(e, v), arg[2], eng_jinja_truth(arg[1]), eng_jinja_truth(arg[0]));
}

FILTER(filter_dictsort)
{
    BIND("dictsort", 3, "case_sensitive", "by", "reverse");
    const struct jinja_args none = {0};
    bool by_value = arg[1].type == JINJA_STRING && eng_jinja_is(arg[1].s, "value");
    struct jinja_value items = filter_items(e, v, &none);
    return sort(e, items.list, jinja_int(by_value), eng_jinja_truth(arg[0]), eng_jinja_truth(arg[2]));
}

static struct jinja_value extreme(struct jinja_env *e, struct jinja_value v, const struct jinja_args *args,
                                  const char *function, int sign)
{
    BIND(function, 2, "case_sensitive", "attribute");
    const struct jinja_list *list = eng_jinja_iterate(e, v);
    struct jinja_value best = jinja_undefined("an item of an empty sequence"), best_key = best;
    for (size_t i = 0; i < list->n; i++) {
        struct jinja_value key = sort_key(e, list->items[i], arg[1], eng_jinja_truth(arg[0]));
        if (i == 0 || sign * eng_jinja_compare(e, key, best_key) > 0) {
            best = list->items[i];
            best_key = key;
        }
    }
    return best;
}

FILTER(filter_max)
{
    return extreme(e, v, args, "max", 1);
}

FILTER(filter_min)
{
    return extreme(e, v, args, "min", -1);
}

FILTER(filter_sum)
{
    BIND("sum", 2, "attribute", "start");
    const struct jinja_list *list = eng_jinja_iterate(e, v);
    struct jinja_value total = arg[1].type == JINJA_UNDEFINED ? jinja_int(0) : arg[1];
    for (size_t i = 0; i < list->n; i++)
        total = eng_jinja_operate(e, OP_ADD, total, follow(e, list->items[i], arg[0]));
    return total;
}

jinja_filter_fn eng_jinja_find_list_filter(const char *name)
{
    static const struct {
        const char *name;
        jinja_filter_fn fn;
    } filters[] = {
        {"dictsort", filter_dictsort},
        {"first", filter_first},
        {"items", filter_items},
        {"join", filter_join},
        {"last", filter_last},
        {"list", filter_list},
        {"map", filter_map},
        {"max", filter_max},
        {"min", filter_min},
        {"reject", filter_reject},
        {"rejectattr", filter_rejectattr},
        {"reverse", filter_reverse},
        {"select", filter_select},
        {"selectattr", filter_selectattr},
        {"sort", filter_sort},
        {"sum", filter_sum},
        {"unique", filter_unique},
    };
    for (size_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (!strcmp(filters[i].name, name))
            return filters[i].fn;
    return NULL;
}
