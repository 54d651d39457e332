// Tests of kernels on the fake driver's streams: recorded with their arguments, deferred, and faults that lose the
// device.
#include "fake_driver.h"
#include "simt.cuh"

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
extern "C" {
#include <cmocka.h>
}

namespace
{

struct args {
    int *numbers;
    int add;
};

KRN_KERNEL(32, 1) add(KRN_ARGS(struct args) a)
{
    simt::wait_for_inputs();
    a.numbers[simt::block_x() * 32 + simt::thread()] += a.add;
}

KRN_KERNEL(32, 1) read_nothing(KRN_ARGS(struct args) a)
{
    simt::wait_for_inputs();
    a.numbers[simt::thread()] = simt::shared<int>(0).get(simt::thread());
}

struct rig {
    struct krn_cuda_driver d;
    int *numbers;
};

struct rig open_rig(struct fake_driver_options options)
{
    struct rig rig;
    void *ptr = NULL;
    assert_int_equal(fake_driver_open(&options, &rig.d), 0);
    assert_int_equal(rig.d.alloc(rig.d.ctx, 64 * sizeof(int), &ptr), 0);
    rig.numbers = (int *)ptr;
    assert_int_equal(rig.d.fill(rig.d.ctx, rig.d.stream, ptr, 0, 64 * sizeof(int)), 0);
    return rig;
}

void close_rig(struct rig *rig)
{
    rig->d.release(rig->d.ctx, rig->numbers);
    rig->d.close(rig->d.ctx);
}

template <class Kernel> int start(struct rig *rig, Kernel kernel, int n, int blocks = 2)
{
    struct args a = {rig->numbers, n};
    int rc = simt::launch(kernel, {rig->d.stream, false}, {blocks, 1, 1}, 32, 256, a);
    a.add = 1000; // the arguments are copied
    return rc;
}

void test_kernels_run_in_order_with_fills(void **)
{
    struct rig rig = open_rig({});
    assert_int_equal(start(&rig, add, 5), 0);
    assert_int_equal(rig.numbers[63], 5);
    assert_int_equal(start(&rig, add, 5, 0), 0); // no blocks: no launch
    assert_int_equal(fake_driver_count(&rig.d).calls[FAKE_LAUNCH], 1);
    close_rig(&rig);
    struct fake_driver_options deferred = {};
    deferred.deferred = true;
    rig = open_rig(deferred);
    assert_int_equal(start(&rig, add, 5), 0);
    assert_int_equal(rig.numbers[63], -1);
    assert_int_equal(rig.d.sync(rig.d.ctx, rig.d.stream), 0);
    assert_int_equal(rig.numbers[63], 5);
    close_rig(&rig);
}

void test_graph_holds_kernels_and_their_arguments(void **)
{
    struct rig rig = open_rig({});
    struct krn_cuda_graph *graph = NULL;
    assert_int_equal(rig.d.capture_begin(rig.d.ctx, rig.d.stream), 0);
    assert_int_equal(start(&rig, add, 2), 0);
    assert_int_equal(start(&rig, add, 3, 1), 0);
    assert_int_equal(rig.d.capture_end(rig.d.ctx, rig.d.stream, &graph), 0);
    assert_int_equal(rig.numbers[0], 0);
    for (int i = 1; i <= 3; i++) {
        assert_int_equal(rig.d.graph_launch(rig.d.ctx, graph, rig.d.stream), 0);
        assert_int_equal(rig.numbers[0], 5 * i);
        assert_int_equal(rig.numbers[32], 2 * i);
    }
    assert_int_equal(fake_driver_count(&rig.d).calls[FAKE_LAUNCH], 2);
    assert_int_equal(fake_driver_count(&rig.d).kernels, 6);
    rig.d.graph_free(rig.d.ctx, graph);
    close_rig(&rig);
}

void test_fault_of_a_kernel_loses_the_device(void **)
{
    for (int deferred = 0; deferred < 2; deferred++) {
        struct fake_driver_options options = {};
        options.deferred = deferred;
        struct rig rig = open_rig(options);
        assert_int_equal(start(&rig, read_nothing, 0), deferred ? 0 : KRN_EDEVICE);
        assert_int_equal(rig.d.sync(rig.d.ctx, rig.d.stream), KRN_EDEVICE);
        assert_non_null(strstr(rig.d.error(rig.d.ctx), "was never written"));
        assert_int_equal(start(&rig, add, 1), KRN_EDEVICE);
        assert_non_null(strstr(rig.d.error(rig.d.ctx), "was never written"));
        close_rig(&rig);
    }
}

void test_launch_fails_on_demand(void **)
{
    struct rig rig = open_rig({});
    fake_driver_fail(&rig.d, FAKE_LAUNCH, 2, KRN_EDEVICE);
    assert_int_equal(start(&rig, add, 1), 0);
    assert_int_equal(start(&rig, add, 1), KRN_EDEVICE);
    assert_int_equal(rig.numbers[0], 1);
    assert_int_equal(rig.d.sync(rig.d.ctx, rig.d.stream), KRN_EDEVICE);
    close_rig(&rig);
}

} // namespace

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_kernels_run_in_order_with_fills),
        cmocka_unit_test(test_graph_holds_kernels_and_their_arguments),
        cmocka_unit_test(test_fault_of_a_kernel_loses_the_device),
        cmocka_unit_test(test_launch_fails_on_demand),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
