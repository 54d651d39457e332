// The metrics page: names, histograms that add up, labels from fixed lists, and the linter that Prometheus ships.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client.h"

static struct srv_config config;
static struct srv_server *running;

static int setup(void **state)
{
    (void)state;
    test_config(&config);
    running = test_start(&config);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    int status = test_stop();
    srv_config_done(&config);
    return status;
}

static void expect(const char *page, const char *line)
{
    char text[256];
    snprintf(text, sizeof text, "\n%s\n", line);
    if (!strstr(page, text))
        fail_msg("the page lacks: %s", line);
}

static void test_counts_requests_answers_and_times(void **state)
{
    (void)state;
    cJSON_Delete(post_json("/v1/completions", "{\"prompt\":\"a\",\"mode\":\"ar\"}", 200));
    cJSON_Delete(post_json("/v1/completions", "{\"prompt\":\"a\",\"max_tokens\":1}", 200));
    cJSON_Delete(post_json("/v1/chat/completions", "{\"messages\":5}", 400));
    cJSON_Delete(get_json("/some/path/of/a/client", 404));
    struct reply r = http_get("/metrics", "");
    assert_int_equal(r.status, 200);
    assert_string_equal(header_of(&r, "Content-Type"), "text/plain; version=0.0.4; charset=utf-8");
    expect(r.body, "trimode_requests_total{endpoint=\"completions\",mode=\"ar\",finish_reason=\"stop\"} 1");
    expect(r.body,
           "trimode_requests_total{endpoint=\"completions\",mode=\"self_speculation\",finish_reason=\"length\"} 1");
    expect(r.body, "trimode_http_responses_total{path=\"/v1/completions\",code=\"200\"} 2");
    expect(r.body, "trimode_http_responses_total{path=\"/v1/chat/completions\",code=\"400\"} 1");
    expect(r.body, "trimode_http_responses_total{path=\"other\",code=\"404\"} 1");
    expect(r.body, "trimode_mode_decisions_total{mode=\"ar\",reason=\"requested\"} 1");
    expect(r.body, "trimode_mode_decisions_total{mode=\"self_speculation\",reason=\"fastest\"} 1");
    expect(r.body, "trimode_time_to_first_token_seconds_count{mode=\"ar\"} 1");
    expect(r.body, "trimode_time_to_first_token_seconds_bucket{mode=\"ar\",le=\"0.001\"} 0");
    expect(r.body, "trimode_time_to_first_token_seconds_bucket{mode=\"ar\",le=\"0.005\"} 1");
    expect(r.body, "trimode_forward_rows_bucket{le=\"2\"} 3");
    expect(r.body, "trimode_forward_rows_bucket{le=\"4\"} 3");
    expect(r.body, "trimode_forward_rows_bucket{le=\"+Inf\"} 4");
    expect(r.body, "trimode_preemptions_total 3");
    expect(r.body, "trimode_kv_pages{state=\"used\"} 8");
    expect(r.body, "trimode_kv_pages{state=\"cached\"} 10");
    expect(r.body, "trimode_kv_pages{state=\"free\"} 14");
    expect(r.body, "trimode_cached_prompt_tokens_total 4");
    expect(r.body, "trimode_prefix_cache_queries_total 9");
    expect(r.body, "trimode_prefix_cache_hits_total 5");
    expect(r.body, "trimode_kv_usage_ratio 0.25");
    expect(r.body, "# TYPE trimode_predicted_step_error_ratio gauge");
    expect(r.body, "trimode_predicted_step_error_ratio 1.25");
    expect(r.body, "trimode_requests_running{mode=\"ar\"} 1");
    expect(r.body, "trimode_weights_bytes{copy=\"resident\"} 1000");
    expect(r.body, "trimode_memory_bytes{category=\"weights\"} 1000");
    expect(r.body, "trimode_memory_bytes{category=\"kv\"} 70");
    assert_non_null(strstr(r.body, "trimode_build_info{version=\"" TRIMODE_VERSION "\",model=\"fake\""));
    assert_null(strstr(r.body, "some/path"));
    assert_null(strstr(r.body, "vllm:"));
    reply_free(&r);
}

