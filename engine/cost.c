// 4 ROUTE  The cost model (cost.h): prediction, the fit and the correction while running. Pure functions of any thread;
// measuring is calibrate.c, the file model/cost_file.c.
//
// The fit is coordinate descent on the normal equations: each coefficient in turn gets the value that is best while the
// others stand, but not below 0. It needs no matrix factorisation, cannot fail for samples that say too little (what
// they do not tell apart goes to the coefficient that comes first) and takes under a millisecond for 20 coefficients.
#include "cost.h"

#include <math.h>
#include <stdlib.h>

#include "base/err.h"

enum {
    N_LINEAR = 6 + ENG_COST_BENDS,
    MAX_COEFS = N_LINEAR + ENG_COST_KNOTS,
    SWEEPS = 5000,
    ROUNDS = 4,
    CLASS_PRIOR = 8
};
static const double trusted_error = 0.05; // a sample that fits this well has full weight
static const double clip = 0.5;           // of one observation's logarithm
static const double least_rate = 1.0 / 32;
// Of what is known of passes of one size, after which it counts for 1 / e of what it did.
static const double memory_s = 15;
static const float most_trust = 64;

// ---- prediction -----------------------------------------------------------------------------------------------------

void eng_cost_pass_add(struct eng_cost_pass *pass, int32_t rows, int32_t first_pos, int32_t choices, bool adapter)
{
    int64_t context = (int64_t)first_pos + rows;
    pass->rows += rows;
    pass->segments++;
    pass->choices += choices;
    pass->adapter_rows += adapter ? rows : 0;
    pass->context += context;
    pass->pairs += rows * context;
}

// Rows of the pass between knot k and the next.
static double rows_of_knot(const struct eng_cost *c, int32_t k, int32_t rows)
{
    int32_t end = k + 1 < c->n_knots && rows > c->knots[k + 1] ? c->knots[k + 1] : rows;
    return end > c->knots[k] ? end - c->knots[k] : 0;
}

static double beyond_bend(int i, const struct eng_cost_pass *pass)
{
    return pass->context > eng_cost_bend(i) ? (double)(pass->context - eng_cost_bend(i)) : 0;
}

double eng_cost_predict(const struct eng_cost *cost, const struct eng_cost_pass *pass)
{
    double t = cost->base + cost->segment * pass->segments + cost->choice * pass->choices +
               cost->context * (double)pass->context + cost->pair * (double)pass->pairs +
               cost->adapter_row * pass->adapter_rows;
    for (int32_t k = 0; k < cost->n_knots; k++)
        t += cost->slopes[k] * rows_of_knot(cost, k, pass->rows);
    for (int i = 0; i < ENG_COST_BENDS; i++)
        t += cost->far[i] * beyond_bend(i, pass);
    return t;
}

// ---- the fit --------------------------------------------------------------------------------------------------------

static int by_rows(const void *a, const void *b)
{
    const struct eng_cost_sample *x = *(const struct eng_cost_sample *const *)a,
                                 *y = *(const struct eng_cost_sample *const *)b;
    return (x->pass.rows > y->pass.rows) - (x->pass.rows < y->pass.rows);
}

// Numbers of rows that were measured, each at least 1.5 times the one before: no slope stands on no sample. The largest
// of all is no knot: nothing lies beyond it.
static int choose_knots(const struct eng_cost_sample *samples, int32_t n, struct eng_cost *c)
{
    const struct eng_cost_sample **sorted = malloc((size_t)n * sizeof(*sorted));
    if (!sorted)
        return ENG_ENOMEM;
    for (int32_t i = 0; i < n; i++)
        sorted[i] = &samples[i];
    qsort(sorted, (size_t)n, sizeof(*sorted), by_rows);
    int32_t most = sorted[n - 1]->pass.rows;
    c->knots[c->n_knots++] = sorted[0]->pass.rows;
    for (int32_t i = 1; i < n && c->n_knots < ENG_COST_KNOTS; i++) {
        int32_t rows = sorted[i]->pass.rows;
        if (2 * rows >= 3 * c->knots[c->n_knots - 1] && 2 * most >= 3 * rows)
            c->knots[c->n_knots++] = rows;
    }
    free(sorted);
    return 0;
}

static void features_of(const struct eng_cost *c, const struct eng_cost_pass *p, double *x)
{
    x[0] = 1;
    x[1] = p->segments;
    x[2] = p->choices;
    x[3] = (double)p->context;
    x[4] = (double)p->pairs;
    x[5] = p->adapter_rows;
    for (int i = 0; i < ENG_COST_BENDS; i++)
        x[6 + i] = beyond_bend(i, p);
    for (int32_t k = 0; k < c->n_knots; k++)
        x[N_LINEAR + k] = rows_of_knot(c, k, p->rows);
}

static void set_coefs(struct eng_cost *c, const double *w)
{
    c->base = w[0];
    c->segment = w[1];
    c->choice = w[2];
    c->context = w[3];
    c->pair = w[4];
    c->adapter_row = w[5];
    for (int i = 0; i < ENG_COST_BENDS; i++)
        c->far[i] = w[6 + i];
    for (int32_t k = 0; k < c->n_knots; k++)
        c->slopes[k] = w[N_LINEAR + k];
}

static double relative_error(const struct eng_cost *c, const struct eng_cost_sample *s)
{
    return fabs(eng_cost_predict(c, &s->pass) / s->seconds - 1);
}

