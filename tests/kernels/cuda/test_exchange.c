// exchange.c over devices and an NCCL that are not there: sums to the bit, pieces, failures, what close gives back.
#include "fake_nccl.h"

#include <unistd.h>

enum { STAGING = 160 }; // small, so that exchanges go in pieces

// ---- the communicator alone, over CPU backends' memory --------------------------------------------------------------

struct rig {
    int n;
    struct krn_backend *children[MAX];
    struct krn_comm comm;
    char err[200];
};

static const int devices[MAX] = {3, 4, 5, 6, 7, 8, 9, 10};

// As a GPU's does: after all work.
static int download_after_work(void *ctx, void *host, const void *src, size_t bytes)
{
    (void)ctx;
    for (int d = 0; d < fake.n; d++)
        if (fake.drivers[d].sync(fake.drivers[d].ctx, fake.drivers[d].stream) != 0)
            return KRN_EDEVICE;
    memcpy(host, src, bytes);
    return 0;
}

static int rig_open(struct rig *rig, int n, int64_t staging)
{
    *rig = (struct rig){.n = n};
    for (int d = 0; d < n; d++) {
        rig->children[d] = open_cpu(1, ~0u);
        rig->children[d]->download = download_after_work;
    }
    return krn_cuda_exchange_open(&nccl, fake.drivers, rig->children, devices, n, staging, &rig->comm, rig->err,
                                  sizeof rig->err);
}

static void rig_close_children(struct rig *rig)
{
    for (int d = 0; d < rig->n; d++) {
        rig->children[d]->close(rig->children[d]->ctx);
        fake.drivers[d].close(fake.drivers[d].ctx);
    }
    assert_int_equal(fake_driver_live_allocations(), 0);
}

static void rig_close(struct rig *rig)
{
    rig->comm.close(rig->comm.ctx);
    for (int d = 0; d < rig->n; d++)
        assert_int_equal(fake_driver_count(&fake.drivers[d]).events, 0);
    rig_close_children(rig);
}

static void fill_parts(int n, int64_t count, float *parts[], float *sum)
{
    struct random random = {(uint64_t)count + 1};
    for (int d = 0; d < n; d++) {
        parts[d] = floats((size_t)count);
        fill_random(&random, parts[d], (size_t)count);
        for (int64_t i = 0; i < count; i++)
            sum[i] = d == 0 ? parts[0][i] : sum[i] + parts[d][i];
    }
}

static void test_sums_have_the_order_of_the_devices_whatever_their_size(void **state)
{
    static const int64_t counts[] = {1, 5, 20, 21, 40, 41, 80, 81, 160, 161, 511, 1000};
    (void)state;
    for (int n = 2; n <= 8; n *= 2)
        for (int deferred = 0; deferred < 2; deferred++) {
            struct rig rig;
            fake_open(n, deferred);
            assert_int_equal(rig_open(&rig, n, STAGING), 0);
            for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
                float *parts[MAX], *sum = floats((size_t)counts[i]);
                fill_parts(n, counts[i], parts, sum);
                assert_int_equal(rig.comm.all_reduce(rig.comm.ctx, parts, counts[i]), 0);
                for (int d = 0; d < n; d++) {
                    assert_int_equal(fake.drivers[d].sync(fake.drivers[d].ctx, fake.drivers[d].stream), 0);
                    assert_true(same_bits(parts[d], sum, (size_t)counts[i]));
                    free(parts[d]);
                }
                free(sum);
            }
            rig_close(&rig);
            assert_int_equal(fake.alive, 0);
        }
}

static void test_a_short_sum_is_one_exchange_and_a_long_one_two(void **state)
{
    (void)state;
    struct rig rig;
    float *parts[MAX], sum[STAGING];
    fake_open(4, false);
    assert_int_equal(rig_open(&rig, 4, STAGING), 0);
    fill_parts(4, STAGING, parts, sum);
    int before = fake.groups;
    assert_int_equal(rig.comm.all_reduce(rig.comm.ctx, parts, STAGING / 4), 0);
    assert_int_equal(fake.groups, before + 1);
    assert_int_equal(rig.comm.all_reduce(rig.comm.ctx, parts, STAGING), 0);
    assert_int_equal(fake.groups, before + 3);
    for (int d = 0; d < 4; d++)
        free(parts[d]);
    rig_close(&rig);
}