// Such a request used to be in requests_total and in no histogram.
static void test_a_request_that_ends_in_the_queue_is_counted_everywhere(void **state)
{
    (void)state;
    struct srv_metrics m;
    srv_metrics_init(&m);
    struct srv_hist gaps = {0};
    struct eng_request_stats never = {.prompt_tokens = 5, .queue_ms = 30, .total_ms = 30};
    struct eng_request_stats decided = {
        .mode = ENG_MODE_AR, .n_spans = 1, .cause = ENG_CAUSE_POOR_DRAFTS, .queue_ms = 1, .total_ms = 2};
    decided.spans[0].mode = ENG_MODE_DIFFUSION;
    srv_metrics_finished(&m, SRV_ENDPOINT_CHAT, ENG_FINISH_CANCELLED, &never, &gaps);
    srv_metrics_finished(&m, SRV_ENDPOINT_CHAT, ENG_FINISH_CANCELLED, &decided, &gaps);
    struct srv_server *s = calloc(1, sizeof *s);
    s->config = &config;
    s->model_name = strdup("m");
    s->metrics = m;
    struct srv_buf out = {0};
    srv_metrics_render(s, &out);
    expect(out.data, "trimode_requests_total{endpoint=\"chat\",mode=\"auto\",finish_reason=\"cancelled\"} 1");
    expect(out.data, "trimode_queue_seconds_count{mode=\"auto\"} 1");
    expect(out.data, "trimode_request_seconds_sum{mode=\"auto\"} 0.03");
    expect(out.data, "trimode_request_seconds_count{mode=\"ar\"} 1");
    // The second had been given a mode, though no token came.
    expect(out.data, "trimode_mode_decisions_total{mode=\"diffusion\",reason=\"poor_drafts\"} 1");
    expect(out.data, "trimode_mode_decisions_total{mode=\"ar\",reason=\"poor_drafts\"} 0");
    expect(out.data, "trimode_time_to_first_token_seconds_count{mode=\"ar\"} 0");
    assert_null(strstr(out.data, "time_to_first_token_seconds_count{mode=\"auto\"}"));
    srv_buf_free(&out);
    free(s->model_name);
    free(s);
}

static void test_promtool_finds_nothing(void **state)
{
    (void)state;
    if (system("command -v promtool >/dev/null 2>&1")) {
        skip();
        return;
    }
    cJSON_Delete(post_json("/v1/completions", "{\"prompt\":\"a\"}", 200));
    struct reply r = http_get("/metrics", "");
    FILE *lint = popen("promtool check metrics", "w");
    assert_non_null(lint);
    fwrite(r.body, 1, r.body_len, lint);
    assert_int_equal(pclose(lint), 0);
    reply_free(&r);
}

static void test_the_page_is_rendered_within_a_millisecond(void **state)
{
    (void)state;
    struct reply r = http_get("/version", "");
    reply_free(&r);
    struct srv_server *s = calloc(1, sizeof *s);
    struct srv_config both = config; // the whole page, and the engine's part of it
    both.metrics_names = "both";
    s->config = &both;
    s->engine = running->engine;
    s->info = running->info;
    s->model_name = strdup("m");
    srv_metrics_init(&s->metrics);
    for (int i = 0; i < SRV_METRICS_ROUTES; i++)
        for (int code = 200; code < 210; code++)
            srv_metrics_answer(&s->metrics, i, code);
    struct srv_buf out = {0};
    struct timespec a, b;
    double best = 1;
    for (int i = 0; i < 20; i++) {
        srv_buf_reset(&out);
        clock_gettime(CLOCK_MONOTONIC, &a);
        srv_metrics_render(s, &out);
        clock_gettime(CLOCK_MONOTONIC, &b);
        double t = (double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9;
        best = t < best ? t : best;
    }
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    assert_true(best < 1e-3);
#endif
    srv_buf_free(&out);
    free(s->model_name);
    free(s);
}

static void test_histograms(void **state)
{
    (void)state;
    static const double bounds[] = {1, 2};
    struct srv_hist h = {.bounds = bounds, .n_bounds = 2};
    srv_hist_add(&h, 1, 2);
    srv_hist_add(&h, 1.5, 1);
    srv_hist_add(&h, 9, 1);
    srv_hist_add(&h, __builtin_nan(""), 1);
    assert_true(h.counts[0] == 2 && h.counts[1] == 1 && h.counts[2] == 2 && h.count == 5);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_counts_requests_answers_and_times),
        T(test_a_request_that_ends_in_the_queue_is_counted_everywhere),
        T(test_promtool_finds_nothing),
        T(test_the_page_is_rendered_within_a_millisecond),
        cmocka_unit_test(test_histograms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
