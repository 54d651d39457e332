// server/routes.c: which path is whose, and behind which key.
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#include "api.h"
#include "routes.h"

static void expect(const char *url, const char *path, const char *rest)
{
    const char *got = NULL;
    const struct srv_route *r = srv_route_find(url, &got);
    if (strcmp(r ? r->path : "nobody", path))
        fail_msg("%s goes to %s", url, r ? r->path : "nobody");
    assert_string_equal(got, rest);
}

static void test_every_path_of_the_table_is_found(void **state)
{
    (void)state;
    for (int i = 0; i < srv_n_routes; i++) {
        const struct srv_route *r = &srv_routes[i];
        const char *rest;
        assert_true(r->path[0] == '/' && r->handle);
        assert_true(!strcmp(r->method, "GET") || !strcmp(r->method, "POST"));
        if (!r->prefix)
            assert_ptr_equal(srv_route_find(r->path, &rest), r);
        for (int k = 0; k < i; k++)
            assert_string_not_equal(r->path, srv_routes[k].path);
    }
}

static void test_prefixes_give_the_rest(void **state)
{
    (void)state;
    expect("/v1/models", "/v1/models", "");
    expect("/v1/models/nano", "/v1/models/", "nano");
    expect("/v1/models/org/name", "/v1/models/", "org/name");
    expect("/v1/models//", "/v1/models/", "/");
    expect("/v1/models/", "nobody", "");
}

static void test_other_paths_are_nobodys(void **state)
{
    (void)state;
    static const char *const urls[] = {"",
                                       "/",
                                       "*",
                                       "/v1",
                                       "/v1/",
                                       "/v1/chat",
                                       "/health/",
                                       "/healthz",
                                       "//health",
                                       "/Health",
                                       "/metrics ",
                                       "/v1/modelsx",
                                       "/v1/chat/completions/",
                                       "/v1/completions/x",
                                       "/v1/../health"};
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++)
        expect(urls[i], "nobody", "");
}

// A path that is not in this list is one that nobody thought about.
static void test_keys_guard_what_costs_or_tells(void **state)
{
    (void)state;
    static const struct {
        const char *url;
        enum srv_auth auth;
        const char *method;
        srv_handler handle;
    } cases[] = {
        {"/v1/chat/completions", SRV_AUTH_API, "POST", srv_api_chat},
        {"/v1/completions", SRV_AUTH_API, "POST", srv_api_completions},
        {"/v1/models", SRV_AUTH_API, "GET", srv_api_models},
        {"/v1/models/x", SRV_AUTH_API, "GET", srv_api_model},
        {"/tokenize", SRV_AUTH_API, "POST", srv_api_tokenize},
        {"/detokenize", SRV_AUTH_API, "POST", srv_api_detokenize},
        {"/health", SRV_AUTH_NONE, "GET", srv_api_health},
        {"/ready", SRV_AUTH_NONE, "GET", srv_api_ready},
        {"/metrics", SRV_AUTH_METRICS, "GET", srv_api_metrics},
        {"/version", SRV_AUTH_NONE, "GET", srv_api_version},
        {"/status", SRV_AUTH_METRICS, "GET", srv_api_status},
    };
    assert_int_equal(srv_n_routes, sizeof cases / sizeof *cases);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *rest;
        const struct srv_route *r = srv_route_find(cases[i].url, &rest);
        assert_non_null(r);
        assert_int_equal(r->auth, cases[i].auth);
        assert_string_equal(r->method, cases[i].method);
        assert_true(r->handle == cases[i].handle);
        assert_false(r->probe && !strcmp(r->method, "POST")); // what generates is always logged
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_path_of_the_table_is_found),
        cmocka_unit_test(test_prefixes_give_the_rest),
        cmocka_unit_test(test_other_paths_are_nobodys),
        cmocka_unit_test(test_keys_guard_what_costs_or_tells),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
