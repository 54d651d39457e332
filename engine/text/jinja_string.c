// 2 PARSE: strings of the template interpreter. Each byte has a mark, from input or not; a string of one kind stores it
// once. Strings are immutable and share their bytes; indices in this file are bytes unless a comment says characters.
#include "text/jinja_inner.h"

#include "base/err.h"
#include "text/utf8.h"

#include <string.h>

struct jinja_value eng_jinja_string(struct jinja_env *e, const char *data, size_t len, bool from_input)
{
    struct jinja_string *s = eng_jinja_alloc(e, sizeof *s);
    *s = (struct jinja_string){.data = data, .len = len, .from_input = from_input};
    return (struct jinja_value){.type = JINJA_STRING, .s = s};
}

struct jinja_value eng_jinja_stringz(struct jinja_env *e, const char *text)
{
    return eng_jinja_string(e, text, strlen(text), false);
}

struct jinja_value eng_jinja_substring(struct jinja_env *e, const struct jinja_string *s, size_t begin, size_t end)
{
    struct jinja_string *part = eng_jinja_alloc(e, sizeof *part);
    *part = *s;
    part->data += begin;
    part->len = end - begin;
    if (s->marks)
        part->marks += begin;
    return (struct jinja_value){.type = JINJA_STRING, .s = part};
}

bool eng_jinja_mark(const struct jinja_string *s, size_t i)
{
    return s->marks ? s->marks[i] : s->from_input;
}

bool eng_jinja_is(const struct jinja_string *s, const char *text)
{
    size_t len = strlen(text);
    return s->len == len && !memcmp(s->data, text, len);
}

const char *eng_jinja_cstr(struct jinja_env *e, const struct jinja_string *s)
{
    return eng_jinja_dup(e, s->data, s->len);
}

// ---- building -------------------------------------------------------------------------------------------------------

static void reserve(struct jinja_env *e, struct jinja_builder *b, size_t extra)
{
    if (b->max && extra > b->max - b->len)
        eng_jinja_fail(e, ENG_ELIMIT, "the template's output is larger than %zu bytes", b->max);
    if (extra <= b->cap - b->len)
        return;
    size_t cap = b->cap ? b->cap : 64;
    while (cap - b->len < extra)
        cap *= 2;
    char *data = eng_jinja_alloc(e, cap);
    unsigned char *marks = eng_jinja_alloc(e, cap);
    if (b->len) {
        memcpy(data, b->data, b->len);
        memcpy(marks, b->marks, b->len);
    }
    b->data = data;
    b->marks = marks;
    b->cap = cap;
}

void eng_jinja_add(struct jinja_env *e, struct jinja_builder *b, const char *data, size_t len, bool from_input)
{
    if (!len)
        return;
    eng_jinja_steps(e, len / 256);
    reserve(e, b, len);
    memcpy(b->data + b->len, data, len);
    memset(b->marks + b->len, from_input, len);
    b->len += len;
    b->any_input |= from_input;
    b->any_template |= !from_input;
}

void eng_jinja_addz(struct jinja_env *e, struct jinja_builder *b, const char *text)
{
    eng_jinja_add(e, b, text, strlen(text), false);
}

void eng_jinja_add_part(struct jinja_env *e, struct jinja_builder *b, const struct jinja_string *s, size_t begin,
                        size_t end)
{
    if (begin >= end)
        return;
    if (!s->marks) {
        eng_jinja_add(e, b, s->data + begin, end - begin, s->from_input);
        return;
    }
    eng_jinja_add(e, b, s->data + begin, end - begin, true);
    memcpy(b->marks + b->len - (end - begin), s->marks + begin, end - begin);
    b->any_template = true; // perhaps: then the marks are kept for nothing, no more
}

void eng_jinja_add_string(struct jinja_env *e, struct jinja_builder *b, const struct jinja_string *s)
{
    eng_jinja_add_part(e, b, s, 0, s->len);
}

struct jinja_value eng_jinja_built(struct jinja_env *e, const struct jinja_builder *b)
{
    struct jinja_string *s = eng_jinja_alloc(e, sizeof *s);
    *s = (struct jinja_string){.data = b->data ? b->data : "", .len = b->len, .from_input = b->any_input};
    if (b->any_input && b->any_template)
        s->marks = b->marks;
    return (struct jinja_value){.type = JINJA_STRING, .s = s};
}

// ---- searching ------------------------------------------------------------------------------------------------------

size_t eng_jinja_find(const struct jinja_string *s, const struct jinja_string *what, size_t from)
{
    if (from > s->len)
        return SIZE_MAX;
    if (!what->len)
        return from;
    const char *p = memmem(s->data + from, s->len - from, what->data, what->len);
    return p ? (size_t)(p - s->data) : SIZE_MAX;
}

size_t eng_jinja_find_last(const struct jinja_string *s, const struct jinja_string *what, size_t end)
{
    if (what->len > end)
        return SIZE_MAX;
    for (size_t i = end - what->len;; i--) {
        if (!memcmp(s->data + i, what->data, what->len))
            return i;
        if (i == 0)
            return SIZE_MAX;
    }
}

static bool strips(const struct jinja_string *chars, uint32_t cp)
{
    if (!chars) // Python's isspace counts the four information separators too
        return eng_utf8_is_space(cp) || (cp >= 0x1C && cp <= 0x1F);
    char text[4];
    size_t n = eng_utf8_encode(cp, text);
    return memmem(chars->data, chars->len, text, n);
}

