// engine/open.c: the checks of options, and what an engine says of itself. No checkpoint.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "base/err.h"
#include "client.h"

static void check_parts(struct eng_options o, int32_t max_context, int32_t mask_id, int code, const char *says)
{
    struct fake_model f = fake_model_default();
    f.mask_id = mask_id;
    struct eng_parts parts = {.model = fake_model_open(&f),
                              .info = {.n_pages = 10, .page_size = 4, .max_context = max_context}};
    struct eng_engine *e = NULL;
    char err[200] = "";
    int rc = eng_open_model(&o, &parts, &e, err, sizeof err);
    if (rc != code || !strstr(err, says))
        fail_msg("%d, %s instead of %s", rc, err, says);
    assert_null(e);
    assert_int_equal(eng_open_model(&o, &parts, &e, NULL, 0), code);
    parts.model.close(parts.model.ctx);
}

#define REFUSE(code, says, ...)                  \
    do {                                         \
        struct eng_options o = client_options(); \
        __VA_ARGS__;                             \
        check_parts(o, 40, 5, code, says);       \
    } while (0)

static void test_bad_options_are_named(void **state)
{
    (void)state;
    REFUSE(ENG_EINVAL, "max_sequences must be between 1 and 1024, not 1025", o.max_sequences = 1025);
    REFUSE(ENG_EINVAL, "max_step_rows must be between 64 and 1048576, not 63", o.max_step_rows = 63);
    REFUSE(ENG_EINVAL, "max_queue must be between 0 and 16777216, not -1", o.max_queue = -1);
    REFUSE(ENG_EINVAL, "block_length must be 4, 8, 16, 32 or 64, not 5", o.block_length = 5);
    REFUSE(ENG_EINVAL, "threshold must be above 0 and at most 1, not 0", o.threshold = 0);
    REFUSE(ENG_EINVAL, "threshold must be above 0 and at most 1, not nan", o.threshold = __builtin_nanf(""));
    REFUSE(ENG_ENOTSUP, "this model cannot decode in mode ?", o.mode = (enum eng_mode)ENG_N_MODES);
    REFUSE(ENG_EINVAL, "auto_modes names no mode that this model can decode in", o.auto_modes = 0);
    REFUSE(ENG_EINVAL, "auto_modes names no mode", o.auto_modes = 1u << ENG_MODE_AUTO);
    check_parts(client_options(), 1, 5, ENG_EINVAL, "max_context must be at least 2, not 1");
    check_parts(client_options(), 41, 5, ENG_EINVAL, "cannot start the engine"); // more than the pages hold
    struct eng_options o = client_options();
    o.mode = ENG_MODE_DIFFUSION;
    check_parts(o, 40, -1, ENG_ENOTSUP, "this model cannot decode in mode diffusion");
}

static void test_defaults_open(void **state)
{
    (void)state;
    struct client c;
    struct fake_model f = fake_model_default();
    struct eng_options o = eng_options_default();
    o.max_step_rows = 64; // what the fake can do
    o.max_sequences = 8;
    client_open(&c, &f, o, 0, NULL);
    const struct eng_info *info = eng_info(c.engine);
    assert_int_equal(info->n_vocab, 97);
    assert_int_equal(info->modes, (1u << ENG_N_MODES) - 1);
    struct eng_stats stats;
    eng_stats(c.engine, &stats);
    assert_int_equal(stats.pages_total, f.n_pages);
    client_close(&c);
    eng_close(NULL);
}

static void test_a_drained_engine_takes_nothing_more(void **state)
{
    (void)state;
    struct client c;
    struct fake_model f = fake_model_default();
    client_open(&c, &f, client_options(), 0, NULL);
    struct eng_params p = eng_params_default();
    struct eng_request *r;
    assert_int_equal(eng_request_new(c.engine, &p, (int32_t[]){7}, 1, &r, NULL, NULL, 0), 0);
    eng_drain(c.engine);
    assert_int_equal(eng_submit(c.engine, r), ENG_ECLOSED);
    eng_request_free(r);
    client_close(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_options_are_named),
        cmocka_unit_test(test_defaults_open),
        cmocka_unit_test(test_a_drained_engine_takes_nothing_more),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
