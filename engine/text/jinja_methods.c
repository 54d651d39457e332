// 2 PARSE: methods of strings, lists, dicts and the loop object of a template.
#include "text/jinja_inner.h"

#include "base/err.h"

#include <string.h>

typedef struct jinja_value (*method_fn)(struct jinja_env *e, struct jinja_value self, const struct jinja_args *args);

#define METHOD(name) \
    static struct jinja_value name(struct jinja_env *e, struct jinja_value self, const struct jinja_args *args)
#define BIND(function, n, ...)       \
    struct jinja_value arg[(n) + 1]; \
    eng_jinja_bind(e, function, args, (const char *const[]){__VA_ARGS__, NULL}, (n), arg)
#define NO_ARGUMENTS(function) eng_jinja_bind(e, function, args, NULL, 0, NULL)

// ---- strings --------------------------------------------------------------------------------------------------------

static struct jinja_value strip(struct jinja_env *e, struct jinja_value self, const struct jinja_args *args,
                                const char *name, bool left, bool right)
{
    BIND(name, 1, "chars");
    bool spaces = arg[0].type == JINJA_UNDEFINED || arg[0].type == JINJA_NONE;
    return eng_jinja_strip(e, self.s, spaces ? NULL : eng_jinja_want_string(e, name, arg[0]), left, right);
}

METHOD(str_strip)
{
    return strip(e, self, args, "strip", true, true);
}

METHOD(str_lstrip)
{
    return strip(e, self, args, "lstrip", true, false);
}

METHOD(str_rstrip)
{
    return strip(e, self, args, "rstrip", false, true);
}

METHOD(str_upper)
{
    NO_ARGUMENTS("upper");
    return eng_jinja_case(e, self.s, CASE_UPPER);
}

METHOD(str_lower)
{
    NO_ARGUMENTS("lower");
    return eng_jinja_case(e, self.s, CASE_LOWER);
}

METHOD(str_title)
{
    NO_ARGUMENTS("title");
    return eng_jinja_case(e, self.s, CASE_TITLE);
}

METHOD(str_capitalize)
{
    NO_ARGUMENTS("capitalize");
    return eng_jinja_case(e, self.s, CASE_CAPITALIZE);
}

METHOD(str_replace)
{
    BIND("replace", 3, "old", "new", "count");
    const struct jinja_string *from = eng_jinja_want_string(e, "replace", arg[0]);
    return eng_jinja_replace(e, self.s, from, eng_jinja_want_string(e, "replace", arg[1]),
                             eng_jinja_want_int(e, "replace", arg[2], -1));
}

METHOD(str_join)
{
    BIND("join", 1, "iterable");
    const struct jinja_list *list = eng_jinja_iterate(e, arg[0]);
    for (size_t i = 0; i < list->n; i++)
        eng_jinja_want_string(e, "join", list->items[i]);
    return eng_jinja_join(e, list, self.s);
}

// The words between runs of white space; after max splits the rest in one piece.
static struct jinja_value split_words(struct jinja_env *e, const struct jinja_string *s, int64_t max)
{
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, 0);
    const struct jinja_string *rest = eng_jinja_strip(e, s, NULL, true, false).s;
    while (rest->len) {
        size_t end = 0;
        while (end < rest->len) {
            size_t next = end + 1;
            while (next < rest->len && ((unsigned char)rest->data[next] & 0xC0) == 0x80)
                next++;
            if (!eng_jinja_strip(e, eng_jinja_substring(e, rest, end, next).s, NULL, true, false).s->len)
                break;
            end = next;
        }
        if (max >= 0 && (int64_t)out.list->n >= max) {
            eng_jinja_push(e, out.list, eng_jinja_substring(e, rest, 0, rest->len));
            break;
        }
        eng_jinja_push(e, out.list, eng_jinja_substring(e, rest, 0, end));
        rest = eng_jinja_strip(e, eng_jinja_substring(e, rest, end, rest->len).s, NULL, true, false).s;
    }
    return out;
}

METHOD(str_split)
{
    BIND("split", 2, "sep", "maxsplit");
    int64_t max = eng_jinja_want_int(e, "split", arg[1], -1);
    if (arg[0].type == JINJA_UNDEFINED || arg[0].type == JINJA_NONE)
        return split_words(e, self.s, max);
    const struct jinja_string *sep = eng_jinja_want_string(e, "split", arg[0]);
    if (!sep->len)
        eng_jinja_fail(e, ENG_EINVAL, "split: empty separator");
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, 0);
    size_t at = 0, found;
    while (max < 0 || (int64_t)out.list->n < max) {
        found = eng_jinja_find(self.s, sep, at);
        if (found == SIZE_MAX)
            break;
        eng_jinja_push(e, out.list, eng_jinja_substring(e, self.s, at, found));
        at = found + sep->len;
    }
    eng_jinja_push(e, out.list, eng_jinja_substring(e, self.s, at, self.s->len));
    return out;
}

