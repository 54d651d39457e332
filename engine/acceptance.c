// 4 ROUTE  Learning from verified drafts and filled blocks (acceptance.h). A few float operations a row; no memory.
#include "acceptance.h"

// Chances that are believed before anything was tried, and the trials that it takes to think otherwise.
static const float untried_chance = 0.97f, untried_weight = 3, prior_weight = 4, confidence_weight = 8;
static const float untried_tokens = 3;                       // of diffusion, a pass
static const float pooled_weight = 8, clearly_worse = 1.15f; // of a request against all
// What a draft leaves of the counts before it: of about twenty drafts of a request, of sixty of all.
static const float own_decay = 0.95f, all_decay = 0.983f;
// A request's first draft tells of all requests as much as it can; of many drafts of one request, each tells less.
static const float repeated = 0.25f;

static const int64_t fade_ns = INT64_C(10000000000);

int eng_block_index(int32_t n)
{
    int i = 0;
    while (i < ENG_BLOCK_LENGTHS - 1 && eng_block_length(i) < n)
        i++;
    return i;
}

// Of draft position 1 .. 63.
static int position_class(int32_t position)
{
    static const uint8_t of_quarter[16] = {0, 0, 7, 8, 9, 9, 10, 10, 11, 11, 11, 11, 12, 12, 12, 12};
    return position <= 7 ? position - 1 : of_quarter[position / 4];
}

// Finer near 1, where most drafts stand and where small differences compound.
static int confidence_class(float confidence)
{
    static const float bounds[ENG_CONFIDENCE_CLASSES - 1] = {0.05f, 0.1f, 0.2f,  0.3f,  0.4f,  0.5f,   0.6f,  0.7f,
                                                             0.8f,  0.9f, 0.95f, 0.98f, 0.99f, 0.995f, 0.999f};
    int i = 0;
    while (i < ENG_CONFIDENCE_CLASSES - 1 && confidence >= bounds[i])
        i++;
    return i;
}

// ---- learning -------------------------------------------------------------------------------------------------------

static void scale(float *x, int n, float factor)
{
    for (int i = 0; i < n; i++)
        x[i] *= factor;
}

static void add(struct eng_acceptance *a, int32_t position, float weight, float chance)
{
    int c = position_class(position);
    a->tried[c] += weight;
    a->kept[c] += weight * chance;
}

// decay: what is left of the counts after a draft that counts in full.
static void learn_positions(struct eng_acceptance *a, const struct eng_experience *all, const struct eng_verified *v,
                            float decay, float weight)
{
    float left = 1 - (1 - decay) * weight;
    scale(a->tried, ENG_POSITION_CLASSES, left);
    scale(a->kept, ENG_POSITION_CLASSES, left);
    for (int32_t i = 0; i < v->kept; i++)
        add(a, i + 1, weight, 1);
    if (v->kept < v->judged || (v->ended && v->kept < v->n))
        add(a, v->kept + 1, weight, 0);
    else if (v->kept < v->n)
        add(a, v->kept + 1, weight, eng_confidence_chance(all, v->confidence[v->kept]));
}

static void learn_confidences(struct eng_experience *all, const struct eng_verified *v)
{
    scale(all->sure_tried, ENG_CONFIDENCE_CLASSES, all_decay);
    scale(all->sure_kept, ENG_CONFIDENCE_CLASSES, all_decay);
    int32_t judged = v->ended || v->judged == v->kept ? v->kept : v->kept + 1;
    for (int32_t i = 0; i < judged; i++) {
        int c = confidence_class(v->confidence[i]);
        all->sure_tried[c] += 1;
        all->sure_kept[c] += i < v->kept;
    }
}

void eng_acceptance_learn(struct eng_acceptance *own, struct eng_experience *all, const struct eng_verified *v)
{
    learn_positions(&all->prior, all, v, all_decay, 1 / (1 + repeated * own->drafts));
    learn_positions(own, all, v, own_decay, 1);
    own->drafts++;
    learn_confidences(all, v);
    int k = eng_block_index(v->n + 1);
    all->drafts[k] = all->drafts[k] * all_decay + (float)(v->n + 1);
    all->verified[k] = all->verified[k] * all_decay + (float)(v->judged + 1);
    all->share[k] = all->verified[k] / all->drafts[k];
}