// Minimises w' a w - 2 b' w over w >= 0.
static void descend(double a[MAX_COEFS][MAX_COEFS], const double *b, int32_t n, double *w)
{
    for (int sweep = 0; sweep < SWEEPS; sweep++) {
        double moved = 0;
        for (int32_t j = 0; j < n; j++) {
            if (a[j][j] <= 0)
                continue; // no sample has any of it
            double gradient = b[j];
            for (int32_t k = 0; k < n; k++)
                gradient -= a[j][k] * w[k];
            double next = fmax(0, w[j] + gradient / a[j][j]);
            moved = fmax(moved, fabs(next - w[j]) * sqrt(a[j][j]));
            w[j] = next;
        }
        if (moved < 1e-9)
            return;
    }
}

// One weighted fit; the weights come from the errors of the fit before.
static void fit_once(const struct eng_cost_sample *samples, int32_t n, bool first, struct eng_cost *c, double *w)
{
    double a[MAX_COEFS][MAX_COEFS] = {{0}}, b[MAX_COEFS] = {0}, x[MAX_COEFS];
    int32_t n_coefs = N_LINEAR + c->n_knots;
    for (int32_t i = 0; i < n; i++) {
        double weight = first ? 1 : trusted_error / fmax(trusted_error, relative_error(c, &samples[i]));
        features_of(c, &samples[i].pass, x);
        for (int32_t j = 0; j < n_coefs; j++)
            x[j] /= samples[i].seconds; // relative: the target is 1
        for (int32_t j = 0; j < n_coefs; j++) {
            b[j] += weight * x[j];
            for (int32_t k = 0; k < n_coefs; k++)
                a[j][k] += weight * x[j] * x[k];
        }
    }
    descend(a, b, n_coefs, w);
    set_coefs(c, w);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int eng_cost_fit(const struct eng_cost_sample *samples, int32_t n, struct eng_cost *ret)
{
    if (n < 3)
        return ENG_EINVAL;
    for (int32_t i = 0; i < n; i++)
        if (!(samples[i].seconds > 0) || samples[i].pass.rows < 1)
            return ENG_EINVAL;
    struct eng_cost c = {.n_samples = n, .id = ret->id};
    double *errors = malloc((size_t)n * sizeof *errors);
    if (!errors || choose_knots(samples, n, &c)) {
        free(errors);
        return ENG_ENOMEM;
    }
    double w[MAX_COEFS] = {0};
    for (int round = 0; round < ROUNDS; round++)
        fit_once(samples, n, round == 0, &c, w);
    for (int32_t i = 0; i < n; i++)
        errors[i] = relative_error(&c, &samples[i]);
    qsort(errors, (size_t)n, sizeof *errors, by_value);
    c.median_error = errors[n / 2];
    c.worst_error = errors[n - 1];
    free(errors);
    *ret = c;
    return 0;
}

// ---- modes compared -------------------------------------------------------------------------------------------------

double eng_cost_ar_rate(const struct eng_cost *cost, int32_t requests, int32_t context)
{
    struct eng_cost_pass pass = {0};
    for (int32_t i = 0; i < requests; i++)
        eng_cost_pass_add(&pass, 1, context, 1, false);
    return requests / eng_cost_predict(cost, &pass);
}

double eng_cost_block_rate(const struct eng_cost *cost, int32_t requests, int32_t context, int32_t block,
                           double acceptance)
{
    struct eng_cost_pass draft = {0}, verify = {0};
    for (int32_t i = 0; i < requests; i++) {
        eng_cost_pass_add(&draft, block, context, block - 1, true);
        eng_cost_pass_add(&verify, block, context, block, false);
    }
    // The row after the last accepted one gives a token too.
    double tokens = 1, reached = 1;
    for (int32_t i = 1; i < block; i++)
        tokens += reached *= acceptance;
    return requests * tokens / (eng_cost_predict(cost, &draft) + eng_cost_predict(cost, &verify));
}

int32_t eng_cost_crossover(const struct eng_cost *cost, int32_t context, int32_t block, double acceptance, int32_t most)
{
    for (int32_t n = 1; n <= most; n++)
        if (eng_cost_block_rate(cost, n, context, block, acceptance) <= eng_cost_ar_rate(cost, n, context))
            return n;
    return most + 1;
}

// ---- the correction while running -----------------------------------------------------------------------------------

static int32_t class_of(int32_t rows)
{
    int32_t k = 0;
    while (rows > 1 && k < ENG_COST_ROW_CLASSES - 1) {
        rows >>= 1;
        k++;
    }
    return k;
}

// The first observations are averaged, later ones have a fixed weight.
static void follow(double *mean, uint32_t *n, double x)
{
    double rate = fmax(1.0 / (*n + 1), least_rate), step = fmin(clip, fmax(-clip, x - *mean));
    *mean += rate * step;
    *n += *n < UINT32_MAX;
}

void eng_cost_observe(struct eng_cost_live *live, const struct eng_cost *cost, const struct eng_cost_pass *pass,
                      double seconds)
{
    double predicted = eng_cost_predict(cost, pass);
    if (!(seconds > 0) || !(predicted > 0))
        return;
    int32_t k = class_of(pass->rows);
    double x = log(predicted / seconds);
    follow(&live->all, &live->n, x);
    follow(&live->of_rows[k], &live->n_of_rows[k], x);
    float left = (float)exp(-seconds / memory_s);
    for (int i = 0; i < ENG_COST_ROW_CLASSES; i++)
        live->trust[i] *= left;
    live->trust[k] = fminf(live->trust[k] + 1, most_trust);
}

double eng_cost_expect(const struct eng_cost *cost, const struct eng_cost_live *live, const struct eng_cost_pass *pass)
{
    int32_t k = class_of(pass->rows);
    double trust = live->trust[k];
    double correction = (trust * live->of_rows[k] + CLASS_PRIOR * live->all) / (trust + CLASS_PRIOR);
    return eng_cost_predict(cost, pass) / exp(correction);
}

double eng_cost_error_ratio(const struct eng_cost_live *live)
{
    return exp(live->all);
}
