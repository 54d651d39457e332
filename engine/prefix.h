// 4 SCHEDULE  The index of the prefix cache: which page of the KV store holds a given run of tokens after a given
// prefix.
//
// A page is known by its chain: all tokens from the sequence's start to the page's end, and the salt they were computed
// under. Chains are looked up by hash and then compared token by token, so that a collision costs a miss and never a
// wrong page. Knows nothing of who uses a page or whether it may be evicted (kv.c). Engine thread only; all memory is
// sized by init.
#pragma once

#include <stdbool.h>
#include <stdint.h>

struct eng_prefix_key {
    uint64_t low, high;
};

// How far a sequence has been followed into the cache.
struct eng_prefix_chain {
    struct eng_prefix_key salt, key; // hash of the salt; of everything up to here
    int32_t n_pages, last;           // pages so far and the last one; -1: none
};

struct eng_prefix_entry {
    struct eng_prefix_key salt, key;
    int32_t parent; // the page before it in the chain, which is cached for as long as this one; -1: the first
    int32_t next;   // in the same bucket; -1: none
    bool cached;
};

struct eng_prefix {
    int32_t n_pages, page_size;
    struct eng_prefix_entry *entries; // [n_pages], by page number
    int32_t *ids;                     // [n_pages][page_size]
    int32_t *buckets;                 // [bucket_mask + 1]: first page, -1: none
    uint64_t bucket_mask;
    uint8_t *scratch;    // what is hashed: a key and the tokens of a page
    uint8_t secret[192]; // random, so that no client can aim at another's pages
    uint64_t key_mask;   // ANDed with page keys; all ones but in tests, which force collisions
};

// 0, ENG_EINVAL or ENG_ENOMEM.
int eng_prefix_init(struct eng_prefix *p, int32_t n_pages, int32_t page_size);
// Takes a zeroed or half-built object.
void eng_prefix_done(struct eng_prefix *p);

// The empty chain. salt: NULL for none; chains of different salts share nothing.
void eng_prefix_begin(const struct eng_prefix *p, const char *salt, struct eng_prefix_chain *ret);
// The page that holds the chain continued by ids [page_size], and the chain is then longer by it; or -1.
int32_t eng_prefix_follow(const struct eng_prefix *p, struct eng_prefix_chain *chain, const int32_t *ids);
// Makes a page, which is not cached, the holder of the chain continued by ids, which nobody holds yet.
void eng_prefix_extend(struct eng_prefix *p, struct eng_prefix_chain *chain, const int32_t *ids, int32_t page);
// Forgets a cached page that no other cached page continues.
void eng_prefix_remove(struct eng_prefix *p, int32_t page);
bool eng_prefix_has(const struct eng_prefix *p, int32_t page);
