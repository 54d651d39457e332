// Prometheus text (exposition 0.0.4); here the native names, in metrics_vllm.c the others. Rendered from memory on the
// loop thread, never waiting for the engine: routers scrape every 50 ms. Labels come from fixed lists, so that no
// client can grow the page.
#include "metrics.h"

#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "routes.h"
#include "server.h"

static const double latency_bounds[] = {0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
                                        1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
static const double gap_bounds[] = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15,
                                    0.2,    0.3,   0.5,    0.75,  1,    2.5,   5,    10,    20};
static const double rate_bounds[] = {0.5, 1, 1.5, 2, 3, 4, 5, 6, 8, 10, 12, 16, 24, 32};
#define COUNT(a) ((int)(sizeof(a) / sizeof *(a)))

static const char *const finish_names[SRV_METRICS_FINISHES] = {"none",      "stop",    "length",
                                                               "cancelled", "timeout", "error"};
static const char *const endpoint_names[SRV_N_ENDPOINTS] = {"chat", "completions"};

void srv_metrics_init(struct srv_metrics *m)
{
    *m = (struct srv_metrics){0};
    for (int mode = 0; mode < ENG_N_MODES; mode++) {
        struct srv_hist *latency[] = {&m->first_token[mode], &m->queue[mode], &m->request[mode]};
        for (int i = 0; i < COUNT(latency); i++) {
            latency[i]->bounds = latency_bounds;
            latency[i]->n_bounds = COUNT(latency_bounds);
        }
        m->inter_token[mode].bounds = gap_bounds;
        m->inter_token[mode].n_bounds = COUNT(gap_bounds);
        m->tokens_per_forward[mode].bounds = rate_bounds;
        m->tokens_per_forward[mode].n_bounds = COUNT(rate_bounds);
    }
    srv_vllm_init(&m->vllm, &m->request[0], &m->inter_token[0]);
}

void srv_hist_add(struct srv_hist *h, double value, uint64_t times)
{
    int i = 0;
    while (i < h->n_bounds && !(value <= h->bounds[i]))
        i++;
    h->counts[i] += times;
    h->count += times;
    h->sum += value * (double)times;
}

void srv_metrics_answer(struct srv_metrics *m, int route, int status)
{
    if (status >= 100 && status < SRV_METRICS_CODES)
        m->answers[route][status - 100]++;
}

void srv_metrics_gap(struct srv_hist *h, double gap, int n)
{
    h->bounds = gap_bounds;
    h->n_bounds = COUNT(gap_bounds);
    // A run of n tokens arrives at once; each counts as an equal share of the gap.
    srv_hist_add(h, gap / n, (uint64_t)n);
}

void srv_metrics_finished(struct srv_metrics *m, enum srv_metrics_endpoint endpoint, enum eng_finish finish,
                          const struct eng_request_stats *stats, const struct srv_hist *gaps)
{
    enum eng_mode mode = stats->mode;
    for (int i = 0; i <= SRV_METRICS_BUCKETS; i++)
        m->inter_token[mode].counts[i] += gaps->counts[i];
    m->inter_token[mode].sum += gaps->sum;
    m->inter_token[mode].count += gaps->count;
    m->requests[endpoint][mode][finish]++;
    if (stats->n_spans > 0) // one that ended in the queue was never decided
        m->decisions[stats->spans[0].mode][stats->cause]++;
    if (stats->completion_tokens > 0)
        srv_hist_add(&m->first_token[mode], stats->first_token_ms * 1e-3, 1);
    srv_hist_add(&m->queue[mode], stats->queue_ms * 1e-3, 1);
    srv_hist_add(&m->request[mode], stats->total_ms * 1e-3, 1);
    if (stats->forward_passes > 0)
        srv_hist_add(&m->tokens_per_forward[mode], (double)stats->completion_tokens / stats->forward_passes, 1);
    srv_vllm_finished(&m->vllm, stats);
}

// ---- rendering ------------------------------------------------------------------------------------------------------

static void family(struct srv_buf *out, const char *name, const char *type, const char *help)
{
    srv_buf_printf(out, "# HELP trimode_%s %s\n# TYPE trimode_%s %s\n", name, help, name, type);
}

static void count_family(struct srv_buf *out, const char *name, const char *help, uint64_t value)
{
    family(out, name, "counter", help);
    srv_buf_printf(out, "trimode_%s %llu\n", name, (unsigned long long)value);
}

