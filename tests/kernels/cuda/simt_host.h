// simt.cuh on the host: the same names, with the threads of a block as fibres of one OS thread. Included by simt.cuh
// under KRN_SIMT_HOST, never directly by a kernel.
//
// Every collective follows its definition: the last thread to arrive does the work of all. What a GPU would leave
// undefined ends the launch with a fault instead (simt_host_fault says which kernel, block and thread): threads that
// wait at different collectives or for one that ended, accesses of one shared byte that no barrier orders, shared bytes
// that were never written, are outside the launch's bytes or that an asynchronous copy still fills, addresses not
// aligned, wait_for_inputs not called exactly once, wide stores before it. Only sync_warp and sync_block order memory.
// Asynchronous copies happen at the copy_wait that covers them and not before.
//
// What is not seen: races in global memory. Run the blocks and threads in the reverse order (simt_host_set_reversed)
// and compare.
#pragma once

#include "kernels.h"
#include "launch.h"

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <type_traits>

#define KRN_KERNEL(threads, min_blocks) static void
#define KRN_ARGS(type) const type
#define KRN_DEVICE static inline
#define KRN_UNROLL
#define KRN_UNROLL_BY(n)

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct alignas(8) float2 {
    float x, y;
};
KRN_DEVICE uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w)
{
    return {x, y, z, w};
}
KRN_DEVICE uint2 make_uint2(unsigned x, unsigned y)
{
    return {x, y};
}
KRN_DEVICE float4 make_float4(float x, float y, float z, float w)
{
    return {x, y, z, w};
}
KRN_DEVICE float2 make_float2(float x, float y)
{
    return {x, y};
}

// ---- for tests and the fake driver ----------------------------------------------------------------------------------

// The sentence of the last fault on this OS thread, "" when there was none; lives until the next fault.
const char *simt_host_fault(void);
// On this OS thread: blocks, warps and lanes take their turns from the last to the first.
void simt_host_set_reversed(bool reversed);

