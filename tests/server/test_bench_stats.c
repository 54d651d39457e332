// server/bench_stats.c: percentiles, and a level as an object and as a row.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "bench_stats.h"

static void test_percentiles_are_nearest_ranks(void **state)
{
    (void)state;
    struct srv_bench_samples s = {0}, more = {0};
    assert_true(srv_bench_percentile(&s, 0.5) == 0);
    for (int i = 100; i > 0; i--)
        srv_bench_samples_add(&s, i, 1);
    assert_true(srv_bench_percentile(&s, 0.5) == 50);
    assert_true(srv_bench_percentile(&s, 0.9) == 90);
    assert_true(srv_bench_percentile(&s, 0.99) == 99);
    assert_true(srv_bench_percentile(&s, 1) == 100);
    assert_true(srv_bench_percentile(&s, 0) == 1);
    srv_bench_samples_add(&more, 1000, 100);
    srv_bench_samples_add(&more, 7, 0);
    srv_bench_samples_append(&s, &more);
    assert_int_equal(s.n, 200);
    assert_true(srv_bench_percentile(&s, 0.5) == 100 && srv_bench_percentile(&s, 0.51) == 1000);
    srv_bench_samples_free(&s);
    // Every count of values: at least p of them are not above the answer, and the answer is the smallest such.
    for (int n = 1; n < 60; n++) {
        static const double ps[] = {0.5, 0.9, 0.99};
        for (int i = 0; i < n; i++)
            srv_bench_samples_add(&s, i, 1);
        for (int k = 0; k < 3; k++) {
            int at = (int)srv_bench_percentile(&s, ps[k]);
            assert_true((at + 1) * 1000 >= n * (int)(ps[k] * 1000 + 0.5) && at * 1000 < n * (int)(ps[k] * 1000 + 0.5));
        }
        srv_bench_samples_free(&s);
    }
    srv_bench_samples_free(&more);
}

static void fill(struct srv_bench_level *l)
{
    *l = (struct srv_bench_level){.clients = 4,
                                  .mode = "auto",
                                  .requests = 10,
                                  .tokens = 90,
                                  .prompt_tokens = 70,
                                  .cached_tokens = 5,
                                  .forward_passes = 30,
                                  .seconds = 0.5};
    l->mode_tokens[ENG_MODE_AR] = 30;
    l->mode_tokens[ENG_MODE_SELF_SPECULATION] = 60;
    for (int i = 1; i <= 10; i++) {
        srv_bench_samples_add(&l->ttft, i, 1);
        srv_bench_samples_add(&l->itl, i * 0.125, 1);
        srv_bench_samples_add(&l->e2e, i * 100, 1);
    }
    srv_bench_level_error(l, "status 503: a \"quoted\" reason");
}

static double number(const cJSON *j, const char *key, const char *inner)
{
    const cJSON *item = cJSON_GetObjectItem(j, key);
    item = inner ? cJSON_GetObjectItem(item, inner) : item;
    assert_true(cJSON_IsNumber(item));
    return item->valuedouble;
}

static void test_a_level_is_one_json_object(void **state)
{
    (void)state;
    struct srv_bench_level l;
    struct srv_buf b = {0};
    fill(&l);
    srv_bench_level_json(&l, &b);
    assert_ptr_equal(strchr(b.data, '\n'), b.data + b.len - 1);
    cJSON *j = cJSON_Parse(b.data);
    assert_true(number(j, "clients", NULL) == 4 && cJSON_IsNull(cJSON_GetObjectItem(j, "rate")));
    assert_string_equal(cJSON_GetObjectItem(j, "mode")->valuestring, "auto");
    assert_true(number(j, "requests", NULL) == 10 && number(j, "errors", NULL) == 1);
    assert_true(number(j, "tok_s", NULL) == 180 && number(j, "tokens_per_forward", NULL) == 3);
    assert_true(number(j, "ttft_ms", "p50") == 5 && number(j, "ttft_ms", "p90") == 9 &&
                number(j, "ttft_ms", "p99") == 10);
    assert_true(number(j, "itl_ms", "p50") == 0.625 && number(j, "e2e_ms", "p99") == 1000);
    assert_true(number(j, "mode_share", "ar") == 0.3333 && number(j, "mode_share", "self_speculation") == 0.6667);
    assert_null(cJSON_GetObjectItem(cJSON_GetObjectItem(j, "mode_share"), "diffusion"));
    assert_true(number(j, "error_reasons", "status 503: a \"quoted\" reason") == 1);
    assert_true(number(j, "output_tokens", NULL) == 90 && number(j, "prompt_tokens", NULL) == 70 &&
                number(j, "cached_tokens", NULL) == 5 && number(j, "seconds", NULL) == 0.5);
    cJSON_Delete(j);
    // An open loop has a rate; a server that tells no passes gives null, not a division by zero.
    l.clients = 0;
    l.rate = 2.5;
    l.forward_passes = 0;
    l.seconds = 0;
    srv_buf_reset(&b);
    srv_bench_level_json(&l, &b);
    j = cJSON_Parse(b.data);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(j, "clients")) && number(j, "rate", NULL) == 2.5);
    assert_true(cJSON_IsNull(cJSON_GetObjectItem(j, "tokens_per_forward")) && number(j, "tok_s", NULL) == 0);
    cJSON_Delete(j);
    srv_buf_free(&b);
    srv_bench_level_done(&l);
}

static void test_rows_stand_under_their_heads(void **state)
{
    (void)state;
    struct srv_bench_level l;
    char *text = NULL;
    size_t n = 0;
    fill(&l);
    FILE *f = open_memstream(&text, &n);
    srv_bench_table_head(f);
    srv_bench_level_row(&l, f);
    srv_bench_level_reasons(&l, f);
    fclose(f);
    char *above = strchr(text, '\n') + 1, *row = strchr(above, '\n') + 1, *reasons = strchr(row, '\n') + 1;
    for (int i = 0; above[i] != '\n'; i++)
        if (above[i] == '|')
            assert_int_equal(row[i], '|');
    assert_non_null(strstr(row, "  ar 33 % self_speculation 67 %\n"));
    assert_non_null(strstr(row, "      180.0 |"));
    assert_string_equal(reasons, "trimode: 1 x status 503: a \"quoted\" reason\n");
    free(text);
    srv_bench_level_done(&l);
}

static void test_reasons_are_counted_and_bounded(void **state)
{
    (void)state;
    struct srv_bench_level l = {0};
    char reason[400];
    for (int i = 0; i < 20; i++) {
        snprintf(reason, sizeof reason, "reason %d", i % 10);
        srv_bench_level_error(&l, reason);
    }
    assert_int_equal(l.errors, 20);
    assert_int_equal(l.n_reasons, SRV_BENCH_REASONS);
    assert_int_equal(l.reasons[0].n, 2);
    assert_string_equal(l.reasons[SRV_BENCH_REASONS - 1].text, "other reasons");
    int64_t sum = 0;
    for (int i = 0; i < l.n_reasons; i++)
        sum += l.reasons[i].n;
    assert_int_equal(sum, 20);
    // A reason longer than the table keeps is still the same reason.
    struct srv_bench_level m = {0};
    memset(reason, 'x', sizeof reason - 1);
    reason[sizeof reason - 1] = 0;
    srv_bench_level_error(&m, reason);
    srv_bench_level_error(&m, reason);
    assert_int_equal(m.n_reasons, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_percentiles_are_nearest_ranks),
        cmocka_unit_test(test_a_level_is_one_json_object),
        cmocka_unit_test(test_rows_stand_under_their_heads),
        cmocka_unit_test(test_reasons_are_counted_and_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