static void test_columns_stand_side_by_side(void **state)
{
    enum { ROWS = 7, WIDTH = 10 };
    (void)state;
    for (int n = 2; n <= 8; n *= 2) {
        struct rig rig;
        float *parts[MAX], *to[MAX], *sum = floats(ROWS * WIDTH);
        fake_open(n, true);
        assert_int_equal(rig_open(&rig, n, 2 * n * WIDTH + 3), 0); // two rows at a time
        fill_parts(n, ROWS * WIDTH, parts, sum);
        for (int d = 0; d < n; d++)
            to[d] = floats((size_t)(ROWS * WIDTH * n));
        const float *const *from = (const float *const *)parts;
        assert_int_equal(rig.comm.all_gather_columns(rig.comm.ctx, to, from, ROWS, WIDTH), 0);
        for (int e = 0; e < n; e++) {
            assert_int_equal(fake.drivers[e].sync(fake.drivers[e].ctx, fake.drivers[e].stream), 0);
            for (int r = 0; r < ROWS; r++)
                for (int d = 0; d < n; d++)
                    assert_true(same_bits(to[e] + (r * n + d) * WIDTH, parts[d] + r * WIDTH, WIDTH));
        }
        assert_int_equal(rig.comm.all_gather_columns(rig.comm.ctx, to, from, 1, 100 * n), KRN_ENOTSUP);
        for (int d = 0; d < n; d++) {
            free(parts[d]);
            free(to[d]);
        }
        free(sum);
        rig_close(&rig);
    }
}

static void wait_for_aborts(int n)
{
    for (int i = 0; i < 2000 && atomic_load(&fake.aborted) < n; i++)
        usleep(1000);
    assert_int_equal(atomic_load(&fake.aborted), n);
}

static void test_a_failed_exchange_says_what_nccl_says(void **state)
{
    (void)state;
    struct rig rig;
    float *parts[MAX], sum[8];
    fake_open(2, false);
    assert_int_equal(rig_open(&rig, 2, STAGING), 0);
    fill_parts(2, 8, parts, sum);
    fake.fail_in = 1;
    assert_int_equal(rig.comm.all_reduce(rig.comm.ctx, parts, 8), KRN_EDEVICE);
    assert_string_equal(rig.comm.error(rig.comm.ctx), "NCCL: all-gather: the link is down");
    fake_driver_fail(&fake.drivers[1], FAKE_LAUNCH, 1, KRN_EDEVICE);
    assert_int_equal(rig.comm.all_reduce(rig.comm.ctx, parts, 8), KRN_EDEVICE);
    assert_non_null(strstr(rig.comm.error(rig.comm.ctx), "device 1: "));
    rig.comm.abort(rig.comm.ctx);
    wait_for_aborts(2);
    int before = fake.groups;
    assert_int_equal(rig.comm.all_reduce(rig.comm.ctx, parts, 8), KRN_EDEVICE);
    assert_int_equal(fake.groups, before); // nothing is started after an abort
    rig.comm.abort(rig.comm.ctx);
    for (int d = 0; d < 2; d++)
        free(parts[d]);
    rig_close(&rig);
}