namespace simt_host
{

// A launch: what runs and its shape. args belongs to the launching function.
struct work {
    void (*start)(void (*kernel)(), const void *args);
    void (*kernel)();
    const void *args;
    size_t args_size;
    int grid[3];
    int threads;
    size_t shared;
    const char *file;
    int line;
};

// What krn_cuda_launch.stream points to: decides when work runs. NULL instead of a stream: at once.
struct stream {
    int (*submit)(struct stream *stream, const struct work *work);
};

int submit(void *stream, const struct work *work);
// Runs all blocks; 0 or KRN_EDEVICE with simt_host_fault.
int run(const struct work *work);

// ---- what the names below are made of (simt_host.cc, simt_shared.cc) ------------------------------------------------

#define SIMT_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

enum kind {
    SYNC_BLOCK,
    BLOCK_EXCLUSIVE_SUM,
    BLOCK_REDUCE,
    SYNC_WARP,
    SHUFFLE,
    SHUFFLE_XOR,
    SHUFFLE_DOWN,
    SHUFFLE_UP,
    BALLOT,
    LDMATRIX,
    LDMATRIX_TRANS,
    MMA
};

struct self {
    int thread, lane, warp;
    int inputs_waited;
};
struct place {
    int block[3], grid[3], threads;
};
// Read all the time, so at a fixed place: also where this is a part of a library that is opened late.
#define SIMT_TLS __attribute__((tls_model("initial-exec"))) __thread
extern SIMT_TLS struct self *current;
extern SIMT_TLS struct place here;

[[noreturn]] void fault(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Every lane (thread) brings the address of something of its own; the last to arrive calls all(things, n), things by
// lane (thread), before anybody goes on.
using together = void (*)(void *const *things, int n);
void meet_warp(enum kind kind, void *mine, together all, const char *file, int line);
void meet_block(enum kind kind, void *mine, together all, const char *file, int line);
// The block collectives with scratch: the bytes count as written by all.
void meet_block_in(enum kind kind, int threads, int64_t scratch, void *mine, together all, const char *file, int line);

// Checks an access of this thread and gives the bytes' address.
const void *reading(int64_t offset, size_t size, size_t align);
void *writing(int64_t offset, size_t size, size_t align);
void *adding(int64_t offset, size_t size, size_t align);

void copy16(int64_t offset, const void *src, bool valid);
void copy_commit();
void copy_wait(int n);
void sync_block(const char *file, int line);
void sync_warp(const char *file, int line);
uint32_t ballot(bool p, const char *file, int line);
void ldmatrix(enum kind kind, uint32_t r[4], int64_t offset, const char *file, int line);
void mma(float d[4], const uint32_t a[4], const uint32_t b[2], const char *file, int line);

// To nearest even; NaN is 0x7fff. The value: a float, or a product of two bf16, which has 16 bits at most.
static inline uint16_t round_bf16(double value)
{
    float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, sizeof bits);
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u)
        return 0x7fff;
    if (magnitude < 0x00800000u) // subnormal: f may be rounded already
        return (uint16_t)(bits >> 16 & 0x8000) | (uint16_t)nearbyint(fabs(value) * 0x1p133);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
static inline void check_aligned(const void *p, unsigned to)
{
    if ((uintptr_t)p % to)
        fault("address %p is not aligned to %u", p, to);
}
static inline void check_store(const void *p, unsigned to)
{
    check_aligned(p, to);
    if (!current->inputs_waited)
        fault("writes before wait_for_inputs");
}

template <class T> struct shuffled {
    T value, result;
    int from;
};
template <class T> static inline T shuffle(enum kind kind, T value, int from, const char *file, int line)
{
    static_assert(std::is_arithmetic<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "what CUDA shuffles");
    struct shuffled<T> mine = {
        value, value, from
    };
    meet_warp(
        kind, &mine,
        [](void *const *things, int n) {
            for (int i = 0; i < n; i++) {
                struct shuffled<T> *thing = (struct shuffled<T> *)things[i];
                if (thing->from >= 0 && thing->from < n)
                    thing->result = ((struct shuffled<T> *)things[thing->from])->value;
            }
        },
        file, line);
    return mine.result;
}

} // namespace simt_host

// ---- the names of simt.cuh ------------------------------------------------------------------------------------------

