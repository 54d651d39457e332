// The safetensors format: 8 bytes of header length (little endian), a JSON header, then the tensors' bytes.
//
//   header: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, ..., "__metadata__": {...}}
//
// Owns the mappings and a list of tensors sorted by name. A file is believed only after every range was checked: inside
// the file, as long as shape and dtype say, aligned to the element, and together covering the data without overlap or
// hole (as the format demands). Runs on the thread that opens the engine. Refuses F16, integers and 8-bit types by
// name; does not read or convert the data.
#include "model/safetensors.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/err.h"
#include "model/json.h"

enum {
    MAX_HEADER = 100 * 1000 * 1000, // the format's own limit
    MAX_SHARDS = 1024,
    MAX_NAME = 512,
};

struct mapping {
    char *file; // base name
    void *data;
    size_t size;
};

struct eng_safetensors {
    struct mapping *maps;
    size_t n_maps;
    struct eng_safetensor *tensors; // by name once open
    size_t n, cap;
    int64_t bytes;
};

#define FAIL(at, code, ...) eng_json_fail((at)->err, (at)->err_size, code, __VA_ARGS__)

void eng_safetensors_close(struct eng_safetensors *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n; i++)
        free((char *)(uintptr_t)s->tensors[i].name);
    for (size_t i = 0; i < s->n_maps; i++) {
        if (s->maps[i].data)
            munmap(s->maps[i].data, s->maps[i].size);
        free(s->maps[i].file);
    }
    free(s->tensors);
    free(s->maps);
    free(s);
}

// ---- one tensor -----------------------------------------------------------------------------------------------------

// An exact non-negative integer below 2^53.
static bool json_size(const cJSON *v, int64_t *ret)
{
    if (!cJSON_IsNumber(v) || !(v->valuedouble >= 0 && v->valuedouble <= 9007199254740992.0))
        return false;
    *ret = (int64_t)v->valuedouble;
    return (double)*ret == v->valuedouble;
}

static int read_dtype(const cJSON *entry, struct eng_safetensor *t, const struct eng_json_ctx *at)
{
    const cJSON *dtype = cJSON_GetObjectItemCaseSensitive(entry, "dtype");
    if (!cJSON_IsString(dtype))
        return FAIL(at, ENG_EFORMAT, "%s: tensor %s has no dtype", at->file, t->name);
    if (strcmp(dtype->valuestring, "BF16") == 0)
        t->type = KRN_BF16;
    else if (strcmp(dtype->valuestring, "F32") == 0)
        t->type = KRN_F32;
    else
        return FAIL(at, ENG_ENOTSUP, "%s: tensor %s has dtype %.20s, only BF16 and F32 are supported", at->file,
                    t->name, dtype->valuestring);
    return 0;
}

// Fills dims and bytes from the shape.
static int read_shape(const cJSON *entry, struct eng_safetensor *t, const struct eng_json_ctx *at)
{
    const cJSON *shape = cJSON_GetObjectItemCaseSensitive(entry, "shape"), *dim;
    if (!cJSON_IsArray(shape))
        return FAIL(at, ENG_EFORMAT, "%s: tensor %s has no shape", at->file, t->name);
    t->bytes = (int64_t)krn_type_size(t->type);
    cJSON_ArrayForEach(dim, shape)
    {
        int64_t d;
        if (t->n_dims == ENG_SAFETENSORS_MAX_DIMS)
            return FAIL(at, ENG_ENOTSUP, "%s: tensor %s has more than %d dimensions", at->file, t->name,
                        ENG_SAFETENSORS_MAX_DIMS);
        if (!json_size(dim, &d) || __builtin_mul_overflow(t->bytes, d, &t->bytes))
            return FAIL(at, ENG_EFORMAT, "%s: tensor %s has an impossible shape", at->file, t->name);
        t->dims[t->n_dims++] = d;
    }
    return 0;
}

