// 2 PARSE: a template's source to tokens, with Jinja's white-space rules: trim_blocks (a block or comment swallows the
// newline after it), lstrip_blocks (and the blanks before it on its line), `-` strips more, `+` switches both off. One
// newline at the very end of the source is dropped.
#include "text/jinja_inner.h"

#include "base/err.h"
#include "text/utf8.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>

struct lexer {
    struct jinja_env *e;
    const char *src;
    size_t len, at;
    bool line_starting; // what was read last ended with a newline, or nothing was read yet
    struct jinja_tokens out;
};

enum { MAX_BRACKETS = 256 };

static struct jinja_token *emit(struct lexer *l, enum jinja_token_kind kind, const char *text, size_t len)
{
    if (l->out.n == l->out.cap) {
        size_t cap = l->out.cap ? l->out.cap * 2 : 128;
        struct jinja_token *data = eng_jinja_alloc(l->e, cap * sizeof *data);
        if (l->out.n)
            memcpy(data, l->out.data, l->out.n * sizeof *data);
        l->out.data = data;
        l->out.cap = cap;
    }
    struct jinja_token *t = &l->out.data[l->out.n++];
    *t = (struct jinja_token){.kind = kind, .line = l->e->line, .len = len};
    t->text = eng_jinja_dup(l->e, text, len);
    return t;
}

static bool is_space(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r') || (c >= 0x1C && c <= 0x1F);
}

static bool is_name(char c)
{
    return isalnum((unsigned char)c) || c == '_';
}

static bool looking_at(const struct lexer *l, size_t at, const char *text)
{
    size_t n = strlen(text);
    return at <= l->len && l->len - at >= n && !memcmp(l->src + at, text, n);
}

// Moves to a later place, counting lines.
static void move_to(struct lexer *l, size_t to)
{
    for (; l->at < to; l->at++)
        l->e->line += l->src[l->at] == '\n';
}

static size_t skip_space(const struct lexer *l, size_t at)
{
    while (at < l->len && is_space(l->src[at]))
        at++;
    return at;
}

// ---- text between tags ----------------------------------------------------------------------------------------------

// Emits src[l->at, end) as the tag at `end` with its sign leaves it; block: the tag is a block or a comment.
static void emit_data(struct lexer *l, size_t end, char sign, bool block)
{
    size_t begin = l->at, stop = end;
    if (sign == '-') {
        while (stop > begin && is_space(l->src[stop - 1]))
            stop--;
    } else if (sign != '+' && block) {
        size_t line = stop; // begin of the tag's line
        while (line > begin && l->src[line - 1] != '\n')
            line--;
        if (line > begin || l->line_starting) {
            size_t i = line;
            while (i < stop && is_space(l->src[i]))
                i++;
            if (i == stop)
                stop = line;
        }
    }
    if (stop > begin)
        emit(l, TOKEN_DATA, l->src + begin, stop - begin);
    move_to(l, end);
}

// After the end of a tag: strips what its sign says, or one newline with trim.
static void after_tag(struct lexer *l, char sign, bool trim)
{
    size_t to = l->at;
    if (sign == '-')
        to = skip_space(l, to);
    else if (sign != '+' && trim && to < l->len && l->src[to] == '\n')
        to++;
    move_to(l, to);
    l->line_starting = to > 0 && l->src[to - 1] == '\n';
}

static char sign_at(const struct lexer *l, size_t at)
{
    return at < l->len && (l->src[at] == '-' || l->src[at] == '+') ? l->src[at] : '\0';
}

static void lex_comment(struct lexer *l)
{
    size_t from = l->at + 2 + (sign_at(l, l->at + 2) != '\0');
    const char *end = from <= l->len ? memmem(l->src + from, l->len - from, "#}", 2) : NULL;
    if (!end)
        eng_jinja_fail(l->e, ENG_EFORMAT, "a comment has no end");
    size_t at = (size_t)(end - l->src);
    char sign = at > from && (end[-1] == '-' || end[-1] == '+') ? end[-1] : '\0';
    move_to(l, at + 2);
    after_tag(l, sign, true);
}