// name in full; label: "mode=\"ar\"" or "".
static void hist_rows(struct srv_buf *out, const char *name, const char *label, const double *bounds, int n_bounds,
                      const uint64_t *counts, double sum, uint64_t count)
{
    uint64_t total = 0;
    const char *comma = *label ? "," : "";
    for (int i = 0; i < n_bounds; i++) {
        total += counts[i];
        srv_buf_printf(out, "%s_bucket{%s%sle=\"%g\"} %llu\n", name, label, comma, bounds[i],
                       (unsigned long long)total);
    }
    const char *open = *label ? "{" : "", *close = *label ? "}" : "";
    srv_buf_printf(out, "%s_bucket{%s%sle=\"+Inf\"} %llu\n", name, label, comma, (unsigned long long)count);
    srv_buf_printf(out, "%s_sum%s%s%s %.9g\n", name, open, label, close, sum);
    srv_buf_printf(out, "%s_count%s%s%s %llu\n", name, open, label, close, (unsigned long long)count);
}

void srv_metrics_hist(struct srv_buf *out, const char *name, const char *label, const struct srv_hist *h)
{
    hist_rows(out, name, label, h->bounds, h->n_bounds, h->counts, h->sum, h->count);
}

// "auto": requests that ended before a mode was chosen for them; shown once there are some.
static void hist_by_mode(struct srv_buf *out, const char *name, const char *help, const struct srv_hist *hists)
{
    family(out, name, "histogram", help);
    char full[96], label[64];
    snprintf(full, sizeof full, "trimode_%s", name);
    for (int mode = ENG_MODE_AUTO; mode < ENG_N_MODES; mode++) {
        if (mode == ENG_MODE_AUTO && !hists[mode].count)
            continue;
        snprintf(label, sizeof label, "mode=\"%s\"", eng_mode_name(mode));
        srv_metrics_hist(out, full, label, &hists[mode]);
    }
}

static void engine_hist(struct srv_buf *out, const char *name, const char *help, const struct eng_hist *h)
{
    if (!h->bounds)
        return;
    family(out, name, "histogram", help);
    char full[96];
    snprintf(full, sizeof full, "trimode_%s", name);
    hist_rows(out, full, "", h->bounds, h->n_bounds, h->counts, h->sum, h->count);
}

void srv_metrics_label(struct srv_buf *out, const char *name, const char *value)
{
    srv_buf_printf(out, "%s=", name);
    srv_buf_jsonz(out, value);
}

static void render_requests(const struct srv_metrics *m, struct srv_buf *out)
{
    family(out, "requests_total", "counter", "Finished generations; one choice counts as one.");
    for (int e = 0; e < SRV_N_ENDPOINTS; e++)
        for (int mode = 0; mode < ENG_N_MODES; mode++)
            for (int f = 1; f < SRV_METRICS_FINISHES; f++)
                if (m->requests[e][mode][f])
                    srv_buf_printf(out,
                                   "trimode_requests_total{endpoint=\"%s\",mode=\"%s\",finish_reason=\"%s\"} %llu\n",
                                   endpoint_names[e], eng_mode_name(mode), finish_names[f],
                                   (unsigned long long)m->requests[e][mode][f]);
    family(out, "http_responses_total", "counter", "Answers by path and status; 499: the client left first.");
    for (int r = 0; r <= SRV_METRICS_ROUTES; r++)
        for (int code = 100; code < SRV_METRICS_CODES; code++)
            if (m->answers[r][code - 100])
                srv_buf_printf(out, "trimode_http_responses_total{path=\"%s\",code=\"%d\"} %llu\n",
                               r < SRV_METRICS_ROUTES ? srv_routes[r].path : "other", code,
                               (unsigned long long)m->answers[r][code - 100]);
    family(out, "mode_decisions_total", "counter", "Mode a generation started in, by who or what chose it.");
    for (int mode = 1; mode < ENG_N_MODES; mode++)
        for (int d = 0; d < ENG_N_CAUSES; d++)
            srv_buf_printf(out, "trimode_mode_decisions_total{mode=\"%s\",reason=\"%s\"} %llu\n", eng_mode_name(mode),
                           eng_cause_name((enum eng_cause)d), (unsigned long long)m->decisions[mode][d]);
    count_family(out, "client_disconnects_total", "Clients that left while their request waited.", m->disconnects);
    count_family(out, "slow_readers_total", "Streams cut because the client read too slowly.", m->slow_readers);
    hist_by_mode(out, "time_to_first_token_seconds", "From submission to the first token.", m->first_token);
    hist_by_mode(out, "inter_token_seconds", "Time per output token after the first run of tokens.", m->inter_token);
    hist_by_mode(out, "queue_seconds", "Time spent waiting for admission.", m->queue);
    hist_by_mode(out, "request_seconds", "From submission to the end.", m->request);
    hist_by_mode(out, "tokens_per_forward", "Completion tokens of a request per forward pass it took part in.",
                 m->tokens_per_forward);
}

