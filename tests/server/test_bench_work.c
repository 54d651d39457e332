// server/bench_work.c: random prompts, datasets, and what /v1/models says.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "bench_work.h"

static struct srv_config c;
static struct srv_bench_work w;
static struct srv_buf body;
static struct srv_bench_expect expect;
static char err[640], path[] = "/tmp/trimode-dataset-XXXXXX";

static int setup(void **state)
{
    (void)state;
    *err = 0;
    return srv_config_default(&c);
}

static int teardown(void **state)
{
    (void)state;
    srv_bench_work_done(&w);
    srv_config_done(&c);
    return 0;
}

static void set(const char *key, const char *value)
{
    assert_int_equal(srv_config_set(&c, key, value, SRV_FROM_FLAG, "test", err, sizeof err), 0);
}

static void dataset(const char *text)
{
    FILE *f = fopen(path, "w");
    fputs(text, f);
    fclose(f);
    set("dataset", path);
}

static int models(const char *answer)
{
    return srv_bench_work_models(&w, answer, strlen(answer), err, sizeof err);
}

#define LIST "{\"data\":[{\"id\":\"a\",\"vocab_size\":100},{\"id\":\"b\",\"vocab_size\":200},{\"id\":\"c\"}]}"

static cJSON *request(uint64_t i, const char *where)
{
    srv_buf_reset(&body);
    assert_string_equal(srv_bench_work_request(&w, i, &body, &expect), where);
    cJSON *j = cJSON_Parse(body.data);
    assert_non_null(j);
    return j;
}

static double number(const cJSON *j, const char *key)
{
    const cJSON *item = cJSON_GetObjectItem(j, key);
    assert_true(cJSON_IsNumber(item));
    return item->valuedouble;
}

static void test_random_prompts_are_a_function_of_seed_and_number(void **state)
{
    (void)state;
    set("seed", "3");
    set("prompt_tokens", "50");
    set("output_tokens", "9");
    assert_int_equal(srv_bench_work_open(&w, &c, err, sizeof err), 0);
    assert_int_equal(models(LIST), 0);
    char *texts[20], *prompts[20];
    for (int i = 0; i < 20; i++) {
        cJSON *j = request((uint64_t)i, "/v1/completions");
        const cJSON *prompt = cJSON_GetObjectItem(j, "prompt"), *id;
        assert_int_equal(cJSON_GetArraySize(prompt), 50);
        cJSON_ArrayForEach(id, prompt) assert_true(id->valuedouble >= 0 && id->valuedouble < 100);
        assert_true(number(j, "max_tokens") == 9 && number(j, "temperature") == 1);
        assert_true(cJSON_IsTrue(cJSON_GetObjectItem(j, "ignore_eos")));
        assert_string_equal(cJSON_GetObjectItem(j, "model")->valuestring, "a");
        assert_string_equal(cJSON_GetObjectItem(j, "mode")->valuestring, "auto");
        assert_null(cJSON_GetObjectItem(j, "block_length"));
        assert_null(cJSON_GetObjectItem(j, "threshold"));
        assert_true(!expect.chat && expect.prompt_tokens == 50 && expect.output_tokens == 9);
        texts[i] = strdup(body.data);
        prompts[i] = cJSON_PrintUnformatted(prompt);
        for (int k = 0; k < i; k++)
            assert_string_not_equal(prompts[k] + 1, prompts[i] + 1);
        cJSON_Delete(j);
    }
    cJSON_Delete(request(7, "/v1/completions"));
    assert_string_equal(body.data, texts[7]);
    w.seed++;
    cJSON *next = request(0, "/v1/completions");
    char *moved = cJSON_PrintUnformatted(cJSON_GetObjectItem(next, "prompt"));
    moved[strlen(moved) / 2] = 0;
    assert_null(strstr(prompts[0], moved + 1));
    cJSON_free(moved);
    cJSON_Delete(next);
    cJSON_Delete(request(7, "/v1/completions"));
    for (int i = 0; i < 20; i++) {
        assert_string_not_equal(body.data, texts[i]);
        free(texts[i]);
        cJSON_free(prompts[i]);
    }
}

static void test_settings_that_were_chosen_are_sent(void **state)
{
    (void)state;
    set("mode", "diffusion");
    set("block_length", "8");
    set("threshold", "0.75");
    set("temperature", "0");
    set("vocab", "5");
    set("served_model_name", "c");
    assert_int_equal(srv_bench_work_open(&w, &c, err, sizeof err), 0);
    assert_int_equal(models(LIST), 0);
    cJSON *j = request(0, "/v1/completions");
    assert_string_equal(cJSON_GetObjectItem(j, "mode")->valuestring, "diffusion");
    assert_string_equal(cJSON_GetObjectItem(j, "model")->valuestring, "c");
    assert_true(number(j, "block_length") == 8 && number(j, "threshold") == 0.75 && number(j, "temperature") == 0);
    int seen = 0;
    const cJSON *id;
    cJSON_ArrayForEach(id, cJSON_GetObjectItem(j, "prompt")) seen |= 1 << id->valueint;
    assert_int_equal(seen, 31); // all of the vocabulary, nothing beyond
    cJSON_Delete(j);
}

