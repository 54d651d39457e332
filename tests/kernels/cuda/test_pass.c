// The pass block as it arrives on the device, what is refused, and what comes back.
#include "cmocka_util.h"
#include "fake_driver.h"
#include "kern_util.h"
#include "pass.h"

#include <math.h>

enum { VOCAB = 70, WORDS = 3, PAGE = 4, PAGES = 50 };

static struct krn_cuda_driver driver;
static struct krn_cuda_memory memory;
static struct krn_cuda_passes passes;
static const struct krn_limits limits = {.max_rows = 16,
                                         .max_segments = 4,
                                         .max_chunk = 16,
                                         .max_pages = 40,
                                         .n_layers = 1,
                                         .n_heads = 4,
                                         .n_kv_heads = 2,
                                         .head_dim = 16,
                                         .n_vocab = VOCAB,
                                         .hidden = 8,
                                         .ff = 8};

static void start(bool deferred)
{
    assert_int_equal(fake_driver_open(&(struct fake_driver_options){.deferred = deferred}, &driver), 0);
    krn_cuda_memory_init(&memory, &driver);
    assert_int_equal(krn_cuda_passes_open(&passes, &driver, &memory, &limits), 0);
    passes.page_size = PAGE;
    passes.n_pages = PAGES;
}

static void stop(void)
{
    krn_cuda_passes_done(&passes);
    krn_cuda_memory_done(&memory);
    struct fake_driver_counts counts = fake_driver_count(&driver);
    assert_int_equal(counts.allocations, 0);
    assert_int_equal(counts.host_allocations, 0);
    assert_int_equal(counts.events, 0);
    driver.close(driver.ctx);
}

// ---- a pass of two segments -----------------------------------------------------------------------------------------

static const int32_t pages_a[] = {7, 3, 9}, pages_b[] = {1};
static int32_t tokens[] = {5, 6, 7, 8, 69};
static int32_t links[] = {-1, -1, -1, -1, -1};
static uint8_t adapter[] = {0, 1, 1, 0, 7};
static struct krn_segment segments[] = {
    {.row = 0, .rows = 3, .first_pos = 8, .mask = KRN_MASK_BLOCK, .pages = pages_a},
    {.row = 3, .rows = 2, .first_pos = 0, .mask = KRN_MASK_CAUSAL, .pages = pages_b},
};
static const uint32_t bitmap_a[WORDS] = {1, 2, 3}, bitmap_b[WORDS] = {4, 5, 6};
static const struct krn_token_count counts_a[] = {{3, 1, 0}, {4, 0, 2}}, counts_b[] = {{9, 8, 7}};
static const struct krn_token_bias biases_b[] = {{11, -0.5f}};
static int32_t wanted_rows[] = {4, 0, 2};
static struct krn_select_row wanted[3];
static struct krn_choice choices[3];
static struct krn_accept accepts[] = {{.row = 0, .rows = 2, .choice = 1}};
static struct krn_accepted accepted[1];

static struct krn_pass good_pass(void)
{
    for (int i = 0; i < 3; i++)
        wanted[i] = (struct krn_select_row){.row = i, .top_p = 1, .repetition_penalty = 1};
    wanted[0].allowed = bitmap_a;
    wanted[0].counts = counts_a;
    wanted[0].n_counts = 2;
    wanted[0].seed = 0x123456789abcdefu;
    wanted[1].allowed = bitmap_b;
    wanted[1].biases = biases_b;
    wanted[1].n_biases = 1;
    wanted[2].allowed = bitmap_a; // the same one: sent once
    wanted[2].counts = counts_b;
    wanted[2].n_counts = 1;
    wanted[2].position = 1 << 20;
    return (struct krn_pass){.n_rows = 5,
                             .tokens = tokens,
                             .links = links,
                             .segments = segments,
                             .n_segments = 2,
                             .adapter_rows = adapter,
                             .wanted_rows = wanted_rows,
                             .wanted = wanted,
                             .n_wanted = 3,
                             .choices = choices,
                             .accepts = accepts,
                             .n_accepts = 1,
                             .accepted = accepted};
}

static void send(const struct krn_pass *pass)
{
    struct krn_cuda_counts counts;
    size_t bytes;
    const char *wrong = krn_cuda_pass_check(&passes, pass);
    assert_string_equal(wrong ? wrong : "", "");
    krn_cuda_pass_count(&passes, pass, &counts, &bytes);
    if (bytes > passes.room)
        assert_int_equal(krn_cuda_passes_grow(&passes, bytes), 0);
    assert_int_equal(krn_cuda_pass_send(&passes, pass, &counts), 0);
}

