// Tests of the fake driver: graphs, deferred work, failures on demand, the limit of memory, and what it refuses.
#include "cmocka_util.h"
#include "fake_driver.h"
#include "kernels.h"

#include <stdlib.h>
#include <string.h>

static struct krn_cuda_driver open_driver(struct fake_driver_options options)
{
    struct krn_cuda_driver driver;
    assert_int_equal(fake_driver_open(&options, &driver), 0);
    return driver;
}

static void *device(const struct krn_cuda_driver *d, size_t bytes)
{
    void *ptr = NULL;
    assert_int_equal(d->alloc(d->ctx, bytes, &ptr), 0);
    return ptr;
}

static void *pinned(const struct krn_cuda_driver *d, size_t bytes)
{
    void *ptr = NULL;
    assert_int_equal(d->host_alloc(d->ctx, bytes, &ptr), 0);
    return ptr;
}

static void test_fresh_memory_is_not_zero(void **state)
{
    (void)state;
    struct krn_cuda_driver d = open_driver((struct fake_driver_options){0});
    unsigned char *a = device(&d, 33), *b = pinned(&d, 33);
    assert_int_equal((uintptr_t)a % 256, 0);
    for (int i = 0; i < 33; i++)
        assert_true(a[i] == 0xff && b[i] == 0xff);
    assert_int_equal(fake_driver_live_allocations(), 2);
    d.release(d.ctx, a);
    d.host_release(d.ctx, b);
    d.release(d.ctx, NULL);
    d.host_release(d.ctx, NULL);
    assert_int_equal(fake_driver_live_allocations(), 0);
    d.close(d.ctx);
}

static void test_memory_has_a_limit(void **state)
{
    (void)state;
    struct krn_cuda_driver d = open_driver((struct fake_driver_options){.memory = 1000});
    void *a = device(&d, 600), *b = NULL;
    int64_t available, total;
    assert_int_equal(d.memory(d.ctx, &available, &total), 0);
    assert_true(available == 400 && total == 1000);
    assert_int_equal(d.alloc(d.ctx, 401, &b), KRN_ENOMEM);
    assert_null(b);
    assert_non_null(strstr(d.error(d.ctx), "401 bytes wanted, 400 free"));
    b = device(&d, 400);
    assert_int_equal(fake_driver_count(&d).bytes, 1000);
    d.release(d.ctx, a);
    assert_int_equal(d.memory(d.ctx, &available, &total), 0);
    assert_int_equal(available, 600);
    d.release(d.ctx, b);
    assert_int_equal(fake_driver_count(&d).allocations, 0);
    d.close(d.ctx);
}

static void test_work_is_done_at_the_call(void **state)
{
    (void)state;
    struct krn_cuda_driver d = open_driver((struct fake_driver_options){0});
    unsigned char *a = device(&d, 16), *host = pinned(&d, 16);
    memset(host, 5, 16);
    assert_int_equal(d.fill(d.ctx, d.stream, a, 3, 16), 0);
    assert_int_equal(d.copy_in(d.ctx, d.stream, a + 4, host, 8), 0);
    assert_int_equal(d.copy_out(d.ctx, d.stream, host + 8, a, 8), 0);
    assert_memory_equal(host, "\5\5\5\5\5\5\5\5\3\3\3\3\5\5\5\5", 16);
    assert_int_equal(d.sync(d.ctx, d.stream), 0);
    d.release(d.ctx, a);
    d.host_release(d.ctx, host);
    d.close(d.ctx);
}

// A host that is too early sees the difference.
static void test_deferred_work_waits_for_the_host(void **state)
{
    (void)state;
    struct krn_cuda_driver d = open_driver((struct fake_driver_options){.deferred = true});
    unsigned char *a = device(&d, 1), *to = pinned(&d, 1), *from = pinned(&d, 1);
    struct krn_cuda_event *first, *second, *never;
    assert_int_equal(d.event_new(d.ctx, &first), 0);
    assert_int_equal(d.event_new(d.ctx, &second), 0);
    assert_int_equal(d.event_new(d.ctx, &never), 0);

    *from = 1;
    assert_int_equal(d.copy_in(d.ctx, d.stream, a, from, 1), 0);
    assert_int_equal(d.copy_out(d.ctx, d.stream, to, a, 1), 0);
    assert_int_equal(d.event_record(d.ctx, first, d.stream), 0);
    assert_int_equal(d.fill(d.ctx, d.stream, a, 9, 1), 0);
    assert_int_equal(d.copy_out(d.ctx, d.stream, to, a, 1), 0);
    assert_int_equal(d.event_record(d.ctx, second, d.stream), 0);
    assert_int_equal(*to, 0xff); // read too early
    *from = 2;                   // overwritten too early
    assert_int_equal(d.sync(d.ctx, d.load_stream), 0);
    assert_int_equal(d.event_wait(d.ctx, never), 0);
    assert_int_equal(*to, 0xff); // waited for something else
    assert_int_equal(d.event_wait(d.ctx, first), 0);
    assert_int_equal(*to, 2);
    assert_int_equal(d.event_wait(d.ctx, first), 0);
    assert_int_equal(*to, 2);
    assert_int_equal(d.event_wait(d.ctx, second), 0);
    assert_int_equal(*to, 9);

    d.event_free(d.ctx, first);
    d.event_free(d.ctx, second);
    d.event_free(d.ctx, never);
    assert_int_equal(d.fill(d.ctx, d.stream, a, 4, 1), 0);
    assert_int_equal(d.copy_out(d.ctx, d.stream, to, a, 1), 0);
    d.release(d.ctx, a); // waits for the device
    assert_int_equal(*to, 4);
    d.host_release(d.ctx, to);
    d.host_release(d.ctx, from);
    d.close(d.ctx);
}

