// 1 REQUEST: every path of API.md 2, in one table.
#include "routes.h"

#include <string.h>

#include "api.h"

const struct srv_route srv_routes[] = {
    {"/v1/chat/completions", "POST", false, false, SRV_AUTH_API, srv_api_chat},
    {"/v1/completions", "POST", false, false, SRV_AUTH_API, srv_api_completions},
    {"/v1/models", "GET", false, true, SRV_AUTH_API, srv_api_models},
    {"/v1/models/", "GET", true, false, SRV_AUTH_API, srv_api_model},
    {"/tokenize", "POST", false, false, SRV_AUTH_API, srv_api_tokenize},
    {"/detokenize", "POST", false, false, SRV_AUTH_API, srv_api_detokenize},
    {"/health", "GET", false, true, SRV_AUTH_NONE, srv_api_health},
    {"/ready", "GET", false, true, SRV_AUTH_NONE, srv_api_ready},
    {"/metrics", "GET", false, true, SRV_AUTH_METRICS, srv_api_metrics},
    {"/version", "GET", false, true, SRV_AUTH_NONE, srv_api_version},
    {"/status", "GET", false, true, SRV_AUTH_METRICS, srv_api_status},
};
const int srv_n_routes = sizeof srv_routes / sizeof *srv_routes;
_Static_assert(sizeof srv_routes / sizeof *srv_routes == SRV_METRICS_ROUTES, "metrics.h counts answers of every route");

const struct srv_route *srv_route_find(const char *url, const char **ret_rest)
{
    *ret_rest = "";
    for (int i = 0; i < srv_n_routes; i++) {
        const struct srv_route *r = &srv_routes[i];
        size_t n = strlen(r->path);
        if (r->prefix ? !strncmp(url, r->path, n) && url[n] : !strcmp(url, r->path)) {
            *ret_rest = url + n;
            return r;
        }
    }
    return NULL;
}
