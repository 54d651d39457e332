// config.json and generation_config.json -> struct eng_config.
//
// Owns what a checkpoint says about its shapes, ids and rotary embedding, and refuses what this engine would compute
// wrongly (another architecture, biases, a sliding window, quantised weights, another rope type) rather than ignoring
// it. Runs on the thread that opens the engine. Keys that do not change the forward pass (dropout, initialisers, dtype)
// are left unread.
#include "model/config.h"

#include <cjson/cJSON.h>
#include <math.h>
#include <string.h>

#include "base/err.h"
#include "model/json.h"

#define FAIL(at, code, ...) eng_json_fail((at)->err, (at)->err_size, code, __VA_ARGS__)

// Bounds that keep every size computed from these (bytes of one matrix, rows of a projection) far inside 64 bits, and
// every matrix dimension inside int32_t.
enum {
    MAX_HIDDEN = 1 << 17,
    MAX_LAYERS = 1024,
    MAX_FF = 1 << 20,
    MAX_HEADS = 1024,
    MAX_HEAD_DIM = 1024,
    MAX_VOCAB = 1 << 22,
    MAX_POSITIONS = 1 << 28,
};

static int refuse_key(const struct cJSON *json, const char *key, const struct eng_json_ctx *at)
{
    char shown[80];
    const cJSON *v = eng_json_get(json, key);
    if (!v)
        return 0;
    return FAIL(at, ENG_ENOTSUP, "%s: \"%s\" is %s, which is not supported", at->file, key,
                eng_json_show(v, shown, sizeof shown));
}

static int refuse_true(const struct cJSON *json, const char *key, const struct eng_json_ctx *at)
{
    bool on = false;
    int rc = eng_json_bool(json, key, at, &on);
    if (rc == 0 && on)
        rc = FAIL(at, ENG_ENOTSUP, "%s: \"%s\" is true, which is not supported", at->file, key);
    return rc;
}

static int check_architecture(const struct cJSON *json, const struct eng_json_ctx *at)
{
    const char *type = NULL, *act = "silu";
    double rotary = 1;
    int rc = eng_json_string(json, "model_type", true, at, &type);
    if (rc != 0)
        return rc;
    if (strcmp(type, "nemotron_labs_diffusion") != 0)
        return FAIL(at, ENG_ENOTSUP, "%s: \"model_type\" is \"%s\", only \"nemotron_labs_diffusion\" is supported",
                    at->file, type);
    if ((rc = eng_json_string(json, "hidden_act", false, at, &act)) != 0)
        return rc;
    if (strcmp(act, "silu") != 0)
        return FAIL(at, ENG_ENOTSUP, "%s: \"hidden_act\" is \"%s\", only \"silu\" is supported", at->file, act);
    if ((rc = refuse_true(json, "attention_bias", at)) != 0 || (rc = refuse_true(json, "mlp_bias", at)) != 0 ||
        (rc = refuse_key(json, "sliding_window", at)) != 0 || (rc = refuse_key(json, "quantization_config", at)) != 0 ||
        (rc = eng_json_double(json, "partial_rotary_factor", false, true, 0, 1, at, &rotary)) != 0)
        return rc;
    if (rotary != 1)
        return FAIL(at, ENG_ENOTSUP, "%s: \"partial_rotary_factor\" is %g, only 1 is supported", at->file, rotary);
    return 0;
}

static int read_sizes(const struct cJSON *json, const struct eng_json_ctx *at, struct eng_config *c)
{
    const struct {
        const char *key;
        int32_t *ret;
        int32_t max;
    } sizes[] = {
        {"hidden_size", &c->hidden, MAX_HIDDEN},
        {"num_hidden_layers", &c->n_layers, MAX_LAYERS},
        {"intermediate_size", &c->ff, MAX_FF},
        {"num_attention_heads", &c->n_heads, MAX_HEADS},
        {"num_key_value_heads", &c->n_kv_heads, MAX_HEADS},
        {"vocab_size", &c->n_vocab, MAX_VOCAB},
        {"max_position_embeddings", &c->max_positions, MAX_POSITIONS},
    };
    int rc;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if ((rc = eng_json_int(json, sizes[i].key, true, 1, sizes[i].max, at, sizes[i].ret)) != 0)
            return rc;
    if (c->n_heads % c->n_kv_heads != 0)
        return FAIL(at, ENG_EFORMAT,
                    "%s: \"num_attention_heads\" is %d, not a multiple of \"num_key_value_heads\" (%d)", at->file,
                    c->n_heads, c->n_kv_heads);
    if ((rc = eng_json_int(json, "head_dim", false, 1, MAX_HEAD_DIM, at, &c->head_dim)) != 0)
        return rc;
    if (c->head_dim == 0) { // Hugging Face's rule for an absent head_dim
        if (c->hidden % c->n_heads != 0 || c->hidden / c->n_heads > MAX_HEAD_DIM)
            return FAIL(at, ENG_EFORMAT,
                        "%s has no \"head_dim\" and \"hidden_size\" (%d) over \"num_attention_heads\" (%d) gives none",
                        at->file, c->hidden, c->n_heads);
        c->head_dim = c->hidden / c->n_heads;
    }
    if (c->head_dim % 2 != 0)
        return FAIL(at, ENG_EFORMAT, "%s: \"head_dim\" is %d, expected an even number", at->file, c->head_dim);
    double eps = 0;
    if ((rc = eng_json_double(json, "rms_norm_eps", true, true, 0, 1, at, &eps)) != 0)
        return rc;
    c->rms_eps = (float)eps;
    return eng_json_bool(json, "tie_word_embeddings", at, &c->tied_head);
}