// The last max words, before them the rest in one piece.
static struct jinja_value rsplit_words(struct jinja_env *e, const struct jinja_string *s, int64_t max)
{
    struct jinja_value words = split_words(e, s, -1), out = eng_jinja_list(e, JINJA_LIST, 0);
    size_t n = words.list->n;
    if (max < 0 || (uint64_t)max >= n)
        return words;
    size_t kept = (size_t)max;
    const struct jinja_string *last = words.list->items[n - kept - 1].s;
    eng_jinja_push(e, out.list, eng_jinja_substring(e, s, 0, (size_t)(last->data + last->len - s->data)));
    for (size_t i = n - kept; i < n; i++)
        eng_jinja_push(e, out.list, words.list->items[i]);
    return out;
}

METHOD(str_rsplit)
{
    BIND("rsplit", 2, "sep", "maxsplit");
    int64_t max = eng_jinja_want_int(e, "rsplit", arg[1], -1);
    if (arg[0].type == JINJA_UNDEFINED || arg[0].type == JINJA_NONE)
        return rsplit_words(e, self.s, max);
    const struct jinja_string *sep = eng_jinja_want_string(e, "rsplit", arg[0]);
    if (!sep->len)
        eng_jinja_fail(e, ENG_EINVAL, "rsplit: empty separator");
    struct jinja_value parts = eng_jinja_list(e, JINJA_LIST, 0), out = eng_jinja_list(e, JINJA_LIST, 0);
    size_t end = self.s->len, found;
    while (max < 0 || (int64_t)parts.list->n < max) {
        found = eng_jinja_find_last(self.s, sep, end);
        if (found == SIZE_MAX)
            break;
        eng_jinja_push(e, parts.list, eng_jinja_substring(e, self.s, found + sep->len, end));
        end = found;
    }
    eng_jinja_push(e, out.list, eng_jinja_substring(e, self.s, 0, end));
    for (size_t i = parts.list->n; i-- > 0;)
        eng_jinja_push(e, out.list, parts.list->items[i]);
    return out;
}

// Bytes of the line end at `at`, 0 if there is none: as Python, also \v, \f, the separators of U+001C to U+001E,
// U+0085, U+2028 and U+2029.
static size_t line_end(const struct jinja_string *s, size_t at)
{
    unsigned char c = (unsigned char)s->data[at];
    if ((c >= '\n' && c <= '\r') || (c >= 0x1C && c <= 0x1E))
        return 1;
    if (s->len - at >= 2 && !memcmp(s->data + at, "\xC2\x85", 2))
        return 2;
    bool is_long =
        s->len - at >= 3 && (!memcmp(s->data + at, "\xE2\x80\xA8", 3) || !memcmp(s->data + at, "\xE2\x80\xA9", 3));
    return is_long ? 3 : 0;
}

METHOD(str_splitlines)
{
    BIND("splitlines", 1, "keepends");
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, 0);
    for (size_t at = 0; at < self.s->len;) {
        size_t end = at, next;
        while (end < self.s->len && !line_end(self.s, end))
            end++;
        next = end < self.s->len ? end + line_end(self.s, end) : end;
        if (next < self.s->len && self.s->data[end] == '\r' && self.s->data[next] == '\n')
            next++;
        eng_jinja_push(e, out.list, eng_jinja_substring(e, self.s, at, eng_jinja_truth(arg[0]) ? next : end));
        at = next;
    }
    return out;
}

static bool affix(struct jinja_env *e, const char *name, const struct jinja_string *s, struct jinja_value v,
                  bool suffix)
{
    if (v.type == JINJA_TUPLE) {
        for (size_t i = 0; i < v.list->n; i++) {
            const struct jinja_string *one = eng_jinja_want_string(e, name, v.list->items[i]);
            if (affix(e, name, s, (struct jinja_value){.type = JINJA_STRING, .s = one}, suffix))
                return true;
        }
        return false;
    }
    const struct jinja_string *a = eng_jinja_want_string(e, name, v);
    return a->len <= s->len && !memcmp(s->data + (suffix ? s->len - a->len : 0), a->data, a->len);
}

METHOD(str_startswith)
{
    BIND("startswith", 1, "prefix");
    return jinja_bool(affix(e, "startswith", self.s, arg[0], false));
}

