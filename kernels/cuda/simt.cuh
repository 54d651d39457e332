// The only door to what a GPU's threads do together: indices, barriers, shuffles, asynchronous copies, matrix
// instructions, shared memory, launches. Kernels use nothing else of CUDA, so each of them also runs on a machine
// without a GPU: compiled as C++ with KRN_SIMT_HOST, the same names come from simt_host.h (tests/kernels/cuda), where
// the threads of a block are fibres and every collective follows its definition.
//
// Shared memory is reached through simt::smem<T> alone (get, set, and the collectives that take one), so that the host
// version sees every access and reports two threads that touch one place between two barriers.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "launch.h"

#ifdef KRN_SIMT_HOST
#include "simt_host.h"
#else

#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

// template <...> KRN_KERNEL(threads, blocks) name(KRN_ARGS(struct name_args) a) { ... }
#define KRN_KERNEL(threads, min_blocks) static __global__ void __launch_bounds__(threads, min_blocks)
#define KRN_ARGS(type) const __grid_constant__ type
#define KRN_DEVICE static __device__ __forceinline__
#define KRN_UNROLL _Pragma("unroll")
#define KRN_UNROLL_BY(n) KRN_PRAGMA(unroll(n)) // n: a constant expression; 1: not at all
#define KRN_PRAGMA(text) _Pragma(#text)

namespace simt
{

// ---- who am I -------------------------------------------------------------------------------------------------------

KRN_DEVICE int thread()
{
    return (int)threadIdx.x;
}
KRN_DEVICE int threads()
{
    return (int)blockDim.x;
}
KRN_DEVICE int lane()
{
    return (int)(threadIdx.x & 31);
}
KRN_DEVICE int warp()
{
    return (int)(threadIdx.x >> 5);
}
KRN_DEVICE int block_x()
{
    return (int)blockIdx.x;
}
KRN_DEVICE int block_y()
{
    return (int)blockIdx.y;
}
KRN_DEVICE int block_z()
{
    return (int)blockIdx.z;
}
KRN_DEVICE int grid_x()
{
    return (int)gridDim.x;
}
KRN_DEVICE int grid_y()
{
    return (int)gridDim.y;
}

// ---- order ----------------------------------------------------------------------------------------------------------

KRN_DEVICE void sync_block()
{
    __syncthreads();
}
KRN_DEVICE void sync_warp()
{
    __syncwarp();
}

// Programmatic dependent launch (sm_90 on). Before wait_for_inputs a kernel may touch only what no earlier kernel of
// the pass writes (weights); nothing that an earlier kernel may still read may be written before it. Every kernel calls
// it once, in every thread. let_next_start: the next kernel may be launched (it still waits for our end in its own
// wait_for_inputs).
KRN_DEVICE void wait_for_inputs()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
KRN_DEVICE void let_next_start()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- within a warp; every lane calls, converged ---------------------------------------------------------------------

template <class T> KRN_DEVICE T shuffle(T v, int from_lane)
{
    return __shfl_sync(0xffffffffu, v, from_lane);
}
template <class T> KRN_DEVICE T shuffle_xor(T v, int mask)
{
    return __shfl_xor_sync(0xffffffffu, v, mask);
}
template <class T> KRN_DEVICE T shuffle_down(T v, int delta)
{
    return __shfl_down_sync(0xffffffffu, v, delta);
}
template <class T> KRN_DEVICE T shuffle_up(T v, int delta)
{
    return __shfl_up_sync(0xffffffffu, v, delta);
}
KRN_DEVICE uint32_t ballot(bool p)
{
    return __ballot_sync(0xffffffffu, p);
}

// ---- shared memory --------------------------------------------------------------------------------------------------

// A typed place in the block's dynamic shared memory.
template <class T> struct smem {
    T *p;
    __device__ __forceinline__ T get(int i) const
    {
        return p[i];
    }
    __device__ __forceinline__ void set(int i, T v) const
    {
        p[i] = v;
    }
    __device__ __forceinline__ smem<T> at(int i) const
    {
        return {p + i};
    }
    template <class U> __device__ __forceinline__ smem<U> as() const
    {
        return {(U *)p};
    }
};

// The block's dynamic shared memory from byte offset on, aligned to 128 there.
template <class T> KRN_DEVICE smem<T> shared(int byte_offset)
{
    extern __shared__ __align__(128) char krn_shared[];
    return {(T *)(krn_shared + byte_offset)};
}

template <class T> KRN_DEVICE T shared_add(smem<T> s, int i, T v)
{
    return atomicAdd(s.p + i, v);
} // int, unsigned,
  // unsigned long long
template <class T> KRN_DEVICE T shared_max(smem<T> s, int i, T v)
{
    return atomicMax(s.p + i, v);
}

// ---- asynchronous copies, global to shared --------------------------------------------------------------------------

// 16 bytes, both sides aligned to 16; !valid: zeros are written and src is not read. Visible to the thread that asked
// after copy_wait, to the block after a barrier that follows.
KRN_DEVICE void copy16_async(smem<uint4> dst, const void *src, bool valid)
{
    uint32_t to = (uint32_t)__cvta_generic_to_shared(dst.p);
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(src), "r"(bytes) : "memory");
}
KRN_DEVICE void copy_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Until at most N of this thread's latest groups are still under way.
template <int N> KRN_DEVICE void copy_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// ---- matrix instructions --------------------------------------------------------------------------------------------

