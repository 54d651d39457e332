// The skinny product y = x W^T: 1 to 64 rows at the speed of memory, more rows in tiles of 64.
//
// The weights are the 16 rows of the matrix instruction, eight rows of x its 8 columns. A block has 128 outputs and one
// part of K: 4 warps along the outputs times 2 along K, which take turns by groups of 64 bytes (linear_tile.cuh), so
// that together they read whole lines. The parts of K are cut at pairs of groups; each part leaves its own partial
// matrix. gated: 64 outputs a block, a warp's two tiles being the gate and the up rows of the same 16.
//
// The order of every sum is fixed by the weight's shape, its type and the number of parts: the number of rows, the
// instance (NT) and the place of a row in its tile never show in a result.
//
// The first groups are asked for before wait_for_inputs: while the kernel before this one ends, the weights already
// flow. Products of many rows are the library's business and not here.
#include "linear_tile.cuh"

#include "kernels.h"

enum {
    LINEAR_WARPS_OUT = 4, // along the outputs; times 2 along K
    LINEAR_THREADS = LINEAR_WARPS_OUT * 2 * 32,
    LINEAR_OUTPUTS = LINEAR_WARPS_OUT * 32, // of a block
    LINEAR_SHARED = LINEAR_WARPS_OUT * 2 * LINEAR_WARP_RING,
    LINEAR_BLOCKS = 148, // that krn_cuda_linear_sums aims at: one for every multiprocessor of the largest GPUs
    LINEAR_MIN_COLS = 512,
};

// What a kernel is given: unit blocks [first[i], first[i + 1]) belong to matrix i, its parts fastest.
struct linear_job {
    struct krn_linear_args a;
    int32_t first[4];
    int32_t n_groups; // of a row of weights
};

// What a block (and this warp of it) does.
struct linear_place {
    int matrix, part;
    int weight[2]; // matrix that each tile's rows belong to
    int output[2]; // first row of the block's share of that tile
    int row;       // from there to this lane's row g
    int along_k;   // 0 or 1
};

KRN_DEVICE struct linear_place linear_place_of(const struct linear_job &job)
{
    struct linear_place at;
    int unit = simt::block_y(), warp = simt::warp() / 2;
    at.along_k = simt::warp() % 2;
    at.matrix = 0;
    if (job.a.gated_y) {
        at.part = 0;
        at.weight[0] = 0;
        at.weight[1] = 1;
        at.output[0] = at.output[1] = unit * (LINEAR_OUTPUTS / 2);
        at.row = warp * 16 + simt::lane() / 4;
        return at;
    }
    while (at.matrix + 1 < job.a.n && unit >= job.first[at.matrix + 1])
        at.matrix++;
    unit -= job.first[at.matrix];
    at.part = unit % job.a.y[at.matrix].n;
    at.weight[0] = at.weight[1] = at.matrix;
    at.output[0] = unit / job.a.y[at.matrix].n * LINEAR_OUTPUTS;
    at.output[1] = at.output[0] + 16;
    at.row = warp * 32 + simt::lane() / 4;
    return at;
}

// The stream of this warp, ret_first its first group.
KRN_DEVICE struct linear_stream linear_stream_of(const struct linear_job &job, const struct linear_place &at,
                                                 int *ret_first)
{
    struct linear_stream s;
    int parts = job.a.gated_y ? 1 : job.a.y[at.matrix].n, n_pairs = (job.n_groups + 1) / 2;
    int from = (int)((int64_t)n_pairs * at.part / parts), to = (int)((int64_t)n_pairs * (at.part + 1) / parts);
    int first = *ret_first = 2 * from + at.along_k;
    s.n = to - from - (to > from && 2 * (to - 1) + at.along_k >= job.n_groups);
    int64_t row_bytes = (int64_t)job.n_groups * LINEAR_GROUP_BYTES;
    s.live = 0;
    KRN_UNROLL
    for (int tile = 0; tile < 2; tile++) {
        const struct krn_dev_weight &w = job.a.w[at.weight[tile]];
        int row = at.output[tile] + at.row;
        s.next[tile] = (const char *)w.data + row * row_bytes + first * LINEAR_GROUP_BYTES + simt::lane() % 4 * 16;
        s.live |= (uint32_t)((row < w.rows) + 2 * (row + 8 < w.rows)) << (2 * tile);
    }
    s.half = (uint32_t)(8 * row_bytes);
    s.stage = 0;
    s.ring = simt::shared<uint4>(simt::warp() * LINEAR_WARP_RING).at(simt::lane());
    return s;
}

