// calibrate: measures how long passes take on this machine with this model, shows what was measured, the model fitted
// to it and where autoregressive decoding overtakes self-speculation, and writes the file that `serve --cost-model`
// loads. Runs in this process on the main thread; the table goes to stdout, the progress bar and errors to stderr.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "engine.h"

enum { BAR = 30, MOST_REQUESTS = 128 };

// One line that is drawn over; only on a terminal.
static void on_progress(void *user, const char *what, double fraction)
{
    int *drawn = user, percent = (int)(fraction * 100);
    int now = percent + (strcmp(what, "calibrate") ? 0 : 1000);
    if (now == *drawn)
        return;
    *drawn = now;
    int full = (int)(fraction * BAR);
    fprintf(stderr, "\r%-10s [%.*s%*s] %3d %%", what, full, "##############################", BAR - full, "", percent);
    if (percent == 100)
        fprintf(stderr, "\r%60s\r", "");
    fflush(stderr);
}

// ---- what is printed ------------------------------------------------------------------------------------------------

static void print_pass(const struct eng_cost *cost, const struct eng_calibrated *p)
{
    const struct eng_cost_pass *pass = &p->sample.pass;
    double predicted = eng_cost_predict(cost, pass);
    printf("%-8s %6d %6d %8d %8s %10.3f %10.3f %+8.1f %%\n", eng_pass_kind_name(p->shape.kind), pass->rows,
           pass->segments, p->shape.context, p->adapter ? "on" : "", p->sample.seconds * 1e3, predicted * 1e3,
           100 * (predicted / p->sample.seconds - 1));
}

static void print_table(const char *title, const struct eng_cost *cost, const struct eng_calibrated *passes, int32_t n)
{
    printf("%s\n%-8s %6s %6s %8s %8s %10s %10s %10s\n", title, "kind", "rows", "seqs", "context", "adapter", "ms",
           "predicted", "error");
    for (int32_t i = 0; i < n; i++)
        print_pass(cost, &passes[i]);
}

static void print_model(const struct eng_calibration *c)
{
    const struct eng_cost *cost = &c->cost;
    printf("\nA pass takes %.4f ms\n", cost->base * 1e3);
    for (int32_t k = 0; k < cost->n_knots; k++)
        printf("  + %9.3f us a row beyond %d\n", cost->slopes[k] * 1e6, cost->knots[k]);
    printf("  + %9.3f us a sequence\n  + %9.3f us a choice\n  + %9.3f us for 1000 positions read\n"
           "  + %9.3f us for 1000 pairs of a row and a position\n  + %9.3f us a row with the adapter\n",
           cost->segment * 1e6, cost->choice * 1e6, cost->context * 1e9, cost->pair * 1e9, cost->adapter_row * 1e6);
    for (int i = 0; i < ENG_COST_BENDS; i++)
        printf("  + %9.3f us for 1000 positions read beyond %d\n", cost->far[i] * 1e9, eng_cost_bend(i));
    printf("Error of the fit: median %.1f %%, worst %.1f %%, over %d passes.\n", 100 * cost->median_error,
           100 * cost->worst_error, (int)cost->n_samples);
    printf("Error on %d fresh passes: median %.1f %%.\n", (int)c->n_checks, 100 * c->check_error);
}

static void print_crossovers(const struct eng_cost *cost, int32_t context)
{
    static const double acceptances[] = {0.5, 0.7, 0.8, 0.9, 0.95};
    enum { N = sizeof acceptances / sizeof *acceptances };
    printf("\nActive requests from which AR is at least as fast as self-speculation, context %d, by block length and\n"
           "acceptance of a drafted token (1: always)\n%-8s",
           (int)context, "block");
    for (int a = 0; a < N; a++)
        printf(" %7.2f", acceptances[a]);
    printf("\n");
    for (int32_t block = 4; block <= 64; block *= 2) {
        printf("%-8d", (int)block);
        for (int a = 0; a < N; a++) {
            int32_t n = eng_cost_crossover(cost, context, block, acceptances[a], MOST_REQUESTS);
            char text[16];
            snprintf(text, sizeof text, n > MOST_REQUESTS ? "> %d" : "%d", n > MOST_REQUESTS ? MOST_REQUESTS : (int)n);
            printf(" %7s", text);
        }
        printf("\n");
    }
}

static void print_all(const struct eng_calibration *c)
{
    printf("%s\n%s\n\n", c->cost.id.machine, c->cost.id.model);
    print_table("Measured", &c->cost, c->passes, c->n_passes);
    print_table("\nFresh passes, of sizes that were not fitted", &c->cost, c->checks, c->n_checks);
    print_model(c);
    bool drafts = false;
    for (int32_t i = 0; i < c->n_passes; i++)
        drafts = drafts || c->passes[i].shape.kind == ENG_PASS_DRAFT;
    if (drafts)
        print_crossovers(&c->cost, 256);
    else
        printf("\nThis model cannot speculate: there is nothing to choose.\n");
    printf("\nMeasured for %.1f s.\n", c->seconds);
}

// ---- the run --------------------------------------------------------------------------------------------------------

int srv_cli_calibrate(const struct srv_config *c)
{
    if (c->n_arguments) {
        fprintf(stderr, "trimode calibrate: '%s' is not a flag; --help lists what is allowed\n", c->arguments[0]);
        return 2;
    }
    char *dir = NULL, *name = NULL, err[640] = "";
    if (srv_config_model_dir(c->model, &dir, &name, err, sizeof err)) {
        fprintf(stderr, "trimode: %s\n", err);
        return 2;
    }
    int drawn = -1, status = 1;
    struct eng_options o = srv_config_engine(c, dir);
    o.progress = isatty(2) ? on_progress : NULL;
    o.user = &drawn;
    struct eng_calibration *result = calloc(1, sizeof *result);
    if (!result)
        fprintf(stderr, "trimode: out of memory\n");
    else if (eng_calibrate(&o, c->seconds, result, err, sizeof err))
        fprintf(stderr, "trimode: cannot calibrate '%s': %s\n", c->model, err);
    else if (eng_cost_save(c->output, &result->cost, err, sizeof err))
        fprintf(stderr, "trimode: %s\n", err);
    else
        status = 0;
    if (!status) {
        print_all(result);
        printf("Written to %s; use it with `trimode serve --cost-model %s`.\n", c->output, c->output);
    }
    free(result);
    free(dir);
    free(name);
    return status;
}