static void test_a_device_that_dies_is_noticed_by_finish(void **state)
{
    (void)state;
    for (int way = 0; way < 2; way++) {
        struct rig rig;
        fake_open(2, true);
        assert_int_equal(rig_open(&rig, 2, STAGING), 0);
        assert_int_equal(rig.comm.finish(rig.comm.ctx), 0); // nothing is under way
        for (int pass = 0; pass < 5; pass++) {
            assert_int_equal(rig.comm.submitted(rig.comm.ctx), 0);
            assert_int_equal(rig.comm.finish(rig.comm.ctx), 0);
        }
        assert_int_equal(rig.comm.submitted(rig.comm.ctx), 0);
        fake_driver_fail(&fake.drivers[1], way ? FAKE_EVENT_WAIT : FAKE_EVENT_RECORD, 1, KRN_EDEVICE);
        assert_int_equal(way ? rig.comm.finish(rig.comm.ctx) : rig.comm.submitted(rig.comm.ctx), KRN_EDEVICE);
        assert_non_null(strstr(rig.comm.error(rig.comm.ctx), "device 1: "));
        rig_close(&rig);
    }
}

static struct krn_cuda_event *recorded[8], *asked;
static int n_recorded, not_yet; // not_yet: so often the answer is no

static int note_record(void *ctx, struct krn_cuda_event *event, void *stream)
{
    (void)ctx, (void)stream;
    recorded[n_recorded++] = event;
    return 0;
}

static int note_query(void *ctx, struct krn_cuda_event *event)
{
    (void)ctx;
    asked = event;
    return not_yet-- <= 0;
}

static void test_finish_waits_for_the_oldest_pass(void **state)
{
    (void)state;
    struct rig rig;
    fake_open(2, true);
    fake.drivers[1].event_record = note_record;
    fake.drivers[1].event_query = note_query;
    n_recorded = not_yet = 0;
    assert_int_equal(rig_open(&rig, 2, STAGING), 0);
    assert_int_equal(rig.comm.submitted(rig.comm.ctx), 0);
    for (int pass = 0; pass < 4; pass++) {
        assert_int_equal(rig.comm.submitted(rig.comm.ctx), 0);
        fake.async_error = KRN_NCCL_IN_PROGRESS; // no error
        not_yet = 3;
        assert_int_equal(rig.comm.finish(rig.comm.ctx), 0);
        assert_int_equal(not_yet, -1);
        assert_ptr_equal(asked, recorded[pass]);
    }
    fake.async_error = 3; // while the device never comes to its event
    not_yet = 1000000;
    assert_int_equal(rig.comm.finish(rig.comm.ctx), KRN_EDEVICE);
    assert_string_equal(rig.comm.error(rig.comm.ctx), "NCCL: an exchange: the link is down");
    rig_close(&rig);
}

// ---- opening --------------------------------------------------------------------------------------------------------

static void test_open_refuses_devices_that_do_not_exchange(void **state)
{
    (void)state;
    struct rig rig;
    fake_open(4, false);
    fake.init_error = 3;
    assert_int_equal(rig_open(&rig, 4, STAGING), KRN_EDEVICE);
    assert_string_equal(rig.err, "NCCL: ncclCommInitAll: the link is down");
    rig_close_children(&rig);

    fake_open(4, false);
    fake.wrong = true;
    assert_int_equal(rig_open(&rig, 4, STAGING), KRN_EDEVICE);
    assert_string_equal(rig.err, "the devices do not exchange what they should");
    wait_for_aborts(4);
    rig_close_children(&rig);

    fake_open(2, false);
    fake_driver_fail(&fake.drivers[1], FAKE_EVENT_NEW, 2, KRN_EDEVICE);
    assert_int_equal(rig_open(&rig, 2, STAGING), KRN_EDEVICE);
    rig_close_children(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sums_have_the_order_of_the_devices_whatever_their_size),
        cmocka_unit_test(test_a_short_sum_is_one_exchange_and_a_long_one_two),
        cmocka_unit_test(test_columns_stand_side_by_side),
        cmocka_unit_test(test_a_failed_exchange_says_what_nccl_says),
        cmocka_unit_test(test_a_device_that_dies_is_noticed_by_finish),
        cmocka_unit_test(test_finish_waits_for_the_oldest_pass),
        cmocka_unit_test(test_open_refuses_devices_that_do_not_exchange),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