KRN_DEVICE struct linear_scales linear_scales_of(const struct linear_job &job, const struct linear_place &at,
                                                 uint32_t live, int first)
{
    int slot = simt::lane() % 4;
    const struct krn_dev_weight &w = job.a.w[slot / 2 ? at.weight[1] : at.weight[0]];
    int64_t row = (slot / 2 ? at.output[1] : at.output[0]) + at.row + slot % 2 * 8;
    return {live >> slot & 1 ? (const uint2 *)w.scales + (row * job.n_groups + first) : nullptr};
}

KRN_DEVICE struct linear_input linear_input_of(const struct linear_job &job, int first_col)
{
    int row = simt::block_x() * KRN_ROW_TILE + simt::lane() / 4, stride = KRN_PAD(job.a.cols);
    return {job.a.x + ((int64_t)row * stride + first_col), 8 * stride, job.a.rows - row, stride - first_col};
}

// Adds one group. x holds the piece of x that is needed first, and at the end the one that the next group needs first.
template <int TYPE, int NT, int XN>
KRN_DEVICE void linear_group(struct linear_stream &s, struct linear_input &in, const uint32_t row_scales[LINEAR_SLOTS],
                             uint4 x[XN], float sums[2][NT][4])
{
    enum { LANE = linear_columns<TYPE>::LANE, GROUP = linear_columns<TYPE>::GROUP };
    // Where there are registers for it, unpacking two or four times in a row saves moves.
    enum { UNROLLED = NT == 1 ? LANE / 8 : NT == 2 && TYPE == KRN_Q4 ? 2 : 1 };
    uint4 bytes[LINEAR_SLOTS];
    linear_take(s, bytes);
    KRN_UNROLL_BY(UNROLLED)
    for (int col = 0; col < LANE; col += 8) {
        uint32_t w[LINEAR_SLOTS][4];
        KRN_UNROLL
        for (int slot = 0; slot < LINEAR_SLOTS; slot++)
            linear_weights<TYPE>(bytes[slot], row_scales[slot], w[slot]);
        KRN_UNROLL
        for (int n = 0; n < NT; n++) {
            linear_multiply(sums[0][n], sums[1][n], w, x[n % XN]);
            // What was used makes room for what is needed XN times 8 rows later.
            if (n == NT - XN)
                linear_move(in, col + 8 < LANE ? 8 : 2 * GROUP - (LANE - 8));
            // bf16 has whole groups in x.
            bool wanted = (n + XN < NT || col + 8 < LANE || s.n > 0) && (TYPE == KRN_BF16 || in.cols > 0);
            x[n % XN] = linear_load_x(in, (n + XN) % NT, wanted);
        }
    }
}