static void test_a_dataset_is_used_in_turn(void **state)
{
    (void)state;
    dataset("{\"prompt\":\"one\"}\n\n{\"messages\":[{\"role\":\"user\",\"content\":\"two\"}],\"max_tokens\":5}\r\n"
            "{\"prompt\":[1,2]}");
    assert_int_equal(srv_bench_work_open(&w, &c, err, sizeof err), 0);
    assert_int_equal(models("{\"data\":[{\"id\":\"z\"}]}"), 0); // no vocabulary is needed
    assert_int_equal(w.n_items, 3);
    cJSON *j = request(3, "/v1/completions");
    assert_string_equal(cJSON_GetObjectItem(j, "prompt")->valuestring, "one");
    assert_true(number(j, "max_tokens") == 64 && !cJSON_GetObjectItem(j, "ignore_eos"));
    assert_true(expect.prompt_tokens == 0 && expect.output_tokens == 0 && !expect.chat);
    cJSON_Delete(j);
    j = request(1, "/v1/chat/completions");
    assert_true(number(j, "max_tokens") == 5 && expect.chat);
    assert_non_null(strstr(body.data, "\"messages\":[{\"role\":\"user\",\"content\":\"two\"}]"));
    cJSON_Delete(j);
    cJSON_Delete(request(2, "/v1/completions"));
    assert_non_null(strstr(body.data, "\"prompt\":[1,2]"));
}

static void test_bad_datasets_are_refused_with_their_line(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"{\"prompt\":\"x\"}\n{\n", ":2: "},
        {"{\"text\":\"x\"}\n", ":1: expected"},
        {"{\"prompt\":1}\n", ":1: expected"},
        {"{\"prompt\":\"x\",\"messages\":[]}\n", ":1: expected"},
        {"{\"messages\":\"x\"}\n", ":1: expected"},
        {"{\"prompt\":\"x\",\"max_tokens\":0}\n", ":1: expected"},
        {"[]\n", ":1: "},
        {"\n\n", "has no lines"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        dataset(bad[i][0]);
        assert_int_equal(srv_bench_work_open(&w, &c, err, sizeof err), -1);
        if (!strstr(err, bad[i][1]) || !strstr(err, path))
            fail_msg("%s: %s", bad[i][0], err);
        srv_bench_work_done(&w);
    }
    set("dataset", "/nowhere.jsonl");
    assert_int_equal(srv_bench_work_open(&w, &c, err, sizeof err), -1);
    assert_non_null(strstr(err, "/nowhere.jsonl"));
}

static void test_models_that_do_not_fit(void **state)
{
    (void)state;
    set("served_model_name", "x");
    assert_int_equal(srv_bench_work_open(&w, &c, err, sizeof err), 0);
    assert_int_equal(models(LIST), -1);
    assert_non_null(strstr(err, "does not have the model 'x'"));
    srv_bench_work_done(&w);
    set("served_model_name", "c");
    assert_int_equal(srv_bench_work_open(&w, &c, err, sizeof err), 0);
    assert_int_equal(models(LIST), -1);
    assert_non_null(strstr(err, "--vocab"));
    static const char *const bad[] = {"", "[]", "{}", "{\"data\":[]}",
                                      "{\"data\":[{\"id\":\"c\",\"vocab_size\":\"x\"}]}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(models(bad[i]), -1);
}

static void test_random_numbers(void **state)
{
    (void)state;
    // The first outputs of SplitMix64 from state 0, as its authors' reference code has them.
    uint64_t s = 0;
    assert_true(srv_bench_random(&s) == 0xe220a8397b1dcdafu && srv_bench_random(&s) == 0x6e789e6aa1b965f4u);
    double sum = 0;
    for (int i = 0; i < 100000; i++) {
        double u = srv_bench_random_unit(&s);
        assert_true(u > 0 && u < 1);
        sum += u;
    }
    assert_true(sum > 49500 && sum < 50500);
}

int main(void)
{
    close(mkstemp(path));
#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        T(test_random_prompts_are_a_function_of_seed_and_number),
        T(test_settings_that_were_chosen_are_sent),
        T(test_a_dataset_is_used_in_turn),
        T(test_bad_datasets_are_refused_with_their_line),
        T(test_models_that_do_not_fit),
        T(test_random_numbers),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    srv_buf_free(&body);
    unlink(path);
    return failed;
}
