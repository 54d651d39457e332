// The page under vLLM's names (`--metrics-names both`), so that dashboards, autoscalers, the Gateway API's endpoint
// picker and llm-d read this server as it is. The same numbers as the native page, without the split by mode. Buckets
// are the native ones, finer than vLLM's: extra buckets break no query. Left out: series of features that are not here
// (LoRA, KV transfer). promtool calls the colon in each name bad style; it belongs to the contract with those readers.
#include <stdio.h>

#include "metrics.h"
#include "server.h"

static const double token_bounds[] = {1,   2,    5,    10,   20,   50,    100,   200,   500,
                                      1e3, 2000, 5000, 10e3, 20e3, 50000, 100e3, 200e3, 500e3};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

void srv_vllm_init(struct srv_vllm *v, const struct srv_hist *latency, const struct srv_hist *gap)
{
    *v = (struct srv_vllm){.per_token = *gap, .inference = *latency, .prefill = *latency, .decode = *latency};
    v->prompt_tokens.bounds = v->generation_tokens.bounds = token_bounds;
    v->prompt_tokens.n_bounds = v->generation_tokens.n_bounds = COUNT(token_bounds);
}

void srv_vllm_finished(struct srv_vllm *v, const struct eng_request_stats *stats)
{
    if (!stats->completion_tokens)
        return;
    double decode = (stats->total_ms - stats->first_token_ms) * 1e-3;
    srv_hist_add(&v->prompt_tokens, stats->prompt_tokens, 1);
    srv_hist_add(&v->generation_tokens, stats->completion_tokens, 1);
    srv_hist_add(&v->inference, (stats->total_ms - stats->queue_ms) * 1e-3, 1);
    srv_hist_add(&v->prefill, (stats->first_token_ms - stats->queue_ms) * 1e-3, 1);
    srv_hist_add(&v->decode, decode, 1);
    if (stats->completion_tokens > 1)
        srv_hist_add(&v->per_token, decode / (stats->completion_tokens - 1), 1);
}

// ---- rendering ------------------------------------------------------------------------------------------------------

struct page {
    struct srv_buf *out;
    struct srv_buf label; // model_name="...",engine="0"
};

static void family(struct page *p, const char *name, const char *type, const char *help)
{
    srv_buf_printf(p->out, "# HELP vllm:%s %s\n# TYPE vllm:%s %s\n", name, help, name, type);
}

static void number(struct page *p, const char *name, const char *type, const char *help, double value)
{
    family(p, name, type, help);
    srv_buf_printf(p->out, "vllm:%s{%s} %.17g\n", name, p->label.data, value);
}

static void histogram(struct page *p, const char *name, const char *help, const struct srv_hist *h)
{
    char full[96];
    snprintf(full, sizeof full, "vllm:%s", name);
    family(p, name, "histogram", help);
    srv_metrics_hist(p->out, full, p->label.data, h);
}

static void histogram_of_modes(struct page *p, const char *name, const char *help, const struct srv_hist *modes)
{
    struct srv_hist all = modes[0];
    for (int m = 1; m < ENG_N_MODES; m++) {
        for (int i = 0; i <= SRV_METRICS_BUCKETS; i++)
            all.counts[i] += modes[m].counts[i];
        all.sum += modes[m].sum;
        all.count += modes[m].count;
    }
    histogram(p, name, help, &all);
}