static void test_the_block_holds_the_pass(void **state)
{
    (void)state;
    start(false);
    struct krn_pass pass = good_pass();
    passes.last_wanted = 10;
    links[4] = 9;
    send(&pass);
    links[4] = -1;
    const struct krn_dev_pass *p = passes.block;
    assert_int_equal(p->n_rows, 5);
    assert_int_equal(p->n_segments, 2);
    assert_int_equal(p->n_wanted, 3);
    assert_int_equal(p->n_accepts, 1);
    assert_memory_equal(KRN_PASS_ARRAY(p, int32_t, tokens), tokens, sizeof tokens);
    assert_int_equal(KRN_PASS_ARRAY(p, int32_t, links)[4], 9);
    const int32_t positions[] = {8, 9, 10, 0, 1}, of_segment[] = {0, 0, 0, 1, 1}, pages[] = {7, 3, 9, 1};
    assert_memory_equal(KRN_PASS_ARRAY(p, int32_t, positions), positions, sizeof positions);
    assert_memory_equal(KRN_PASS_ARRAY(p, int32_t, row_segments), of_segment, sizeof of_segment);
    assert_memory_equal(KRN_PASS_ARRAY(p, int32_t, pages), pages, sizeof pages);
    assert_memory_equal(KRN_PASS_ARRAY(p, uint8_t, adapter_rows), ((uint8_t[]){0, 1, 1, 0, 1}), 5);
    const struct krn_dev_segment *s = KRN_PASS_ARRAY(p, struct krn_dev_segment, segments);
    assert_int_equal(s[0].mask, KRN_MASK_BLOCK);
    assert_int_equal(s[1].pages, 3);
    assert_int_equal(s[1].row, 3);
    assert_true(p->n_items > 0);
    assert_memory_equal(KRN_PASS_ARRAY(p, int32_t, wanted_rows), wanted_rows, sizeof wanted_rows);
    stop();
}

static void test_the_parameters_of_choices_share_arrays_and_bitmaps(void **state)
{
    (void)state;
    start(false);
    struct krn_pass pass = good_pass();
    send(&pass);
    const struct krn_dev_pass *p = passes.block;
    const struct krn_dev_select *s = KRN_PASS_ARRAY(p, struct krn_dev_select, selects);
    const struct krn_dev_count *counts = KRN_PASS_ARRAY(p, struct krn_dev_count, counts);
    const struct krn_dev_bias *biases = KRN_PASS_ARRAY(p, struct krn_dev_bias, biases);
    assert_true(s[0].seed == 0x123456789abcdefu && s[2].position == 1 << 20);
    assert_int_equal(s[0].allowed, s[2].allowed);
    assert_memory_equal((const uint32_t *)p + s[0].allowed, bitmap_a, sizeof bitmap_a);
    assert_memory_equal((const uint32_t *)p + s[1].allowed, bitmap_b, sizeof bitmap_b);
    assert_int_equal(p->bytes, (s[1].allowed > s[0].allowed ? s[1].allowed : s[0].allowed) * 4 + (int)sizeof bitmap_b);
    assert_int_equal(s[2].counts, 2);
    assert_int_equal(s[2].n_counts, 1);
    assert_int_equal(counts[1].in_prompt, 2);
    assert_int_equal(counts[2].token, 9);
    assert_int_equal(s[1].n_biases, 1);
    assert_near(biases[s[1].biases].bias, -0.5f, 0);
    const struct krn_dev_accept *a = KRN_PASS_ARRAY(p, struct krn_dev_accept, accepts);
    assert_true(a->row == 0 && a->rows == 2 && a->choice == 1);
    stop();
}

