// engine/kv_plan.c: how many pages there are, over a backend that only has numbers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <cmocka.h>

#include "kv_plan.h"
#include "model/weights.h"

enum { PAGE = 1 << 20 }; // bytes

static struct krn_memory table;
static char err[512];

static void memory(void *ctx, struct krn_memory *ret)
{
    (void)ctx;
    *ret = table;
}

static int64_t page_bytes(void *ctx, const struct krn_kv *kv)
{
    (void)ctx;
    return kv->type == KRN_F32 ? KRN_ENOTSUP : kv->type == KRN_FP8 ? PAGE / 2 : PAGE;
}

static const struct krn_backend backend = {.name = "fake", .memory = memory, .kv_page_bytes = page_bytes};

static struct eng_options options(void)
{
    struct eng_options o = eng_options_default();
    o.max_sequences = 4;
    o.page_size = 16;
    return o;
}

// Plans for a model of 1024 positions: at most 4 * 64 pages are of use.
static int plan(const struct eng_options *o, int32_t *ret_pages, int32_t *ret_context)
{
    struct eng_weights w = {.config = {.max_positions = 1024}};
    struct eng_kv_plan p;
    err[0] = '\0';
    int rc = eng_kv_plan_begin(o, &backend, &w, &p, err, sizeof err);
    return rc ? rc : eng_kv_plan_end(o, &backend, &p, ret_pages, ret_context, err, sizeof err);
}

static void expect(const struct eng_options *o, int32_t pages, int32_t context)
{
    int32_t n = -1, c = -1;
    if (plan(o, &n, &c) != 0)
        fail_msg("%s", err);
    assert_int_equal(n, pages);
    assert_int_equal(c, context);
}

static void refuse(const struct eng_options *o, int code, const char *says)
{
    int32_t n = -1, c = -1;
    int rc = plan(o, &n, &c);
    if (rc != code || !strstr(err, says))
        fail_msg("%d, \"%s\" instead of %d, \"%s\"", rc, err, code, says);
    assert_true(n == -1 && c == -1);
}

static int no_device(void **state)
{
    (void)state;
    table = (struct krn_memory){0};
    return 0;
}

// 1000 pages in all, `free` of them free, 10 kept for the backend, and 20 are never used.
static void device(int64_t free_pages)
{
    table = (struct krn_memory){.total = (int64_t)1000 * PAGE,
                                .free = free_pages * PAGE,
                                .reserve = 10 * PAGE,
                                .n_categories = 2,
                                .categories = {{"weights", (int64_t)700 * PAGE}, {"activations", 20 * PAGE}}};
}

static void test_without_a_limit_the_options_decide(void **state)
{
    (void)state;
    struct eng_options o = options();
    o.kv_memory = (int64_t)5000 * PAGE;
    expect(&o, 4 * 64, 1024); // no more than can be of use
    o.kv_memory = 30 * PAGE;
    expect(&o, 30, 480);
    o.max_context = 100;
    expect(&o, 4 * 7, 100);
    o.max_context = 500;
    refuse(&o, ENG_EINVAL, "max_context 500 does not fit the KV memory of 31457280 bytes, which holds 480 tokens");
    o.max_context = 0;
    o.kv_memory = 10;
    refuse(&o, ENG_EINVAL, "kv_memory of 10 bytes holds no context: a page of 16 tokens needs 1048576");
}

static void test_a_device_gives_what_is_left(void **state)
{
    (void)state;
    struct eng_options o = options();
    device(900);
    expect(&o, 4 * 64, 1024);
    device(130);
    expect(&o, 100, 1024);
    device(40);
    expect(&o, 10, 160);
    o.kv_type = "fp8"; // half the size
    expect(&o, 20, 320);
    o.max_context = 64;
    expect(&o, 4 * 4, 64);
}

static void test_a_plan_that_does_not_fit_is_refused_with_its_numbers(void **state)
{
    (void)state;
    struct eng_options o = options();
    device(30); // all of it is kept back
    refuse(&o, ENG_ENOMEM,
           "the KV store needs 0.00 GiB, but 0.03 of the fake backend's 0.98 GiB are free and 0.03 are kept back "
           "(taken, in GiB: weights 0.68, activations 0.02)");
    device(130);
    o.kv_memory = 100 * PAGE;
    expect(&o, 100, 1024);
    o.kv_memory = 101 * PAGE; // asked for, so it must be there
    refuse(&o, ENG_ENOMEM, "the KV store needs 0.10 GiB");
    o.kv_memory = 0;
    o.max_context = 1024;
    device(93); // 63 pages, and one sequence needs 64
    refuse(&o, ENG_ENOMEM, "the KV store needs 0.06 GiB");
    device(94);
    expect(&o, 64, 1024);
}

static void test_types(void **state)
{
    (void)state;
    struct eng_options o = options();
    o.kv_memory = (int64_t)5000 * PAGE;
    o.kv_type = "f32";
    refuse(&o, ENG_ENOTSUP,
           "the fake backend has no keys and values of type f32 for this model (it has bf16, fp8, q8)");
    o.kv_type = "q4";
    refuse(&o, ENG_EINVAL, "kv_type is \"q4\", expected auto, f32, bf16, fp8 or q8");
    o.kv_type = "bf16";
    expect(&o, 4 * 64, 1024);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_without_a_limit_the_options_decide, no_device),
        cmocka_unit_test_setup(test_a_device_gives_what_is_left, no_device),
        cmocka_unit_test_setup(test_a_plan_that_does_not_fit_is_refused_with_its_numbers, no_device),
        cmocka_unit_test_setup(test_types, no_device),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