// The sums of this warp over its groups. Starts the stream, waits for the inputs and uses the stream up.
template <int TYPE, int NT>
KRN_DEVICE void linear_run(const struct linear_job &job, const struct linear_place &at, float sums[2][NT][4])
{
    enum { LANE = linear_columns<TYPE>::LANE, GROUP = linear_columns<TYPE>::GROUP };
    // Scales come from memory and x from the cache, so those are asked for two groups ahead and x for XN times 8 rows
    // ahead (64 rows would not leave registers for the rest).
    enum { AHEAD = TYPE == KRN_Q4 ? 2 : 1, XN = NT < 4 ? NT : 4 };
    int first;
    struct linear_stream s = linear_stream_of(job, at, &first);
    KRN_UNROLL
    for (int i = 0; i < LINEAR_STAGES; i++)
        linear_fetch(s, i, i < s.n);
    struct linear_scales scale_row = {};
    uint2 scales[AHEAD] = {};
    if (TYPE == KRN_Q4) {
        scale_row = linear_scales_of(job, at, s.live, first);
        KRN_UNROLL
        for (int i = 0; i < AHEAD; i++)
            scales[i] = linear_load_scales(scale_row, i < s.n);
    }
    simt::let_next_start();
    simt::wait_for_inputs();

    struct linear_input in = linear_input_of(job, first * GROUP + simt::lane() % 4 * LANE);
    uint4 x[XN];
    KRN_UNROLL
    for (int n = 0; n < XN; n++)
        x[n] = linear_load_x(in, n, s.n > 0 && in.cols > 0);
    KRN_UNROLL_BY(1)
    while (s.n > 0) {
        KRN_UNROLL
        for (int ahead = 0; ahead < AHEAD; ahead++) {
            if (AHEAD > 1 && s.n <= 0)
                break;
            uint32_t row_scales[LINEAR_SLOTS] = {};
            if (TYPE == KRN_Q4) {
                linear_deal(scales[ahead], row_scales);
                scales[ahead] = linear_load_scales(scale_row, s.n > AHEAD);
            }
            linear_group<TYPE, NT, XN>(s, in, row_scales, x, sums);
        }
    }
}

// Adds the two warps along K: the warp keeps the outputs g + 8 * along_k of both tiles and gives away the others.
// ret[tile][n][j]: row 8 * n + 2 * (lane % 4) + j.
template <int NT> KRN_DEVICE void linear_exchange(int along_k, const float sums[2][NT][4], float ret[2][NT][2])
{
    simt::smem<uint4> ring = simt::shared<uint4>(simt::warp() * LINEAR_WARP_RING).at(simt::lane());
    KRN_UNROLL
    for (int n = 0; n < NT; n++) {
        uint32_t give[4];
        KRN_UNROLL
        for (int i = 0; i < 4; i++)
            give[i] = krn_float_bits(along_k ? sums[i / 2][n][i % 2] : sums[i / 2][n][2 + i % 2]);
        ring.set(n * 32, make_uint4(give[0], give[1], give[2], give[3]));
    }
    simt::sync_block();
    simt::smem<uint4> other = simt::shared<uint4>((simt::warp() ^ 1) * LINEAR_WARP_RING).at(simt::lane());
    KRN_UNROLL
    for (int n = 0; n < NT; n++) {
        uint4 got = other.get(n * 32);
        KRN_UNROLL
        for (int i = 0; i < 4; i++) {
            float mine = along_k ? sums[i / 2][n][2 + i % 2] : sums[i / 2][n][i % 2];
            ret[i / 2][n][i % 2] = mine + krn_bits_float(linear_word(got, i));
        }
    }
}

KRN_DEVICE float linear_silu(float x)
{
    return x / (1.0f + simt::exp2(x * -1.44269504f));
}

template <int NT>
KRN_DEVICE void linear_store(const struct linear_job &job, const struct linear_place &at, const float scale[2],
                             const float sums[2][NT][2])
{
    int row0 = simt::block_x() * KRN_ROW_TILE + simt::lane() % 4 * 2;
    const struct krn_dev_sums &y = job.a.y[at.matrix];
    int width = job.a.w[at.matrix].rows, output = at.output[0] + at.row + 8 * at.along_k;
    KRN_UNROLL
    for (int n = 0; n < NT; n++) {
        KRN_UNROLL
        for (int j = 0; j < 2; j++) {
            int row = row0 + 8 * n + j;
            if (row >= job.a.rows)
                continue;
            if (job.a.gated_y) {
                // The padding gets its zeros here: weights that do not exist are zeros.
                float v = linear_silu(sums[0][n][j] * scale[0]) * (sums[1][n][j] * scale[1]);
                if (output < KRN_PAD(width))
                    job.a.gated_y[(int64_t)row * KRN_PAD(width) + output] = krn_bf16_round(v);
                continue;
            }
            float *to = y.data + at.part * y.stride + (int64_t)row * y.width;
            KRN_UNROLL
            for (int tile = 0; tile < 2; tile++)
                if (output + 16 * tile < width)
                    to[output + 16 * tile] = sums[tile][n][j] * scale[tile];
        }
    }
}