struct jinja_value eng_jinja_strip(struct jinja_env *e, const struct jinja_string *s, const struct jinja_string *chars,
                                   bool left, bool right)
{
    size_t begin = 0, end = s->len;
    uint32_t cp;
    enum eng_utf8_status status;
    while (left && begin < end) {
        size_t n = eng_utf8_next(s->data + begin, end - begin, &cp, &status);
        if (!strips(chars, cp))
            break;
        begin += n;
    }
    while (right && end > begin) {
        size_t at = end - 1;
        while (at > begin && ((unsigned char)s->data[at] & 0xC0) == 0x80)
            at--;
        eng_utf8_next(s->data + at, end - at, &cp, &status);
        if (!strips(chars, cp))
            break;
        end = at;
    }
    return eng_jinja_substring(e, s, begin, end);
}

// ---- making new ones ------------------------------------------------------------------------------------------------

static bool is_letter(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (unsigned char)c >= 0x80;
}

struct jinja_value eng_jinja_case(struct jinja_env *e, const struct jinja_string *s, enum jinja_case how)
{
    struct jinja_string *out = eng_jinja_alloc(e, sizeof *out);
    char *data = eng_jinja_dup(e, s->data, s->len);
    bool start = true; // the next letter begins a word
    for (size_t i = 0; i < s->len; i++) {
        char c = data[i];
        bool upper = how == CASE_UPPER || (how != CASE_LOWER && start);
        if (upper && c >= 'a' && c <= 'z')
            data[i] = (char)(c - 'a' + 'A');
        else if (!upper && c >= 'A' && c <= 'Z')
            data[i] = (char)(c - 'A' + 'a');
        if (how == CASE_TITLE)
            start = !is_letter(c);
        else if (how == CASE_TITLE_FILTER) // jinja2's filter begins words after these only
            start = c == ' ' || (c >= '\t' && c <= '\r') || strchr("-({[<", c);
        else
            start = false;
    }
    *out = *s;
    out->data = data;
    return (struct jinja_value){.type = JINJA_STRING, .s = out};
}

struct jinja_value eng_jinja_replace(struct jinja_env *e, const struct jinja_string *s, const struct jinja_string *from,
                                     const struct jinja_string *to, int64_t count)
{
    struct jinja_builder b = {0};
    size_t at = 0;
    while (count != 0) {
        // An empty pattern matches before every character and at the end.
        size_t found = eng_jinja_find(s, from, at);
        if (found == SIZE_MAX)
            break;
        eng_jinja_steps(e, 1);
        eng_jinja_add_part(e, &b, s, at, found);
        eng_jinja_add_string(e, &b, to);
        at = found + from->len;
        if (!from->len) {
            size_t end = at + 1;
            while (end < s->len && ((unsigned char)s->data[end] & 0xC0) == 0x80)
                end++;
            if (at >= s->len)
                break;
            eng_jinja_add_part(e, &b, s, at, end);
            at = end;
        }
        if (count > 0)
            count--;
    }
    eng_jinja_add_part(e, &b, s, at, s->len);
    return eng_jinja_built(e, &b);
}

struct jinja_value eng_jinja_join(struct jinja_env *e, const struct jinja_list *items, const struct jinja_string *with)
{
    struct jinja_builder b = {0};
    for (size_t i = 0; i < items->n; i++) {
        if (i)
            eng_jinja_add_string(e, &b, with);
        eng_jinja_add_string(e, &b, eng_jinja_text(e, items->items[i]).s);
    }
    return eng_jinja_built(e, &b);
}

// ---- slices ---------------------------------------------------------------------------------------------------------

static int64_t clamp(int64_t i, int64_t low, int64_t high)
{
    return i < low ? low : i > high ? high : i;
}

struct jinja_value eng_jinja_slice(struct jinja_env *e, struct jinja_value v, const int64_t *start, const int64_t *stop,
                                   int64_t step)
{
    if (step == 0)
        eng_jinja_fail(e, ENG_EINVAL, "slice step cannot be zero");
    if (v.type != JINJA_STRING && !jinja_is_list(v))
        eng_jinja_fail(e, ENG_EINVAL, "a %s cannot be sliced", eng_jinja_type_name(v));
    const struct jinja_list *items = eng_jinja_iterate(e, v);
    int64_t n = (int64_t)items->n;
    int64_t low = step > 0 ? 0 : -1, high = step > 0 ? n : n - 1; // as Python's slice.indices
    int64_t from = step > 0 ? low : high, to = step > 0 ? high : low;
    if (start)
        from = clamp(*start < 0 ? *start + n : *start, low, high);
    if (stop)
        to = clamp(*stop < 0 ? *stop + n : *stop, low, high);
    if (v.type == JINJA_STRING && step == 1) { // shares the bytes
        if (from >= to)
            return eng_jinja_substring(e, v.s, 0, 0);
        const char *begin = items->items[from].s->data;
        const struct jinja_string *last = items->items[to - 1].s;
        return eng_jinja_substring(e, v.s, (size_t)(begin - v.s->data), (size_t)(last->data + last->len - v.s->data));
    }
    struct jinja_value out = eng_jinja_list(e, v.type == JINJA_TUPLE ? JINJA_TUPLE : JINJA_LIST, 0);
    step = clamp(step, -n - 1, n + 1); // a longer one steps out at once just the same
    for (int64_t i = from; step > 0 ? i < to : i > to; i += step)
        eng_jinja_push(e, out.list, items->items[i]);
    return v.type == JINJA_STRING ? eng_jinja_join(e, out.list, eng_jinja_stringz(e, "").s) : out;
}