// The tag `{% word %}` at `at`: 0 if it is another, else where it ends; *ret_sign is the sign before `%}`.
static size_t simple_tag(const struct lexer *l, size_t at, const char *word, char *ret_sign)
{
    if (!looking_at(l, at, "{%"))
        return 0;
    at += 2;
    at += sign_at(l, at) != '\0';
    at = skip_space(l, at);
    if (!looking_at(l, at, word))
        return 0;
    at = skip_space(l, at + strlen(word));
    *ret_sign = sign_at(l, at);
    at += *ret_sign != '\0';
    return looking_at(l, at, "%}") ? at + 2 : 0;
}

// Text up to {% endraw %} as it stands.
static void lex_raw(struct lexer *l, size_t begin, char sign)
{
    move_to(l, begin);
    after_tag(l, sign, false);
    for (size_t at = l->at; at < l->len; at++) {
        size_t end = simple_tag(l, at, "endraw", &sign);
        if (end) {
            emit_data(l, at, sign_at(l, at + 2), true);
            move_to(l, end);
            after_tag(l, sign, true);
            return;
        }
    }
    eng_jinja_fail(l->e, ENG_EFORMAT, "a raw block has no endraw");
}

// ---- inside a tag ---------------------------------------------------------------------------------------------------

static void lex_string(struct lexer *l)
{
    char quote = l->src[l->at];
    size_t begin = l->at + 1, at = begin;
    while (at < l->len && l->src[at] != quote)
        at += l->src[at] == '\\' ? 2 : 1;
    if (at >= l->len)
        eng_jinja_fail(l->e, ENG_EFORMAT, "a string has no end");
    char *text = eng_jinja_alloc(l->e, 4 * (at - begin) + 1);
    size_t n = 0;
    for (size_t i = begin; i < at; i++) {
        if (l->src[i] != '\\') {
            text[n++] = l->src[i];
            continue;
        }
        char c = l->src[++i];
        static const char from[] = "nrtbfav0\\'\"", to[] = "\n\r\t\b\f\a\v\0\\'\"";
        const char *plain = strchr(from, c);
        size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
        if (c == '\n') {
            continue; // a line that goes on
        } else if (plain && c) {
            text[n++] = to[plain - from];
        } else if (digits) {
            char hex[9] = "", *end;
            if (at - i > digits)
                memcpy(hex, l->src + i + 1, digits);
            unsigned long cp = strtoul(hex, &end, 16);
            if (!isxdigit((unsigned char)hex[0]) || end != hex + digits || cp > 0x10FFFF || cp == 0)
                eng_jinja_fail(l->e, ENG_EFORMAT, "a string has a malformed \\%c", c);
            n += eng_utf8_encode((uint32_t)cp, text + n);
            i += digits;
        } else { // Python keeps unknown escapes
            text[n++] = '\\';
            text[n++] = c;
        }
    }
    emit(l, TOKEN_STRING, text, n);
    move_to(l, at + 1);
}

static void lex_number(struct lexer *l)
{
    size_t at = l->at;
    char digits[64];
    size_t n = 0;
    bool is_float = false;
    bool after_dot = l->out.n && l->out.data[l->out.n - 1].kind == TOKEN_OPERATOR &&
                     !strcmp(l->out.data[l->out.n - 1].text, "."); // x.0.1 are two items
    for (; at < l->len && n < sizeof digits - 1; at++) {
        char c = l->src[at];
        bool next_digit = at + 1 < l->len && isdigit((unsigned char)l->src[at + 1]);
        if (c == '_' && next_digit)
            continue;
        if (isdigit((unsigned char)c)) {
            digits[n++] = c;
        } else if (c == '.' && !is_float && !after_dot && next_digit) {
            is_float = true;
            digits[n++] = c;
        } else if ((c == 'e' || c == 'E') && !after_dot && !memchr(digits, 'e', n)) {
            size_t sign = sign_at(l, at + 1) != '\0';
            if (at + 1 + sign >= l->len || !isdigit((unsigned char)l->src[at + 1 + sign]) || n + 2 >= sizeof digits)
                break;
            is_float = true;
            digits[n++] = 'e';
            if (sign)
                digits[n++] = l->src[++at];
        } else {
            break;
        }
    }
    if (n >= sizeof digits - 1)
        eng_jinja_fail(l->e, ENG_EFORMAT, "a number is too long");
    digits[n] = '\0';
    struct jinja_token *t = emit(l, is_float ? TOKEN_FLOAT : TOKEN_INT, l->src + l->at, at - l->at);
    if (is_float) {
        t->f = strtod(digits, NULL);
    } else {
        if (n > 18)
            eng_jinja_fail(l->e, ENG_EFORMAT, "the number %s is too large", digits);
        t->i = strtoll(digits, NULL, 10);
    }
    move_to(l, at);
}