// Blocks of one multiprocessor that there are registers for.
static constexpr int linear_blocks(int type, int nt)
{
    return nt == 8 ? (type == KRN_BF16 ? 2 : 1) : nt == 4 || type == KRN_Q4 ? 2 : 3;
}

template <int TYPE, int NT>
KRN_KERNEL(LINEAR_THREADS, linear_blocks(TYPE, NT))
linear_kernel(KRN_ARGS(struct linear_job) job)
{
    struct linear_place at = linear_place_of(job);
    float scale[2] = {job.a.scale, job.a.scale};
    KRN_UNROLL
    for (int tile = 0; TYPE == KRN_FP8 && tile < 2; tile++) {
        const struct krn_dev_weight &w = job.a.w[at.weight[tile]];
        int row = at.output[tile] + at.row + 8 * at.along_k;
        scale[tile] *= row < w.rows ? ((const float *)w.scales)[row] : 0.0f;
    }
    float sums[2][NT][4] = {}, whole[2][NT][2];
    linear_run<TYPE, NT>(job, at, sums);
    linear_exchange<NT>(at.along_k, sums, whole);
    linear_store<NT>(job, at, scale, whole);
}

// ---- starting -------------------------------------------------------------------------------------------------------

template <int TYPE> static int linear_launch(struct krn_cuda_launch how, const struct linear_job &job, int units)
{
    int rows = job.a.rows;
    simt::grid grid = {(rows + KRN_ROW_TILE - 1) / KRN_ROW_TILE, units, 1};
    if (rows <= 8)
        return simt::launch(linear_kernel<TYPE, 1>, how, grid, LINEAR_THREADS, LINEAR_SHARED, job);
    if (rows <= 16)
        return simt::launch(linear_kernel<TYPE, 2>, how, grid, LINEAR_THREADS, LINEAR_SHARED, job);
    if (rows <= 32)
        return simt::launch(linear_kernel<TYPE, 4>, how, grid, LINEAR_THREADS, LINEAR_SHARED, job);
    return simt::launch(linear_kernel<TYPE, 8>, how, grid, LINEAR_THREADS, LINEAR_SHARED, job);
}

int32_t krn_cuda_linear_sums(int32_t outputs, int32_t cols)
{
    int32_t tiles = (outputs + LINEAR_OUTPUTS - 1) / LINEAR_OUTPUTS;
    int32_t by_outputs = LINEAR_BLOCKS / (tiles > 0 ? tiles : 1), by_cols = cols / LINEAR_MIN_COLS;
    int32_t parts = by_outputs < by_cols ? by_outputs : by_cols;
    return parts < 1 ? 1 : parts > KRN_LINEAR_SUMS_MAX ? KRN_LINEAR_SUMS_MAX : parts;
}

int krn_cuda_linear(struct krn_cuda_launch how, const struct krn_linear_args *args)
{
    struct linear_job job = {*args, {0, 0, 0, 0}, 0};
    int type = args->w[0].type, units = 0;
    int64_t elements = krn_weight_stride(type, args->cols);
    int64_t bytes = type == KRN_BF16 ? elements * 2 : type == KRN_Q4 ? elements / 2 : elements;
    job.n_groups = (int32_t)(bytes / LINEAR_GROUP_BYTES);
    if (args->gated_y) {
        units = (args->w[0].rows + LINEAR_OUTPUTS / 2 - 1) / (LINEAR_OUTPUTS / 2);
    } else {
        for (int i = 0; i < args->n; i++) {
            job.first[i] = units;
            units += (args->w[i].rows + LINEAR_OUTPUTS - 1) / LINEAR_OUTPUTS * args->y[i].n;
        }
    }
    if (type == KRN_BF16)
        return linear_launch<KRN_BF16>(how, job, units);
    if (type == KRN_FP8)
        return linear_launch<KRN_FP8>(how, job, units);
    if (type == KRN_Q4)
        return linear_launch<KRN_Q4>(how, job, units);
    return KRN_ENOTSUP;
}
