// Tests of the host's SIMT machine with small kernels: that collectives follow their definition, and that each kind of
// mistake a kernel can make is reported. Run in both orders of blocks and threads.
#include "simt_switch.h"
#include "simt_test.h"

#include <pthread.h>
#include <sys/mman.h>

namespace
{

// ---- what works -----------------------------------------------------------------------------------------------------

// out[block] = sum of in[block * threads ..], by shuffles and shared memory.
template <int N> KRN_KERNEL(N, 1) sum(KRN_ARGS(struct args) a)
{
    simt::smem<int> parts = simt::shared<int>(128);
    simt::wait_for_inputs();
    int v = ((const int *)a.in)[simt::block_x() * N + simt::thread()];
    for (int d = 16; d; d /= 2)
        v += a.mode ? simt::shuffle_down(v, d) : simt::shuffle_xor(v, d);
    if (simt::lane() == 0)
        parts.set(simt::warp(), v);
    simt::sync_block();
    for (int w = 0; w < N / 32; w++)
        if (simt::thread() == 0)
            ((int *)a.out)[simt::block_x()] += parts.get(w);
}

void test_sums_of_blocks(void **)
{
    enum { BLOCKS = 5 };
    static int in[BLOCKS * 1024], out[BLOCKS];
    for (int i = 0; i < BLOCKS * 1024; i++)
        in[i] = i * 7 % 1001;
    for (int mode = 0; mode < 4; mode++) {
        int threads = mode < 2 ? 256 : 1024;
        memset(out, 0, sizeof out);
        struct args a = {in, out, 0, mode % 2};
        assert_int_equal(threads == 256 ? start(sum<256>, a, BLOCKS, 256) : start(sum<1024>, a, BLOCKS, 1024), 0);
        for (int b = 0; b < BLOCKS; b++) {
            int expected = 0;
            for (int i = 0; i < threads; i++)
                expected += in[b * threads + i];
            assert_int_equal(out[b], expected);
        }
    }
}

KRN_KERNEL(64, 1) shuffles(KRN_ARGS(struct args) a)
{
    simt::wait_for_inputs();
    int *out = (int *)a.out + simt::thread() * 8, lane = simt::lane();
    out[0] = simt::shuffle(lane * 3, 5);
    out[1] = simt::shuffle(lane * 3, 31 - lane);
    out[2] = simt::shuffle_xor(lane, 6);
    out[3] = simt::shuffle_down(lane, 3);
    out[4] = simt::shuffle_up(lane, 3);
    out[5] = (int)simt::ballot(lane % 3 == 0);
    out[6] = (int)simt::shuffle((unsigned long long)lane << 33, lane ^ 1) + (int)(simt::shuffle(1.5 * lane, 2) * 2);
    out[7] = simt::warp() * 100 + simt::block_y() * 10 + simt::grid_x();
}

void test_collectives_of_a_warp(void **)
{
    static int out[64][8];
    uint32_t thirds = 0;
    for (int l = 0; l < 32; l += 3)
        thirds |= 1u << l;
    assert_int_equal(start(shuffles, {NULL, out, 0, 0}), 0);
    for (int t = 0; t < 64; t++) {
        int lane = t % 32;
        assert_int_equal(out[t][0], 15);
        assert_int_equal(out[t][1], (31 - lane) * 3);
        assert_int_equal(out[t][2], lane ^ 6);
        assert_int_equal(out[t][3], lane + 3 < 32 ? lane + 3 : lane);
        assert_int_equal(out[t][4], lane >= 3 ? lane - 3 : lane);
        assert_int_equal((uint32_t)out[t][5], thirds);
        assert_int_equal(out[t][6], 6);
        assert_int_equal(out[t][7], t / 32 * 100 + 1);
    }
}

struct larger {
    int operator()(int a, int b) const
    {
        return a > b ? a : b;
    }
};

KRN_KERNEL(96, 1) block_wide(KRN_ARGS(struct args) a)
{
    simt::smem<char> scratch = simt::shared<char>(0);
    int *out = (int *)a.out + simt::thread() * 4, v = simt::thread() * 5 % 17;
    simt::wait_for_inputs();
    out[0] = simt::block_exclusive_sum<96>(v, out + 1, scratch);
    if (a.mode == 0)
        simt::sync_block();
    if (a.mode == 2 && simt::thread() == a.n)
        (void)scratch.get(0);
    out[2] = simt::block_reduce<96>(v + simt::thread() / 90, larger(), scratch);
}

void test_collectives_of_a_block(void **)
{
    static int out[96][4];
    int before = 0, most = 0;
    assert_int_equal(start(block_wide, {NULL, out, 0, 0}, 1, 96), 0);
    for (int t = 0; t < 96; t++) {
        assert_int_equal(out[t][0], before);
        before += t * 5 % 17;
        most = larger()(most, t * 5 % 17 + t / 90);
    }
    for (int t = 0; t < 96; t++) {
        assert_int_equal(out[t][1], before);
        assert_int_equal(out[t][2], most);
    }
    assert_fault(start(block_wide, {NULL, out, 0, 1}, 1, 96), "shared byte 0 is scratch");
    assert_fault(start(block_wide, {NULL, out, 0, 2}, 1, 96), "race on shared byte 0");
    assert_fault(start(block_wide, {NULL, out, 95, 2}, 1, 96), "race on shared byte 0");
    assert_fault(start(block_wide, {NULL, out, 0, 0}, 1, 128), "block_exclusive_sum of 96 threads in a block of 128");
}

// c[16][8] = a[16][16] b[16][8]: A by ldmatrix, B (as [16][8] in memory) by ldmatrix_trans.
KRN_KERNEL(32, 1) product(KRN_ARGS(struct args) args)
{
    simt::smem<uint16_t> a = simt::shared<uint16_t>(0), b = simt::shared<uint16_t>(512);
    simt::wait_for_inputs();
    int lane = simt::lane();
    for (int i = lane; i < 16 * 24; i += 32)
        a.set(i, ((const uint16_t *)args.in)[i]);
    simt::sync_warp();
    uint32_t ra[4], rb[4];
    float d[4];
    for (int i = 0; i < 4; i++)
        d[i] = ((const float *)args.out)[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
    simt::ldmatrix_x4(ra, a.at(lane % 16 * 16 + lane / 16 * 8));
    simt::ldmatrix_x4_trans(rb, b.at(lane % 16 * 8));
    simt::mma_16x8x16(d, ra, rb);
    for (int i = 0; i < 4; i++)
        ((float *)args.out)[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
}

float from_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
}

void test_mma_and_ldmatrix_are_a_product(void **)
{
    alignas(16) uint16_t in[16 * 24];
    float out[16 * 8], expected[16 * 8];
    unsigned state = 1;
    for (uint16_t &half : in)
        half = (uint16_t)simt::pack_bf16((float)((state = state * 1664525u + 1013904223u) >> 16) / 30000 - 1, 0);
    for (int i = 0; i < 16 * 8; i++) {
        out[i] = expected[i] = (float)i;
        for (int k = 0; k < 16; k++)
            expected[i] += from_bf16(in[i / 8 * 16 + k]) * from_bf16(in[256 + k * 8 + i % 8]);
    }
    assert_int_equal(start(product, {in, out, 0, 0}, 1, 32), 0);
    assert_memory_equal(out, expected, sizeof out);
}

// ---- arithmetic -----------------------------------------------------------------------------------------------------

void test_bf16_arithmetic_rounds_to_nearest_even(void **)
{
    assert_int_equal(simt::pack_bf16(1.00390625f, -2.0f), 0xc0003f80u); // half way: to even
    assert_int_equal(simt::pack_bf16(1.01171875f, 0.0f), 0x3f82u);
    assert_int_equal(simt::pack_bf16(NAN, INFINITY), 0x7f807fffu);
    assert_int_equal(simt::pack_bf16(3.4e38f, 0.0f) & 0xffff, 0x7f80);
    assert_int_equal(simt::mul_bf16x2(0x40403fc0, 0x40403fc0), 0x41104010u); // 1.5^2, 3^2
    assert_int_equal(simt::mul_bf16x2(0x0080, 0x3f00), 0x0040);              // half the smallest normal
    assert_int_equal(simt::mul_bf16x2(0x0001, 0x3f00), 0x0000);              // half the smallest of all: to even
    assert_int_equal(simt::mul_bf16x2(0x8003, 0x3f00), 0x8002);
    assert_int_equal(simt::mul_bf16x2(0x8000, 0x3f80), 0x8000);
    // 12.5 - 12, and 7.75 * 1.015625 - 8, where a product rounded to bf16 before the sum would leave -0.125.
    assert_int_equal(simt::fma_bf16x2(0x40f84148, 0x3f823f80, 0xc100c140), 0xbe043f00u);
    assert_true(simt::exp2(-INFINITY) == 0 && simt::exp2(3) == 8 && simt::exp2(-140) == 0);
}

// ---- mistakes -----------------------------------------------------------------------------------------------------

KRN_KERNEL(64, 1) diverges(KRN_ARGS(struct args) a)
{
    simt::wait_for_inputs();
    int t = simt::thread();
    if (a.mode == 0 && t < 33)
        simt::sync_block(); // the others end
    if (a.mode == 1) {
        if (t % 2)
            simt::sync_block();
        else
            simt::sync_block();
    }
    if (a.mode == 2 && t != 40)
        (void)simt::shuffle(t, 0);
    if (a.mode == 3) {
        if (t == 12)
            simt::sync_warp();
        else
            simt::sync_block();
    }
    if (a.mode == 4) {
        t == 12 ? (void)simt::ballot(true) : (void)simt::shuffle_xor(t, 1); // in one line
    }
    if (a.mode == 5 && t >= 32)
        return;
    if (a.mode == 5)
        simt::sync_block();
}

void test_diverged_barriers_are_reported(void **)
{
    // Which thread is the one to notice depends on the order: one ends, or one comes when another has ended.
    static const char *const parts[] = {" end", "waits at sync_block", " end", "nobody can go on", "ballot", " end"};
    for (int mode = 0; mode < 6; mode++)
        assert_fault(start(diverges, {NULL, NULL, 0, mode}), parts[mode]);
    assert_int_equal(start(diverges, {NULL, NULL, 0, 6}), 0);
}

KRN_KERNEL(64, 1) impatient(KRN_ARGS(struct args) a)
{
    for (int i = 0; i < (simt::thread() == 35 ? a.n : 1); i++)
        simt::wait_for_inputs();
}

void test_wait_for_inputs_is_called_once_by_each(void **)
{
    assert_int_equal(start(impatient, {NULL, NULL, 1, 0}), 0);
    assert_fault(start(impatient, {NULL, NULL, 0, 0}), "block (0, 0, 0), thread 35: called wait_for_inputs 0 times");
    assert_fault(start(impatient, {NULL, NULL, 2, 0}, 3), "called wait_for_inputs 2 times");
}

void test_bad_shapes_are_refused(void **)
{
    assert_fault(start(impatient, {NULL, NULL, 1, 0}, 1, 33), "blocks of 33 threads");
    assert_fault(start(impatient, {NULL, NULL, 1, 0}, 1, 1056), "blocks of 1056 threads");
    assert_fault(start(impatient, {NULL, NULL, 1, 0}, 1, 64, 170000), "170000 bytes of shared memory");
    assert_int_equal(start(impatient, {NULL, NULL, 1, 0}, 0, 64), 0);
}

KRN_KERNEL(32, 1) leaves_its_number(KRN_ARGS(struct args) a)
{
    simt::wait_for_inputs();
    *(int *)a.out = simt::block_x() * 32 + simt::thread();
}

void test_order_of_blocks_and_threads_can_be_reversed(void **)
{
    int out = -1;
    simt_host_set_reversed(false);
    assert_int_equal(start(leaves_its_number, {NULL, &out, 0, 0}, 3, 32), 0);
    assert_int_equal(out, 95);
    simt_host_set_reversed(true);
    assert_int_equal(start(leaves_its_number, {NULL, &out, 0, 0}, 3, 32), 0);
    assert_int_equal(out, 0);
}

void *run_a_block(void *out)
{
    alignas(16) static int in[256];
    *(int *)out = start(sum<256>, {in, (int *)out + 1, 0, 0}, 1, 256);
    return NULL;
}

// Symptom: AddressSanitizer saw a stack-buffer-underflow in copy16 once another thread than the loader ran kernels:
// what it mapped where the loader's fibres had been inherited the marks of their frames.
void test_stacks_of_a_thread_that_ended_leave_no_marks(void **)
{
    enum { BYTES = 256 << 20 }; // more than all stacks of a machine: it covers where they were
    pthread_t thread;
    int out[2] = {-1, -1};
    assert_int_equal(pthread_create(&thread, NULL, run_a_block, out), 0);
    pthread_join(thread, NULL);
    assert_int_equal(out[0], 0);
    void *map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
#if defined(__SANITIZE_ADDRESS__)
    assert_null(__asan_region_is_poisoned(map, BYTES));
#endif
    munmap(map, BYTES);
}

// mode: the wide access that is shifted by n bytes; 5: a store before the wait.
KRN_KERNEL(32, 1) wide(KRN_ARGS(struct args) a)
{
    int t = simt::thread(), at[5] = {0, 0, 0, 0, 0};
    char *out = (char *)a.out;
    if (a.mode == 5)
        simt::store16(out + 16 * t, make_uint4(0, 0, 0, 0));
    else
        at[a.mode] = a.n;
    simt::wait_for_inputs();
    simt::store16(out + 16 * t + at[0], simt::load16((const char *)a.in + 16 * t + at[1]));
    simt::store8(out + 512 + 8 * t + at[2], simt::load8((const char *)a.in + 8 * t + at[3]));
    simt::store8(out + 768 + 8 * t + at[4], make_float2(1, (float)t));
}

void test_wide_accesses_must_be_aligned_and_stores_wait(void **)
{
    alignas(16) static unsigned in[128 + 4], out[256 + 4];
    for (unsigned i = 0; i < 128; i++)
        in[i] = i;
    assert_int_equal(start(wide, {in, out, 0, 0}, 1, 32), 0);
    assert_memory_equal(out, in, 512);
    assert_memory_equal(out + 128, in, 256);
    float last;
    memcpy(&last, &out[255], sizeof last);
    assert_true(last == 31);
    assert_int_equal(start(wide, {in, out, 8, 4}, 1, 32), 0);
    for (int mode = 0; mode < 2; mode++)
        assert_fault(start(wide, {in, out, 8, mode}, 1, 32), "not aligned to 16");
    for (int mode = 2; mode < 5; mode++)
        assert_fault(start(wide, {in, out, 4, mode}, 1, 32), "not aligned to 8");
    assert_fault(start(wide, {in, out, 0, 5}, 1, 32), "writes before wait_for_inputs");
}

} // namespace

#define TESTS(setup)                                                                                               \
    cmocka_unit_test_setup(test_sums_of_blocks, setup), cmocka_unit_test_setup(test_collectives_of_a_warp, setup), \
        cmocka_unit_test_setup(test_collectives_of_a_block, setup),                                                \
        cmocka_unit_test_setup(test_mma_and_ldmatrix_are_a_product, setup),                                        \
        cmocka_unit_test_setup(test_diverged_barriers_are_reported, setup),                                        \
        cmocka_unit_test_setup(test_wait_for_inputs_is_called_once_by_each, setup),                                \
        cmocka_unit_test_setup(test_wide_accesses_must_be_aligned_and_stores_wait, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TESTS(in_order),
        TESTS(in_reverse),
        cmocka_unit_test(test_bf16_arithmetic_rounds_to_nearest_even),
        cmocka_unit_test(test_bad_shapes_are_refused),
        cmocka_unit_test(test_order_of_blocks_and_threads_can_be_reversed),
        cmocka_unit_test(test_stacks_of_a_thread_that_ended_leave_no_marks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
