// The table of paths.
#pragma once

#include "http.h"

enum srv_auth { SRV_AUTH_NONE, SRV_AUTH_API, SRV_AUTH_METRICS };

struct srv_route {
    const char *path;   // as metrics and logs name it
    const char *method; // GET (HEAD too) or POST
    bool prefix;        // what follows the path belongs to it
    bool probe;         // logged at debug only
    enum srv_auth auth;
    srv_handler handle;
};

extern const struct srv_route srv_routes[];
extern const int srv_n_routes;

const struct srv_route *srv_route_find(const char *url, const char **ret_rest);