// A block's rows look back on the same tokens: their penalties must not be sent once a row.
static void test_neighbours_with_the_same_penalties_share_them(void **state)
{
    (void)state;
    start(false);
    struct krn_pass pass = good_pass();
    wanted[1].counts = counts_a; // as wanted[0]
    wanted[1].n_counts = 2;
    wanted[2].biases = biases_b; // as wanted[1]
    wanted[2].n_biases = 1;
    struct krn_cuda_counts n;
    size_t bytes;
    krn_cuda_pass_count(&passes, &pass, &n, &bytes);
    assert_int_equal(n.counts, 3);
    assert_int_equal(n.biases, 1);
    wanted[1].n_counts = 1; // a part of them is another array
    krn_cuda_pass_count(&passes, &pass, &n, &bytes);
    assert_int_equal(n.counts, 4);
    wanted[1].n_counts = 2;
    send(&pass);
    const struct krn_dev_pass *p = passes.block;
    const struct krn_dev_select *s = KRN_PASS_ARRAY(p, struct krn_dev_select, selects);
    const struct krn_dev_count *counts = KRN_PASS_ARRAY(p, struct krn_dev_count, counts);
    const struct krn_dev_bias *biases = KRN_PASS_ARRAY(p, struct krn_dev_bias, biases);
    assert_true(s[0].counts == s[1].counts && s[0].n_counts == 2 && s[1].n_counts == 2);
    assert_int_equal(counts[s[1].counts + 1].token, 4);
    assert_int_equal(counts[s[2].counts].token, 9);
    assert_int_equal(s[0].n_biases, 0);
    assert_true(s[1].biases == s[2].biases && s[2].n_biases == 1);
    assert_int_equal(biases[s[2].biases].token, 11);
    stop();
}

// The device runs late: a staging buffer that is filled again before its copy was done would send a later pass.
static void test_a_staging_buffer_is_not_filled_before_its_copy_was_done(void **state)
{
    (void)state;
    start(true);
    int32_t *seen;
    void *ptr;
    assert_int_equal(driver.host_alloc(driver.ctx, 10 * sizeof(int32_t), &ptr), 0);
    seen = ptr;
    struct krn_pass pass = good_pass();
    for (int32_t i = 0; i < 10; i++) {
        tokens[0] = i;
        send(&pass);
        const int32_t *at = (const int32_t *)((const char *)passes.block + passes.staging[0].block->tokens);
        assert_int_equal(driver.copy_out(driver.ctx, driver.stream, &seen[i], at, sizeof *at), 0);
    }
    tokens[0] = 5;
    assert_int_equal(driver.sync(driver.ctx, driver.stream), 0);
    for (int32_t i = 0; i < 10; i++)
        assert_int_equal(seen[i], i);
    driver.host_release(driver.ctx, ptr);
    stop();
}

static void test_more_penalties_than_expected_make_a_larger_block(void **state)
{
    (void)state;
    enum { MANY = 20000 };
    static struct krn_token_count many[MANY];
    start(false);
    struct krn_pass pass = good_pass();
    struct krn_cuda_counts counts;
    size_t bytes;
    for (int32_t i = 0; i < MANY; i++)
        many[i] = (struct krn_token_count){.token = i % VOCAB, .in_output = i};
    wanted[1].counts = many;
    wanted[1].n_counts = MANY;
    krn_cuda_pass_count(&passes, &pass, &counts, &bytes);
    assert_true(bytes > passes.room);
    send(&pass);
    assert_true(bytes <= passes.room);
    const struct krn_dev_select *s = KRN_PASS_ARRAY(passes.block, struct krn_dev_select, selects);
    assert_int_equal(KRN_PASS_ARRAY(passes.block, struct krn_dev_count, counts)[s[1].counts + MANY - 1].in_output,
                     MANY - 1);
    stop();
}

// ---- what is refused ------------------------------------------------------------------------------------------------

#define REFUSED(change, phrase)                                             \
    do {                                                                    \
        struct krn_segment kept_segments[2] = {segments[0], segments[1]};   \
        struct krn_pass pass = good_pass();                                 \
        change;                                                             \
        const char *wrong = krn_cuda_pass_check(&passes, &pass);            \
        assert_non_null(wrong);                                             \
        assert_non_null(strstr(wrong, phrase));                             \
        memcpy(segments, kept_segments, sizeof segments);                   \
        tokens[1] = 6, links[1] = -1, wanted_rows[1] = 0;                   \
        accepts[0] = (struct krn_accept){.row = 0, .rows = 2, .choice = 1}; \
    } while (0)

