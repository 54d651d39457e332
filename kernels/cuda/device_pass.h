// The pass as kernels see it: one block of device memory, filled by one copy before the pass runs.
//
// Graphs hold the block's address, so it never moves while a graph lives; what changes from pass to pass is its
// content. The header stands first; the arrays follow at the byte offsets that it names, packed, so that one copy of
// `bytes` brings all. A kernel launched for a bucket of rows reads the true counts here. C and CUDA C++; made by
// pass.c.
#pragma once

#include <stdint.h>

struct krn_dev_segment {
    int32_t row, rows, first_pos;
    int32_t mask;     // enum krn_mask
    int32_t pages;    // index of its first page number in the pages array
    int32_t n_chunks; // of KRN_ATTENTION_CHUNK positions that its last row sees
    int32_t sums;     // first slot of its partial results, or -1: its items take all chunks and fold them themselves
};

// A piece of attention, done by one block of KRN_ATTENTION_WARPS warps. A query is a (row of the segment, head of the
// kv head's group): index row * group + head; KRN_ATTENTION_QUERIES of them are a tile. Where segment.sums >= 0 every
// chunk's result goes to memory, that of (kv head, query, chunk) to the slot
//     segment.sums + (kv_head * segment.rows * group + query) * segment.n_chunks + chunk,
// and an item without chunks, behind all others, has the slots of its tile folded.
// deep 0: warp w takes tile `tile + w`; deep 1: one tile, the warps divide every chunk. Which is chosen never changes a
// bit.
struct krn_dev_attention_item {
    int32_t segment, kv_head;
    int32_t tile, n_tiles;   // 1 .. KRN_ATTENTION_WARPS
    int32_t chunk, n_chunks; // 0 chunks: fold
    int32_t deep;
};

enum {
    KRN_ATTENTION_CHUNK = 64,   // positions whose scores are computed together; fixes the order of all sums
    KRN_ATTENTION_QUERIES = 16, // queries of one warp
    KRN_ATTENTION_WARPS = 4,
};

// struct krn_select_row as the device has it; the lists are in the pass's own arrays.
struct krn_dev_select {
    int32_t row; // of the logits (index within its chunk)
    float temperature;
    int32_t top_k;
    float top_p, min_p;
    float repetition_penalty, frequency_penalty, presence_penalty;
    uint64_t seed;
    int64_t position;
    int32_t allowed;          // byte offset / 4 of the bitmap from the pass's start, -1: none
    int32_t counts, n_counts; // index into the counts array (struct krn_dev_count)
    int32_t biases, n_biases; // index into the biases array (struct krn_dev_bias)
    int32_t n_top;
};

struct krn_dev_count {
    int32_t token, in_output, in_prompt;
};

struct krn_dev_bias {
    int32_t token;
    float bias;
};

// One choice as it travels back. The alternatives are in a separate array, copied only when some row wants them.
struct krn_dev_choice {
    int32_t token;
    float confidence, logprob;
    int32_t n_top;
};

enum { KRN_DEV_TOP_MAX = 20 };
struct krn_dev_top {
    int32_t token[KRN_DEV_TOP_MAX];
    float logprob[KRN_DEV_TOP_MAX];
};

struct krn_dev_accept {
    int32_t row, rows, choice;
};

struct krn_dev_accepted {
    int32_t n, seed;
};

struct krn_dev_pass {
    int32_t n_rows, n_segments, n_wanted, n_items, n_accepts;
    uint32_t bytes; // of the whole block
    // Byte offsets from the start of this header.
    uint32_t tokens;       // int32 [n_rows]
    uint32_t links;        // int32 [n_rows]; -1: the token above, else index of the last pass's choice
    uint32_t positions;    // int32 [n_rows]
    uint32_t row_segments; // int32 [n_rows]
    uint32_t adapter_rows; // uint8 [n_rows]
    uint32_t segments;     // struct krn_dev_segment [n_segments]
    uint32_t items;        // struct krn_dev_attention_item [n_items]
    uint32_t pages;        // int32
    uint32_t wanted_rows;  // int32 [n_wanted]
    uint32_t selects;      // struct krn_dev_select [n_wanted]
    uint32_t counts;       // struct krn_dev_count
    uint32_t biases;       // struct krn_dev_bias
    uint32_t accepts;      // struct krn_dev_accept [n_accepts]
};

#define KRN_PASS_ARRAY(pass, type, field) ((const type *)((const char *)(pass) + (pass)->field))