// Loads four 8x8 matrices of 16-bit elements; lane i gives the address of row i % 8 of matrix i / 8 (16 bytes,
// aligned). Lane l gets elements 2 * (l % 4), + 1 of row l / 4 of each. _trans: of the transposed matrices.
KRN_DEVICE void ldmatrix_x4(uint32_t r[4], smem<uint16_t> row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row.p);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
KRN_DEVICE void ldmatrix_x4_trans(uint32_t r[4], smem<uint16_t> row)
{
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row.p);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// d[16][8] += a[16][16] b[16][8], bf16 in, f32 sums. With g = lane / 4, t = lane % 4 (low half of a register first):
//   a[0] = A[g][2t, 2t+1]  a[1] = A[g+8][2t, 2t+1]  a[2] = A[g][2t+8, 2t+9]  a[3] = A[g+8][2t+8, 2t+9]
//   b[0] = B[2t, 2t+1][g]  b[1] = B[2t+8, 2t+9][g]
//   d[0] = D[g][2t]  d[1] = D[g][2t+1]  d[2] = D[g+8][2t]  d[3] = D[g+8][2t+1]
KRN_DEVICE void mma_16x8x16(float d[4], const uint32_t a[4], const uint32_t b[2])
{
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- within a block; every thread calls; scratch: smem of at least block_scratch bytes, a barrier before its next use
// --

enum { block_scratch = 1024 };

// Sum over the threads before this one; *ret_total in every thread. THREADS = threads() at most 1024.
template <int THREADS, class T> KRN_DEVICE T block_exclusive_sum(T v, T *ret_total, smem<char> scratch)
{
    using scan = cub::BlockScan<T, THREADS, cub::BLOCK_SCAN_WARP_SCANS>;
    static_assert(sizeof(typename scan::TempStorage) <= block_scratch, "scratch");
    T before;
    scan(*(typename scan::TempStorage *)scratch.p).ExclusiveSum(v, before, *ret_total);
    __syncthreads();
    return before;
}
// Integers, or maxima: the order does not matter. Op: a functor of two values. The result is in every thread.
template <int THREADS, class T, class Op> KRN_DEVICE T block_reduce(T v, Op op, smem<char> scratch)
{
    using reduce = cub::BlockReduce<T, THREADS>;
    static_assert(sizeof(typename reduce::TempStorage) + sizeof(T) + 16 <= block_scratch, "scratch");
    T all = reduce(*(typename reduce::TempStorage *)(scratch.p + 16)).Reduce(v, op);
    if (threadIdx.x == 0)
        *(T *)scratch.p = all;
    __syncthreads();
    all = *(T *)scratch.p;
    __syncthreads();
    return all;
}

// ---- global memory; wide accesses go through these, because a GPU faults where an address is not aligned ------------

// 16 bytes that are read once (weights, logits): not kept in L1.
KRN_DEVICE uint4 load16_once(const void *p)
{
    uint4 v;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(p)
                 : "memory");
    return v;
}
KRN_DEVICE uint4 load16(const void *p)
{
    return *(const uint4 *)p;
}
KRN_DEVICE void store16(void *p, uint4 v)
{
    *(uint4 *)p = v;
}
KRN_DEVICE uint2 load8(const void *p)
{
    return *(const uint2 *)p;
}
KRN_DEVICE void store8(void *p, uint2 v)
{
    *(uint2 *)p = v;
}
KRN_DEVICE void store8(void *p, float2 v)
{
    *(float2 *)p = v;
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

// 2^x, within 2 ulp; exactly 0 for -inf.
KRN_DEVICE float exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
// Two bf16 rounded to nearest even, low in the low half.
KRN_DEVICE uint32_t pack_bf16(float low, float high)
{
    uint32_t r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}
// Products of two pairs of bf16, each rounded to nearest even; subnormals kept.
KRN_DEVICE uint32_t mul_bf16x2(uint32_t a, uint32_t b)
{
    uint32_t r, zero = 0x80008000u; // -0: a * b + -0 keeps the sign of zero
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(zero));
    return r;
}

// a * b + c of two pairs of bf16, rounded once, to nearest even. The exact sum must be a float (the host checks that).
KRN_DEVICE uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// (a & b) ^ c, as one instruction where compilers like two.
KRN_DEVICE uint32_t and_xor(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t r;
    asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(r) : "r"(a), "r"(b), "r"(c));
    return r;
}

// ---- launching ------------------------------------------------------------------------------------------------------

struct grid {
    int x, y, z;
};

// 0 or KRN_EDEVICE. shared: bytes of dynamic shared memory.
template <class Args>
static inline int launch(void (*kernel)(Args), struct krn_cuda_launch how, grid blocks, int threads, size_t shared,
                         const Args &args)
{
    if (blocks.x <= 0 || blocks.y <= 0 || blocks.z <= 0)
        return 0;
    if (shared > 48 * 1024 && cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   (int)shared) != cudaSuccess)
        return krn_cuda_launch_failed();
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3((unsigned)blocks.x, (unsigned)blocks.y, (unsigned)blocks.z);
    config.blockDim = dim3((unsigned)threads, 1, 1);
    config.dynamicSmemBytes = shared;
    config.stream = (cudaStream_t)how.stream;
    cudaLaunchAttribute overlap = {};
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &overlap;
#ifndef KRN_NO_OVERLAP
    config.numAttrs = how.overlap ? 1 : 0;
#endif
    if (cudaLaunchKernelEx(&config, kernel, args) != cudaSuccess)
        return krn_cuda_launch_failed();
    return 0;
}

} // namespace simt

#endif