METHOD(str_endswith)
{
    BIND("endswith", 1, "suffix");
    return jinja_bool(affix(e, "endswith", self.s, arg[0], true));
}

METHOD(str_removeprefix)
{
    BIND("removeprefix", 1, "prefix");
    bool has = affix(e, "removeprefix", self.s, arg[0], false);
    return eng_jinja_substring(e, self.s, has ? eng_jinja_want_string(e, "removeprefix", arg[0])->len : 0, self.s->len);
}

METHOD(str_removesuffix)
{
    BIND("removesuffix", 1, "suffix");
    bool has = affix(e, "removesuffix", self.s, arg[0], true);
    size_t cut = has ? eng_jinja_want_string(e, "removesuffix", arg[0])->len : 0;
    return eng_jinja_substring(e, self.s, 0, self.s->len - cut);
}

// Byte index to index in characters, -1 for absent.
static struct jinja_value char_index(struct jinja_env *e, const struct jinja_string *s, size_t at)
{
    return jinja_int(at == SIZE_MAX ? -1 : eng_jinja_length(e, eng_jinja_substring(e, s, 0, at)));
}

METHOD(str_find)
{
    BIND("find", 1, "sub");
    return char_index(e, self.s, eng_jinja_find(self.s, eng_jinja_want_string(e, "find", arg[0]), 0));
}

METHOD(str_rfind)
{
    BIND("rfind", 1, "sub");
    return char_index(e, self.s, eng_jinja_find_last(self.s, eng_jinja_want_string(e, "rfind", arg[0]), self.s->len));
}

METHOD(str_count)
{
    BIND("count", 1, "sub");
    const struct jinja_string *what = eng_jinja_want_string(e, "count", arg[0]);
    int64_t n = 0;
    if (!what->len)
        return jinja_int(eng_jinja_length(e, self) + 1);
    for (size_t at = 0; (at = eng_jinja_find(self.s, what, at)) != SIZE_MAX; at += what->len)
        n++;
    return jinja_int(n);
}

static bool all_of(const struct jinja_string *s, const char *set)
{
    for (size_t i = 0; i < s->len; i++)
        if (!s->data[i] || !strchr(set, s->data[i]))
            return false;
    return s->len;
}

METHOD(str_isdigit)
{
    NO_ARGUMENTS("isdigit");
    return jinja_bool(all_of(self.s, "0123456789"));
}

METHOD(str_isspace)
{
    NO_ARGUMENTS("isspace");
    return jinja_bool(self.s->len && !eng_jinja_strip(e, self.s, NULL, true, false).s->len);
}

// ---- lists and dicts ------------------------------------------------------------------------------------------------

METHOD(list_index)
{
    BIND("index", 1, "value");
    for (size_t i = 0; i < self.list->n; i++)
        if (eng_jinja_equal(e, self.list->items[i], arg[0]))
            return jinja_int((int64_t)i);
    eng_jinja_fail(e, ENG_EINVAL, "index: the value is not in the list");
}

METHOD(list_count)
{
    BIND("count", 1, "value");
    int64_t n = 0;
    for (size_t i = 0; i < self.list->n; i++)
        n += eng_jinja_equal(e, self.list->items[i], arg[0]);
    return jinja_int(n);
}

METHOD(dict_get)
{
    BIND("get", 2, "key", "default");
    struct jinja_value found;
    if (!args->n && !args->n_named)
        eng_jinja_fail(e, ENG_EINVAL, "get needs a key");
    if (eng_jinja_dict_get(e, self.dict, arg[0], &found))
        return found;
    return arg[1].type == JINJA_UNDEFINED ? jinja_none() : arg[1];
}

static struct jinja_value dict_list(struct jinja_env *e, const struct jinja_dict *d, bool keys, bool values)
{
    struct jinja_value out = eng_jinja_list(e, JINJA_LIST, d->n);
    eng_jinja_steps(e, d->n);
    for (size_t i = 0; i < d->n; i++) {
        struct jinja_value item = keys ? d->entries[i].key : d->entries[i].value;
        if (keys && values) {
            item = eng_jinja_list(e, JINJA_TUPLE, 2);
            eng_jinja_push(e, item.list, d->entries[i].key);
            eng_jinja_push(e, item.list, d->entries[i].value);
        }
        eng_jinja_push(e, out.list, item);
    }
    return out;
}

METHOD(dict_items)
{
    NO_ARGUMENTS("items");
    return dict_list(e, self.dict, true, true);
}

METHOD(dict_keys)
{
    NO_ARGUMENTS("keys");
    return dict_list(e, self.dict, true, false);
}