namespace simt
{

KRN_DEVICE int thread()
{
    return simt_host::current->thread;
}
KRN_DEVICE int threads()
{
    return simt_host::here.threads;
}
KRN_DEVICE int lane()
{
    return simt_host::current->lane;
}
KRN_DEVICE int warp()
{
    return simt_host::current->warp;
}
KRN_DEVICE int block_x()
{
    return simt_host::here.block[0];
}
KRN_DEVICE int block_y()
{
    return simt_host::here.block[1];
}
KRN_DEVICE int block_z()
{
    return simt_host::here.block[2];
}
KRN_DEVICE int grid_x()
{
    return simt_host::here.grid[0];
}
KRN_DEVICE int grid_y()
{
    return simt_host::here.grid[1];
}

KRN_DEVICE void sync_block(SIMT_SITE)
{
    simt_host::sync_block(file, line);
}
KRN_DEVICE void sync_warp(SIMT_SITE)
{
    simt_host::sync_warp(file, line);
}
KRN_DEVICE void wait_for_inputs()
{
    simt_host::current->inputs_waited++;
}
KRN_DEVICE void let_next_start()
{
}

template <class T> KRN_DEVICE T shuffle(T v, int from_lane, SIMT_SITE)
{
    return simt_host::shuffle(simt_host::SHUFFLE, v, from_lane & 31, file, line);
}
template <class T> KRN_DEVICE T shuffle_xor(T v, int mask, SIMT_SITE)
{
    return simt_host::shuffle(simt_host::SHUFFLE_XOR, v, lane() ^ mask, file, line);
}
template <class T> KRN_DEVICE T shuffle_down(T v, int delta, SIMT_SITE)
{
    return simt_host::shuffle(simt_host::SHUFFLE_DOWN, v, lane() + delta, file, line);
}
template <class T> KRN_DEVICE T shuffle_up(T v, int delta, SIMT_SITE)
{
    return simt_host::shuffle(simt_host::SHUFFLE_UP, v, lane() - delta, file, line);
}
KRN_DEVICE uint32_t ballot(bool p, SIMT_SITE)
{
    return simt_host::ballot(p, file, line);
}

template <class T> struct smem {
    static_assert(std::is_trivially_copyable<T>::value, "shared memory holds plain data");
    int64_t offset;
    T get(int i) const
    {
        T v;
        memcpy(&v, simt_host::reading(offset + (int64_t)sizeof(T) * i, sizeof(T), alignof(T)), sizeof(T));
        return v;
    }
    void set(int i, T v) const
    {
        memcpy(simt_host::writing(offset + (int64_t)sizeof(T) * i, sizeof(T), alignof(T)), &v, sizeof(T));
    }
    smem<T> at(int i) const
    {
        return {offset + (int64_t)sizeof(T) * i};
    }
    template <class U> smem<U> as() const
    {
        return {offset};
    }
};

template <class T> KRN_DEVICE smem<T> shared(int byte_offset)
{
    return {byte_offset};
}

template <class T> KRN_DEVICE T shared_add(smem<T> s, int i, T v)
{
    static_assert(std::is_same<T, int>::value || std::is_same<T, unsigned>::value ||
                      std::is_same<T, unsigned long long>::value,
                  "integers: sums of floats would depend on the order");
    T *p = (T *)simt_host::adding(s.offset + (int64_t)sizeof(T) * i, sizeof(T), alignof(T)), old = *p;
    *p = (T)(old + v);
    return old;
}
template <class T> KRN_DEVICE T shared_max(smem<T> s, int i, T v)
{
    static_assert(std::is_integral<T>::value && (sizeof(T) == 4 || sizeof(T) == 8), "what atomicMax takes");
    T *p = (T *)simt_host::adding(s.offset + (int64_t)sizeof(T) * i, sizeof(T), alignof(T)), old = *p;
    *p = old < v ? v : old;
    return old;
}

KRN_DEVICE void copy16_async(smem<uint4> dst, const void *src, bool valid)
{
    simt_host::copy16(dst.offset, src, valid);
}
KRN_DEVICE void copy_commit()
{
    simt_host::copy_commit();
}
template <int N> KRN_DEVICE void copy_wait()
{
    simt_host::copy_wait(N);
}

KRN_DEVICE void ldmatrix_x4(uint32_t r[4], smem<uint16_t> row, SIMT_SITE)
{
    simt_host::ldmatrix(simt_host::LDMATRIX, r, row.offset, file, line);
}
KRN_DEVICE void ldmatrix_x4_trans(uint32_t r[4], smem<uint16_t> row, SIMT_SITE)
{
    simt_host::ldmatrix(simt_host::LDMATRIX_TRANS, r, row.offset, file, line);
}
KRN_DEVICE void mma_16x8x16(float d[4], const uint32_t a[4], const uint32_t b[2], SIMT_SITE)
{
    simt_host::mma(d, a, b, file, line);
}

enum { block_scratch = 1024 };

template <int THREADS, class T> KRN_DEVICE T block_exclusive_sum(T v, T *ret_total, smem<char> scratch, SIMT_SITE)
{
    struct part {
        T value, before, total;
    } mine = {v, T(), T()};
    simt_host::meet_block_in(
        simt_host::BLOCK_EXCLUSIVE_SUM, THREADS, scratch.offset, &mine,
        [](void *const *parts, int n) {
            T sum = T();
            for (int i = 0; i < n; i++) {
                ((struct part *)parts[i])->before = sum;
                sum = (T)(sum + ((struct part *)parts[i])->value);
            }
            for (int i = 0; i < n; i++)
                ((struct part *)parts[i])->total = sum;
        },
        file, line);
    *ret_total = mine.total;
    return mine.before;
}

template <int THREADS, class T, class Op> KRN_DEVICE T block_reduce(T v, Op op, smem<char> scratch, SIMT_SITE)
{
    struct part {
        T value;
        Op *op;
    } mine = {v, &op};
    simt_host::meet_block_in(
        simt_host::BLOCK_REDUCE, THREADS, scratch.offset, &mine,
        [](void *const *parts, int n) {
            Op &apply = *((struct part *)parts[0])->op;
            T all = ((struct part *)parts[0])->value;
            for (int i = 1; i < n; i++)
                all = apply(all, ((struct part *)parts[i])->value);
            for (int i = 0; i < n; i++)
                ((struct part *)parts[i])->value = all;
        },
        file, line);
    return mine.value;
}

KRN_DEVICE uint4 load16(const void *p)
{
    simt_host::check_aligned(p, 16);
    uint4 v;
    memcpy(&v, p, sizeof v);
    return v;
}
KRN_DEVICE uint4 load16_once(const void *p)
{
    return load16(p);
}
KRN_DEVICE void store16(void *p, uint4 v)
{
    simt_host::check_store(p, 16);
    memcpy(p, &v, sizeof v);
}
KRN_DEVICE uint2 load8(const void *p)
{
    simt_host::check_aligned(p, 8);
    uint2 v;
    memcpy(&v, p, sizeof v);
    return v;
}
KRN_DEVICE void store8(void *p, uint2 v)
{
    simt_host::check_store(p, 8);
    memcpy(p, &v, sizeof v);
}
KRN_DEVICE void store8(void *p, float2 v)
{
    simt_host::check_store(p, 8);
    memcpy(p, &v, sizeof v);
}

// Subnormals are flushed on both sides, as ex2.approx.ftz does.
KRN_DEVICE float exp2(float x)
{
    float y = ::exp2f(x);
    return y < 1.17549435e-38f ? 0.0f : y;
}
KRN_DEVICE uint32_t pack_bf16(float low, float high)
{
    return simt_host::round_bf16((double)low) | (uint32_t)simt_host::round_bf16((double)high) << 16;
}
KRN_DEVICE uint32_t mul_bf16x2(uint32_t a, uint32_t b)
{
    uint32_t bits[4] = {a << 16, b << 16, a & 0xffff0000u, b & 0xffff0000u};
    float f[4];
    memcpy(f, bits, sizeof f);
    // A product of two bf16 is exact in double.
    return simt_host::round_bf16((double)f[0] * (double)f[1]) |
           (uint32_t)simt_host::round_bf16((double)f[2] * (double)f[3]) << 16;
}

KRN_DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t result = 0;
    for (int half = 0; half < 2; half++) {
        uint32_t bits[3] = {a >> 16 * half << 16, b >> 16 * half << 16, c >> 16 * half << 16};
        float f[3];
        memcpy(f, bits, sizeof f);
        double sum = (double)f[0] * (double)f[1] + (double)f[2];
        if (sum == sum && (double)(float)sum != sum)
            simt_host::fault("fma_bf16x2: the exact sum is not a float");
        result |= (uint32_t)simt_host::round_bf16(sum) << 16 * half;
    }
    return result;
}

KRN_DEVICE uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c)
{
    return (a & b) ^ c;
}

struct grid {
    int x, y, z;
};

template <class Args>
static inline int launch(void (*kernel)(Args), struct krn_cuda_launch how, grid blocks, int threads, size_t shared,
                         const Args &args, SIMT_SITE)
{
    static_assert(std::is_trivially_copyable<Args>::value, "arguments are plain data");
    static_assert(sizeof(Args) <= 4096, "what a GPU takes as arguments");
    if (blocks.x <= 0 || blocks.y <= 0 || blocks.z <= 0)
        return 0;
    struct simt_host::work work = {
        [](void (*any)(), const void *bytes) { ((void (*)(Args))any)(*(const Args *)bytes); },
        (void (*)())kernel,
        &args,
        sizeof args,
        {blocks.x, blocks.y, blocks.z},
        threads,
        shared,
        file,
        line,
    };
    return simt_host::submit(how.stream, &work);
}

} // namespace simt
