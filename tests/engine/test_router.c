// engine/router.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "request.h"
#include "router.h"

static const unsigned ALL = 15, LOSSLESS = 1u << ENG_MODE_AR | 1u << ENG_MODE_SELF_SPECULATION;

static struct eng_route decide(unsigned auto_modes, struct eng_params p, enum eng_mode configured, int32_t rows)
{
    struct eng_request_limits limits = {
        .n_vocab = 50, .max_context = 100, .modes = ALL, .block_length = 8, .threshold = 0.9f, .mode = configured};
    struct eng_router router = {.modes = ALL, .auto_modes = auto_modes, .auto_rows = 64};
    struct eng_load load = {.active = rows / 8, .block_rows = rows};
    int32_t prompt[] = {1};
    struct eng_request *r;
    struct eng_route to;
    assert_int_equal(eng_request_make(&limits, &p, prompt, 1, &r, NULL, NULL, 0), 0);
    eng_router_decide(&router, r, &load, &to);
    eng_request_free(r);
    assert_int_equal(to.block_length, p.block_length ? p.block_length : 8);
    return to;
}

static void test_a_forced_mode_is_honoured_under_any_load(void **state)
{
    (void)state;
    for (enum eng_mode mode = ENG_MODE_AR; mode < ENG_N_MODES; mode++) {
        struct eng_params p = eng_params_default();
        p.mode = mode;
        for (int32_t rows = 8; rows < 1000; rows *= 5)
            for (unsigned modes = 2; modes < 16; modes += 2)
                assert_int_equal(decide(modes, p, ENG_MODE_AUTO, rows).mode, mode);
    }
}

static void test_the_configured_mode_is_the_default_only(void **state)
{
    (void)state;
    struct eng_params p = eng_params_default();
    struct eng_route to = decide(LOSSLESS, p, ENG_MODE_DIFFUSION, 800);
    assert_int_equal(to.mode, ENG_MODE_DIFFUSION);
    assert_non_null(strstr(to.reason, "configuration"));
    p.mode = ENG_MODE_AR;
    to = decide(LOSSLESS, p, ENG_MODE_DIFFUSION, 8);
    assert_int_equal(to.mode, ENG_MODE_AR);
    assert_non_null(strstr(to.reason, "request"));
    // A lossless request is not given a configured diffusion.
    p.mode = ENG_MODE_AUTO;
    p.lossless = true;
    assert_int_equal(decide(LOSSLESS, p, ENG_MODE_DIFFUSION, 8).mode, ENG_MODE_SELF_SPECULATION);
}

static void test_auto_speculates_while_all_blocks_fit(void **state)
{
    (void)state;
    struct eng_params p = eng_params_default();
    struct eng_route to = decide(LOSSLESS, p, ENG_MODE_AUTO, 64);
    assert_int_equal(to.mode, ENG_MODE_SELF_SPECULATION);
    assert_non_null(strstr(to.reason, "64"));
    to = decide(LOSSLESS, p, ENG_MODE_AUTO, 72);
    assert_int_equal(to.mode, ENG_MODE_AR);
    assert_non_null(strstr(to.reason, "72"));
    assert_non_null(strstr(to.reason, "9 active requests"));
}

static void test_auto_uses_diffusion_only_where_it_is_allowed(void **state)
{
    (void)state;
    struct eng_params p = eng_params_default();
    unsigned ar = 1u << ENG_MODE_AR, diffusion = 1u << ENG_MODE_DIFFUSION;
    assert_int_equal(decide(ar, p, ENG_MODE_AUTO, 8).mode, ENG_MODE_AR);
    assert_int_equal(decide(ar | diffusion, p, ENG_MODE_AUTO, 8).mode, ENG_MODE_DIFFUSION);
    assert_int_equal(decide(ar | diffusion, p, ENG_MODE_AUTO, 800).mode, ENG_MODE_AR);
    assert_int_equal(decide(diffusion, p, ENG_MODE_AUTO, 800).mode, ENG_MODE_DIFFUSION);
    p.allow_diffusion = true;
    assert_int_equal(decide(ar, p, ENG_MODE_AUTO, 8).mode, ENG_MODE_DIFFUSION);
    p.allow_diffusion = false;
    p.lossless = true;
    assert_int_equal(decide(ar | diffusion, p, ENG_MODE_AUTO, 8).mode, ENG_MODE_AR);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_forced_mode_is_honoured_under_any_load),
        cmocka_unit_test(test_the_configured_mode_is_the_default_only),
        cmocka_unit_test(test_auto_speculates_while_all_blocks_fit),
        cmocka_unit_test(test_auto_uses_diffusion_only_where_it_is_allowed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
