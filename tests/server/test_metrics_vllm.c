// The page under vLLM's names: what readers of those names look for, and that it is the native page's numbers.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client.h"

static struct srv_config config;

static int setup(void **state)
{
    (void)state;
    char err[200];
    test_config(&config);
    if (srv_config_set(&config, "metrics_names", "both", SRV_FROM_FLAG, "--metrics-names", err, sizeof err))
        return -1;
    test_start(&config);
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

static void test_what_pickers_and_dashboards_read(void **state)
{
    (void)state;
    cJSON_Delete(post_json("/v1/completions", "{\"prompt\":\"abc\",\"mode\":\"ar\"}", 200));
    cJSON_Delete(post_json("/v1/completions", "{\"prompt\":\"abc\",\"max_tokens\":1}", 200));
    struct reply r = http_get("/metrics", "");
#define LABEL "model_name=\"fake\",engine=\"0\""
    expect(r.body, "# TYPE vllm:num_requests_running gauge");
    expect(r.body, "vllm:num_requests_running{" LABEL "} 1");
    expect(r.body, "vllm:num_requests_waiting{" LABEL "} 2");
    expect(r.body, "vllm:kv_cache_usage_perc{" LABEL "} 0.25");
    expect(r.body,
           "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"32\",cache_dtype=\"f32\",engine=\"0\"} 1");
    expect(r.body, "vllm:prompt_tokens_total{" LABEL "} 7");
    expect(r.body, "vllm:prompt_tokens_cached_total{" LABEL "} 4");
    expect(r.body, "vllm:prefix_cache_queries_total{" LABEL "} 9");
    expect(r.body, "vllm:prefix_cache_hits_total{" LABEL "} 5");
    expect(r.body, "vllm:generation_tokens_total{" LABEL "} 30");
    expect(r.body, "vllm:num_preemptions_total{" LABEL "} 3");
    expect(r.body, "vllm:spec_decode_num_drafts_total{" LABEL "} 4");
    expect(r.body, "vllm:spec_decode_num_draft_tokens_total{" LABEL "} 12");
    expect(r.body, "vllm:spec_decode_num_accepted_tokens_total{" LABEL "} 9");
    expect(r.body, "vllm:request_success_total{" LABEL ",finished_reason=\"stop\"} 1");
    expect(r.body, "vllm:request_success_total{" LABEL ",finished_reason=\"length\"} 1");
    expect(r.body, "vllm:request_success_total{" LABEL ",finished_reason=\"abort\"} 0");
    // Both modes in one series.
    expect(r.body, "vllm:time_to_first_token_seconds_count{" LABEL "} 2");
    expect(r.body, "vllm:time_to_first_token_seconds_bucket{" LABEL ",le=\"0.001\"} 0");
    expect(r.body, "vllm:time_to_first_token_seconds_bucket{" LABEL ",le=\"0.005\"} 2");
    expect(r.body, "vllm:e2e_request_latency_seconds_sum{" LABEL "} 0.01");
    expect(r.body, "vllm:request_queue_time_seconds_count{" LABEL "} 2");
    expect(r.body, "vllm:request_prefill_time_seconds_sum{" LABEL "} 0.004");
    expect(r.body, "vllm:request_decode_time_seconds_sum{" LABEL "} 0.006");
    expect(r.body, "vllm:request_inference_time_seconds_sum{" LABEL "} 0.01");
    expect(r.body, "vllm:request_time_per_output_token_seconds_count{" LABEL "} 1"); // one token has no time between
    expect(r.body, "vllm:request_prompt_tokens_sum{" LABEL "} 6");
    expect(r.body, "vllm:request_generation_tokens_sum{" LABEL "} 13");
    expect(r.body, "vllm:request_generation_tokens_bucket{" LABEL ",le=\"1\"} 1");
    assert_non_null(strstr(r.body, "trimode_requests_waiting"));
    reply_free(&r);
}

static void test_one_set_of_names_alone(void **state)
{
    (void)state;
    static const char *const names[] = {"native", "vllm"};
    for (int i = 0; i < 2; i++) {
        config.metrics_names = names[i];
        struct reply r = http_get("/metrics", "");
        assert_int_equal(strstr(r.body, "vllm:") != NULL, i == 1);
        assert_int_equal(strstr(r.body, "trimode_") != NULL, i == 0);
        assert_non_null(strstr(r.body, "process_start_time_seconds"));
        reply_free(&r);
    }
}

static void test_promtool_finds_nothing_but_the_colons(void **state)
{
    (void)state;
    if (system("command -v promtool >/dev/null 2>&1")) {
        skip();
        return;
    }
    cJSON_Delete(post_json("/v1/completions", "{\"prompt\":\"a\"}", 200));
    struct reply r = http_get("/metrics", "");
    char path[] = "/tmp/trimode-metrics-XXXXXX", command[256], line[512];
    FILE *page = fdopen(mkstemp(path), "w");
    assert_non_null(page);
    fwrite(r.body, 1, r.body_len, page);
    fclose(page);
    snprintf(command, sizeof command, "promtool check metrics < %s 2>&1", path);
    FILE *lint = popen(command, "r");
    int n = 0;
    for (; fgets(line, sizeof line, lint); n++)
        if (!strstr(line, "should not contain ':'"))
            fail_msg("promtool: %s", line);
    pclose(lint);
    remove(path);
    assert_true(n > 15); // it did read the page
    reply_free(&r);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_what_pickers_and_dashboards_read),
        T(test_one_set_of_names_alone),
        T(test_promtool_finds_nothing_but_the_colons),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