static void render_engine(const struct srv_server *s, struct srv_buf *out)
{
    struct eng_stats st = {0};
    eng_stats(s->engine, &st);
    family(out, "requests_running", "gauge", "Requests being decoded, by the mode of their current step.");
    for (int mode = 1; mode < ENG_N_MODES; mode++)
        srv_buf_printf(out, "trimode_requests_running{mode=\"%s\"} %d\n", eng_mode_name(mode), (int)st.running[mode]);
    family(out, "requests_waiting", "gauge", "Requests in the queue.");
    srv_buf_printf(out, "trimode_requests_waiting %d\n", (int)st.waiting);
    count_family(out, "prompt_tokens_total", "Prompt tokens of requests whose prompt was computed.", st.prompt_tokens);
    count_family(out, "cached_prompt_tokens_total", "Those of them that came from the prefix cache.",
                 st.cached_prompt_tokens);
    family(out, "generated_tokens_total", "counter", "Tokens generated, by mode.");
    for (int mode = 1; mode < ENG_N_MODES; mode++)
        srv_buf_printf(out, "trimode_generated_tokens_total{mode=\"%s\"} %llu\n", eng_mode_name(mode),
                       (unsigned long long)st.generated_tokens[mode]);
    family(out, "forward_passes_total", "counter", "Passes of single requests, by what they were for.");
    for (int k = 0; k < ENG_N_PASS_KINDS; k++)
        srv_buf_printf(out, "trimode_forward_passes_total{kind=\"%s\"} %llu\n", eng_pass_kind_name(k),
                       (unsigned long long)st.passes[k]);
    count_family(out, "forward_steps_total", "Batched forward calls.", st.steps);
    count_family(out, "drafted_tokens_total", "Tokens drafted by self-speculation.", st.drafted_tokens);
    count_family(out, "accepted_tokens_total", "Drafted tokens that were accepted.", st.accepted_tokens);
    family(out, "wasted_rows_total", "counter", "Rows computed for nothing.");
    srv_buf_printf(out,
                   "trimode_wasted_rows_total{reason=\"rejected\"} %llu\n"
                   "trimode_wasted_rows_total{reason=\"cut\"} %llu\n"
                   "trimode_wasted_rows_total{reason=\"ahead\"} %llu\n"
                   "trimode_wasted_rows_total{reason=\"preempted\"} %llu\n",
                   (unsigned long long)st.wasted_rejected, (unsigned long long)st.wasted_cut,
                   (unsigned long long)st.wasted_ahead, (unsigned long long)st.wasted_preempted);
    family(out, "mode_switches_total", "counter", "Changes of mode within a request.");
    for (int from = 1; from < ENG_N_MODES; from++)
        for (int to = 1; to < ENG_N_MODES; to++)
            if (from != to)
                srv_buf_printf(out, "trimode_mode_switches_total{from=\"%s\",to=\"%s\"} %llu\n", eng_mode_name(from),
                               eng_mode_name(to), (unsigned long long)st.switches[from][to]);
    count_family(out, "preemptions_total", "Running requests whose pages went to older ones and were computed again.",
                 st.preemptions);
    family(out, "kv_pages", "gauge",
           "Pages of keys and values: used by requests, kept by the prefix cache alone, or free.");
    srv_buf_printf(out,
                   "trimode_kv_pages{state=\"used\"} %d\ntrimode_kv_pages{state=\"cached\"} %d\n"
                   "trimode_kv_pages{state=\"free\"} %d\n",
                   (int)st.pages_used, (int)st.pages_cached, (int)(st.pages_total - st.pages_used - st.pages_cached));
    family(out, "kv_usage_ratio", "gauge", "Share of the pages in use by requests, 0 to 1.");
    srv_buf_printf(out, "trimode_kv_usage_ratio %.6g\n", st.pages_total ? (double)st.pages_used / st.pages_total : 0.0);
    count_family(out, "prefix_cache_queries_total", "Tokens looked up in the prefix cache when requests start.",
                 st.prefix_queries);
    count_family(out, "prefix_cache_hits_total", "Tokens found there, and not computed.", st.prefix_hits);
    engine_hist(out, "forward_rows", "Rows of a forward call.", &st.rows);
    engine_hist(out, "forward_seconds", "Time of a forward call.", &st.seconds);
    if (st.has_cost) {
        family(out, "predicted_step_error_ratio", "gauge",
               "Predicted over actual time of a forward call, running mean; the router corrects by it.");
        srv_buf_printf(out, "trimode_predicted_step_error_ratio %.6g\n", st.step_error_ratio);
    }
    engine_hist(out, "accepted_length", "Drafted tokens accepted by one verification.", &st.accepted_length);
    engine_hist(out, "denoise_passes", "Denoising passes of one block.", &st.denoise_passes);
    family(out, "weights_bytes", "gauge", "Bytes of the weights: resident, and in the checkpoint.");
    srv_buf_printf(out, "trimode_weights_bytes{copy=\"resident\"} %lld\ntrimode_weights_bytes{copy=\"file\"} %lld\n",
                   (long long)s->info->weights_bytes, (long long)s->info->file_bytes);
    family(out, "memory_bytes", "gauge", "Memory of the backend by what it is for.");
    for (int32_t i = 0; i < s->info->memory.n_categories; i++) {
        srv_buf_puts(out, "trimode_memory_bytes{");
        srv_metrics_label(out, "category", s->info->memory.categories[i].name);
        srv_buf_printf(out, "} %lld\n", (long long)s->info->memory.categories[i].bytes);
    }
}