void eng_acceptance_forget(struct eng_acceptance *own)
{
    scale(own->tried, ENG_POSITION_CLASSES, 0.5f);
    scale(own->kept, ENG_POSITION_CLASSES, 0.5f);
}

void eng_denoising_learn(struct eng_experience *all, int32_t rows, int32_t passes)
{
    int k = eng_block_index(rows);
    all->blocks[k] = all->blocks[k] * all_decay + 1;
    all->passes[k] = all->passes[k] * all_decay + (float)passes;
}

void eng_experience_fade(struct eng_experience *all, int64_t now_ns)
{
    int64_t since = all->learned_ns > all->faded_ns ? all->learned_ns : all->faded_ns;
    if (now_ns - since < fade_ns)
        return;
    all->faded_ns = now_ns;
    scale(all->prior.tried, ENG_POSITION_CLASSES, 0.5f);
    scale(all->prior.kept, ENG_POSITION_CLASSES, 0.5f);
    scale(all->blocks, ENG_BLOCK_LENGTHS, 0.5f);
    scale(all->passes, ENG_BLOCK_LENGTHS, 0.5f);
}

// ---- expecting ------------------------------------------------------------------------------------------------------

void eng_acceptance_expect(const struct eng_acceptance *own, const struct eng_experience *all,
                           float ret[ENG_BLOCK_LENGTHS])
{
    static const int8_t positions_log2[ENG_POSITION_CLASSES] = {[7] = 2, 2, 3, 3, 4, 4},
                        last_of_block[ENG_POSITION_CLASSES] = {-1, -1, 0, -1, -1, -1, 1, -1, 2, -1, 3, -1, 4};
    float chances[ENG_POSITION_CLASSES], tokens = 1, reached = 1;
    float kept = pooled_weight, believed = pooled_weight;
    for (int c = 0; c < ENG_POSITION_CLASSES; c++) {
        chances[c] = (all->prior.kept[c] + untried_weight * untried_chance) / (all->prior.tried[c] + untried_weight);
        kept += own->kept[c];
        believed += own->tried[c] * chances[c];
    }
    // A request whose first drafts fail much more often than others' is not believed to do better at later ones, where
    // it has hardly been seen.
    float worse = clearly_worse * kept / believed;
    for (int c = 0; c < ENG_POSITION_CLASSES; c++) {
        float chance = worse < 1 ? chances[c] * worse : chances[c];
        chances[c] = (own->kept[c] + prior_weight * chance) / (own->tried[c] + prior_weight);
    }
    for (int c = 0; c < ENG_POSITION_CLASSES; c++) {
        // Over 2^n positions of one chance p the sum of p, p^2, ... is p (1 + p) (1 + p^2) (1 + p^4) ...
        float p = chances[c], sum = p;
        for (int doubled = positions_log2[c]; doubled > 0; doubled--) {
            sum *= 1 + p;
            p *= p;
        }
        tokens += reached * sum;
        reached *= p;
        if (last_of_block[c] >= 0)
            ret[last_of_block[c]] = tokens;
    }
}

void eng_acceptance_hope(float ret[ENG_BLOCK_LENGTHS])
{
    struct eng_acceptance own = {0};
    struct eng_experience all = {0};
    eng_acceptance_expect(&own, &all, ret);
}

float eng_confidence_chance(const struct eng_experience *all, float confidence)
{
    int c = confidence_class(confidence);
    return (all->sure_kept[c] + confidence_weight * confidence) / (all->sure_tried[c] + confidence_weight);
}

int32_t eng_rows_worth_verifying(const struct eng_experience *all, const float *confidence, int32_t rows, float price)
{
    float reached = 1;
    int32_t worth = 1;
    while (worth < rows) {
        reached *= eng_confidence_chance(all, confidence[worth - 1]);
        if (reached < price)
            break;
        worth++;
    }
    return worth;
}

float eng_verified_share(const struct eng_experience *all, int32_t rows)
{
    float share = all->share[eng_block_index(rows)];
    return share > 0 ? share : 1;
}

float eng_denoising_tokens(const struct eng_experience *all, int32_t rows)
{
    int k = eng_block_index(rows);
    float untried_passes = (float)rows / untried_tokens;
    float passes = (all->passes[k] + untried_weight * untried_passes) / (all->blocks[k] + untried_weight);
    return (float)rows / (passes + 1);
}
