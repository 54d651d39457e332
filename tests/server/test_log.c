// Log lines: one write, one line, levels, both forms.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <cjson/cJSON.h>
#include <string.h>
#include <unistd.h>

#include "log.h"

static int ends[2];

static char *logged(void)
{
    static char text[4096];
    ssize_t n = read(ends[0], text, sizeof text - 1);
    text[n > 0 ? n : 0] = 0;
    return text;
}

static int setup(void **state)
{
    (void)state;
    return pipe(ends);
}

static int teardown(void **state)
{
    (void)state;
    close(ends[0]);
    close(ends[1]);
    return 0;
}

static void test_lower_levels_are_dropped(void **state)
{
    (void)state;
    srv_log_init(SRV_LOG_WARN, false, ends[1]);
    srv_log(SRV_LOG_INFO, NULL, "no");
    srv_log(SRV_LOG_ERROR, "req_1", "yes %d", 5);
    char *line = logged();
    assert_null(strstr(line, "no"));
    assert_non_null(strstr(line, "error [req_1] yes 5\n"));
    assert_true(srv_log_enabled(SRV_LOG_WARN));
    assert_false(srv_log_enabled(SRV_LOG_DEBUG));
}

static void test_a_message_cannot_forge_a_line(void **state)
{
    (void)state;
    srv_log_init(SRV_LOG_INFO, false, ends[1]);
    srv_log(SRV_LOG_INFO, NULL, "a\nb\r\x1b[31mc");
    char *line = logged();
    assert_ptr_equal(strchr(line, '\n'), line + strlen(line) - 1);
    assert_null(strchr(line, 0x1b));
}

static void test_json_lines_parse(void **state)
{
    (void)state;
    srv_log_init(SRV_LOG_DEBUG, true, ends[1]);
    srv_log(SRV_LOG_DEBUG, "r\"1", "a \"quoted\"\nline");
    cJSON *j = cJSON_Parse(logged());
    assert_string_equal(cJSON_GetObjectItem(j, "level")->valuestring, "debug");
    assert_string_equal(cJSON_GetObjectItem(j, "request_id")->valuestring, "r\"1");
    assert_string_equal(cJSON_GetObjectItem(j, "message")->valuestring, "a \"quoted\"\nline");
    assert_int_equal(strlen(cJSON_GetObjectItem(j, "time")->valuestring), 24);
    cJSON_Delete(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_lower_levels_are_dropped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_message_cannot_forge_a_line, setup, teardown),
        cmocka_unit_test_setup_teardown(test_json_lines_parse, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
