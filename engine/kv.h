// 4 SCHEDULE  Pages of the KV store: which sequences use which, and how far each sequence's KV is final.
//
// The store itself belongs to the model; here are only page numbers. A page is free, used by one or more slots, or
// cached: used by nobody and kept for what it holds until it is needed for something else, the longest unused first.
// Only pages wholly below a slot's committed positions are ever shared. Engine thread only. All memory is sized by
// init. The numbered rules of engine/README.md are kept here and by the scheduler.
#pragma once

#include <stdbool.h>
#include <stdint.h>

#include "prefix.h"

struct eng_kv_slot {
    int32_t *pages; // [max_pages]; the first n_pages are used by it
    int32_t n_pages;
    int32_t committed;             // positions 0 .. committed - 1 hold final KV
    struct eng_prefix_chain chain; // its first chain.n_pages pages are in the prefix cache
};

struct eng_kv_page {
    int32_t n_users;        // slots
    int32_t older, younger; // of the cached pages, in the order of their last use; -1: the end
};

struct eng_kv {
    int32_t n_pages, page_size;
    int32_t n_slots, max_pages; // a slot's limit
    int32_t *free_pages;        // stack of n_free page numbers
    int32_t n_free;
    struct eng_kv_page *pages;
    int32_t oldest, youngest, n_cached; // the list of cached pages
    struct eng_kv_slot *slots;
    int32_t *tables;          // every slot's pages, one block
    struct eng_prefix prefix; // zeroed: nothing is shared
};

// max_positions: the longest a sequence may become. 0 or ENG_ENOMEM, ENG_EINVAL.
int eng_kv_init(struct eng_kv *kv, int32_t n_pages, int32_t page_size, int32_t n_slots, int32_t max_positions);
// From now on finished pages are shared. Right after init. 0 or ENG_ENOMEM.
int eng_kv_enable_sharing(struct eng_kv *kv);
// Takes a zeroed or half-built object.
void eng_kv_done(struct eng_kv *kv);

// Pages that n positions need.
int32_t eng_kv_pages_for(const struct eng_kv *kv, int32_t n_positions);
// Pages that the slot lacks for positions 0 .. n_positions - 1.
int32_t eng_kv_missing(const struct eng_kv *kv, int32_t slot, int32_t n_positions);
// Pages that a reservation may take: free ones and cached ones.
int32_t eng_kv_available(const struct eng_kv *kv);
// Makes sure that the slot has pages for positions 0 .. n_positions - 1. All or nothing: 0, or ENG_ELIMIT when too few
// pages are available.
int eng_kv_reserve(struct eng_kv *kv, int32_t slot, int32_t n_positions);
// Positions below n_positions are final from now on. Never goes back, never beyond what is reserved.
void eng_kv_commit(struct eng_kv *kv, int32_t slot, int32_t n_positions);
// Gives back the pages that lie wholly beyond the committed positions.
void eng_kv_rollback(struct eng_kv *kv, int32_t slot);
// Gives back everything; nothing is committed any more.
void eng_kv_release(struct eng_kv *kv, int32_t slot);

// Pages that others use now and that hold the first n_tokens tokens under this salt: they need not be reserved from
// what is available.
int32_t eng_kv_match_used(const struct eng_kv *kv, const int32_t *tokens, int32_t n_tokens, const char *salt);
// Gives an empty slot the cached pages that hold the beginning of tokens; only whole pages of the first n_tokens.
// Returns the positions they cover, which are then committed. salt: see eng_prefix_begin. The slot's first call; also
// needed where nothing is to be found, so that its pages can be shared later.
int32_t eng_kv_attach(struct eng_kv *kv, int32_t slot, const int32_t *tokens, int32_t n_tokens, const char *salt);
// The committed positions hold tokens; those of the first n_tokens that fill whole pages are shared from now on. Where
// another slot has shared the same, the slot's own page is given back for it: passes that were submitted may still read
// the old one, and whoever gets it writes it later.
void eng_kv_share(struct eng_kv *kv, int32_t slot, const int32_t *tokens, int32_t n_tokens);

// The slot's page numbers, for segments. Valid until the slot is reserved further, shared or released; the address
// itself never moves.
const int32_t *eng_kv_table(const struct eng_kv *kv, int32_t slot);
// Pages that slots use.
int32_t eng_kv_used(const struct eng_kv *kv);

// Debug: true when every page is exactly one of free, cached and used, with the right number of users, shared pages
// are in the prefix cache, and no cached page outlives the one before it. Costs O(pages).
bool eng_kv_check(const struct eng_kv *kv);
