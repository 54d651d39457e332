// Recorded passes: a bounded cache of graphs, the one that was not used for the longest time goes first.
//
// 64 entries are searched one by one: a pass asks once, and the cost is far below that of one launch. The buckets are
// close together where a pass costs little more than its launches (1 to 64 rows) and far apart where rows cost time.
#include "graphs.h"
#include "ops.h"

#include <stdio.h>

static const int32_t buckets[] = {1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, KRN_CUDA_GRAPH_ROWS};

int32_t krn_cuda_bucket(int32_t rows)
{
    if (rows <= 0)
        return 0;
    for (size_t i = 0; i < sizeof buckets / sizeof *buckets; i++)
        if (rows <= buckets[i])
            return buckets[i];
    // No graphs there; but the library keeps a plan for every number of rows that it sees.
    return KRN_PAD_TO(rows, KRN_ROW_TILE);
}

void krn_cuda_graphs_init(struct krn_cuda_graphs *g, const struct krn_cuda_driver *driver, const char *reason)
{
    *g = (struct krn_cuda_graphs){.driver = driver, .most = KRN_CUDA_GRAPHS_MAX};
    if (reason)
        krn_cuda_graphs_disable(g, reason);
}

static bool same(const struct krn_cuda_key *a, const struct krn_cuda_key *b)
{
    return a->rows == b->rows && a->wanted == b->wanted && a->adapter == b->adapter && a->accepts == b->accepts;
}

struct krn_cuda_graph *krn_cuda_graphs_find(struct krn_cuda_graphs *g, const struct krn_cuda_key *key)
{
    for (int32_t i = 0; !g->disabled && i < g->n; i++)
        if (same(&g->entries[i].key, key)) {
            g->entries[i].used = ++g->clock;
            return g->entries[i].graph;
        }
    return NULL;
}

bool krn_cuda_graphs_full(const struct krn_cuda_graphs *g)
{
    return g->n >= g->most;
}

void krn_cuda_graphs_make_room(struct krn_cuda_graphs *g)
{
    if (!krn_cuda_graphs_full(g))
        return;
    int32_t oldest = 0;
    for (int32_t i = 1; i < g->n; i++)
        if (g->entries[i].used < g->entries[oldest].used)
            oldest = i;
    g->driver->graph_free(g->driver->ctx, g->entries[oldest].graph);
    g->entries[oldest] = g->entries[--g->n];
}

void krn_cuda_graphs_add(struct krn_cuda_graphs *g, const struct krn_cuda_key *key, struct krn_cuda_graph *graph)
{
    g->entries[g->n].key = *key;
    g->entries[g->n].graph = graph;
    g->entries[g->n++].used = ++g->clock;
}

void krn_cuda_graphs_drop(struct krn_cuda_graphs *g)
{
    while (g->n > 0)
        g->driver->graph_free(g->driver->ctx, g->entries[--g->n].graph);
}

void krn_cuda_graphs_disable(struct krn_cuda_graphs *g, const char *reason)
{
    if (!g->disabled)
        snprintf(g->reason, sizeof g->reason, "%s", reason);
    g->disabled = true;
}
