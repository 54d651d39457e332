// 2 PARSE: reads tokenizer.json into the tables of tokenizer_inner.h. The file is not trusted: ids, pairs and types are
// checked, and a component that is not implemented is refused by name, because a guess would give other token ids.
#include "text/fail.h"
#include "text/file.h"
#include "text/tokenizer_inner.h"
#include "text/utf8.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_FILE = 256 << 20, MAX_IDS = 1 << 22 };

struct loader {
    struct eng_tokenizer *t;
    size_t bytes_len, bytes_cap;
    int16_t byte_of[512]; // GPT-2's printable alphabet: code point -> byte, -1: not in it
    char *err;
    size_t err_size;
};

#define FAIL(l, code, ...) fail((code), (l)->err, (l)->err_size, __VA_ARGS__)

// Bytes that print stand for themselves, the others follow from U+0100 on.
static void init_alphabet(struct loader *l)
{
    int next = 256;
    memset(l->byte_of, -1, sizeof l->byte_of);
    for (int b = 0; b < 256; b++) {
        bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        l->byte_of[prints ? b : next++] = (int16_t)b;
    }
}

// Writes the bytes that a vocabulary text stands for; false if it is not in the alphabet. out has room for
// strlen(text).
static bool to_bytes(const struct loader *l, const char *text, char *out, size_t *ret_len)
{
    size_t n = 0, len = strlen(text);
    for (size_t i = 0; i < len;) {
        uint32_t cp;
        enum eng_utf8_status status;
        i += eng_utf8_next(text + i, len - i, &cp, &status);
        if (cp >= 512 || l->byte_of[cp] < 0)
            return false;
        out[n++] = (char)l->byte_of[cp];
    }
    *ret_len = n;
    return n > 0;
}

static bool get_id(const cJSON *json, int32_t *ret)
{
    if (!cJSON_IsNumber(json) || !(json->valuedouble >= 0) || json->valuedouble >= MAX_IDS)
        return false;
    *ret = (int32_t)json->valuedouble;
    return *ret == json->valuedouble;
}

static const char *get_string(const cJSON *object, const char *key)
{
    return cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(object, key));
}

static bool is_true(const cJSON *object, const char *key)
{
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(object, key));
}

// ---- what is refused ------------------------------------------------------------------------------------------------

static int check_decoder(struct loader *l, const cJSON *json)
{
    const char *type = get_string(json, "type");
    if (type && !strcmp(type, "Sequence")) {
        const cJSON *list = cJSON_GetObjectItemCaseSensitive(json, "decoders");
        if (cJSON_GetArraySize(list) == 1)
            type = get_string(list->child, "type");
    }
    if (!type || strcmp(type, "ByteLevel"))
        return FAIL(l, ENG_ENOTSUP, "the decoder %s is not supported", type ? type : "null");
    return 0;
}

static int check_post_processor(struct loader *l, const cJSON *json)
{
    if (!json || cJSON_IsNull(json))
        return 0;
    const char *type = get_string(json, "type");
    if (type && !strcmp(type, "Sequence")) {
        const cJSON *item;
        cJSON_ArrayForEach(item, cJSON_GetObjectItemCaseSensitive(json, "processors"))
        {
            const char *inner = get_string(item, "type");
            if (inner && !strcmp(inner, "Sequence"))
                return FAIL(l, ENG_ENOTSUP, "the post-processor nests a Sequence");
            int rc = check_post_processor(l, item);
            if (rc)
                return rc;
        }
        return 0;
    }
    // Neither changes the ids of a text that gets no tokens at its ends.
    if (!type || (strcmp(type, "ByteLevel") && strcmp(type, "TemplateProcessing")))
        return FAIL(l, ENG_ENOTSUP, "the post-processor %s is not supported", type ? type : "without a type");
    return 0;
}

static int check_model(struct loader *l, const cJSON *model)
{
    const char *type = get_string(model, "type");
    // Old files leave the type out.
    if (!cJSON_IsObject(model) || (type && strcmp(type, "BPE")))
        return FAIL(l, ENG_ENOTSUP, "the model %s is not supported, only BPE", type ? type : "without a type");
    const cJSON *dropout = cJSON_GetObjectItemCaseSensitive(model, "dropout");
    if (dropout && !cJSON_IsNull(dropout) && !(cJSON_IsNumber(dropout) && dropout->valuedouble == 0))
        return FAIL(l, ENG_ENOTSUP, "the model has dropout");
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    for (size_t i = 0; i < 2; i++) {
        const char *affix = get_string(model, affixes[i]);
        if (affix && *affix)
            return FAIL(l, ENG_ENOTSUP, "the model has a %s", affixes[i]);
    }
    return 0;
}

