// bench serve: samples, percentiles, and a load level as a row for people or an object for programs. Every sample is
// kept, so percentiles are exact: eight bytes a token.
#include "bench_stats.h"

#include <stdlib.h>
#include <string.h>

// ---- samples --------------------------------------------------------------------------------------------------------

static bool reserve(struct srv_bench_samples *s, size_t n)
{
    if (s->failed || s->n + n <= s->cap)
        return !s->failed;
    size_t cap = s->cap ? s->cap : 64;
    while (cap < s->n + n)
        cap *= 2;
    double *values = realloc(s->values, cap * sizeof *values);
    if (!values) {
        s->failed = true;
        return false;
    }
    s->values = values;
    s->cap = cap;
    return true;
}

void srv_bench_samples_add(struct srv_bench_samples *s, double value, int64_t times)
{
    if (times <= 0 || !reserve(s, (size_t)times))
        return;
    while (times--)
        s->values[s->n++] = value;
}

void srv_bench_samples_append(struct srv_bench_samples *s, const struct srv_bench_samples *more)
{
    s->failed |= more->failed;
    if (!more->n || !reserve(s, more->n))
        return;
    memcpy(s->values + s->n, more->values, more->n * sizeof *s->values);
    s->n += more->n;
}

void srv_bench_samples_free(struct srv_bench_samples *s)
{
    free(s->values);
    *s = (struct srv_bench_samples){0};
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double srv_bench_percentile(struct srv_bench_samples *s, double p)
{
    if (!s->n)
        return 0;
    qsort(s->values, s->n, sizeof *s->values, by_value);
    // p * n is a product of floats: 0.9 * 10 may come out just above 9 and must not become rank 10.
    double rank = p * (double)s->n - 1e-9;
    size_t at = rank > 0 ? (size_t)rank : 0;
    return s->values[at < s->n ? at : s->n - 1];
}

// ---- a level --------------------------------------------------------------------------------------------------------

void srv_bench_level_error(struct srv_bench_level *l, const char *reason)
{
    int i = 0;
    l->errors++;
    while (i < l->n_reasons && strncmp(l->reasons[i].text, reason, sizeof l->reasons[i].text - 1))
        i++;
    if (i == SRV_BENCH_REASONS) {
        i--;
        snprintf(l->reasons[i].text, sizeof l->reasons[i].text, "other reasons");
    } else if (i == l->n_reasons) {
        snprintf(l->reasons[i].text, sizeof l->reasons[i].text, "%s", reason);
        l->n_reasons++;
    }
    l->reasons[i].n++;
}

void srv_bench_level_done(struct srv_bench_level *l)
{
    srv_bench_samples_free(&l->ttft);
    srv_bench_samples_free(&l->itl);
    srv_bench_samples_free(&l->e2e);
}

double srv_bench_level_tok_s(const struct srv_bench_level *l)
{
    return l->seconds > 0 ? (double)l->tokens / l->seconds : 0;
}

static double tokens_per_forward(const struct srv_bench_level *l)
{
    return l->forward_passes > 0 ? (double)l->tokens / (double)l->forward_passes : 0;
}

static int64_t told_tokens(const struct srv_bench_level *l)
{
    int64_t n = 0;
    for (int m = 0; m < ENG_N_MODES; m++)
        n += l->mode_tokens[m];
    return n;
}

// ---- printing -------------------------------------------------------------------------------------------------------

static void json_times(struct srv_buf *out, const char *name, struct srv_bench_samples *s)
{
    srv_buf_printf(out, ",\"%s\":{\"p50\":%.4f,\"p90\":%.4f,\"p99\":%.4f}", name, srv_bench_percentile(s, 0.5),
                   srv_bench_percentile(s, 0.9), srv_bench_percentile(s, 0.99));
}

void srv_bench_level_json(struct srv_bench_level *l, struct srv_buf *out)
{
    if (l->clients)
        srv_buf_printf(out, "{\"clients\":%d,\"rate\":null,\"mode\":", l->clients);
    else
        srv_buf_printf(out, "{\"clients\":null,\"rate\":%.6g,\"mode\":", l->rate);
    srv_buf_jsonz(out, l->mode);
    srv_buf_printf(out,
                   ",\"requests\":%lld,\"errors\":%lld,\"seconds\":%.4f,\"prompt_tokens\":%lld,\"cached_tokens\":%lld,"
                   "\"output_tokens\":%lld,\"tok_s\":%.3f",
                   (long long)l->requests, (long long)l->errors, l->seconds, (long long)l->prompt_tokens,
                   (long long)l->cached_tokens, (long long)l->tokens, srv_bench_level_tok_s(l));
    json_times(out, "ttft_ms", &l->ttft);
    json_times(out, "itl_ms", &l->itl);
    json_times(out, "e2e_ms", &l->e2e);
    srv_buf_printf(out, ",\"forward_passes\":%lld,\"tokens_per_forward\":", (long long)l->forward_passes);
    if (l->forward_passes)
        srv_buf_printf(out, "%.4f", tokens_per_forward(l));
    else
        srv_buf_puts(out, "null"); // a server that does not say
    srv_buf_puts(out, ",\"mode_share\":{");
    int64_t told = told_tokens(l);
    for (int m = 0, n = 0; m < ENG_N_MODES; m++)
        if (l->mode_tokens[m])
            srv_buf_printf(out, "%s\"%s\":%.4f", n++ ? "," : "", eng_mode_name((enum eng_mode)m),
                           (double)l->mode_tokens[m] / (double)told);
    srv_buf_puts(out, "},\"error_reasons\":{");
    for (int i = 0; i < l->n_reasons; i++) {
        srv_buf_puts(out, i ? "," : "");
        srv_buf_jsonz(out, l->reasons[i].text);
        srv_buf_printf(out, ":%lld", (long long)l->reasons[i].n);
    }
    srv_buf_puts(out, "}}\n");
}

void srv_bench_table_head(FILE *out)
{
    fprintf(out, "%8s %8s %6s %10s | %26s | %26s | %29s | %8s  %s\n", "", "", "", "", "first token, ms",
            "between tokens, ms", "end to end, ms", "tokens", "");
    fprintf(out, "%8s %8s %6s %10s | %8s %8s %8s | %8s %8s %8s | %9s %9s %9s | %8s  %s\n", "clients", "requests",
            "errors", "tok/s", "p50", "p90", "p99", "p50", "p90", "p99", "p50", "p90", "p99", "per pass", "modes");
}

void srv_bench_level_row(struct srv_bench_level *l, FILE *out)
{
    static const double ps[] = {0.5, 0.9, 0.99};
    char load[32];
    if (l->clients)
        snprintf(load, sizeof load, "%d", l->clients);
    else
        snprintf(load, sizeof load, "%.4g/s", l->rate);
    fprintf(out, "%8s %8lld %6lld %10.1f |", load, (long long)l->requests, (long long)l->errors,
            srv_bench_level_tok_s(l));
    for (int i = 0; i < 3; i++)
        fprintf(out, " %8.2f", srv_bench_percentile(&l->ttft, ps[i]));
    fprintf(out, " |");
    for (int i = 0; i < 3; i++)
        fprintf(out, " %8.3f", srv_bench_percentile(&l->itl, ps[i]));
    fprintf(out, " |");
    for (int i = 0; i < 3; i++)
        fprintf(out, " %9.2f", srv_bench_percentile(&l->e2e, ps[i]));
    fprintf(out, " | %8.2f ", tokens_per_forward(l));
    int64_t told = told_tokens(l);
    for (int m = 0; m < ENG_N_MODES; m++)
        if (l->mode_tokens[m])
            fprintf(out, " %s %.0f %%", eng_mode_name((enum eng_mode)m),
                    100 * (double)l->mode_tokens[m] / (double)told);
    fprintf(out, "\n");
    fflush(out);
}

void srv_bench_level_reasons(const struct srv_bench_level *l, FILE *out)
{
    for (int i = 0; i < l->n_reasons; i++)
        fprintf(out, "trimode: %lld x %s\n", (long long)l->reasons[i].n, l->reasons[i].text);
}
