// engine/live.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "live.h"
#include "request.h"

#define MS INT64_C(1000000)

static struct eng_request *request(void *user)
{
    static const struct eng_request_limits limits = {
        .n_vocab = 50, .max_context = 100, .modes = 15, .block_length = 8, .threshold = 0.9f};
    struct eng_params p = eng_params_default();
    p.user = user;
    int32_t prompt[] = {1, 2};
    struct eng_request *r;
    assert_int_equal(eng_request_make(&limits, &p, prompt, 2, &r, NULL, NULL, 0), 0);
    return r;
}

static void test_a_request_is_shown_with_its_speed(void **state)
{
    (void)state;
    struct eng_live_list l;
    struct eng_live live[2];
    struct eng_request *r = request(&l);
    assert_int_equal(eng_live_init(&l, 2), 0);
    assert_int_equal(eng_live_read(&l, live, 2), 0);
    r->seq.mode = r->seq.stats.mode = ENG_MODE_SELF_SPECULATION;
    r->seq.stats.block_length = 8;
    r->seq.stats.completion_tokens = 1;
    r->seq.stats.drafted_tokens = 7;
    r->seq.stats.accepted_tokens = 3;
    r->seq.n_kv = 5;
    r->seq.first_token_ns = 1000 * MS;
    strcpy(r->seq.stats.reason, "because");
    eng_live_publish(&l, &r, 1, false, 2000 * MS);
    assert_int_equal(eng_live_read(&l, live, 2), 1);
    assert_ptr_equal(live[0].user, &l);
    assert_int_equal(live[0].mode, ENG_MODE_SELF_SPECULATION);
    assert_int_equal(live[0].block_length, 8);
    assert_int_equal(live[0].prompt_tokens, 2);
    assert_int_equal(live[0].computed_tokens, 5);
    assert_int_equal(live[0].drafted_tokens, 7);
    assert_int_equal(live[0].accepted_tokens, 3);
    assert_true(live[0].tokens_per_second == 0); // of one token there is no speed
    assert_string_equal(live[0].reason, "because");
    r->seq.stats.completion_tokens = 21;
    eng_live_publish(&l, &r, 1, false, 3000 * MS);
    eng_live_read(&l, live, 2);
    assert_true(live[0].tokens_per_second > 9.99 && live[0].tokens_per_second < 10.01); // 20 tokens in 2 s
    eng_live_done(&l);
    eng_request_free(r);
}

static void test_the_picture_is_made_anew_when_old_or_when_somebody_left(void **state)
{
    (void)state;
    struct eng_live_list l;
    struct eng_live live[2];
    struct eng_request *r[2] = {request(&live[0]), request(&live[1])};
    assert_int_equal(eng_live_init(&l, 2), 0);
    eng_live_publish(&l, r, 2, false, 1000 * MS);
    assert_int_equal(eng_live_read(&l, live, 1), 1); // no more than asked for
    assert_int_equal(eng_live_read(&l, live, 2), 2);
    eng_live_publish(&l, r, 1, false, 1049 * MS);
    assert_int_equal(eng_live_read(&l, live, 2), 2);
    eng_live_publish(&l, r, 1, false, 1050 * MS);
    assert_int_equal(eng_live_read(&l, live, 2), 1);
    eng_live_publish(&l, r, 2, false, 1100 * MS);
    eng_live_publish(&l, r, 1, true, 1101 * MS);
    assert_int_equal(eng_live_read(&l, live, 2), 1);
    eng_live_publish(&l, r, 0, false, 1102 * MS);
    assert_int_equal(eng_live_read(&l, live, 2), 0);
    eng_live_done(&l);
    eng_request_free(r[0]);
    eng_request_free(r[1]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_request_is_shown_with_its_speed),
        cmocka_unit_test(test_the_picture_is_made_anew_when_old_or_when_somebody_left),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