static int check_components(struct loader *l, const cJSON *json)
{
    if (!cJSON_IsObject(json))
        return FAIL(l, ENG_EFORMAT, "tokenizer.json is not an object");
    const cJSON *normalizer = cJSON_GetObjectItemCaseSensitive(json, "normalizer");
    if (normalizer && !cJSON_IsNull(normalizer)) {
        const char *type = get_string(normalizer, "type");
        return FAIL(l, ENG_ENOTSUP, "the normalizer %s is not supported", type ? type : "without a type");
    }
    int rc = check_model(l, cJSON_GetObjectItemCaseSensitive(json, "model"));
    if (!rc)
        rc = check_decoder(l, cJSON_GetObjectItemCaseSensitive(json, "decoder"));
    if (!rc)
        rc = check_post_processor(l, cJSON_GetObjectItemCaseSensitive(json, "post_processor"));
    return rc;
}

// ---- tables ---------------------------------------------------------------------------------------------------------

// Sizes pieces and bytes for all the tokens of the file.
static int measure(struct loader *l, const cJSON *vocab, const cJSON *added)
{
    const cJSON *item;
    int32_t id, largest = -1;
    size_t bytes = 1;
    cJSON_ArrayForEach(item, vocab)
    {
        if (!get_id(item, &id))
            return FAIL(l, ENG_EFORMAT, "the vocabulary gives \"%.40s\" an id out of range", item->string);
        bytes += strlen(item->string);
        largest = id > largest ? id : largest;
    }
    cJSON_ArrayForEach(item, added)
    {
        const char *content = get_string(item, "content");
        if (!content || !*content || !get_id(cJSON_GetObjectItemCaseSensitive(item, "id"), &id))
            return FAIL(l, ENG_EFORMAT, "an added token has no content or an id out of range");
        bytes += strlen(content);
        largest = id > largest ? id : largest;
    }
    if (largest < 0)
        return FAIL(l, ENG_EFORMAT, "the vocabulary is empty");
    struct eng_tokenizer *t = l->t;
    t->n_pieces = (size_t)largest + 1;
    t->pieces = calloc(t->n_pieces, sizeof *t->pieces);
    t->bytes = malloc(bytes);
    l->bytes_cap = bytes;
    size_t slots = 256;
    while (slots < 2 * t->n_pieces)
        slots *= 2;
    t->piece_slots = malloc(slots * sizeof *t->piece_slots);
    if (!t->pieces || !t->bytes || !t->piece_slots)
        return FAIL(l, ENG_ENOMEM, "out of memory");
    memset(t->piece_slots, -1, slots * sizeof *t->piece_slots);
    t->piece_mask = slots - 1;
    return 0;
}

static int load_vocab(struct loader *l, const cJSON *vocab)
{
    struct eng_tokenizer *t = l->t;
    const cJSON *item;
    cJSON_ArrayForEach(item, vocab)
    {
        int32_t id = 0;
        get_id(item, &id);
        struct piece *p = &t->pieces[id];
        if (p->flags)
            return FAIL(l, ENG_EFORMAT, "the vocabulary gives the id %d twice", id);
        char *bytes = t->bytes + l->bytes_len;
        size_t len;
        bool plain = to_bytes(l, item->string, bytes, &len);
        if (!plain) { // never comes out of BPE on bytes; kept for decoding
            len = strlen(item->string);
            memcpy(bytes, item->string, len);
        } else if (eng_tokenizer_find_piece(t, bytes, len) >= 0) {
            return FAIL(l, ENG_EFORMAT, "the vocabulary has \"%.40s\" twice", item->string);
        }
        *p = (struct piece){.offset = l->bytes_len, .len = (uint32_t)len};
        p->flags = PIECE_USED | (plain ? PIECE_PLAIN : 0);
        l->bytes_len += len;
        if (plain) {
            size_t i = eng_tokenizer_hash(bytes, len) & t->piece_mask;
            while (t->piece_slots[i] >= 0)
                i = (i + 1) & t->piece_mask;
            t->piece_slots[i] = id;
        }
    }
    return 0;
}

static int load_bytes(struct loader *l, const cJSON *model)
{
    struct eng_tokenizer *t = l->t;
    const char *unk = get_string(model, "unk_token");
    t->unk_id = -1;
    if (unk) {
        const cJSON *item = cJSON_GetObjectItemCaseSensitive(cJSON_GetObjectItemCaseSensitive(model, "vocab"), unk);
        if (!get_id(item, &t->unk_id))
            return FAIL(l, ENG_EFORMAT, "the unk_token %.40s is not in the vocabulary", unk);
    }
    t->fuse_unk = is_true(model, "fuse_unk");
    t->ignore_merges = is_true(model, "ignore_merges");
    for (int b = 0; b < 256; b++) {
        char c = (char)b;
        t->byte_ids[b] = eng_tokenizer_find_piece(t, &c, 1);
        // With every byte in the vocabulary byte_fallback has nothing to do.
        if (t->byte_ids[b] < 0 && (t->unk_id < 0 || is_true(model, "byte_fallback")))
            return FAIL(l, ENG_ENOTSUP, "the vocabulary has no token for the byte %02X", (unsigned)b);
    }
    return 0;
}