static void check_graph(bool deferred)
{
    struct krn_cuda_driver d = open_driver((struct fake_driver_options){.deferred = deferred});
    unsigned char *a = device(&d, 4), *host = pinned(&d, 4);
    struct krn_cuda_graph *graph = NULL;
    memset(host, 1, 4);
    assert_int_equal(d.fill(d.ctx, d.stream, a, 0, 4), 0);
    assert_int_equal(d.sync(d.ctx, d.stream), 0);
    assert_int_equal(d.capture_begin(d.ctx, d.stream), 0);
    assert_int_equal(d.copy_in(d.ctx, d.stream, a, host, 2), 0);
    assert_int_equal(d.fill(d.ctx, d.stream, a + 3, 7, 1), 0);
    assert_int_equal(d.capture_end(d.ctx, d.stream, &graph), 0);
    assert_int_equal(d.sync(d.ctx, d.stream), 0);
    assert_memory_equal(a, "\0\0\0\0", 4); // recorded, not run
    for (unsigned char i = 2; i < 5; i++) {
        memset(host, i, 4);
        assert_int_equal(d.graph_launch(d.ctx, graph, d.stream), 0);
        assert_int_equal(d.sync(d.ctx, d.stream), 0);
        assert_memory_equal(a, ((unsigned char[]){i, i, 0, 7}), 4);
    }
    // Dropped.
    assert_int_equal(d.capture_begin(d.ctx, d.stream), 0);
    assert_int_equal(d.fill(d.ctx, d.stream, a, 8, 4), 0);
    assert_int_equal(d.capture_end(d.ctx, d.stream, NULL), 0);
    assert_int_equal(d.sync(d.ctx, d.stream), 0);
    assert_int_equal(a[0], 4);
    struct fake_driver_counts counts = fake_driver_count(&d);
    assert_int_equal(counts.graphs, 1);
    assert_int_equal(counts.calls[FAKE_CAPTURE_BEGIN], 2);
    assert_int_equal(counts.calls[FAKE_GRAPH_LAUNCH], 3);
    d.graph_free(d.ctx, graph);
    assert_int_equal(fake_driver_count(&d).graphs, 0);
    d.release(d.ctx, a);
    d.host_release(d.ctx, host);
    d.close(d.ctx);
}

static void test_graph_replays_what_was_recorded(void **state)
{
    (void)state;
    check_graph(false);
    check_graph(true);
}

static void test_captured_stream_cannot_be_waited_for(void **state)
{
    (void)state;
    struct krn_cuda_driver d = open_driver((struct fake_driver_options){0});
    struct krn_cuda_event *event;
    struct krn_cuda_graph *graph = NULL;
    void *ptr = NULL;
    assert_int_equal(d.event_new(d.ctx, &event), 0);
    assert_int_equal(d.capture_begin(d.ctx, d.stream), 0);
    assert_int_equal(d.capture_begin(d.ctx, d.stream), KRN_EDEVICE);
    assert_int_equal(d.sync(d.ctx, d.stream), KRN_EDEVICE);
    assert_non_null(strstr(d.error(d.ctx), "sync while a stream is captured"));
    assert_int_equal(d.event_wait(d.ctx, event), KRN_EDEVICE);
    assert_int_equal(d.alloc(d.ctx, 1, &ptr), KRN_EDEVICE);
    assert_int_equal(d.host_alloc(d.ctx, 1, &ptr), KRN_EDEVICE);
    assert_int_equal(d.capture_end(d.ctx, d.stream, NULL), 0);
    assert_int_equal(d.capture_end(d.ctx, d.stream, &graph), KRN_EDEVICE);
    assert_null(graph);
    assert_int_equal(d.sync(d.ctx, d.stream), 0);
    d.event_free(d.ctx, event);
    d.close(d.ctx);
}