static int add_eos(const struct cJSON *v, const struct eng_json_ctx *at, struct eng_config *c)
{
    char shown[80];
    double d = cJSON_IsNumber(v) ? v->valuedouble : NAN;
    if (!(d >= 0 && d < c->n_vocab) || d != floor(d))
        return FAIL(at, ENG_EFORMAT, "%s: \"eos_token_id\" holds %s, expected an id below %d", at->file,
                    eng_json_show(v, shown, sizeof shown), c->n_vocab);
    for (int32_t i = 0; i < c->n_eos; i++)
        if (c->eos_ids[i] == (int32_t)d)
            return 0;
    if (c->n_eos == ENG_MAX_EOS)
        return FAIL(at, ENG_EFORMAT, "%s: \"eos_token_id\" names more than %d ids", at->file, ENG_MAX_EOS);
    c->eos_ids[c->n_eos++] = (int32_t)d;
    return 0;
}

static int read_eos(const struct cJSON *json, const struct eng_json_ctx *at, struct eng_config *c)
{
    const cJSON *v = eng_json_get(json, "eos_token_id"), *item;
    if (!v)
        return 0;
    if (!cJSON_IsArray(v))
        return add_eos(v, at, c);
    cJSON_ArrayForEach(item, v)
    {
        int rc = add_eos(item, at, c);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int read_ids(const struct cJSON *json, const struct eng_json_ctx *at, struct eng_config *c)
{
    int rc;
    c->bos_id = c->mask_id = -1;
    c->block_size = 32;
    if ((rc = eng_json_int(json, "bos_token_id", false, 0, c->n_vocab - 1, at, &c->bos_id)) != 0 ||
        (rc = eng_json_int(json, "mask_token_id", false, 0, c->n_vocab - 1, at, &c->mask_id)) != 0 ||
        (rc = eng_json_int(json, "block_size", false, 4, 64, at, &c->block_size)) != 0)
        return rc;
    if ((c->block_size & (c->block_size - 1)) != 0)
        return FAIL(at, ENG_EFORMAT, "%s: \"block_size\" is %d, expected 4, 8, 16, 32 or 64", at->file, c->block_size);
    return read_eos(json, at, c);
}

// rope_parameters is the current form; rope_scaling beside a top-level rope_theta the older one.
static int read_rope(const struct cJSON *json, const struct eng_json_ctx *at, struct eng_config *c)
{
    char shown[80];
    int rc;
    const char *type = "default", *key = "rope_parameters";
    double rotary = 1;
    const cJSON *rope = eng_json_get(json, key);
    if (!rope)
        rope = eng_json_get(json, key = "rope_scaling");
    if (rope && !cJSON_IsObject(rope))
        return FAIL(at, ENG_EFORMAT, "%s: \"%s\" is %s, expected an object", at->file, key,
                    eng_json_show(rope, shown, sizeof shown));
    const cJSON *with_theta = rope && eng_json_get(rope, "rope_theta") ? rope : json;
    if ((rc = eng_json_double(with_theta, "rope_theta", true, true, 1, 1e15, at, &c->rope_theta)) != 0 ||
        (rc = eng_json_string(rope, "type", false, at, &type)) != 0 ||
        (rc = eng_json_string(rope, "rope_type", false, at, &type)) != 0)
        return rc;
    c->yarn = strcmp(type, "yarn") == 0;
    if (!c->yarn && strcmp(type, "default") != 0)
        return FAIL(at, ENG_ENOTSUP, "%s: \"rope_type\" is \"%s\", only \"default\" and \"yarn\" are supported",
                    at->file, type);

    c->original_max_positions = c->max_positions;
    const char *original = "original_max_position_embeddings";
    const cJSON *with_original = eng_json_get(rope, original) ? rope : json;
    if ((rc = eng_json_int(with_original, original, false, 1, MAX_POSITIONS, at, &c->original_max_positions)) != 0 ||
        (rc = eng_json_double(rope, "partial_rotary_factor", false, true, 0, 1, at, &rotary)) != 0)
        return rc;
    if (rotary != 1)
        return FAIL(at, ENG_ENOTSUP, "%s: \"partial_rotary_factor\" is %g, only 1 is supported", at->file, rotary);
    const char *beta = "llama_4_scaling_beta";
    const cJSON *with_beta = eng_json_get(rope, beta) ? rope : json;
    if ((rc = eng_json_double(with_beta, beta, false, false, 0, 100, at, &c->query_beta)) != 0)
        return rc;
    if (c->query_beta > 0 && !eng_json_get(with_original, original))
        return FAIL(at, ENG_EFORMAT, "%s has \"%s\" but no \"%s\"", at->file, beta, original);
    if (!c->yarn)
        return 0;

    c->yarn_beta_fast = 32;
    c->yarn_beta_slow = 1;
    c->yarn_truncate = true;
    if ((rc = eng_json_double(rope, "factor", true, true, 0, 1e6, at, &c->yarn_factor)) != 0 ||
        (rc = eng_json_double(rope, "beta_fast", false, true, 0, 1e6, at, &c->yarn_beta_fast)) != 0 ||
        (rc = eng_json_double(rope, "beta_slow", false, true, 0, 1e6, at, &c->yarn_beta_slow)) != 0 ||
        (rc = eng_json_double(rope, "mscale", false, false, 0, 1e3, at, &c->yarn_mscale)) != 0 ||
        (rc = eng_json_double(rope, "mscale_all_dim", false, false, 0, 1e3, at, &c->yarn_mscale_all_dim)) != 0 ||
        (rc = eng_json_double(rope, "attention_factor", false, true, 0, 1e3, at, &c->yarn_attention_factor)) != 0 ||
        (rc = eng_json_bool(rope, "truncate", at, &c->yarn_truncate)) != 0)
        return rc;
    if (c->yarn_beta_fast < c->yarn_beta_slow)
        return FAIL(at, ENG_EFORMAT, "%s: \"beta_fast\" (%g) is below \"beta_slow\" (%g)", at->file, c->yarn_beta_fast,
                    c->yarn_beta_slow);
    return 0;
}

int eng_config_load(const char *dir, struct eng_config *ret, char *err, size_t err_size)
{
    struct eng_config c = {0};
    struct eng_json_ctx at = {"config.json", err, err_size};
    cJSON *json = NULL, *generation = NULL;
    int rc = eng_json_load(dir, false, &at, &json);
    if (rc != 0 || (rc = check_architecture(json, &at)) != 0 || (rc = read_sizes(json, &at, &c)) != 0 ||
        (rc = read_ids(json, &at, &c)) != 0 || (rc = read_rope(json, &at, &c)) != 0)
        goto done;
    at.file = "generation_config.json";
    if ((rc = eng_json_load(dir, true, &at, &generation)) != 0 || (rc = read_eos(generation, &at, &c)) != 0)
        goto done;
    *ret = c;
done:
    cJSON_Delete(json);
    cJSON_Delete(generation);
    return rc;
}

// ---- rotary embedding (Hugging Face's "yarn": arXiv 2309.00071) -----------------------------------------------------

// 0.1 m ln(s) + 1 for a scale above 1
static double yarn_mscale(double scale, double mscale)
{
    return scale <= 1 ? 1 : 0.1 * mscale * log(scale) + 1;
}

// The dimension whose wave turns `rotations` times over the original context.
static double correction_dim(const struct eng_config *c, double rotations)
{
    const double two_pi = 6.283185307179586;
    return c->head_dim * log(c->original_max_positions / (rotations * two_pi)) / (2 * log(c->rope_theta));
}

void eng_config_rope(const struct eng_config *c, float *inv_freq, float *ret_attention_factor)
{
    // f32 at the same steps as the published code, so that the phases agree at long positions too
    int32_t half = c->head_dim / 2;
    double low = 0, high = 0;
    *ret_attention_factor = 1;
    if (c->yarn) {
        low = correction_dim(c, c->yarn_beta_fast);
        high = correction_dim(c, c->yarn_beta_slow);
        if (c->yarn_truncate) {
            low = floor(low);
            high = ceil(high);
        }
        low = fmax(low, 0);
        high = fmin(high, c->head_dim - 1);
        if (low == high)
            high += 0.001;
        double attention = c->yarn_attention_factor;
        if (attention == 0 && c->yarn_mscale > 0 && c->yarn_mscale_all_dim > 0)
            attention =
                yarn_mscale(c->yarn_factor, c->yarn_mscale) / yarn_mscale(c->yarn_factor, c->yarn_mscale_all_dim);
        else if (attention == 0)
            attention = yarn_mscale(c->yarn_factor, 1);
        *ret_attention_factor = (float)attention;
    }
    for (int32_t i = 0; i < half; i++) {
        float freq = (float)pow(c->rope_theta, (double)((float)(2 * i) / (float)c->head_dim));
        inv_freq[i] = 1.0f / freq;
        if (c->yarn) {
            float ramp = ((float)i - (float)low) / (float)(high - low);
            float keep = 1.0f - fminf(fmaxf(ramp, 0.0f), 1.0f);
            inv_freq[i] = 1.0f / ((float)c->yarn_factor * freq) * (1.0f - keep) + inv_freq[i] * keep;
        }
    }
}