// data: the first byte after the header; size: how many there are.
static int read_tensor(const cJSON *entry, const char *data, int64_t size, struct eng_safetensor *t,
                       const struct eng_json_ctx *at)
{
    int64_t begin, end;
    int rc;
    if (!cJSON_IsObject(entry))
        return FAIL(at, ENG_EFORMAT, "%s: the header's entry for %s is not an object", at->file, t->name);
    if ((rc = read_dtype(entry, t, at)) != 0 || (rc = read_shape(entry, t, at)) != 0)
        return rc;
    const cJSON *offsets = cJSON_GetObjectItemCaseSensitive(entry, "data_offsets");
    if (!cJSON_IsArray(offsets) || cJSON_GetArraySize(offsets) != 2 ||
        !json_size(cJSON_GetArrayItem(offsets, 0), &begin) || !json_size(cJSON_GetArrayItem(offsets, 1), &end) ||
        begin > end)
        return FAIL(at, ENG_EFORMAT, "%s: tensor %s has no valid data_offsets", at->file, t->name);
    if (end > size)
        return FAIL(at, ENG_EFORMAT, "%s: tensor %s ends at byte %lld of %lld; the file is truncated", at->file,
                    t->name, (long long)end, (long long)size);
    if (end - begin != t->bytes)
        return FAIL(at, ENG_EFORMAT, "%s: tensor %s has %lld bytes, its shape needs %lld", at->file, t->name,
                    (long long)(end - begin), (long long)t->bytes);
    t->data = data + begin;
    if ((uintptr_t)t->data % krn_type_size(t->type) != 0)
        return FAIL(at, ENG_EFORMAT, "%s: tensor %s is not aligned to its elements (offset %lld)", at->file, t->name,
                    (long long)begin);
    return 0;
}

// ---- one file -------------------------------------------------------------------------------------------------------

static int by_place(const void *pa, const void *pb)
{
    const struct eng_safetensor *a = pa, *b = pb;
    if (a->data != b->data)
        return (const char *)a->data < (const char *)b->data ? -1 : 1;
    return (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

static int by_name(const void *pa, const void *pb)
{
    const struct eng_safetensor *a = pa, *b = pb;
    return strcmp(a->name, b->name);
}

// The file's tensors, one after the other, must be exactly the data.
static int check_cover(struct eng_safetensor *t, size_t n, const char *data, int64_t size,
                       const struct eng_json_ctx *at)
{
    const char *next = data;
    if (n > 1)
        qsort(t, n, sizeof *t, by_place);
    for (size_t i = 0; i < n; i++) {
        if ((const char *)t[i].data < next)
            return FAIL(at, ENG_EFORMAT, "%s: tensors %s and %s overlap", at->file, t[i - 1].name, t[i].name);
        if ((const char *)t[i].data > next)
            return FAIL(at, ENG_EFORMAT, "%s: %lld bytes before tensor %s belong to no tensor", at->file,
                        (long long)((const char *)t[i].data - next), t[i].name);
        next = (const char *)t[i].data + t[i].bytes;
    }
    if (next != data + size)
        return FAIL(at, ENG_EFORMAT, "%s: the last %lld bytes belong to no tensor", at->file,
                    (long long)(data + size - next));
    return 0;
}

static int read_header(struct eng_safetensors *s, const struct mapping *m, const struct eng_json_ctx *at)
{
    const unsigned char *head = m->data;
    uint64_t len = 0;
    if (m->size < 8)
        return FAIL(at, ENG_EFORMAT, "%s has %zu bytes, too few for a safetensors file", at->file, m->size);
    for (int i = 0; i < 8; i++)
        len |= (uint64_t)head[i] << (8 * i);
    if (len > MAX_HEADER)
        return FAIL(at, ENG_EFORMAT, "%s: the header length is %llu, the limit is %d", at->file,
                    (unsigned long long)len, MAX_HEADER);
    if (len > m->size - 8)
        return FAIL(at, ENG_EFORMAT, "%s: the header length is %llu but the file has %zu bytes", at->file,
                    (unsigned long long)len, m->size);
    cJSON *json = NULL, *entry;
    int rc = eng_json_parse((const char *)m->data + 8, (size_t)len, at, &json);
    if (rc != 0)
        return rc;

    const char *data = (const char *)m->data + 8 + len;
    int64_t size = (int64_t)(m->size - 8 - len);
    size_t first = s->n;
    cJSON_ArrayForEach(entry, json)
    {
        if (strcmp(entry->string, "__metadata__") == 0)
            continue;
        if (strlen(entry->string) > MAX_NAME) {
            rc = FAIL(at, ENG_EFORMAT, "%s: a tensor's name is longer than %d bytes", at->file, MAX_NAME);
            goto done;
        }
        if (s->n == s->cap) {
            size_t cap = s->cap ? 2 * s->cap : 64;
            struct eng_safetensor *grown = realloc(s->tensors, cap * sizeof *grown);
            if (!grown) {
                rc = FAIL(at, ENG_ENOMEM, "%s: no memory for the list of tensors", at->file);
                goto done;
            }
            s->tensors = grown;
            s->cap = cap;
        }
        struct eng_safetensor *t = &s->tensors[s->n];
        *t = (struct eng_safetensor){.name = strdup(entry->string), .file = m->file};
        if (!t->name) {
            rc = FAIL(at, ENG_ENOMEM, "%s: no memory for the list of tensors", at->file);
            goto done;
        }
        s->n++;
        if ((rc = read_tensor(entry, data, size, t, at)) != 0)
            goto done;
        s->bytes += t->bytes;
    }
    rc = s->tensors ? check_cover(s->tensors + first, s->n - first, data, size, at) : 0;
    if (rc == 0 && s->n == first)
        rc = FAIL(at, ENG_EFORMAT, "%s holds no tensors", at->file);
done:
    cJSON_Delete(json);
    return rc;
}

// `missing` (may be NULL) is set instead of an error when the file does not exist.
static int map_file(struct eng_safetensors *s, const char *dir, const char *file, bool *missing, char *err,
                    size_t err_size)
{
    struct eng_json_ctx at = {file, err, err_size};
    char *path = NULL;
    int fd = -1, rc = 0;
    struct mapping *grown = realloc(s->maps, (s->n_maps + 1) * sizeof *grown);
    if (grown)
        s->maps = grown;
    if (!grown || asprintf(&path, "%s/%s", dir, file) < 0)
        return FAIL(&at, ENG_ENOMEM, "no memory to open %s", file);
    struct mapping *m = &s->maps[s->n_maps];
    *m = (struct mapping){.file = strdup(file)};
    s->n_maps++;
    if (!m->file) {
        rc = FAIL(&at, ENG_ENOMEM, "no memory to open %s", file);
        goto done;
    }
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) {
        if (missing && errno == ENOENT)
            *missing = true;
        else
            rc = FAIL(&at, ENG_EIO, "cannot open %s: %s", path, strerror(errno));
        goto done;
    }
    struct stat st;
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) {
        rc = FAIL(&at, ENG_EIO, "%s is not a regular file", path);
        goto done;
    }
    if (st.st_size < 8) {
        rc = FAIL(&at, ENG_EFORMAT, "%s has %lld bytes, too few for a safetensors file", path, (long long)st.st_size);
        goto done;
    }
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED) {
        rc = FAIL(&at, ENG_EIO, "cannot map %s: %s", path, strerror(errno));
        goto done;
    }
    m->data = data;
    m->size = (size_t)st.st_size;
    (void)madvise(data, m->size, MADV_WILLNEED); // a hint: start reading while the headers are checked
    rc = read_header(s, m, &at);
