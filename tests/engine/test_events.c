// engine/events.c
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "events.h"
#include "request.h"

static struct eng_request *request(struct eng_params p)
{
    static const struct eng_request_limits limits = {
        .n_vocab = 50, .max_context = 100, .modes = 15, .block_length = 8, .threshold = 0.9f};
    int32_t prompt[] = {1};
    struct eng_request *r;
    assert_int_equal(eng_request_make(&limits, &p, prompt, 1, &r, NULL, NULL, 0), 0);
    return r;
}

static void test_an_event_is_one_block_with_everything_in_it(void **state)
{
    (void)state;
    struct eng_params p = eng_params_default();
    p.n_top = 2;
    p.user = &p;
    struct eng_request *r = request(p);
    struct eng_event_builder b = {0};
    struct krn_choice c = {.logprob = -0.5f, .n_top = 5, .top_token = {7, 8, 9}, .top_logprob = {-0.1f, -0.2f, -0.3f}};
    for (int32_t i = 0; i < 100; i++) {
        eng_buf_appendz(&b.text, "ab");
        assert_int_equal(eng_event_builder_token(&b, i, &c, p.n_top), 0);
    }
    struct eng_event *ev = eng_event_build(&b, r);
    eng_event_builder_reset(&b);
    memset(b.tokens, 0xee, 64 * sizeof *b.tokens); // nothing of the builder is referred to
    assert_int_equal(ev->n_tokens, 100);
    assert_int_equal(ev->text_len, 200);
    assert_ptr_equal(ev->user, &p);
    assert_int_equal(ev->finish, ENG_FINISH_NONE);
    for (int32_t i = 0; i < 100; i++) {
        assert_int_equal(ev->tokens[i].id, i);
        assert_int_equal(ev->tokens[i].text_end, 2 * (i + 1));
        assert_int_equal(ev->tokens[i].n_top, 2);
        assert_int_equal(ev->tokens[i].top_ids[1], 8);
        assert_true(ev->tokens[i].top_logprobs[1] == -0.2f);
    }
    eng_event_free(ev);
    eng_event_builder_done(&b);
    eng_request_free(r);
}

static void test_the_end_carries_statistics_and_the_reason(void **state)
{
    (void)state;
    struct eng_request *r = request(eng_params_default());
    struct eng_event_builder b = {0};
    r->seq.finish = ENG_FINISH_ERROR;
    r->seq.error = "it broke";
    r->seq.stats.blocks = 3;
    struct eng_event *ev = eng_event_build(&b, r);
    assert_int_equal(ev->finish, ENG_FINISH_ERROR);
    assert_string_equal(ev->error, "it broke");
    assert_int_equal(ev->stats->blocks, 3);
    assert_int_equal(ev->stop_id, -1);
    assert_string_equal(ev->text, "");
    eng_request_free(r);
    assert_int_equal(ev->stats->blocks, 3); // not the request's memory
    eng_event_free(ev);
    eng_event_builder_done(&b);
}

static void test_a_draft_tells_of_what_is_not_final(void **state)
{
    (void)state;
    struct eng_params p = eng_params_default();
    p.max_tokens = 12;
    p.user = &p;
    struct eng_request *r = request(p);
    struct eng_seq *q = &r->seq;
    // The prompt, the seed (position 1) and two more tokens are final; of the block at 1 .. 8, position 5 is masked.
    q->mode = ENG_MODE_DIFFUSION;
    q->n_tokens = 4;
    q->block.start = 1;
    q->block.rows = 8;
    q->block.passes = 3;
    q->block.masked = 1u << 4;
    for (int32_t i = 0; i < 8; i++)
        q->block.tokens[i] = 20 + i;
    struct eng_event *ev = eng_event_draft(r);
    assert_ptr_equal(ev->user, &p);
    assert_ptr_equal(ev->request, r);
    assert_int_equal(ev->finish, ENG_FINISH_NONE);
    assert_int_equal(ev->n_tokens, 0);
    assert_string_equal(ev->text, "");
    assert_null(ev->stats);
    const struct eng_draft *d = ev->draft;
    assert_int_equal(d->mode, ENG_MODE_DIFFUSION);
    assert_int_equal(d->from_token, 3);
    assert_int_equal(d->pass, 3);
    assert_int_equal(d->n, 5);
    assert_int_equal(d->masked, 1u << 1);
    static const int32_t want[] = {23, 0, 25, 26, 27};
    assert_memory_equal(d->ids, want, sizeof want);
    eng_event_free(ev);
    // Cut by max_tokens; and a full block of 64 that is final but for nothing.
    q->limit = 6;
    ev = eng_event_draft(r);
    assert_int_equal(ev->draft->n, 2);
    assert_int_equal(ev->draft->masked, 1u << 1);
    eng_event_free(ev);
    q->limit = 100;
    q->block.rows = 64;
    q->n_tokens = 65;
    ev = eng_event_draft(r);
    assert_int_equal(ev->draft->n, 0);
    assert_int_equal(ev->draft->masked, 0);
    eng_event_free(ev);
    // Self-speculation: the same block as a draft; what an old block left in `masked` means nothing.
    q->mode = ENG_MODE_SELF_SPECULATION;
    q->n_tokens = 2;
    q->block.rows = 4;
    q->block.masked = 6;
    ev = eng_event_draft(r);
    assert_int_equal(ev->draft->n, 3);
    assert_int_equal(ev->draft->masked, 0);
    assert_int_equal(ev->draft->pass, 1);
    assert_int_equal(ev->draft->ids[0], 21);
    eng_event_free(ev);
    eng_request_free(r);
}

static int n_notified;

static void notify(void *user)
{
    (void)user;
    n_notified++;
}

static void test_the_list_is_taken_whole_and_in_order(void **state)
{
    (void)state;
    struct eng_events l;
    struct eng_event_builder b = {0};
    struct eng_request *r = request(eng_params_default());
    struct eng_event *ev[3];
    assert_int_equal(eng_events_init(&l, notify, NULL), 0);
    for (int i = 0; i < 3; i++)
        ev[i] = eng_event_build(&b, r);
    n_notified = 0;
    eng_events_publish(&l, NULL);
    assert_int_equal(n_notified, 0);
    ev[0]->next = ev[1];
    eng_events_publish(&l, ev[0]);
    eng_events_publish(&l, ev[2]);
    assert_int_equal(n_notified, 2);
    assert_ptr_equal(eng_events_take(&l), ev[0]);
    assert_ptr_equal(ev[0]->next, ev[1]);
    assert_ptr_equal(ev[1]->next, ev[2]);
    assert_null(ev[2]->next);
    assert_null(eng_events_take(&l));
    // What is not taken is freed, and the request with its finish event.
    for (int i = 0; i < 2; i++)
        eng_event_free(ev[i]);
    r->seq.finish = ENG_FINISH_STOP;
    ev[2]->next = eng_event_build(&b, r);
    eng_events_publish(&l, ev[2]);
    eng_events_done(&l);
    eng_event_builder_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_event_is_one_block_with_everything_in_it),
        cmocka_unit_test(test_the_end_carries_statistics_and_the_reason),
        cmocka_unit_test(test_a_draft_tells_of_what_is_not_final),
        cmocka_unit_test(test_the_list_is_taken_whole_and_in_order),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
