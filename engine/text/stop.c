// 8 STREAM: stop strings in text that comes in parts. One Knuth-Morris-Pratt automaton a string: its state is the
// length of the longest suffix of the text that is a prefix of the string, so the largest state is what has to be held
// back. What is held back is then itself a prefix of that string: it is copied from there and needs no buffer.
#include "text/stop.h"

#include "base/err.h"
#include "text/utf8.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

struct pattern {
    char *text;
    size_t len;
    size_t *fallback; // fallback[k]: longest proper border of text[0 .. k + 1)
    size_t state;
};

struct eng_stop {
    struct pattern *patterns;
    size_t n;
    size_t held;    // largest state
    size_t held_by; // a pattern that has it
    int match;      // -1: none yet
};

static int init_pattern(struct pattern *p, const char *text)
{
    p->len = strlen(text);
    if (!p->len || !eng_utf8_valid(text, p->len))
        return ENG_EINVAL;
    p->text = strdup(text);
    p->fallback = malloc(p->len * sizeof *p->fallback);
    if (!p->text || !p->fallback)
        return ENG_ENOMEM;
    p->fallback[0] = 0;
    for (size_t i = 1, k = 0; i < p->len; i++) {
        while (k && text[i] != text[k])
            k = p->fallback[k - 1];
        k += text[i] == text[k];
        p->fallback[i] = k;
    }
    return 0;
}

int eng_stop_new(const char *const *strings, size_t n, struct eng_stop **ret)
{
    if (n > INT_MAX)
        return ENG_EINVAL;
    struct eng_stop *s = calloc(1, sizeof *s);
    if (!s)
        return ENG_ENOMEM;
    int rc = 0;
    s->match = -1;
    s->patterns = calloc(n + 1, sizeof *s->patterns);
    if (!s->patterns)
        rc = ENG_ENOMEM;
    for (; !rc && s->n < n; s->n++)
        rc = init_pattern(&s->patterns[s->n], strings[s->n]);
    if (rc) {
        eng_stop_free(s);
        return rc;
    }
    *ret = s;
    return 0;
}

void eng_stop_free(struct eng_stop *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n; i++) {
        free(s->patterns[i].text);
        free(s->patterns[i].fallback);
    }
    free(s->patterns);
    free(s);
}

size_t eng_stop_held(const struct eng_stop *s)
{
    return s->match >= 0 ? 0 : s->held;
}

// Advances every automaton by one byte; sets held and, when one is complete, match.
static void step(struct eng_stop *s, char c)
{
    s->held = 0;
    for (size_t i = 0; i < s->n; i++) {
        struct pattern *p = &s->patterns[i];
        while (p->state && p->text[p->state] != c)
            p->state = p->fallback[p->state - 1];
        p->state += p->text[p->state] == c;
        if (p->state > s->held) {
            s->held = p->state;
            s->held_by = i;
        }
        if (p->state == p->len && (s->match < 0 || p->len > s->patterns[s->match].len))
            s->match = (int)i;
    }
}

int eng_stop_push(struct eng_stop *s, const char *text, size_t len, struct eng_buf *out, int *ret_match)
{
    *ret_match = s->match;
    if (s->match >= 0)
        return 0;
    // The unsent text is the held prefix of a pattern, then text[0..len).
    size_t old_held = s->held, held_by = s->held_by, i = 0;
    while (i < len && s->match < 0)
        step(s, text[i++]);
    size_t keep = s->match >= 0 ? s->patterns[s->match].len : s->held;
    size_t send = old_held + i - keep; // of the unsent text
    size_t from_held = send < old_held ? send : old_held;
    int rc = from_held ? eng_buf_append(out, s->patterns[held_by].text, from_held) : 0;
    if (!rc && send > from_held)
        rc = eng_buf_append(out, text, send - from_held);
    *ret_match = s->match;
    return rc;
}

int eng_stop_finish(struct eng_stop *s, struct eng_buf *out)
{
    size_t held = eng_stop_held(s);
    s->held = 0;
    for (size_t i = 0; i < s->n; i++)
        s->patterns[i].state = 0;
    return held ? eng_buf_append(out, s->patterns[s->held_by].text, held) : 0;
}