done:
    if (fd >= 0)
        close(fd);
    free(path);
    return rc;
}

// ---- shards ---------------------------------------------------------------------------------------------------------

// A shard is a plain file name in the same folder.
static bool shard_name_ok(const char *name)
{
    size_t len = strlen(name), ext = strlen(".safetensors");
    return len > ext && len < 256 && name[0] != '.' && !strpbrk(name, "/\\") &&
           strcmp(name + len - ext, ".safetensors") == 0;
}

static bool is_mapped(const struct eng_safetensors *s, const char *file)
{
    for (size_t i = 0; i < s->n_maps; i++)
        if (strcmp(s->maps[i].file, file) == 0)
            return true;
    return false;
}

static int by_entry_name(const void *pa, const void *pb)
{
    const cJSON *const *a = pa, *const *b = pb;
    return strcmp((*a)->string, (*b)->string);
}

// weight_map and the shards' headers must name the same tensors in the same files.
static int check_weight_map(const struct eng_safetensors *s, const cJSON *map, const struct eng_json_ctx *at)
{
    size_t n = (size_t)cJSON_GetArraySize(map), i = 0;
    const cJSON **entries = malloc((n ? n : 1) * sizeof *entries), *entry;
    int rc = 0;
    if (!entries)
        return FAIL(at, ENG_ENOMEM, "no memory to read %s", at->file);
    cJSON_ArrayForEach(entry, map) entries[i++] = entry;
    qsort(entries, n, sizeof *entries, by_entry_name);
    for (i = 0; rc == 0 && (i < n || i < s->n); i++) {
        int order = i == n ? 1 : i == s->n ? -1 : strcmp(entries[i]->string, s->tensors[i].name);
        if (order > 0)
            rc = FAIL(at, ENG_EFORMAT, "%s holds tensor %s, which %s does not name", s->tensors[i].file,
                      s->tensors[i].name, at->file);
        else if (order < 0 || strcmp(entries[i]->valuestring, s->tensors[i].file) != 0)
            rc = FAIL(at, ENG_EFORMAT, "%s places tensor %.200s in %s, which does not hold it", at->file,
                      entries[i]->string, entries[i]->valuestring);
    }
    free(entries);
    return rc;
}