static void test_a_malformed_pass_is_refused_with_the_reason(void **state)
{
    (void)state;
    static const int32_t bad_pages[] = {7, PAGES, 9};
    static const struct krn_token_count bad_count[] = {{VOCAB, 1, 0}};
    start(false);
    struct krn_pass good = good_pass();
    assert_null(krn_cuda_pass_check(&passes, &good));
    REFUSED(pass.n_rows = 17, "larger");
    REFUSED(pass.n_rows = 4, "wanted row");
    REFUSED((pass.n_rows = 4, pass.n_wanted = 0, pass.n_accepts = 0), "segment");
    REFUSED(pass.n_segments = 1, "cover");
    REFUSED(pass.tokens = NULL, "malformed");
    REFUSED(pass.choices = NULL, "malformed");
    REFUSED(pass.accepted = NULL, "malformed");
    REFUSED(segments[1].row = 2, "segment");
    REFUSED(segments[1].first_pos = INT32_MAX - 1, "segment");
    REFUSED(segments[0].mask = (enum krn_mask)2, "segment");
    REFUSED(segments[0].pages = bad_pages, "KV store");
    REFUSED(segments[0].pages = NULL, "segment");
    REFUSED(tokens[1] = VOCAB, "vocabulary");
    REFUSED(tokens[1] = -1, "vocabulary");
    REFUSED(links[1] = 0, "linked");
    REFUSED(wanted_rows[1] = 5, "wanted row");
    REFUSED(wanted[0].temperature = NAN, "parameters");
    REFUSED(wanted[0].counts = bad_count, "parameters");
    REFUSED(wanted[2].n_top = KRN_TOP_MAX + 1, "parameters");
    REFUSED(wanted[2].row = 16, "parameters");
    REFUSED(accepts[0].rows = 3, "accept");
    REFUSED(accepts[0].row = 4, "accept");
    passes.limits.max_pages = 3;
    REFUSED((void)0, "more pages");
    passes.page_size = 0;
    REFUSED((void)0, "before the KV store");
    stop();
}

// ---- what comes back ------------------------------------------------------------------------------------------------

static void test_results_come_back_to_the_pass_that_made_them(void **state)
{
    (void)state;
    start(false);
    struct krn_pass first = good_pass(), second = good_pass();
    struct krn_choice other[3];
    second.choices = other;
    second.n_accepts = 0;
    for (int i = 0; i < 3; i++)
        passes.choices[i] = (struct krn_dev_choice){.token = 10 + i, .confidence = 0.5f, .logprob = -1, .n_top = 1};
    passes.tops[2].token[0] = 12;
    passes.accepted[0] = (struct krn_dev_accepted){.n = 2, .seed = 44};
    wanted[2].n_top = 1;
    assert_int_equal(krn_cuda_pass_fetch(&passes, &first), 0);
    for (int i = 0; i < 3; i++)
        passes.choices[i].token = 20 + i;
    wanted[2].n_top = 0;
    assert_int_equal(krn_cuda_pass_fetch(&passes, &second), 0);
    assert_int_equal(passes.n_ahead, 2);
    assert_int_equal(krn_cuda_pass_take(&passes), 0);
    assert_int_equal(choices[1].token, 11);
    assert_int_equal(choices[2].top_token[0], 12);
    assert_int_equal(accepted[0].n, 2);
    assert_int_equal(accepted[0].seed, 44);
    assert_int_equal(krn_cuda_pass_take(&passes), 0);
    assert_int_equal(other[0].token, 20);
    assert_int_equal(choices[0].token, 10);
    assert_int_equal(passes.n_ahead, 0);
    assert_int_equal(passes.last_wanted, 3);
    stop();
}

static void test_an_open_that_fails_anywhere_leaves_nothing(void **state)
{
    (void)state;
    const enum fake_call calls[] = {FAKE_ALLOC, FAKE_HOST_ALLOC, FAKE_EVENT_NEW, FAKE_FILL};
    int failures = 0;
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        for (int64_t nth = 1, failed = 1; failed; nth++) {
            assert_int_equal(fake_driver_open(NULL, &driver), 0);
            krn_cuda_memory_init(&memory, &driver);
            fake_driver_fail(&driver, calls[i], nth, KRN_ENOMEM);
            failed = krn_cuda_passes_open(&passes, &driver, &memory, &limits) == KRN_ENOMEM;
            failures += (int)failed;
            stop();
        }
    assert_true(failures > 15);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_block_holds_the_pass),
        cmocka_unit_test(test_the_parameters_of_choices_share_arrays_and_bitmaps),
        cmocka_unit_test(test_neighbours_with_the_same_penalties_share_them),
        cmocka_unit_test(test_a_staging_buffer_is_not_filled_before_its_copy_was_done),
        cmocka_unit_test(test_more_penalties_than_expected_make_a_larger_block),
        cmocka_unit_test(test_a_malformed_pass_is_refused_with_the_reason),
        cmocka_unit_test(test_results_come_back_to_the_pass_that_made_them),
        cmocka_unit_test(test_an_open_that_fails_anywhere_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