// One side of a merge: its id, or -1.
static int32_t find_text(const struct loader *l, const char *text, char *scratch)
{
    size_t len;
    return to_bytes(l, text, scratch, &len) ? eng_tokenizer_find_piece(l->t, scratch, len) : -1;
}

static int load_merge(struct loader *l, const cJSON *item, int32_t rank, char *scratch)
{
    struct eng_tokenizer *t = l->t;
    char *left = NULL, *right = NULL, *space = NULL;
    if (cJSON_IsString(item)) {
        left = item->valuestring;
        space = strchr(left, ' ');
        if (space && !strchr(space + 1, ' '))
            right = space + 1;
    } else if (cJSON_GetArraySize(item) == 2) {
        left = cJSON_GetStringValue(item->child);
        right = cJSON_GetStringValue(item->child->next);
    }
    if (!left || !right)
        return FAIL(l, ENG_EFORMAT, "merge %d is not a pair", rank);

    if (space)
        *space = '\0'; // the JSON is ours until it is freed
    int32_t a = find_text(l, left, scratch), b = find_text(l, right, scratch), id = -1;
    if (a >= 0 && b >= 0) {
        const struct piece *pa = &t->pieces[a], *pb = &t->pieces[b];
        memcpy(scratch, t->bytes + pa->offset, pa->len);
        memcpy(scratch + pa->len, t->bytes + pb->offset, pb->len);
        id = eng_tokenizer_find_piece(t, scratch, (size_t)pa->len + pb->len);
    }
    if (id < 0)
        return FAIL(l, ENG_EFORMAT, "merge %d uses a token that is not in the vocabulary", rank);
    struct merge *m = eng_tokenizer_find_merge(t, a, b);
    // A pair that is listed twice has its last rank, as in the Hugging Face library.
    *m = (struct merge){.key = (uint64_t)(uint32_t)a << 32 | (uint32_t)b, .rank = rank, .id = id};
    return 0;
}

static int load_merges(struct loader *l, const cJSON *merges)
{
    if (!cJSON_IsArray(merges))
        return FAIL(l, ENG_EFORMAT, "the model has no list of merges");
    struct eng_tokenizer *t = l->t;
    size_t slots = 64, n = (size_t)cJSON_GetArraySize(merges);
    while (slots < 2 * n)
        slots *= 2;
    t->merges = malloc(slots * sizeof *t->merges);
    char *scratch = malloc(2 * l->bytes_cap);
    int rc = t->merges && scratch ? 0 : FAIL(l, ENG_ENOMEM, "out of memory");
    if (!rc) {
        for (size_t i = 0; i < slots; i++)
            t->merges[i].key = UINT64_MAX;
        t->merge_mask = slots - 1;
        int32_t rank = 0;
        const cJSON *item;
        cJSON_ArrayForEach(item, merges)
        {
            // Both sides are looked up in scratch, so each must fit: bytes_cap is more than any token, not any text.
            const char *text = cJSON_IsString(item) ? item->valuestring : NULL;
            const cJSON *side = cJSON_IsArray(item) ? item->child : NULL;
            for (; side && !text; side = side->next)
                if (cJSON_IsString(side) && strlen(side->valuestring) > 2 * l->bytes_cap - 1)
                    text = side->valuestring;
            if (text && strlen(text) > 2 * l->bytes_cap - 1)
                rc = FAIL(l, ENG_EFORMAT, "merge %d uses a token that is not in the vocabulary", rank);
            else
                rc = load_merge(l, item, rank++, scratch);
            if (rc)
                break;
        }
    }
    free(scratch);
    return rc;
}

static int compare_added(const void *a, const void *b, void *ctx)
{
    const struct eng_tokenizer *t = ctx;
    const struct piece *x = &t->pieces[*(const int32_t *)a], *y = &t->pieces[*(const int32_t *)b];
    int order = memcmp(t->bytes + x->offset, t->bytes + y->offset, x->len < y->len ? x->len : y->len);
    return order ? order : (x->len > y->len) - (x->len < y->len);
}

