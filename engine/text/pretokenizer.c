// 2 PARSE: cuts text into pieces with the expressions of tokenizer.json. Each Split is a stage; a piece of one stage is
// the whole subject of the next, so that look-around never sees across a cut (as in the Hugging Face library).
//
// The files' expressions are written for Oniguruma. PCRE2 with UTF and UCP agrees on every \p{..} class; \s is
// rewritten (PCRE2's also has U+180E), and constructs whose meaning differs between the two are refused, not guessed.
#define PCRE2_CODE_UNIT_WIDTH 8
#include "text/pretokenizer.h"

#include "base/buf.h"
#include "text/fail.h"

#include <cjson/cJSON.h>
#include <pcre2.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_STAGES = 16,
    MATCH_LIMIT = 10000000,
    JIT_STACK_MIN = 64 << 10,
    JIT_STACK_MAX = 8 << 20,
};

// The 25 code points with White_Space, and all the others.
#define SPACES \
    "\\x{9}-\\x{D}\\x{20}\\x{85}\\x{A0}\\x{1680}\\x{2000}-\\x{200A}\\x{2028}\\x{2029}\\x{202F}\\x{205F}\\x{3000}"
#define NOT_SPACES                                                                                                     \
    "\\x{0}-\\x{8}\\x{E}-\\x{1F}\\x{21}-\\x{84}\\x{86}-\\x{9F}\\x{A1}-\\x{167F}\\x{1681}-\\x{1FFF}\\x{200B}-\\x{2027}" \
    "\\x{202A}-\\x{202E}\\x{2030}-\\x{205E}\\x{2060}-\\x{2FFF}\\x{3001}-\\x{10FFFF}"

#define GPT2_PATTERN "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

struct eng_pretokenizer {
    pcre2_code *stages[MAX_STAGES];
    int n_stages;
};

// ---- patterns -------------------------------------------------------------------------------------------------------

// Oniguruma's pattern to PCRE2's.
static int translate(const char *pattern, struct eng_buf *out, char *err, size_t err_size)
{
    int rc = 0;
    bool in_class = false;
    for (const char *p = pattern; *p && !rc; p++) {
        if (*p == '\\') {
            char c = p[1];
            if (!c)
                return fail(ENG_EFORMAT, err, err_size, "the pre-tokenizer's pattern ends in a backslash");
            if (strchr("wWbBhHRXKGZzA", c))
                return fail(ENG_ENOTSUP, err, err_size, "the pre-tokenizer's pattern uses \\%c", c);
            if (c == 's')
                rc = eng_buf_appendz(out, in_class ? SPACES : "[" SPACES "]");
            else if (c == 'S')
                rc = eng_buf_appendz(out, in_class ? NOT_SPACES : "[" NOT_SPACES "]");
            else
                rc = eng_buf_append(out, p, 2);
            p++;
            continue;
        }
        if (in_class && (*p == '[' || (p[0] == '&' && p[1] == '&')))
            return fail(ENG_ENOTSUP, err, err_size, "the pre-tokenizer's pattern nests character classes");
        if (*p == '[')
            in_class = true;
        else if (*p == ']')
            in_class = false;
        rc = eng_buf_append(out, p, 1);
    }
    return rc ? fail(rc, err, err_size, "out of memory") : 0;
}

// literal: the pattern is plain text, not an expression.
static int add_stage(struct eng_pretokenizer *p, const char *pattern, bool literal, char *err, size_t err_size)
{
    if (p->n_stages == MAX_STAGES)
        return fail(ENG_ELIMIT, err, err_size, "the pre-tokenizer has more than %d splits", MAX_STAGES);
    struct eng_buf translated = {0};
    int rc = literal ? eng_buf_appendz(&translated, pattern) : translate(pattern, &translated, err, err_size);
    if (rc)
        goto done;
    // In Oniguruma ^ and $ always match at line breaks.
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C;
    if (literal)
        options = PCRE2_UTF | PCRE2_LITERAL;
    int code;
    PCRE2_SIZE at;
    pcre2_code *re =
        pcre2_compile((PCRE2_SPTR)(translated.data ? translated.data : ""), translated.len, options, &code, &at, NULL);
    if (!re) {
        char why[128] = "";
        pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
        rc = fail(ENG_EFORMAT, err, err_size, "the pre-tokenizer's pattern does not compile: %s", why);
        goto done;
    }
    // Without executable memory this fails and matching interprets: slower, same result.
    (void)pcre2_jit_compile(re, PCRE2_JIT_COMPLETE);
    p->stages[p->n_stages++] = re;
done:
    eng_buf_free(&translated);
    return rc;
}

static int load_split(struct eng_pretokenizer *p, const cJSON *json, char *err, size_t err_size)
{
    const cJSON *pattern = cJSON_GetObjectItemCaseSensitive(json, "pattern");
    const char *regex = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(pattern, "Regex"));
    const char *string = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(pattern, "String"));
    const char *behavior = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "behavior"));
    if ((!regex && !string) || !behavior)
        return fail(ENG_EFORMAT, err, err_size, "the pre-tokenizer's Split has no pattern or behavior");
    if (strcmp(behavior, "Isolated") || cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(json, "invert")))
        return fail(ENG_ENOTSUP, err, err_size,
                    "the pre-tokenizer's Split has behavior %s%s; only Isolated is supported", behavior,
                    strcmp(behavior, "Isolated") ? "" : " inverted");
    return add_stage(p, regex ? regex : string, !regex, err, err_size);
}

