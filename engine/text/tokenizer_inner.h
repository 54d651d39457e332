// Inner to tokenizer*.c: the loaded tables.
#pragma once

#include "text/tokenizer.h"

#include "text/pretokenizer.h"

enum { PIECE_USED = 1, PIECE_SPECIAL = 2, PIECE_ADDED = 4, PIECE_LSTRIP = 8, PIECE_RSTRIP = 16, PIECE_PLAIN = 32 };

struct piece {
    size_t offset; // into bytes
    uint32_t len;
    uint32_t flags; // PIECE_PLAIN: byte-level vocabulary, can come out of BPE
};

struct merge {
    uint64_t key; // left id << 32 | right id; UINT64_MAX: empty slot
    int32_t rank, id;
};

struct eng_tokenizer {
    struct eng_pretokenizer *pre;
    char *bytes; // the pieces' bytes
    struct piece *pieces;
    size_t n_pieces; // largest id + 1

    int32_t *piece_slots; // open addressing over the PLAIN pieces' bytes; -1: empty
    size_t piece_mask;    // slots - 1, a power of two less one
    struct merge *merges; // open addressing
    size_t merge_mask;

    int32_t *added; // ids of added tokens, sorted by their bytes
    size_t n_added;
    size_t added_first[257]; // added[added_first[c] .. added_first[c + 1]) begin with byte c

    int32_t byte_ids[256]; // the token of each single byte, -1: none
    int32_t unk_id;        // -1: none
    bool fuse_unk, ignore_merges;
};

struct ids {
    int32_t *data;
    size_t n, cap;
};

// 0, ENG_ENOMEM or ENG_ELIMIT.
int eng_tokenizer_push_id(struct ids *ids, int32_t id);
// Id of the PLAIN piece with these bytes, or -1.
int32_t eng_tokenizer_find_piece(const struct eng_tokenizer *t, const char *bytes, size_t len);
// Slot of (left, right), or the empty slot where it would be.
struct merge *eng_tokenizer_find_merge(const struct eng_tokenizer *t, int32_t left, int32_t right);
// Where the search for a piece begins; the caller steps by one.
size_t eng_tokenizer_hash(const char *bytes, size_t len);
// BPE of one piece, not empty.
int eng_tokenizer_bpe(const struct eng_tokenizer *t, const char *piece, size_t len, struct ids *out);