METHOD(dict_values)
{
    NO_ARGUMENTS("values");
    return dict_list(e, self.dict, false, true);
}

METHOD(dict_copy)
{
    NO_ARGUMENTS("copy");
    struct jinja_value out = eng_jinja_dict(e, JINJA_DICT);
    for (size_t i = 0; i < self.dict->n; i++)
        eng_jinja_dict_set(e, out.dict, self.dict->entries[i].key, self.dict->entries[i].value);
    return out;
}

// ---- the loop object ------------------------------------------------------------------------------------------------

METHOD(loop_cycle)
{
    if (!args->n)
        eng_jinja_fail(e, ENG_EINVAL, "loop.cycle needs values");
    return args->values[self.loop->at % args->n];
}

METHOD(loop_changed)
{
    struct jinja_list *before = self.loop->changed;
    bool same = before && before->n == args->n;
    for (size_t i = 0; same && i < args->n; i++)
        same = eng_jinja_equal(e, before->items[i], args->values[i]);
    self.loop->changed = eng_jinja_list(e, JINJA_LIST, 0).list;
    for (size_t i = 0; i < args->n; i++)
        eng_jinja_push(e, self.loop->changed, args->values[i]);
    return jinja_bool(!same);
}

// Python has it, but the sandbox forbids it because it would change the value.
METHOD(forbidden)
{
    (void)args;
    eng_jinja_fail(e, ENG_EINVAL, "this method of %s is not allowed in templates", eng_jinja_type_name(self));
}

static const struct {
    enum jinja_type type;
    const char *name;
    method_fn fn;
} methods[] = {
    {JINJA_STRING, "capitalize", str_capitalize},
    {JINJA_STRING, "count", str_count},
    {JINJA_STRING, "endswith", str_endswith},
    {JINJA_STRING, "find", str_find},
    {JINJA_STRING, "isdigit", str_isdigit},
    {JINJA_STRING, "isspace", str_isspace},
    {JINJA_STRING, "join", str_join},
    {JINJA_STRING, "lower", str_lower},
    {JINJA_STRING, "lstrip", str_lstrip},
    {JINJA_STRING, "removeprefix", str_removeprefix},
    {JINJA_STRING, "removesuffix", str_removesuffix},
    {JINJA_STRING, "replace", str_replace},
    {JINJA_STRING, "rfind", str_rfind},
    {JINJA_STRING, "rsplit", str_rsplit},
    {JINJA_STRING, "rstrip", str_rstrip},
    {JINJA_STRING, "split", str_split},
    {JINJA_STRING, "splitlines", str_splitlines},
    {JINJA_STRING, "startswith", str_startswith},
    {JINJA_STRING, "strip", str_strip},
    {JINJA_STRING, "title", str_title},
    {JINJA_STRING, "upper", str_upper},
    {JINJA_LIST, "append", forbidden},
    {JINJA_LIST, "clear", forbidden},
    {JINJA_LIST, "count", list_count},
    {JINJA_LIST, "extend", forbidden},
    {JINJA_LIST, "index", list_index},
    {JINJA_LIST, "insert", forbidden},
    {JINJA_LIST, "pop", forbidden},
    {JINJA_LIST, "remove", forbidden},
    {JINJA_LIST, "reverse", forbidden},
    {JINJA_LIST, "sort", forbidden},
    {JINJA_TUPLE, "count", list_count},
    {JINJA_TUPLE, "index", list_index},
    {JINJA_DICT, "clear", forbidden},
    {JINJA_DICT, "copy", dict_copy},
    {JINJA_DICT, "get", dict_get},
    {JINJA_DICT, "items", dict_items},
    {JINJA_DICT, "keys", dict_keys},
    {JINJA_DICT, "pop", forbidden},
    {JINJA_DICT, "popitem", forbidden},
    {JINJA_DICT, "setdefault", forbidden},
    {JINJA_DICT, "update", forbidden},
    {JINJA_DICT, "values", dict_values},
    {JINJA_LOOP, "changed", loop_changed},
    {JINJA_LOOP, "cycle", loop_cycle},
};

static method_fn find_method(struct jinja_value v, const char *name)
{
    for (size_t i = 0; i < sizeof methods / sizeof *methods; i++)
        if (methods[i].type == v.type && !strcmp(methods[i].name, name))
            return methods[i].fn;
    return NULL;
}

bool eng_jinja_has_method(struct jinja_value v, const char *name)
{
    return find_method(v, name);
}

struct jinja_value eng_jinja_call_method(struct jinja_env *e, struct jinja_value self, const char *name,
                                         const struct jinja_args *args)
{
    return find_method(self, name)(e, self, args);
}