static int load_one(struct eng_pretokenizer *p, const cJSON *json, bool *ret_byte_level, char *err, size_t err_size)
{
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "type"));
    if (!type)
        return fail(ENG_EFORMAT, err, err_size, "the pre-tokenizer has no type");
    if (*ret_byte_level)
        return fail(ENG_ENOTSUP, err, err_size, "the pre-tokenizer has %s after ByteLevel", type);
    if (!strcmp(type, "Split"))
        return load_split(p, json, err, err_size);
    if (strcmp(type, "ByteLevel"))
        return fail(ENG_ENOTSUP, err, err_size, "the pre-tokenizer %s is not supported", type);
    *ret_byte_level = true;
    if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(json, "add_prefix_space")))
        return fail(ENG_ENOTSUP, err, err_size, "the pre-tokenizer ByteLevel adds a prefix space");
    if (cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(json, "use_regex")))
        return 0;
    return add_stage(p, GPT2_PATTERN, false, err, err_size);
}

int eng_pretokenizer_load(const cJSON *json, struct eng_pretokenizer **ret, char *err, size_t err_size)
{
    struct eng_pretokenizer *p = calloc(1, sizeof *p);
    if (!p)
        return fail(ENG_ENOMEM, err, err_size, "out of memory");
    int rc = 0;
    bool byte_level = false;
    const char *type = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(json, "type"));
    if (type && !strcmp(type, "Sequence")) {
        const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, "pretokenizers"), *item;
        if (!cJSON_IsArray(list))
            rc = fail(ENG_EFORMAT, err, err_size, "the pre-tokenizer Sequence has no list");
        cJSON_ArrayForEach(item, list)
        {
            if (!rc)
                rc = load_one(p, item, &byte_level, err, err_size);
        }
    } else {
        rc = load_one(p, json, &byte_level, err, err_size);
    }
    if (!rc && !byte_level)
        rc = fail(ENG_ENOTSUP, err, err_size, "the pre-tokenizer has no ByteLevel");
    if (rc) {
        eng_pretokenizer_free(p);
        return rc;
    }
    *ret = p;
    return 0;
}

void eng_pretokenizer_free(struct eng_pretokenizer *p)
{
    if (!p)
        return;
    for (int i = 0; i < p->n_stages; i++)
        pcre2_code_free(p->stages[i]);
    free(p);
}

// ---- splitting ------------------------------------------------------------------------------------------------------

struct split {
    const struct eng_pretokenizer *p;
    pcre2_match_data *match; // shared by the stages: offsets are copied out before a piece goes on
    pcre2_match_context *context;
    pcre2_jit_stack *jit_stack; // made when the 32 KiB on the machine stack were too little
    eng_pretokenizer_fn fn;
    void *ctx;
};

// 1 and *ret_begin, *ret_end; 0 for no match; negative code.
static int find(struct split *s, const pcre2_code *re, const char *text, size_t len, size_t from, size_t *ret_begin,
                size_t *ret_end)
{
    int n = pcre2_match(re, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK, s->match, s->context);
    if (n == PCRE2_ERROR_JIT_STACKLIMIT && !s->jit_stack) {
        s->jit_stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
        if (!s->jit_stack)
            return ENG_ENOMEM;
        pcre2_jit_stack_assign(s->context, NULL, s->jit_stack);
        n = pcre2_match(re, (PCRE2_SPTR)text, len, from, PCRE2_NO_UTF_CHECK, s->match, s->context);
    }
    if (n == PCRE2_ERROR_NOMATCH)
        return 0;
    if (n == PCRE2_ERROR_NOMEMORY)
        return ENG_ENOMEM;
    if (n < 0)
        return ENG_ELIMIT;
    PCRE2_SIZE *offsets = pcre2_get_ovector_pointer(s->match);
    *ret_begin = offsets[0];
    *ret_end = offsets[1];
    return offsets[0] >= from && offsets[1] >= offsets[0] ? 1 : ENG_ELIMIT;
}

static size_t char_len(const char *p)
{
    unsigned char c = (unsigned char)*p;
    return c < 0xC0 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

static int split_stage(struct split *s, int stage, const char *text, size_t len)
{
    if (len == 0)
        return 0;
    if (stage == s->p->n_stages)
        return s->fn(s->ctx, text, len);
    size_t done = 0, from = 0; // pieces handed on; where the next search starts
    while (from < len) {
        size_t begin = 0, end = 0;
        int rc = find(s, s->p->stages[stage], text, len, from, &begin, &end);
        if (rc < 0)
            return rc;
        if (rc == 0)
            break;
        rc = split_stage(s, stage + 1, text + done, begin - done);
        if (!rc)
            rc = split_stage(s, stage + 1, text + begin, end - begin);
        if (rc)
            return rc;
        done = end;
        from = end > begin || end >= len ? end : end + char_len(text + end); // an empty match is a cut
    }
    return split_stage(s, stage + 1, text + done, len - done);
}

int eng_pretokenizer_split(const struct eng_pretokenizer *p, const char *text, size_t len, eng_pretokenizer_fn fn,
                           void *ctx)
{
    struct split s = {.p = p, .fn = fn, .ctx = ctx};
    int rc = ENG_ENOMEM;
    s.match = pcre2_match_data_create(1, NULL);
    s.context = pcre2_match_context_create(NULL);
    if (s.match && s.context) {
        pcre2_set_match_limit(s.context, MATCH_LIMIT);
        rc = split_stage(&s, 0, text, len);
    }
    pcre2_jit_stack_free(s.jit_stack);
    pcre2_match_context_free(s.context);
    pcre2_match_data_free(s.match);
    return rc;
}
