// Tests of the shared memory of the host's SIMT machine: what is reported, and that nothing else is. Run in both orders
// of blocks and threads.
#include "simt_test.h"

namespace
{

// Thread t writes t, then reads its neighbour's. mode: how the accesses are ordered.
KRN_KERNEL(64, 1) neighbours(KRN_ARGS(struct args) a)
{
    simt::smem<int> s = simt::shared<int>(0);
    int t = simt::thread();
    simt::wait_for_inputs();
    s.set(t, t);
    if (a.mode == 1)
        simt::sync_block();
    if (a.mode == 2)
        simt::sync_warp();
    if (a.mode == 3)
        (void)simt::shuffle(t, 0); // orders nothing
    ((int *)a.out)[t] = s.get(t ^ a.n);
}

void test_missing_barrier_is_reported(void **)
{
    int out[64];
    assert_int_equal(start(neighbours, {NULL, out, 1, 1}), 0);
    for (int t = 0; t < 64; t++)
        assert_int_equal(out[t], t ^ 1);
    assert_int_equal(start(neighbours, {NULL, out, 0, 0}), 0); // its own
    assert_int_equal(start(neighbours, {NULL, out, 1, 2}), 0);
    assert_fault(start(neighbours, {NULL, out, 1, 3}), "race on shared byte");
    // Without any barrier the neighbour may not even have written yet.
    assert_int_equal(start(neighbours, {NULL, out, 1, 0}), KRN_EDEVICE);
}

KRN_KERNEL(64, 1) within_warps(KRN_ARGS(struct args) a)
{
    simt::smem<uint8_t> s = simt::shared<uint8_t>(0);
    int t = simt::thread(), mine = t ^ a.n;
    simt::wait_for_inputs();
    s.set(t, (uint8_t)t);
    simt::sync_warp();
    ((int *)a.out)[t] = s.get(mine);
    if (a.mode == 1)
        simt::sync_warp();
    s.set(mine ^ 1, 1);
}

void test_barrier_of_a_warp_orders_its_warp_alone(void **)
{
    int out[64];
    assert_int_equal(start(within_warps, {NULL, out, 5, 1}), 0);
    for (int t = 0; t < 64; t++)
        assert_int_equal(out[t], t ^ 5);
    assert_fault(start(within_warps, {NULL, out, 5, 0}), "race on shared byte"); // reads and then writes of one epoch
    assert_int_equal(start(within_warps, {NULL, out, 32, 1}), KRN_EDEVICE);      // the other warp's bytes
}

// Two warps touch one place in all combinations of read (0), write (1) and add (2), without order.
KRN_KERNEL(64, 1) two_warps(KRN_ARGS(struct args) a)
{
    simt::smem<int> s = simt::shared<int>(16);
    simt::wait_for_inputs();
    if (simt::thread() == 0)
        s.set(0, 0);
    simt::sync_block();
    int does = simt::warp() == 0 ? a.n : a.mode;
    if (simt::lane() == 3) {
        if (does == 0)
            (void)s.get(0);
        else if (does == 1)
            s.set(0, 1);
        else
            (void)simt::shared_add(s, 0, 1);
    }
}

void test_only_reads_with_reads_and_adds_with_adds_need_no_order(void **)
{
    for (int first = 0; first < 3; first++)
        for (int second = 0; second < 3; second++) {
            int rc = start(two_warps, {NULL, NULL, first, second});
            if (first == second && first != 1)
                assert_int_equal(rc, 0);
            else
                assert_fault(rc, "race on shared byte 16");
        }
}

struct larger {
    int operator()(int a, int b) const
    {
        return a > b ? a : b;
    }
};

// Many read one place, all wait for each other in a way that orders no memory, then the mode-th thread writes it.
// n: 0 the first warp reads and is ordered, 1 both warps read, 2 the first warp reads without order.
KRN_KERNEL(64, 1) readers_then_writer(KRN_ARGS(struct args) a)
{
    simt::smem<int> s = simt::shared<int>(0);
    simt::wait_for_inputs();
    if (simt::thread() == 0)
        s.set(0, 0);
    simt::sync_block();
    if (simt::warp() == 0 || a.n == 1)
        (void)s.get(0);
    (void)simt::block_reduce<64>(0, larger(), simt::shared<char>(1024));
    if (a.n < 2)
        simt::sync_warp();
    if (simt::thread() == a.mode)
        s.set(0, 1);
}

// One lane writes 4 bytes and another, unordered, reads 2 of them.
KRN_KERNEL(32, 1) halves(KRN_ARGS(struct args) a)
{
    simt::smem<uint32_t> s = simt::shared<uint32_t>(0);
    simt::wait_for_inputs();
    if (simt::lane() == 5)
        s.set(0, 1);
    (void)simt::ballot(true);
    if (simt::lane() == a.mode)
        (void)s.as<uint16_t>().get(1);
}

void test_a_part_of_a_word_races_with_the_word(void **)
{
    assert_int_equal(start(halves, {NULL, NULL, 0, 5}, 1, 32), 0);
    assert_fault(start(halves, {NULL, NULL, 0, 6}, 1, 32), "race on shared byte 2: thread 6 reads what thread 5 wrote");
}

void test_a_writer_must_be_ordered_after_all_readers(void **)
{
    assert_int_equal(start(readers_then_writer, {NULL, NULL, 0, 7}), 0);   // the same warp, ordered
    assert_fault(start(readers_then_writer, {NULL, NULL, 0, 40}), "race"); // another warp
    for (int writer = 0; writer < 64; writer++) {
        assert_fault(start(readers_then_writer, {NULL, NULL, 1, writer}), "threads of several warps read");
        assert_fault(start(readers_then_writer, {NULL, NULL, 2, writer}), "lanes of warp 0 read");
    }
}

KRN_KERNEL(64, 1) counts(KRN_ARGS(struct args) a)
{
    simt::smem<unsigned> s = simt::shared<unsigned>(0);
    simt::wait_for_inputs();
    if (simt::thread() < 2)
        s.set(simt::thread(), 0);
    simt::sync_block();
    (void)simt::shared_add(s, 0, 2u);
    (void)simt::shared_max(s, 1, (unsigned)(simt::thread() * 37 % 64));
    simt::sync_block();
    if (simt::thread() < 2)
        ((unsigned *)a.out)[simt::thread()] = s.get(simt::thread());
}

void test_atomic_changes_add_up(void **)
{
    unsigned out[2];
    assert_int_equal(start(counts, {NULL, out, 0, 0}), 0);
    assert_int_equal(out[0], 128);
    assert_int_equal(out[1], 63);
}

KRN_KERNEL(64, 1) loads(KRN_ARGS(struct args) a)
{
    simt::smem<uint4> s = simt::shared<uint4>(0);
    int t = simt::thread();
    simt::wait_for_inputs();
    s.set(t, make_uint4(7, 7, 7, 7));
    simt::sync_block();
    for (int i = 0; i < 2; i++) {
        simt::copy16_async(s.at(t ^ 1), (const uint4 *)a.in + i * 64 + t, t != 9);
        simt::copy_commit();
        if (a.mode == 0)
            simt::copy_wait<0>();
        if (a.mode == 1)
            simt::copy_wait<1>();
        if (a.mode == 2 && i == 0)
            simt::copy_wait<0>();
        simt::sync_block();
        ((unsigned *)a.out)[i * 64 + t] = s.get(t).y;
        simt::sync_block();
    }
}

void test_asynchronous_copies_need_their_wait(void **)
{
    alignas(16) static unsigned in[128][4];
    unsigned out[128];
    for (unsigned i = 0; i < 512; i++)
        in[i / 4][i % 4] = i;
    assert_int_equal(start(loads, {in, out, 0, 0}), 0);
    for (unsigned i = 0; i < 128; i++)
        assert_int_equal(out[i], (i % 64) == 8 ? 0 : (i ^ 1) * 4 + 1);
    assert_fault(start(loads, {in, out, 0, 1}), "while an asynchronous copy of thread");
    assert_fault(start(loads, {in, out, 0, 2}), "while an asynchronous copy of thread");
    assert_fault(start(loads, {(const char *)in + 4, out, 0, 0}), "not aligned to 16");
}

// A ring of copies that are waited for one group late, as kernels do it; and the source is read at the wait.
KRN_KERNEL(32, 1) pipeline(KRN_ARGS(struct args) a)
{
    simt::smem<uint4> s = simt::shared<uint4>(0);
    int t = simt::thread();
    uint4 *in = (uint4 *)const_cast<void *>(a.in);
    simt::wait_for_inputs();
    for (int i = 0; i < 3 + a.n; i++) {
        if (i < a.n)
            simt::copy16_async(s.at(i % 4 * 32 + t), in + i * 32 + t, true);
        simt::copy_commit();
        if (i < 3)
            continue;
        simt::copy_wait<3>();
        ((unsigned *)a.out)[(i - 3) * 32 + t] = s.get((i - 3) % 4 * 32 + t).x;
        if (i < a.n)
            in[i * 32 + t].x += 1; // not copied yet
    }
}

void test_asynchronous_copies_happen_at_their_wait(void **)
{
    alignas(16) static unsigned in[10 * 32][4];
    unsigned out[10 * 32];
    for (unsigned i = 0; i < 320; i++)
        in[i][0] = i;
    assert_int_equal(start(pipeline, {in, out, 10, 0}, 1, 32), 0);
    for (unsigned i = 0; i < 320; i++)
        assert_int_equal(out[i], i < 96 ? i : i + 1);
}

KRN_KERNEL(32, 1) outside(KRN_ARGS(struct args) a)
{
    simt::smem<uint16_t> s = simt::shared<uint16_t>(0);
    simt::wait_for_inputs();
    int t = simt::thread();
    if (a.mode == 0)
        (void)s.get(t);
    if (a.mode == 1)
        s.set(4096 - 31 + t, 0); // the last lane is outside
    if (a.mode == 2)
        s.set(-1 + t, 0);
    if (a.mode == 3)
        s.at(1 + 4 * t).as<uint32_t>().set(0, 1);
    if (a.mode == 4 && t == 0) {
        s.set(0, 1);
        (void)s.as<uint32_t>().get(0); // half of it was written
    }
    if (a.mode == 5)
        (void)simt::shared_add(s.as<int>(), 0, 1);
}

void test_uninitialised_and_outside_bytes_are_reported(void **)
{
    static const char *const parts[] = {
        "was never written", "outside the launch's 8192", "outside the launch's 8192", "aligned to 4",
        "byte 2 is read",    "was never written",
    };
    for (int mode = 0; mode < 6; mode++)
        assert_fault(start(outside, {NULL, NULL, 0, mode}, 1, 32), parts[mode]);
    int out[64];
    assert_int_equal(start(neighbours, {NULL, out, 1, 1}), 0);
    assert_fault(start(outside, {NULL, NULL, 0, 0}, 1, 32), "was never written"); // what a launch before wrote is gone
}

} // namespace

#define TESTS(setup)                                                                                \
    cmocka_unit_test_setup(test_missing_barrier_is_reported, setup),                                \
        cmocka_unit_test_setup(test_barrier_of_a_warp_orders_its_warp_alone, setup),                \
        cmocka_unit_test_setup(test_only_reads_with_reads_and_adds_with_adds_need_no_order, setup), \
        cmocka_unit_test_setup(test_a_part_of_a_word_races_with_the_word, setup),                   \
        cmocka_unit_test_setup(test_a_writer_must_be_ordered_after_all_readers, setup),             \
        cmocka_unit_test_setup(test_atomic_changes_add_up, setup),                                  \
        cmocka_unit_test_setup(test_asynchronous_copies_need_their_wait, setup),                    \
        cmocka_unit_test_setup(test_asynchronous_copies_happen_at_their_wait, setup),               \
        cmocka_unit_test_setup(test_uninitialised_and_outside_bytes_are_reported, setup)

int main(void)
{
    const struct CMUnitTest tests[] = {TESTS(in_order), TESTS(in_reverse)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
