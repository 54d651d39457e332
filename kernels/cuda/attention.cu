// Paged attention over all segments of a pass: y[r][h] = softmax(q[r][h] . K / sqrt(head_dim)) V over what the
// segment's mask lets row r see. q is bf16 and already multiplied by log2(e) / sqrt(head_dim).
//
// A persistent grid of blocks takes the pass's items in turn (attention_plan.h). A block walks the item's chunks of 64
// positions; while it works on one, the next two are on their way from the pages to shared memory. The item's queries
// are several tiles, one for each warp, or one tile whose every chunk the four warps divide: then a step of 16
// positions is one warp's for the scores, the weights are exchanged, and a quarter of the values is one warp's. A
// chunk's result is folded into the item's or, where the segment is cut, written to its slots, which `fold` folds in
// the same order with the same arithmetic. The arithmetic of a warp and its rules are in attention_tile.cuh.
//
// What is read of K and V: every chunk once for 4 tiles (a kv head's group of 4 and 16 rows) or fewer. Positions behind
// the segment's last are not read, whatever a page holds there.
#include "kernels.h"
#include "ops.h"

#include "attention_plan.h"
#include "attention_tile.cuh"

using namespace attention;

namespace
{

enum {
    THREADS = 32 * WARPS,
    BUFFERS = 3, // chunks in shared memory: one is worked on, two are on their way
};

// Shared memory: keys and values of some chunks, their scales, what the warps of a divided chunk tell each other.
template <class L> struct room {
    enum {
        SCALES = BUFFERS * 2 * L::TILE_BYTES,
        MAXES = SCALES + (L::FP8 ? BUFFERS * 2 * CHUNK * 4 : 0), // f32 [warp][query]
        SUMS = MAXES + WARPS * QUERIES * 4,                      // f32 [warp][query]
        WEIGHTS = SUMS + WARPS * QUERIES * 4,                    // uint4 [warp][lane]
        BYTES = WEIGHTS + WARPS * 32 * 16,
    };
};
template <class L> KRN_DEVICE int keys_of(int buffer)
{
    return 2 * buffer * L::TILE_BYTES;
}
template <class L> KRN_DEVICE int values_of(int buffer)
{
    return (2 * buffer + 1) * L::TILE_BYTES;
}
template <class L> KRN_DEVICE simt::smem<float> scales_of(int buffer) // of keys, then of values
{
    return simt::shared<float>(room<L>::SCALES).at(2 * CHUNK * buffer);
}

// ---- from pages to shared memory ------------------------------------------------------------------------------------

// Where a segment's keys and values of one kv head are.
struct source {
    size_t first;  // vector of page 0
    int32_t pages; // where in the pass, in words, its page numbers begin
    int32_t last;  // position of the segment
};

KRN_DEVICE struct source source_of(const struct krn_attention_args &a, const struct krn_dev_segment &segment,
                                   int kv_head)
{
    struct source source;
    source.first =
        ((size_t)a.layer * (size_t)a.kv.n_pages * (size_t)a.kv.n_kv_heads + (size_t)kv_head) * (size_t)a.kv.page_size;
    source.pages = (int32_t)(a.pass->pages / sizeof(int32_t)) + segment.pages;
    source.last = segment.first_pos + segment.rows - 1;
    return source;
}

// The position of a chunk that this lane looks up: a warp copies 16 of them, and its halves do the same.
KRN_DEVICE int position_of(int chunk)
{
    return chunk * CHUNK + STEP * simt::warp() + (simt::lane() & 15);
}
KRN_DEVICE int32_t page_of(const struct krn_attention_args &a, const struct source &from, int chunk)
{
    int position = position_of(chunk);
    return position <= from.last ? ((const int32_t *)a.pass)[from.pages + position / a.kv.page_size] : 0;
}

// The warp's part of the copies of a chunk, one group (empty from chunk `end` on); page: page_of the chunk. Returns
// what this lane has to put into the chunk's scales. A layer has less than 2^32 vectors.
template <class L>
KRN_DEVICE float copy_chunk(const struct krn_dev_kv &kv, const struct source &from, int chunk, int end, int32_t page,
                            int buffer)
{
    enum { ROWS = 32 / L::UNITS }; // at once
    int position = position_of(chunk), lane = simt::lane(), unit = lane % L::UNITS;
    unsigned vector = (unsigned)page * (unsigned)(kv.n_kv_heads * kv.page_size) + (unsigned)(position % kv.page_size);
    KRN_UNROLL for (int i = 0; i < STEP / ROWS && chunk < end; i++)
    {
        int row = i * ROWS + lane / L::UNITS;
        bool valid = position - (lane & 15) + row <= from.last;
        size_t offset = (from.first + simt::shuffle(vector, row)) * L::ROW_BYTES + (size_t)(unit * 16);
        int at = byte_of<L>(STEP * simt::warp() + row, unit);
        offset = valid ? offset : 0;
        simt::copy16_async(simt::shared<uint4>(keys_of<L>(buffer) + at), (const char *)kv.k + offset, valid);
        simt::copy16_async(simt::shared<uint4>(values_of<L>(buffer) + at), (const char *)kv.v + offset, valid);
    }
    simt::copy_commit();
    if (!L::FP8 || chunk >= end || position > from.last)
        return 0;
    return (lane < 16 ? kv.k_scales : kv.v_scales)[from.first + vector];
}

template <class L> KRN_DEVICE void put_scale(int buffer, float scale)
{
    int lane = simt::lane();
    if (L::FP8)
        scales_of<L>(buffer).set((lane < 16 ? 0 : CHUNK) + STEP * simt::warp() + (lane & 15), scale);
}

// ---- an item --------------------------------------------------------------------------------------------------------

enum { FOLDED = -1, NOBODY = -2 }; // instead of a slot: this item folds; there is no such query

// The queries g and g + 8 of a warp's tile.
struct queries {
    int32_t limit[2]; // last position that it sees
    int32_t slots[2]; // of chunk 0
};

KRN_DEVICE int32_t limit_of(const struct krn_dev_segment &segment, int row)
{
    return segment.first_pos + (segment.mask == KRN_MASK_CAUSAL ? row : segment.rows - 1);
}

KRN_DEVICE const struct krn_dev_attention_item &item_of(const struct krn_attention_args &a, int index)
{
    return KRN_PASS_ARRAY(a.pass, struct krn_dev_attention_item, items)[index];
}
KRN_DEVICE const struct krn_dev_segment &segment_of(const struct krn_attention_args &a,
                                                    const struct krn_dev_attention_item &item)
{
    return KRN_PASS_ARRAY(a.pass, struct krn_dev_segment, segments)[item.segment];
}
KRN_DEVICE int group_of(const struct krn_attention_args &a)
{
    return a.n_heads / a.kv.n_kv_heads;
}

KRN_DEVICE int slot_of(const struct krn_attention_args &a, const struct krn_dev_segment &segment, int kv_head,
                       int query)
{
    return segment.sums + (kv_head * segment.rows * group_of(a) + query) * segment.n_chunks;
}

KRN_DEVICE uint16_t *y_of(const struct krn_attention_args &a, const struct krn_dev_segment &segment, int kv_head,
                          int query)
{
    int group = group_of(a), row = segment.row + query / group, head = kv_head * group + query % group;
    return a.y + (size_t)row * (size_t)KRN_PAD(a.n_heads * a.kv.head_dim) + (size_t)(head * a.kv.head_dim);
}

// Finds the queries of a tile and loads them. Where the tile has fewer, the segment's last one stands in.
template <class L>
KRN_DEVICE void take_queries(struct queries *ret, uint32_t (&q)[L::Q_STEPS][4], const struct krn_attention_args &a,
                             const struct krn_dev_segment &segment, int kv_head, int tile)
{
    int group = group_of(a), n = segment.rows * group;
    const uint16_t *from[2];
    KRN_UNROLL for (int r = 0; r < 2; r++)
    {
        int query = tile * QUERIES + simt::lane() / 4 + 8 * r;
        bool real = query < n;
        query = real ? query : n - 1;
        int row = query / group, head = kv_head * group + query % group;
        ret->limit[r] = limit_of(segment, row);
        ret->slots[r] = segment.sums < 0 ? FOLDED : real ? slot_of(a, segment, kv_head, query) : NOBODY;
        from[r] = a.q + ((size_t)(segment.row + row) * (size_t)a.n_heads + (size_t)head) * L::DIM;
    }
    load_queries<L>(q, from);
}

// What a warp has summed: PAIRS pairs of units of the values, the first and every `stride`th after it.
template <class L, int PAIRS> struct answer {
    float max[2], sum[2];
    float o[PAIRS][L::PARTS][4];
};

// The chunk's weights as the second product takes them, its largest scores and sums. Alone: the whole chunk by this
// warp.
template <class L>
KRN_DEVICE void weights_alone(uint32_t (&p)[STEPS][4], float (&max)[2], float (&sum)[2],
                              const uint32_t (&q)[L::Q_STEPS][4], const int (&seen)[2], int buffer)
{
    float s[STEPS][2][4], sums[STEPS][2];
    score<L>(s, q, keys_of<L>(buffer), 0);
    mask<L>(s, scales_of<L>(buffer), 0, seen);
    largest(max, s);
    weigh<L>(p, sums, s, max, scales_of<L>(buffer).at(CHUNK), 0);
    total(sum, sums);
}

// Divided: a step by each warp, the same in every warp at the end. All warps of the block call.
template <class L>
KRN_DEVICE void weights_divided(uint32_t (&p)[STEPS][4], float (&max)[2], float (&sum)[2],
                                const uint32_t (&q)[L::Q_STEPS][4], const int (&seen)[2], int buffer)
{
    simt::smem<float> all_maxes = simt::shared<float>(room<L>::MAXES), all_sums = simt::shared<float>(room<L>::SUMS);
    simt::smem<uint4> weights = simt::shared<uint4>(room<L>::WEIGHTS);
    int lane = simt::lane(), warp = simt::warp(), g = lane / 4;
    float s[1][2][4], mine[1][2], sums[STEPS][2];
    uint32_t step[1][4];
    score<L>(s, q, keys_of<L>(buffer), warp);
    mask<L>(s, scales_of<L>(buffer), warp, seen);
    largest(max, s);
    if (lane % 4 < 2)
        all_maxes.set(warp * QUERIES + g + 8 * (lane % 4), lane % 4 ? max[1] : max[0]);
    simt::sync_block();
    KRN_UNROLL for (int r = 0; r < 2; r++) KRN_UNROLL for (int w = 0; w < WARPS; w++) max[r] =
        fmaxf(max[r], all_maxes.get(w * QUERIES + g + 8 * r));
    weigh<L>(step, mine, s, max, scales_of<L>(buffer).at(CHUNK), warp);
    if (lane % 4 < 2)
        all_sums.set(warp * QUERIES + g + 8 * (lane % 4), lane % 4 ? mine[0][1] : mine[0][0]);
    weights.set(warp * 32 + lane, make_uint4(step[0][0], step[0][1], step[0][2], step[0][3]));
    simt::sync_block();
    KRN_UNROLL for (int i = 0; i < STEPS; i++)
    {
        uint4 four = weights.get(i * 32 + lane);
        p[i][0] = four.x, p[i][1] = four.y, p[i][2] = four.z, p[i][3] = four.w;
        KRN_UNROLL for (int r = 0; r < 2; r++) sums[i][r] = all_sums.get(i * QUERIES + g + 8 * r);
    }
    total(sum, sums);
}

// Multiplies the weights by the values and folds the result into the answer or puts it into the queries' slots.
template <class L, int PAIRS>
KRN_DEVICE void take_values(struct answer<L, PAIRS> *answer, float *all_sums, const int (&slots)[2],
                            const uint32_t (&p)[STEPS][4], const float (&max)[2], const float (&sum)[2], int buffer,
                            int first, int stride)
{
    struct shares shares[2];
    KRN_UNROLL for (int r = 0; r < 2; r++)
    {
        if (slots[r] == FOLDED)
            shares[r] = fold_in(&answer->max[r], &answer->sum[r], max[r], sum[r]);
        else if (slots[r] >= 0 && first == 0 && simt::lane() % 4 == 0)
            simt::store8(all_sums + (size_t)slots[r] * L::SLOT + L::DIM, make_float2(max[r], sum[r]));
    }
    KRN_UNROLL for (int i = 0; i < PAIRS; i++)
    {
        int pair = first + i * stride;
        if (pair >= L::PAIRS)
            break;
        float o[L::PARTS][4];
        weigh_values<L>(o, p, values_of<L>(buffer), pair);
        KRN_UNROLL for (int part = 0; part < L::PARTS; part++) KRN_UNROLL for (int r = 0; r < 2; r++)
        {
            float *total = &answer->o[i][part][2 * r];
            if (slots[r] == FOLDED) {
                total[0] = fold_value(total[0], o[part][2 * r], shares[r]);
                total[1] = fold_value(total[1], o[part][2 * r + 1], shares[r]);
            } else if (slots[r] >= 0) {
                simt::store8(all_sums + (size_t)slots[r] * L::SLOT + dimension<L>(pair, part),
                             neighbours<L>(o, part, r));
            }
        }
    }
}

template <class L, int PAIRS>
KRN_DEVICE void write_answer(const struct answer<L, PAIRS> &answer, const struct krn_attention_args &a,
                             const struct krn_dev_segment &segment, int kv_head, int tile, int first, int stride)
{
    KRN_UNROLL for (int r = 0; r < 2; r++)
    {
        int query = tile * QUERIES + simt::lane() / 4 + 8 * r;
        if (query >= segment.rows * group_of(a))
            continue;
        uint16_t *y = y_of(a, segment, kv_head, query);
        float scale = KRN_DIV(1.0f, answer.sum[r]);
        KRN_UNROLL for (int i = 0; i < PAIRS; i++) KRN_UNROLL for (int part = 0; part < L::PARTS; part++)
        {
            int pair = first + i * stride, d = dimension<L>(pair, part);
            float2 two = neighbours<L>(answer.o[i], part, r);
            if (pair < L::PAIRS && d < a.kv.head_dim)
                *(uint32_t *)(y + d) = simt::pack_bf16(KRN_MUL(two.x, scale), KRN_MUL(two.y, scale));
        }
    }
}

// Waits for the kernels before this one, once. The pass's description and all positions before a segment's rows were
// complete when the pass began, so a block that starts early already copies those.
KRN_DEVICE void wait_once(bool *waited)
{
    if (*waited)
        return;
    simt::wait_for_inputs();
    simt::let_next_start();
    *waited = true;
}

// One of an item's first chunks, whose rows may be of this pass.
template <class L>
KRN_DEVICE void copy_early(const struct krn_dev_kv &kv, const struct source &from, int first_pos, int chunk, int end,
                           int32_t page, int buffer, bool *waited)
{
    if (chunk < end && (chunk + 1) * CHUNK > first_pos)
        wait_once(waited);
    put_scale<L>(buffer, copy_chunk<L>(kv, from, chunk, end, page, buffer));
}

template <class L, bool DIVIDED>
KRN_DEVICE void attend_item(const struct krn_attention_args &a, const struct krn_dev_attention_item &item, bool *waited)
{
    enum { PAIRS = DIVIDED ? (L::PAIRS + WARPS - 1) / WARPS : L::PAIRS, STRIDE = DIVIDED ? WARPS : 1 };
    const struct krn_dev_segment segment = segment_of(a, item);
    const struct source from = source_of(a, segment, item.kv_head);
    int first = DIVIDED ? simt::warp() : 0, tile = item.tile + (DIVIDED ? 0 : simt::warp());
    int chunk = item.chunk, end = chunk + item.n_chunks;
    bool works = tile < item.tile + item.n_tiles;
    struct queries queries;
    uint32_t q[L::Q_STEPS][4];
    struct answer<L, PAIRS> answer {
    };
    answer.max[0] = answer.max[1] = -INFINITY;
    int32_t page = page_of(a, from, chunk), next = page_of(a, from, chunk + 1);
    copy_early<L>(a.kv, from, segment.first_pos, chunk, end, page, 0, waited);
    page = page_of(a, from, chunk + 2);
    copy_early<L>(a.kv, from, segment.first_pos, chunk + 1, end, next, 1, waited);
    wait_once(waited);
    take_queries<L>(&queries, q, a, segment, item.kv_head, works ? tile : item.tile);
    for (int buffer = 0, ahead = BUFFERS - 1; chunk < end; chunk++) {
        simt::copy_wait<BUFFERS - 2>();
        simt::sync_block();
        float scale = copy_chunk<L>(a.kv, from, chunk + BUFFERS - 1, end, page, ahead);
        page = page_of(a, from, chunk + BUFFERS);
        // Lane 31 has the tile's last query: does it see anything here?
        if (works && chunk * CHUNK <= simt::shuffle(queries.limit[1], 31)) {
            uint32_t p[STEPS][4];
            float max[2], sum[2];
            int seen[2] = {queries.limit[0] - chunk * CHUNK, queries.limit[1] - chunk * CHUNK};
            if (DIVIDED)
                weights_divided<L>(p, max, sum, q, seen, buffer);
            else
                weights_alone<L>(p, max, sum, q, seen, buffer);
            int slots[2];
            KRN_UNROLL for (int r = 0; r < 2; r++) slots[r] =
                queries.slots[r] < 0 ? queries.slots[r] : queries.slots[r] + chunk;
            take_values(&answer, a.sums, slots, p, max, sum, buffer, first, STRIDE);
        }
        put_scale<L>(ahead, scale);
        buffer = buffer == BUFFERS - 1 ? 0 : buffer + 1;
        ahead = ahead == BUFFERS - 1 ? 0 : ahead + 1;
    }
    if (works && segment.sums < 0)
        write_answer(answer, a, segment, item.kv_head, tile, first, STRIDE);
}

template <class L> KRN_KERNEL(THREADS, KRN_ATTENTION_BLOCKS) attend(KRN_ARGS(struct krn_attention_args) a)
{
    bool waited = false;
    for (int i = simt::block_x(); i < a.pass->n_items; i += simt::grid_x()) {
        const struct krn_dev_attention_item item = item_of(a, i);
        if (item.n_chunks == 0)
            break;
        if (item.deep)
            attend_item<L, true>(a, item, &waited);
        else
            attend_item<L, false>(a, item, &waited);
        simt::sync_block(); // before shared memory is written again
    }
    wait_once(&waited); // the kernels after this one take our end for the end of those before
}

// ---- folding the slots ----------------------------------------------------------------------------------------------

enum { BATCH = 32 }; // slots copied at once

template <class L> KRN_DEVICE void copy_slots(const float *slots, int n, int buffer)
{
    enum { UNITS = L::SLOT / 4 };
    simt::smem<uint4> to = simt::shared<uint4>(buffer * BATCH * UNITS * 16);
    for (int i = simt::thread(); i < n * UNITS; i += THREADS)
        simt::copy16_async(to.at(i), slots + i * 4, true);
    simt::copy_commit();
}

// One query's slots by one block: a dimension is one thread's, chunks ascend.
template <class L> KRN_DEVICE void fold_slots(const float *slots, int n, uint16_t *y, int head_dim)
{
    int d = simt::thread();
    float max = -INFINITY, sum = 0, value = 0;
    copy_slots<L>(slots, n < BATCH ? n : BATCH, 0);
    for (int c = 0, buffer = 0; c < n; c += BATCH, buffer ^= 1) {
        simt::copy_wait<0>();
        simt::sync_block();
        int left = n - c - BATCH;
        if (left > 0)
            copy_slots<L>(slots + (size_t)(c + BATCH) * L::SLOT, left < BATCH ? left : BATCH, buffer ^ 1);
        simt::smem<float> slot = simt::shared<float>(buffer * BATCH * L::SLOT * 4);
        int here = d >= L::DIM ? 0 : n - c < BATCH ? n - c : BATCH;
        // Several at once: what takes long in one does not wait for the one before.
        KRN_UNROLL_BY(8)
        for (int i = 0; i < here; i++, slot = slot.at(L::SLOT)) {
            struct shares shares = fold_in(&max, &sum, slot.get(L::DIM), slot.get(L::DIM + 1));
            value = fold_value(value, slot.get(d), shares);
        }
    }
    if (d < head_dim)
        y[d] = (uint16_t)simt::pack_bf16(KRN_MUL(value, KRN_DIV(1.0f, sum)), 0);
}

// Blocks (., j) take query j of the tiles whose items stand without chunks at the end of all.
template <class L> KRN_KERNEL(THREADS, 4) fold(KRN_ARGS(struct krn_attention_args) a)
{
    bool waited = false;
    for (int i = a.pass->n_items - 1 - simt::block_x(); i >= 0; i -= simt::grid_x()) {
        const struct krn_dev_attention_item &item = item_of(a, i);
        if (item.n_chunks > 0)
            break;
        const struct krn_dev_segment &segment = segment_of(a, item);
        int query = item.tile * QUERIES + simt::block_y(), kv_head = item.kv_head, group = group_of(a);
        if (query >= segment.rows * group)
            continue;
        wait_once(&waited);
        fold_slots<L>(a.sums + (size_t)slot_of(a, segment, kv_head, query) * L::SLOT,
                      limit_of(segment, query / group) / CHUNK + 1, y_of(a, segment, kv_head, query), a.kv.head_dim);
        simt::sync_block(); // before shared memory is written again
    }
    wait_once(&waited);
}

template <class L> int start(struct krn_cuda_launch how, const struct krn_attention_args &a)
{
    enum { FOLD_BLOCKS = 64 }; // times QUERIES
    int rc = simt::launch(attend<L>, how, {a.blocks, 1, 1}, THREADS, room<L>::BYTES, a);
    // Tiles of a pass of so many rows, at most.
    int64_t tiles = (int64_t)a.rows * KRN_PAD_TO(a.n_heads / a.kv.n_kv_heads, QUERIES) / QUERIES * a.kv.n_kv_heads;
    simt::grid blocks = {(int)(tiles < FOLD_BLOCKS ? tiles : (int64_t)FOLD_BLOCKS), QUERIES, 1};
    if (rc)
        return rc;
    return simt::launch(fold<L>, how, blocks, THREADS, 2 * BATCH * L::SLOT * sizeof(float), a);
}

} // namespace

int krn_cuda_attention(struct krn_cuda_launch how, const struct krn_attention_args *args)
{
    if (args->rows <= 0)
        return 0;
    switch (KRN_KV_DIM(args->kv.head_dim)) {
    case 32:
        return args->kv.fp8 ? start<layout<32, true>>(how, *args) : start<layout<32, false>>(how, *args);
    case 64:
        return args->kv.fp8 ? start<layout<64, true>>(how, *args) : start<layout<64, false>>(how, *args);
    default:
        return args->kv.fp8 ? start<layout<128, true>>(how, *args) : start<layout<128, false>>(how, *args);
    }
}

int64_t krn_cuda_attention_slot(int32_t head_dim)
{
    return KRN_KV_DIM(head_dim) + SLOT_EXTRA;
}
