// Recorded passes: which graph replays which shape of pass.
//
// A graph is a list of launches with their arguments, addresses included. Whatever changes a launch is part of the key;
// what does not is read by the kernels from the pass block: masks (attention reads each segment's), which rows have the
// adapter on, the parameters of every choice. Engine thread only.
#pragma once

#include "driver.h"
#include "kernels.h"

enum {
    KRN_CUDA_GRAPHS_MAX = 64,
    KRN_CUDA_GRAPH_ROWS = 256, // larger passes are launched op by op: their launches cost little beside the work
};

struct krn_cuda_key {
    int32_t rows, wanted; // buckets
    bool adapter;         // some row has the adapter on: its products are in the graph
    bool accepts;
};

struct krn_cuda_graphs {
    const struct krn_cuda_driver *driver;
    struct {
        struct krn_cuda_key key;
        struct krn_cuda_graph *graph;
        uint64_t used; // of the clock
    } entries[KRN_CUDA_GRAPHS_MAX];
    int32_t n, most; // most: entries kept, 1 .. KRN_CUDA_GRAPHS_MAX
    uint64_t clock;
    bool disabled;
    char reason[200]; // why disabled
};

// How many rows are launched for `rows`: a few sizes, so that few graphs serve all passes. 0 for 0. Never more than
// `rows` rounded up to KRN_ROW_TILE.
int32_t krn_cuda_bucket(int32_t rows);

// driver must outlive g. reason: NULL, or why there are to be no graphs.
void krn_cuda_graphs_init(struct krn_cuda_graphs *g, const struct krn_cuda_driver *driver, const char *reason);

// The graph of this key, now the one used last; or NULL.
struct krn_cuda_graph *krn_cuda_graphs_find(struct krn_cuda_graphs *g, const struct krn_cuda_key *key);
// Whether the next add throws one away, which must then not be running.
bool krn_cuda_graphs_full(const struct krn_cuda_graphs *g);
// Throws away the graph that was not used for the longest time, if full.
void krn_cuda_graphs_make_room(struct krn_cuda_graphs *g);
// Takes the graph over. There must be room.
void krn_cuda_graphs_add(struct krn_cuda_graphs *g, const struct krn_cuda_key *key, struct krn_cuda_graph *graph);
// Frees all graphs: an address that they hold is about to change. None may be running.
void krn_cuda_graphs_drop(struct krn_cuda_graphs *g);
// No graphs from here on. The graphs that exist stay until dropped, unused.
void krn_cuda_graphs_disable(struct krn_cuda_graphs *g, const char *reason);