static void render_process(const struct srv_server *s, struct srv_buf *out)
{
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    double cpu = (double)(use.ru_utime.tv_sec + use.ru_stime.tv_sec) +
                 (double)(use.ru_utime.tv_usec + use.ru_stime.tv_usec) * 1e-6;
    long long pages_total = 0, pages_resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file) {
        if (fscanf(file, "%lld %lld", &pages_total, &pages_resident) != 2)
            pages_total = pages_resident = 0;
        fclose(file);
    }
    long long page = sysconf(_SC_PAGESIZE);
    srv_buf_printf(out,
                   "# HELP process_cpu_seconds_total User and system time.\n# TYPE process_cpu_seconds_total counter\n"
                   "process_cpu_seconds_total %.6f\n",
                   cpu);
    srv_buf_printf(out,
                   "# HELP process_resident_memory_bytes Resident memory.\n"
                   "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes %lld\n",
                   pages_resident * page);
    srv_buf_printf(out,
                   "# HELP process_virtual_memory_bytes Virtual memory.\n"
                   "# TYPE process_virtual_memory_bytes gauge\nprocess_virtual_memory_bytes %lld\n",
                   pages_total * page);
    srv_buf_printf(out,
                   "# HELP process_start_time_seconds Start of the process, Unix time.\n"
                   "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %lld\n",
                   (long long)s->started);
}

static void render_native(const struct srv_server *s, struct srv_buf *out)
{
    family(out, "build_info", "gauge", "Constant 1; what is running.");
    srv_buf_puts(out, "trimode_build_info{");
    srv_metrics_label(out, "version", TRIMODE_VERSION);
    srv_buf_puts(out, ",");
    srv_metrics_label(out, "model", s->model_name);
    srv_buf_puts(out, ",");
    srv_metrics_label(out, "backend", s->info ? s->info->backend : "");
    srv_buf_puts(out, ",");
    srv_metrics_label(out, "weights", s->info ? s->info->weights_type : "");
    srv_buf_puts(out, "} 1\n");
    family(out, "ready", "gauge", "1 while requests are accepted.");
    srv_buf_printf(out, "trimode_ready %d\n", s->state == SRV_READY);
    if (s->engine)
        render_engine(s, out);
    render_requests(&s->metrics, out);
}

void srv_metrics_render(const struct srv_server *s, struct srv_buf *out)
{
    if (strcmp(s->config->metrics_names, "vllm"))
        render_native(s, out);
    if (strcmp(s->config->metrics_names, "native"))
        srv_vllm_render(s, out);
    render_process(s, out);
}