// Sorts and refuses a name that occurs twice.
static int sort_tensors(struct eng_safetensors *s, const struct eng_json_ctx *at)
{
    qsort(s->tensors, s->n, sizeof *s->tensors, by_name);
    for (size_t i = 1; i < s->n; i++)
        if (strcmp(s->tensors[i - 1].name, s->tensors[i].name) == 0)
            return FAIL(at, ENG_EFORMAT, "tensor %s occurs twice (%s, %s)", s->tensors[i].name, s->tensors[i - 1].file,
                        s->tensors[i].file);
    return 0;
}

static int open_shards(struct eng_safetensors *s, const char *dir, const char *single, const char *index, char *err,
                       size_t err_size)
{
    struct eng_json_ctx at = {index, err, err_size};
    cJSON *json = NULL, *entry;
    int rc = eng_json_load(dir, true, &at, &json);
    if (rc != 0)
        return rc;
    if (!json)
        return FAIL(&at, ENG_EIO, "%s holds neither %s nor %s", dir, single, index);
    const cJSON *map = cJSON_GetObjectItemCaseSensitive(json, "weight_map");
    if (!cJSON_IsObject(map)) {
        rc = FAIL(&at, ENG_EFORMAT, "%s has no \"weight_map\"", index);
        goto done;
    }
    cJSON_ArrayForEach(entry, map)
    {
        if (!cJSON_IsString(entry) || !shard_name_ok(entry->valuestring)) {
            char shown[80];
            rc =
                FAIL(&at, ENG_EFORMAT, "%s: tensor %.200s is in %s, expected the name of a .safetensors file beside it",
                     index, entry->string, eng_json_show(entry, shown, sizeof shown));
            goto done;
        }
        if (is_mapped(s, entry->valuestring))
            continue;
        if (s->n_maps == MAX_SHARDS) {
            rc = FAIL(&at, ENG_EFORMAT, "%s names more than %d files", index, MAX_SHARDS);
            goto done;
        }
        if ((rc = map_file(s, dir, entry->valuestring, NULL, err, err_size)) != 0)
            goto done;
    }
    if ((rc = sort_tensors(s, &at)) == 0)
        rc = check_weight_map(s, map, &at);
done:
    cJSON_Delete(json);
    return rc;
}

int eng_safetensors_open(const char *dir, const char *single, const char *index, struct eng_safetensors **ret,
                         char *err, size_t err_size)
{
    bool missing = false;
    struct eng_json_ctx at = {single, err, err_size};
    struct eng_safetensors *s = calloc(1, sizeof *s);
    if (!s)
        return FAIL(&at, ENG_ENOMEM, "no memory to open %s", single);
    int rc = map_file(s, dir, single, index ? &missing : NULL, err, err_size);
    if (rc == 0 && !missing)
        rc = sort_tensors(s, &at);
    if (rc == 0 && missing) {
        free(s->maps[--s->n_maps].file);
        rc = open_shards(s, dir, single, index, err, err_size);
    }
    if (rc != 0) {
        eng_safetensors_close(s);
        return rc;
    }
    *ret = s;
    return 0;
}

// ---- looking up -----------------------------------------------------------------------------------------------------

static struct eng_safetensor *find(const struct eng_safetensors *s, const char *name)
{
    struct eng_safetensor key = {.name = name};
    return bsearch(&key, s->tensors, s->n, sizeof key, by_name);
}

const struct eng_safetensor *eng_safetensors_find(const struct eng_safetensors *s, const char *name)
{
    return find(s, name);
}

const struct eng_safetensor *eng_safetensors_take(struct eng_safetensors *s, const char *name)
{
    struct eng_safetensor *t = find(s, name);
    if (t)
        t->used = true;
    return t;
}

const struct eng_safetensor *eng_safetensors_unused(const struct eng_safetensors *s)
{
    for (size_t i = 0; i < s->n; i++)
        if (!s->tensors[i].used)
            return &s->tensors[i];
    return NULL;
}

int64_t eng_safetensors_bytes(const struct eng_safetensors *s)
{
    return s->bytes;
}