// texts[id]: the vocabulary's text of each id, NULL if none.
static int load_added_one(struct loader *l, const cJSON *item, const char *const *texts)
{
    struct eng_tokenizer *t = l->t;
    int32_t id = 0;
    get_id(cJSON_GetObjectItemCaseSensitive(item, "id"), &id);
    const char *content = get_string(item, "content");
    struct piece *p = &t->pieces[id];
    if (p->flags & PIECE_ADDED)
        return FAIL(l, ENG_EFORMAT, "two added tokens have the id %d", id);
    if (texts[id] && strcmp(texts[id], content))
        return FAIL(l, ENG_EFORMAT, "the added token %.40s has the id %d of another token", content, id);
    if (is_true(item, "single_word"))
        return FAIL(l, ENG_ENOTSUP, "the added token %.40s is single_word", content);
    size_t len = strlen(content);
    memcpy(t->bytes + l->bytes_len, content, len);
    p->offset = l->bytes_len;
    p->len = (uint32_t)len;
    p->flags |= PIECE_USED | PIECE_ADDED | (is_true(item, "special") ? PIECE_SPECIAL : 0) |
                (is_true(item, "lstrip") ? PIECE_LSTRIP : 0) | (is_true(item, "rstrip") ? PIECE_RSTRIP : 0);
    l->bytes_len += len;
    t->added[t->n_added++] = id;
    return 0;
}

static int load_added(struct loader *l, const cJSON *vocab, const cJSON *added)
{
    struct eng_tokenizer *t = l->t;
    const cJSON *item;
    int rc = 0;
    size_t n = (size_t)cJSON_GetArraySize(added);
    const char **texts = calloc(t->n_pieces, sizeof *texts);
    t->added = malloc((n + 1) * sizeof *t->added);
    if (!texts || !t->added) {
        free(texts);
        return FAIL(l, ENG_ENOMEM, "out of memory");
    }
    cJSON_ArrayForEach(item, vocab)
    {
        int32_t id = 0;
        get_id(item, &id);
        texts[id] = item->string;
    }
    cJSON_ArrayForEach(item, added)
    {
        if (!rc)
            rc = load_added_one(l, item, texts);
    }
    free(texts);
    if (rc)
        return rc;

    if (t->n_added)
        qsort_r(t->added, t->n_added, sizeof *t->added, compare_added, t);
    size_t at = 0;
    for (int c = 0; c < 256; c++) {
        t->added_first[c] = at;
        while (at < t->n_added && (unsigned char)t->bytes[t->pieces[t->added[at]].offset] == c)
            at++;
    }
    t->added_first[256] = at;
    for (size_t i = 1; i < t->n_added; i++)
        if (!compare_added(&t->added[i - 1], &t->added[i], t))
            return FAIL(l, ENG_EFORMAT, "the ids %d and %d are the same added token", t->added[i - 1], t->added[i]);
    return 0;
}

static int load_json(struct loader *l, const cJSON *json)
{
    const cJSON *model = cJSON_GetObjectItemCaseSensitive(json, "model");
    const cJSON *vocab = cJSON_GetObjectItemCaseSensitive(model, "vocab");
    const cJSON *added = cJSON_GetObjectItemCaseSensitive(json, "added_tokens");
    int rc = check_components(l, json);
    if (rc)
        return rc;
    if (!cJSON_IsObject(vocab) || (added && !cJSON_IsArray(added) && !cJSON_IsNull(added)))
        return FAIL(l, ENG_EFORMAT, "tokenizer.json has no vocabulary, or its added_tokens are not a list");
    init_alphabet(l);
    rc = measure(l, vocab, added);
    if (!rc)
        rc = load_vocab(l, vocab);
    if (!rc)
        rc = load_bytes(l, model);
    if (!rc)
        rc = load_merges(l, cJSON_GetObjectItemCaseSensitive(model, "merges"));
    if (!rc)
        rc = load_added(l, vocab, added);
    const cJSON *pre = cJSON_GetObjectItemCaseSensitive(json, "pre_tokenizer");
    if (!rc)
        rc = eng_pretokenizer_load(pre, &l->t->pre, l->err, l->err_size);
    return rc;
}

int eng_tokenizer_load(const char *path, struct eng_tokenizer **ret, char *err, size_t err_size)
{
    char *data = NULL;
    size_t len;
    cJSON *json = NULL;
    struct loader l = {.err = err, .err_size = err_size};
    int rc = eng_text_read_file(path, MAX_FILE, &data, &len, err, err_size);
    if (!rc)
        rc = eng_text_parse_json(data, len, "tokenizer.json", &json, err, err_size);
    free(data);
    if (rc)
        return rc;
    l.t = calloc(1, sizeof *l.t);
    rc = l.t ? load_json(&l, json) : FAIL(&l, ENG_ENOMEM, "out of memory");
    cJSON_Delete(json);
    if (rc) {
        eng_tokenizer_free(l.t);
        return rc;
    }
    *ret = l.t;
    return 0;
}