static void test_call_fails_on_demand(void **state)
{
    (void)state;
    struct krn_cuda_driver d = open_driver((struct fake_driver_options){0});
    void *ptr = NULL, *kept = device(&d, 8);
    fake_driver_fail(&d, FAKE_ALLOC, 2, KRN_ENOMEM);
    d.release(d.ctx, device(&d, 8));
    assert_int_equal(d.alloc(d.ctx, 8, &ptr), KRN_ENOMEM);
    assert_non_null(strstr(d.error(d.ctx), "alloc failed on demand"));
    d.release(d.ctx, device(&d, 8)); // once
    fake_driver_fail(&d, FAKE_FILL, 1, KRN_EDEVICE);
    fake_driver_fail(&d, FAKE_FILL, 0, 0);
    assert_int_equal(d.fill(d.ctx, d.stream, kept, 0, 8), 0);

    // A lost device stays lost, and keeps its reason.
    fake_driver_fail(&d, FAKE_FILL, 1, KRN_EDEVICE);
    assert_int_equal(d.fill(d.ctx, d.stream, kept, 1, 8), KRN_EDEVICE);
    assert_memory_equal(kept, "\0\0\0\0\0\0\0\0", 8);
    struct krn_cuda_graph *graph;
    int64_t available, total;
    assert_int_equal(d.sync(d.ctx, d.stream), KRN_EDEVICE);
    assert_int_equal(d.alloc(d.ctx, 8, &ptr), KRN_EDEVICE);
    assert_int_equal(d.memory(d.ctx, &available, &total), KRN_EDEVICE);
    assert_int_equal(d.capture_begin(d.ctx, d.stream), KRN_EDEVICE);
    assert_int_equal(d.capture_end(d.ctx, d.stream, &graph), KRN_EDEVICE);
    assert_non_null(strstr(d.error(d.ctx), "fill failed on demand"));
    d.release(d.ctx, kept);
    assert_int_equal(fake_driver_count(&d).calls[FAKE_FILL], 2);
    d.close(d.ctx);
}

static void test_capture_ends_even_when_it_fails(void **state)
{
    (void)state;
    struct krn_cuda_driver d = open_driver((struct fake_driver_options){0});
    struct krn_cuda_graph *graph = NULL;
    fake_driver_fail(&d, FAKE_CAPTURE_END, 1, KRN_ENOMEM);
    assert_int_equal(d.capture_begin(d.ctx, d.stream), 0);
    assert_int_equal(d.capture_end(d.ctx, d.stream, &graph), KRN_ENOMEM);
    assert_int_equal(d.sync(d.ctx, d.stream), 0);
    d.close(d.ctx);
}

static void test_copies_must_stay_inside_and_be_pinned(void **state)
{
    (void)state;
    for (int i = 0; i < 4; i++) {
        struct krn_cuda_driver d = open_driver((struct fake_driver_options){0});
        char *a = device(&d, 300), *host = pinned(&d, 300), loose[8] = "";
        int rc = i == 0   ? d.copy_in(d.ctx, d.stream, a + 296, host, 5)
                 : i == 1 ? d.copy_out(d.ctx, d.stream, loose, a, 8)
                 : i == 2 ? d.fill(d.ctx, d.stream, a + 1, 0, 300)
                          : d.copy_out(d.ctx, d.stream, host + 299, a, 2);
        assert_int_equal(rc, KRN_EDEVICE);
        assert_non_null(strstr(d.error(d.ctx), i % 2 ? "not pinned" : "not inside an allocation"));
        d.release(d.ctx, a);
        d.host_release(d.ctx, host);
        d.close(d.ctx);
    }
}

static void test_product_is_x_times_w_transposed(void **state)
{
    (void)state;
    struct krn_cuda_driver d = open_driver((struct fake_driver_options){0});
    uint16_t *x = device(&d, 2 * 4 * sizeof *x), *w = device(&d, 3 * 4 * sizeof *w);
    float *y = device(&d, 2 * 3 * sizeof *y);
    static const uint16_t small[] = {0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0}; // 0 .. 7
    for (int i = 0; i < 8; i++)
        x[i] = small[i];
    for (int i = 0; i < 12; i++)
        w[i] = small[i % 5];
    assert_int_equal(d.product(d.ctx, d.stream, y, 3, x, 4, w, 4, 2, 3, 3), 0);
    for (int r = 0; r < 2; r++)
        for (int o = 0; o < 3; o++) {
            int expected = 0;
            for (int i = 0; i < 3; i++)
                expected += (r * 4 + i) * ((o * 4 + i) % 5);
            assert_int_equal((int)y[r * 3 + o], expected);
        }
    d.release(d.ctx, x);
    d.release(d.ctx, w);
    d.release(d.ctx, y);
    d.close(d.ctx);
    d = open_driver((struct fake_driver_options){.no_product = true});
    assert_int_equal(d.product(d.ctx, d.stream, NULL, 0, NULL, 0, NULL, 0, 0, 0, 0), KRN_ENOTSUP);
    assert_int_equal(d.sync(d.ctx, d.stream), 0);
    d.close(d.ctx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fresh_memory_is_not_zero),
        cmocka_unit_test(test_memory_has_a_limit),
        cmocka_unit_test(test_work_is_done_at_the_call),
        cmocka_unit_test(test_deferred_work_waits_for_the_host),
        cmocka_unit_test(test_graph_replays_what_was_recorded),
        cmocka_unit_test(test_captured_stream_cannot_be_waited_for),
        cmocka_unit_test(test_call_fails_on_demand),
        cmocka_unit_test(test_capture_ends_even_when_it_fails),
        cmocka_unit_test(test_copies_must_stay_inside_and_be_pinned),
        cmocka_unit_test(test_product_is_x_times_w_transposed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