static void render_engine(struct page *p, const struct srv_server *s)
{
    struct eng_stats st = {0};
    eng_stats(s->engine, &st);
    int running = 0;
    uint64_t generated = 0;
    for (int m = 0; m < ENG_N_MODES; m++) {
        running += st.running[m];
        generated += st.generated_tokens[m];
    }
    number(p, "num_requests_running", "gauge", "Requests being decoded.", running);
    number(p, "num_requests_waiting", "gauge", "Requests in the queue.", st.waiting);
    number(p, "kv_cache_usage_perc", "gauge", "Share of the pages in use, 0 to 1.",
           st.pages_total ? (double)st.pages_used / st.pages_total : 0);
    number(p, "prompt_tokens_total", "counter", "Prompt tokens computed.", (double)st.prompt_tokens);
    number(p, "prompt_tokens_cached_total", "counter", "Those of them that came from the prefix cache.",
           (double)st.cached_prompt_tokens);
    number(p, "prefix_cache_queries_total", "counter", "Tokens looked up in the prefix cache.",
           (double)st.prefix_queries);
    number(p, "prefix_cache_hits_total", "counter", "Tokens found there.", (double)st.prefix_hits);
    number(p, "generation_tokens_total", "counter", "Tokens generated.", (double)generated);
    number(p, "num_preemptions_total", "counter", "Running requests whose pages went to older ones.",
           (double)st.preemptions);
    number(p, "spec_decode_num_drafts_total", "counter", "Drafts that were verified.",
           (double)st.passes[ENG_PASS_VERIFY]);
    number(p, "spec_decode_num_draft_tokens_total", "counter", "Tokens drafted.", (double)st.drafted_tokens);
    number(p, "spec_decode_num_accepted_tokens_total", "counter", "Drafted tokens that were accepted.",
           (double)st.accepted_tokens);
    family(p, "cache_config_info", "gauge", "Constant 1; pages of keys and values.");
    srv_buf_printf(p->out,
                   "vllm:cache_config_info{block_size=\"%d\",num_gpu_blocks=\"%d\",cache_dtype=\"%s\","
                   "engine=\"0\"} 1\n",
                   (int)s->info->page_size, (int)st.pages_total, s->info->kv_type);
}

static void render_requests(struct page *p, const struct srv_metrics *m)
{
    static const char *const reasons[SRV_METRICS_FINISHES] = {
        [ENG_FINISH_STOP] = "stop",     [ENG_FINISH_LENGTH] = "length", [ENG_FINISH_CANCELLED] = "abort",
        [ENG_FINISH_TIMEOUT] = "abort", [ENG_FINISH_ERROR] = "error",
    };
    uint64_t by_finish[SRV_METRICS_FINISHES] = {0};
    for (int e = 0; e < SRV_N_ENDPOINTS; e++)
        for (int mode = 0; mode < ENG_N_MODES; mode++)
            for (int f = 1; f < SRV_METRICS_FINISHES; f++)
                by_finish[f] += m->requests[e][mode][f];
    by_finish[ENG_FINISH_CANCELLED] += by_finish[ENG_FINISH_TIMEOUT];
    family(p, "request_success_total", "counter", "Finished requests, whatever ended them.");
    for (int f = 1; f < SRV_METRICS_FINISHES; f++)
        if (f != ENG_FINISH_TIMEOUT)
            srv_buf_printf(p->out, "vllm:request_success_total{%s,finished_reason=\"%s\"} %llu\n", p->label.data,
                           reasons[f], (unsigned long long)by_finish[f]);
    histogram_of_modes(p, "time_to_first_token_seconds", "From submission to the first token.", m->first_token);
    histogram_of_modes(p, "inter_token_latency_seconds", "Time per output token after the first run of tokens.",
                       m->inter_token);
    histogram_of_modes(p, "e2e_request_latency_seconds", "From submission to the end.", m->request);
    histogram_of_modes(p, "request_queue_time_seconds", "Time spent waiting for admission.", m->queue);
    histogram(p, "request_inference_time_seconds", "From admission to the end.", &m->vllm.inference);
    histogram(p, "request_prefill_time_seconds", "From admission to the first token.", &m->vllm.prefill);
    histogram(p, "request_decode_time_seconds", "From the first token to the end.", &m->vllm.decode);
    histogram(p, "request_time_per_output_token_seconds", "Mean of a request after its first token.",
              &m->vllm.per_token);
    histogram(p, "request_prompt_tokens", "Prompt tokens of a request.", &m->vllm.prompt_tokens);
    histogram(p, "request_generation_tokens", "Tokens generated for a request.", &m->vllm.generation_tokens);
}

void srv_vllm_render(const struct srv_server *s, struct srv_buf *out)
{
    struct page p = {.out = out};
    srv_metrics_label(&p.label, "model_name", s->model_name);
    srv_buf_puts(&p.label, ",engine=\"0\"");
    if (p.label.failed)
        out->failed = true;
    else {
        if (s->engine)
            render_engine(&p, s);
        render_requests(&p, &s->metrics);
    }
    srv_buf_free(&p.label);
}