static void lex_operator(struct lexer *l, char *brackets, int *n_brackets)
{
    static const char *const two[] = {"//", "**", "==", "!=", ">=", "<="};
    char c = l->src[l->at];
    size_t len = 1;
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        if (looking_at(l, l->at, two[i]))
            len = 2;
    if (len == 1 && !strchr("+-*/%~()[]{}=<>.:|,;", c))
        eng_jinja_fail(l->e, ENG_EFORMAT, "unexpected character '%.*s'", (unsigned char)c < 0x80 ? 1 : 0, &c);
    if (len == 1 && strchr("([{", c)) {
        if (*n_brackets == MAX_BRACKETS)
            eng_jinja_fail(l->e, ENG_EFORMAT, "too many open brackets");
        brackets[(*n_brackets)++] = c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (len == 1 && strchr(")]}", c)) {
        if (!*n_brackets || brackets[--*n_brackets] != c)
            eng_jinja_fail(l->e, ENG_EFORMAT, "unexpected '%c'", c);
    }
    emit(l, TOKEN_OPERATOR, l->src + l->at, len);
    move_to(l, l->at + len);
}

// From after the tag's begin up to and with its end.
static void lex_tag(struct lexer *l, bool block)
{
    char brackets[MAX_BRACKETS];
    int n_brackets = 0;
    const char *end = block ? "%}" : "}}";
    for (;;) {
        move_to(l, skip_space(l, l->at));
        if (l->at >= l->len)
            eng_jinja_fail(l->e, ENG_EFORMAT, "a tag has no %s", end);
        char c = l->src[l->at], sign = c == '-' || (c == '+' && block) ? c : '\0';
        if (!n_brackets && looking_at(l, l->at + (sign != '\0'), end)) {
            emit(l, block ? TOKEN_BLOCK_END : TOKEN_PRINT_END, end, 2);
            move_to(l, l->at + (sign != '\0') + 2);
            after_tag(l, sign, block);
            return;
        }
        if (isdigit((unsigned char)c)) {
            lex_number(l);
        } else if (is_name(c)) {
            size_t at = l->at;
            while (at < l->len && is_name(l->src[at]))
                at++;
            emit(l, TOKEN_NAME, l->src + l->at, at - l->at);
            move_to(l, at);
        } else if (c == '"' || c == '\'') {
            lex_string(l);
        } else {
            lex_operator(l, brackets, &n_brackets);
        }
    }
}

// The next tag's begin, or the end of the source.
static size_t find_tag(const struct lexer *l)
{
    for (size_t at = l->at; at + 1 < l->len; at++)
        if (l->src[at] == '{' && strchr("{%#", l->src[at + 1]))
            return at;
    return l->len;
}

struct jinja_tokens eng_jinja_lex(struct jinja_env *e, const char *src, size_t len)
{
    // All newlines become \n.
    char *text = eng_jinja_alloc(e, len + 1);
    size_t n = 0;
    for (size_t i = 0; i < len; i++) {
        if (src[i] == '\r' && i + 1 < len && src[i + 1] == '\n')
            continue;
        text[n++] = src[i] == '\r' ? '\n' : src[i];
    }
    if (n && text[n - 1] == '\n')
        n--;
    text[n] = '\0';

    struct lexer l = {.e = e, .src = text, .len = n, .line_starting = true};
    e->line = 1;
    while (l.at < l.len) {
        size_t tag = find_tag(&l);
        if (tag == l.len) {
            emit(&l, TOKEN_DATA, l.src + l.at, l.len - l.at);
            move_to(&l, l.len);
            break;
        }
        char kind = l.src[tag + 1], sign = sign_at(&l, tag + 2), end_sign;
        emit_data(&l, tag, sign, kind != '{');
        size_t raw = simple_tag(&l, tag, "raw", &end_sign);
        if (kind == '#') {
            lex_comment(&l);
        } else if (raw) {
            lex_raw(&l, raw, end_sign);
        } else {
            emit(&l, kind == '%' ? TOKEN_BLOCK_BEGIN : TOKEN_PRINT_BEGIN, "", 0);
            move_to(&l, tag + 2 + (sign != '\0'));
            lex_tag(&l, kind == '%');
        }
    }
    emit(&l, TOKEN_END, "", 0);
    return l.out;
}
