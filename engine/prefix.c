// 4 SCHEDULE  Chains of pages in a hash table. The key of a page is XXH3-128 over the key before it and the page's
// tokens, seeded by a secret of this process.
//
// A hit is a page with the same key, tokens, salt and parent page. As a parent stays cached for as long as a page that
// continues it, equality of parents is equality of everything before, and the comparison is exact without comparing
// whole prefixes.
#include "prefix.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/clock.h"
#include "base/err.h"

_Static_assert(sizeof((struct eng_prefix *)0)->secret >= XXH3_SECRET_SIZE_MIN, "the secret is long enough for XXH3");

// Without the kernel's randomness, what differs between processes.
static void make_secret(struct eng_prefix *p)
{
    if (getrandom(p->secret, sizeof p->secret, 0) == (ssize_t)sizeof p->secret)
        return;
    uint64_t seed[] = {(uint64_t)eng_now_ns(), (uint64_t)(uintptr_t)p};
    XXH3_generateSecret_fromSeed(p->secret, XXH3_64bits(seed, sizeof seed));
}

int eng_prefix_init(struct eng_prefix *p, int32_t n_pages, int32_t page_size)
{
    *p = (struct eng_prefix){.n_pages = n_pages, .page_size = page_size, .bucket_mask = 1, .key_mask = ~UINT64_C(0)};
    if (n_pages < 1 || page_size < 1)
        return ENG_EINVAL;
    while (p->bucket_mask < (uint64_t)n_pages)
        p->bucket_mask = p->bucket_mask * 2 + 1;
    p->entries = calloc((size_t)n_pages, sizeof *p->entries);
    p->ids = malloc((size_t)n_pages * (size_t)page_size * sizeof *p->ids);
    p->buckets = malloc((p->bucket_mask + 1) * sizeof *p->buckets);
    p->scratch = malloc(sizeof(struct eng_prefix_key) + (size_t)page_size * sizeof *p->ids);
    if (!p->entries || !p->ids || !p->buckets || !p->scratch) {
        eng_prefix_done(p);
        return ENG_ENOMEM;
    }
    for (uint64_t i = 0; i <= p->bucket_mask; i++)
        p->buckets[i] = -1;
    make_secret(p);
    return 0;
}

void eng_prefix_done(struct eng_prefix *p)
{
    free(p->entries);
    free(p->ids);
    free(p->buckets);
    free(p->scratch);
    *p = (struct eng_prefix){0};
}

static struct eng_prefix_key hash(const struct eng_prefix *p, const void *bytes, size_t n)
{
    XXH128_hash_t h = XXH3_128bits_withSecret(bytes, n, p->secret, sizeof p->secret);
    return (struct eng_prefix_key){h.low64, h.high64};
}

static struct eng_prefix_key key_after(const struct eng_prefix *p, const struct eng_prefix_chain *chain,
                                       const int32_t *ids)
{
    size_t n = (size_t)p->page_size * sizeof *ids;
    memcpy(p->scratch, &chain->key, sizeof chain->key);
    memcpy(p->scratch + sizeof chain->key, ids, n);
    struct eng_prefix_key key = hash(p, p->scratch, sizeof chain->key + n);
    key.low &= p->key_mask;
    key.high &= p->key_mask;
    return key;
}

static bool same(struct eng_prefix_key a, struct eng_prefix_key b)
{
    return a.low == b.low && a.high == b.high;
}

static int32_t *ids_of(const struct eng_prefix *p, int32_t page)
{
    return p->ids + (size_t)page * (size_t)p->page_size;
}

void eng_prefix_begin(const struct eng_prefix *p, const char *salt, struct eng_prefix_chain *ret)
{
    // No salt and an empty one are not the same: the terminator is hashed with a salt.
    struct eng_prefix_key key = hash(p, salt ? salt : "", salt ? strlen(salt) + 1 : 0);
    *ret = (struct eng_prefix_chain){.salt = key, .key = key, .last = -1};
}

static int32_t find(const struct eng_prefix *p, const struct eng_prefix_chain *chain, struct eng_prefix_key key,
                    const int32_t *ids)
{
    for (int32_t page = p->buckets[key.low & p->bucket_mask]; page >= 0; page = p->entries[page].next) {
        const struct eng_prefix_entry *e = &p->entries[page];
        if (same(e->key, key) && same(e->salt, chain->salt) && e->parent == chain->last &&
            !memcmp(ids_of(p, page), ids, (size_t)p->page_size * sizeof *ids))
            return page;
    }
    return -1;
}

static void advance(struct eng_prefix_chain *chain, struct eng_prefix_key key, int32_t page)
{
    chain->key = key;
    chain->last = page;
    chain->n_pages++;
}

int32_t eng_prefix_follow(const struct eng_prefix *p, struct eng_prefix_chain *chain, const int32_t *ids)
{
    struct eng_prefix_key key = key_after(p, chain, ids);
    int32_t page = find(p, chain, key, ids);
    if (page >= 0)
        advance(chain, key, page);
    return page;
}

void eng_prefix_extend(struct eng_prefix *p, struct eng_prefix_chain *chain, const int32_t *ids, int32_t page)
{
    struct eng_prefix_key key = key_after(p, chain, ids);
    struct eng_prefix_entry *e = &p->entries[page];
    int32_t *bucket = &p->buckets[key.low & p->bucket_mask];
    assert(!e->cached && (chain->last < 0 || p->entries[chain->last].cached));
    *e = (struct eng_prefix_entry){chain->salt, key, chain->last, *bucket, true};
    *bucket = page;
    memcpy(ids_of(p, page), ids, (size_t)p->page_size * sizeof *ids);
    advance(chain, key, page);
}

void eng_prefix_remove(struct eng_prefix *p, int32_t page)
{
    struct eng_prefix_entry *e = &p->entries[page];
    int32_t *at = &p->buckets[e->key.low & p->bucket_mask];
    assert(e->cached);
    while (*at != page)
        at = &p->entries[*at].next;
    *at = e->next;
    e->cached = false;
}

bool eng_prefix_has(const struct eng_prefix *p, int32_t page)
{
    return p->n_pages && p->entries[page].cached;
}
