// The whole public interface of the engine. HTTP, JSON and flags are not known here; tensors are not known above.
//
// Threads. The engine runs one thread of its own. Three hand-overs connect it to its caller and there are no others:
//   submit   eng_submit() gives a request away; the engine thread takes the whole list between two passes.
//   cancel   eng_cancel() sets one atomic flag.
//   events   eng_take_events() takes the whole list; `notify` tells the caller that the list is no longer empty.
//   Notifications
//            coalesce, so a drain takes everything.
// Text functions (encode, decode, chat) are const and may be called from any thread.
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "cost.h"

struct cJSON;
struct eng_engine;
struct eng_request;

enum eng_mode { ENG_MODE_AUTO, ENG_MODE_AR, ENG_MODE_DIFFUSION, ENG_MODE_SELF_SPECULATION, ENG_N_MODES };

// "auto", "ar", "diffusion", "self_speculation".
const char *eng_mode_name(enum eng_mode mode);
// -1 for an unknown name.
int eng_mode_parse(const char *name);

// ---- opening --------------------------------------------------------------------------------------------------------

struct eng_options {
    const char *model_dir;   // a Hugging Face folder (MODEL.md 1)
    const char *backend;     // "auto" (cuda where it opens, else cpu), "cpu", "cuda"
    const char *cuda_module; // path of trimode-cuda.so; "" or NULL: looked for beside the executable
    int threads;             // of the CPU backend; 0: physical cores
    uint32_t cpu_mask;       // ANDed with the CPU's features; ~0u: all
    int32_t device;          // CUDA: the (first) GPU's number
    int32_t tensor_parallel; // CUDA: GPUs that share the model: 1, 2, 4, 8
    bool deterministic;      // CUDA: no library products whose bits depend on the number of rows
    const char *weights; // "auto" (the backend's choice; the CPU: as in the file, mapped), "f32", "bf16", "fp8", "q4"
    const char *adapter; // "auto" (linear_spec_lora/ if there), "none", or a folder
    int32_t max_context; // 0: the model's max_position_embeddings, bounded by the KV memory
    const char *kv_type; // of keys and values: "auto" (the backend's choice), "f32", "bf16", "fp8", "q8"
    int64_t kv_memory;   // bytes; 0: what max_sequences x max_context needs, at most a quarter of the machine's memory
                         // (CPU) or what the device has left
    int32_t page_size;   // tokens, 1 .. 256
    int32_t max_sequences;  // decoding at once, 1 .. 1024
    int32_t max_step_rows;  // rows of one forward pass, >= 64
    int32_t max_queue;      // waiting requests beyond max_sequences
    double prompt_budget;   // times that prompts may stretch a pass in which others decode, 1 .. 100; 0: no such bound
    const char *cost_model; // a file of eng_cost_save; "" or NULL: none
    bool calibrate;         // without such a file: measures one while opening, for about a second
    bool cold;              // no warm-up while opening: the first pass of each size may take longer
    bool prefix_cache;      // finished KV pages are kept and shared by requests that begin alike
    int32_t auto_rows;      // `auto` without a cost model: it uses blocks while all active ones fit this many rows
    enum eng_mode mode;     // for requests that say ENG_MODE_AUTO by default (never overrides a request's own mode)
    unsigned auto_modes;    // bit set by (1u << mode): what auto may choose
    int32_t block_length;   // 4, 8, 16, 32, 64: of diffusion by default; the longest that the router chooses itself
    float threshold;        // default of diffusion, (0, 1]
    void (*progress)(void *user, const char *what, double fraction); // while opening; may be NULL
    void (*notify)(void *user);                                      // engine thread: events are ready; may be NULL
    void *user;
};

// The defaults of API.md 1, with model_dir NULL.
struct eng_options eng_options_default(void);

// Loads the model and starts the engine thread. On failure *ret_engine is untouched and err holds one sentence.
int eng_open(const struct eng_options *options, struct eng_engine **ret_engine, char *err, size_t err_size);

// Cancels what still runs, joins the thread, frees everything. Takes NULL. Requests whose finish event was not yet
// taken are finished with ENG_FINISH_CANCELLED and freed by this call together with their events.
void eng_close(struct eng_engine *e);

// ---- the model, for people and for /v1/models -----------------------------------------------------------------------

enum { ENG_MEMORY_CATEGORIES = 12 };
struct eng_memory {
    int64_t total, free; // of the device; 0, 0: the backend has no limit of its own
    int32_t n_categories;
    struct {
        const char *name;
        int64_t bytes;
    } categories[ENG_MEMORY_CATEGORIES]; // by purpose: "weights", "kv", "activations", ...
};

struct eng_info {
    const char *backend;             // "cpu", "cuda"
    const char *backend_description; // one line
    const char *backend_reason;      // one sentence: why "auto" became the CPU; "" otherwise
    const char *weights_type;        // "bf16", "f32", "fp8", "q4": of most bytes of the large matrices
    const char *kv_type;             // of the keys and values
    int64_t weights_bytes;           // resident bytes of the one copy, the adapter included
    int64_t file_bytes;              // bytes of the tensors in the checkpoint files, the adapter included
    int64_t parameters;
    int64_t step_bytes;    // of weights_bytes, what every pass reads: all but the embedding table and the adapter
    int64_t adapter_bytes; // read too where the draft adapter is on
    int32_t embed_row_bytes;
    int32_t kv_token_bytes; // keys and values of one position
    int32_t n_vocab, n_layers, hidden;
    int32_t max_context; // prompt + output, tokens
    int32_t n_pages, page_size;
    unsigned modes; // bits of enum eng_mode
    bool has_adapter;
    bool has_chat_template;
    struct eng_cost cost;     // n_knots 0: none. As it was measured: the live correction is in eng_stats
    const char *cost_origin;  // "file", "measured at start", "none"
    struct eng_memory memory; // of the backend once everything was opened
};
const struct eng_info *eng_info(const struct eng_engine *e); // lives as long as the engine

// ---- text -----------------------------------------------------------------------------------------------------------

// parse_special: special tokens in the text become their ids (else they are ordinary text). *ret_ids is freed with
// free. ENG_EINVAL: not UTF-8. ENG_ELIMIT: the pre-tokenizer gave up.
int eng_encode(const struct eng_engine *e, const char *text, size_t len, bool parse_special, int32_t **ret_ids,
               size_t *ret_n);
// Bytes -> text, invalid UTF-8 replaced. *ret_text is NUL-terminated and freed with free.
int eng_decode(const struct eng_engine *e, const int32_t *ids, size_t n, bool skip_special, char **ret_text,
               size_t *ret_len);
// Raw bytes of one token (not NUL-terminated); NULL for an unknown id. Lives as long as the engine.
const char *eng_token_bytes(const struct eng_engine *e, int32_t id, size_t *ret_len);
// Renders the checkpoint's chat template and tokenises it; text that came from messages is never parsed as special.
// tools and kwargs may be NULL. err: one sentence for the client. *ret_ids is freed with free.
int eng_chat(const struct eng_engine *e, const struct cJSON *messages, const struct cJSON *tools,
             bool add_generation_prompt, bool continue_final_message, const struct cJSON *kwargs, int32_t **ret_ids,
             size_t *ret_n, char *err, size_t err_size);

// ---- requests -------------------------------------------------------------------------------------------------------

enum eng_commit_policy { ENG_COMMIT_CONFIDENCE, ENG_COMMIT_SCHEDULE, ENG_COMMIT_LEFTMOST, ENG_N_COMMIT };
// "confidence", "schedule", "leftmost"; parse gives -1 for an unknown name.
const char *eng_commit_policy_name(enum eng_commit_policy p);
int eng_commit_policy_parse(const char *name);

struct eng_logit_bias {
    int32_t token;
    float bias; // -100 .. 100
};

enum { ENG_MAX_PRIORITY = 1000, ENG_MAX_TENANTS = 256 };

// Pointers are borrowed during eng_request_new only (it copies). eng_params_default() gives every field its neutral
// value.
struct eng_params {
    int32_t max_tokens;   // >= 0; exact. 0 computes the prompt and finishes with "length"
    enum eng_mode mode;   // AUTO: the router decides among what is allowed
    bool mode_by_default; // the client named no mode, and `mode` is the configuration's: told in the reason only
    int32_t block_length; // 0: the router's choice; where it would change the text, the engine's default
    float threshold;      // diffusion; 0: the engine's default
    int32_t steps;        // diffusion: passes per block instead of a threshold; 0: threshold
    enum eng_commit_policy commit_policy;
    bool allow_diffusion;                      // `lossless: false`: auto may use diffusion
    bool lossless;                             // `lossless: true`: auto may not, whatever the configuration allows
    float temperature;                         // 0 .. 2
    int32_t top_k;                             // 0: all
    float top_p, min_p;                        // (0, 1], [0, 1]
    float repetition_penalty;                  // > 0, 1: none
    float frequency_penalty, presence_penalty; // -2 .. 2
    uint64_t seed;
    int32_t min_tokens; // end-of-text and stop ids are not allowed before
    bool ignore_eos;
    const int32_t *stop_ids; // additional end ids
    size_t n_stop_ids;
    const char *const *stops; // stop strings, UTF-8, not empty
    size_t n_stops;
    const struct eng_logit_bias *biases;
    size_t n_biases;
    int32_t n_top;          // -1: no log-probabilities; 0 .. 20 alternatives a token
    bool skip_special;      // special tokens do not appear in the text
    bool stream_draft;      // events with the provisional tokens of each block
    int64_t timeout_ms;     // 0: none
    int32_t priority;       // -1000 .. 1000, lower is earlier; a level is worth ten seconds of waiting
    int32_t tenant;         // 0 .. 255: tenants share the machine fairly, whatever each of them sends
    const char *cache_salt; // requests share cached KV only with those of the same salt; NULL: none
    void *user;             // given back in every event
};
struct eng_params eng_params_default(void);

// Checks ranges against the model (err: one sentence; *ret_param, if not NULL, names the field) and copies everything.
// The prompt must have 1 .. max_context - 1 tokens with ids in range. The result belongs to the caller until
// eng_submit.
int eng_request_new(const struct eng_engine *e, const struct eng_params *params, const int32_t *prompt, size_t n_prompt,
                    struct eng_request **ret_request, const char **ret_param, char *err, size_t err_size);
// For a request that was not submitted, or whose finish event was taken. Takes NULL.
void eng_request_free(struct eng_request *r);

// On success the engine owns the request until its finish event is taken. ENG_EBUSY: the queue is full. ENG_ECLOSED:
// draining. On failure the caller still owns it. Any thread.
int eng_submit(struct eng_engine *e, struct eng_request *r);
// Any thread, between a successful submit and the taking of the finish event. The request still gets its finish event.
void eng_cancel(struct eng_request *r);
// Refuses submissions from now on (ENG_ECLOSED); what was accepted goes on.
void eng_drain(struct eng_engine *e);

// ---- events ---------------------------------------------------------------------------------------------------------

enum eng_finish {
    ENG_FINISH_NONE,
    ENG_FINISH_STOP,      // end of text, stop id or stop string
    ENG_FINISH_LENGTH,    // max_tokens or the context's end
    ENG_FINISH_CANCELLED, // eng_cancel
    ENG_FINISH_TIMEOUT,   // timeout_ms
    ENG_FINISH_ERROR,     // the backend failed or the logits were not finite; error says so
};

struct eng_token {
    int32_t id;
    float
        logprob; // of the pass that committed it: AR, verify and seed rows: the AR probability; denoise: at its reveal
    size_t text_end; // bytes of the event's text that stand once this token is added (held-back text counts later)
    int32_t n_top;
    const int32_t *top_ids; // into the event's memory
    const float *top_logprobs;
};

// Who or what chose a request's mode when it began.
enum eng_cause {
    ENG_CAUSE_REQUESTED,   // the request forced it
    ENG_CAUSE_DEFAULT,     // the configuration's mode
    ENG_CAUSE_ONLY_MODE,   // auto: nothing else may be chosen
    ENG_CAUSE_FASTEST,     // auto: the most tokens a second of all together, by the cost model
    ENG_CAUSE_POOR_DRAFTS, // auto: AR among others' blocks, since its own drafts are not worth their rows
    ENG_CAUSE_AUTO_ROWS,   // auto without a cost model
    ENG_N_CAUSES
};
const char *eng_cause_name(enum eng_cause cause); // "requested", "default", "only_mode", ...

struct eng_span { // part of a request's output decoded in one way
    int32_t from_token;
    enum eng_mode mode;
    int32_t block_length; // 0 for AR
};

struct eng_request_stats {
    int32_t prompt_tokens, cached_tokens, completion_tokens;
    int32_t forward_passes; // after the prompt
    int32_t blocks, drafted_tokens, accepted_tokens, denoise_passes;
    int32_t preemptions, switches; // switches: changes of mode, also where the timeline keeps no span of them
    double queue_ms, first_token_ms, total_ms;
    enum eng_mode mode; // of the last span
    int32_t block_length;
    enum eng_cause cause; // of the first span
    char reason[160];     // why that mode, a sentence with numbers
    int32_t n_spans;      // at most ENG_MAX_SPANS are kept
    struct eng_span spans[16];
};
enum { ENG_MAX_SPANS = 16 };

// What a block holds after a pass that made it provisional: a denoise pass (some positions are still masked) or a draft
// of self-speculation. It tells of the positions whose tokens are not final yet; any of them may still change, and
// positions past max_tokens are left out.
struct eng_draft {
    enum eng_mode mode;
    int32_t from_token; // tokens of the output that are final; ids[0] stands right after them
    int32_t pass;       // denoise passes of the block so far; 1 for a draft of self-speculation
    int32_t n;          // 0 .. 64; 0: everything the block held is final
    uint64_t masked;    // bit i: ids[i] has no token yet and means nothing
    const int32_t *ids; // into the event's memory
};

// One committed run of tokens, or the end, or a draft. A draft (only where stream_draft asked for them) has no text, no
// tokens and no finish, follows the event of the same pass's run, and may be missing where memory is short. Exactly one
// event with finish != NONE ends every request, and it may carry the last run. Tokens past a stop (and the end-of-text
// token) are not reported, but the end-of-text token counts in completion_tokens.
struct eng_event {
    struct eng_event *next;
    void *user; // eng_params.user
    struct eng_request *request;
    const char *text; // whole characters only, safe with respect to stop strings; may be empty
    size_t text_len;
    const struct eng_token *tokens;
    int32_t n_tokens;
    enum eng_finish finish;
    const char *error;                     // with ENG_FINISH_ERROR
    const char *stop;                      // the stop string that matched, or NULL
    int32_t stop_id;                       // the end id that was met, or -1
    const struct eng_request_stats *stats; // with finish
    const struct eng_draft *draft;         // NULL but in a draft
};

// The whole list in order, NULL when empty. The caller frees each with eng_event_free. One thread (the loop's).
struct eng_event *eng_take_events(struct eng_engine *e);
void eng_event_free(struct eng_event *ev);

// ---- numbers --------------------------------------------------------------------------------------------------------

enum eng_pass_kind {
    ENG_PASS_PREFILL,
    ENG_PASS_AR,
    ENG_PASS_DENOISE,
    ENG_PASS_SEAL,
    ENG_PASS_DRAFT,
    ENG_PASS_VERIFY,
    ENG_N_PASS_KINDS
};
const char *eng_pass_kind_name(enum eng_pass_kind k);

enum { ENG_HIST_BUCKETS = 16 };
struct eng_hist { // counts[i]: observations <= bounds[i]; not cumulative; the last bucket is +Inf
    const double *bounds;
    int32_t n_bounds;
    uint64_t counts[ENG_HIST_BUCKETS + 1];
    double sum;
    uint64_t count;
};

struct eng_stats {
    int32_t waiting;                               // submitted and not running, those of this moment included
    int32_t running[ENG_N_MODES];                  // by the mode of their current step
    int32_t pages_total, pages_used, pages_cached; // used by sequences; kept by the prefix cache alone
    uint64_t prefix_queries, prefix_hits; // tokens looked up in the prefix cache when sequences start, and found
    uint64_t cached_prompt_tokens;        // of prompt_tokens, those that came from the prefix cache
    uint64_t prompt_tokens, generated_tokens[ENG_N_MODES];
    uint64_t passes[ENG_N_PASS_KINDS]; // segments of that kind
    uint64_t steps;                    // forward calls
    uint64_t drafted_tokens, accepted_tokens;
    uint64_t wasted_rejected, wasted_cut; // rows: drafts rejected; rows past the end of a request
    uint64_t wasted_ahead;                // rows computed ahead for requests that had ended
    uint64_t wasted_preempted;            // rows whose keys and values were lost when their request gave way
    uint64_t decisions[ENG_N_MODES];      // requests started in a mode
    uint64_t switches[ENG_N_MODES][ENG_N_MODES];
    uint64_t preemptions; // of running requests, whose pages or slots went to others
    struct eng_hist rows, seconds, accepted_length, denoise_passes;
    bool has_cost;           // there is a cost model
    double step_error_ratio; // its running predicted / actual time of a forward call; 1 before the first
};
// NULL while all is well; else one sentence on how the backend was lost: nothing is accepted any more, and what ran
// ended with ENG_FINISH_ERROR. Any thread; lives as long as the engine.
const char *eng_failure(const struct eng_engine *e);
// A consistent copy of the numbers after some recent step. Any thread, never waits for a forward pass.
void eng_stats(const struct eng_engine *e, struct eng_stats *ret);

// A request that is being decoded.
struct eng_live {
    void *user; // eng_params.user
    enum eng_mode mode;
    int32_t block_length;                   // 0 for AR
    int32_t prompt_tokens, computed_tokens; // computed: positions whose keys and values are final
    int32_t completion_tokens, forward_passes;
    int32_t drafted_tokens, accepted_tokens;
    double tokens_per_second;           // since the first token; 0 before the second
    double predicted_tokens_per_second; // at the present load, by the cost model; 0 without one
    char reason[160];                   // why that mode
};
// Copies at most max of the requests that run and returns how many. The picture is at most a twentieth of a second old
// and never shows a request whose finish event can be taken. Any thread, never waits for a forward pass.
int32_t eng_live(const struct eng_engine *e, struct eng_live *ret, int32_t max);

// ---- benches: passes without requests -------------------------------------------------------------------------------

struct eng_bench;

struct eng_bench_shape {
    enum eng_pass_kind kind;
    int32_t segments, rows; // sequences, and rows of each
    int32_t context;        // positions before those rows
};

struct eng_bench_time {
    double min_ms, median_ms, max_ms; // of a pass alone, from its submission to its choices
    double queued_ms;                 // a pass of a queue that never runs dry; median_ms where the backend has no queue
    double host_ms;                   // until its submission returned, median
    int32_t wanted;                   // rows whose token was chosen
    bool adapter;                     // the draft adapter was on
    int64_t weight_bytes, kv_bytes;   // the least that the pass reads
};

// As eng_open, without an engine: no thread, no requests. max_sequences bounds a pass's segments; max_context and
// kv_memory must leave each of them max_context tokens (ENG_ELIMIT otherwise). notify is not used. On failure *ret is
// untouched and err holds one sentence.
int eng_bench_open(const struct eng_options *options, struct eng_bench **ret, char *err, size_t err_size);
void eng_bench_close(struct eng_bench *b); // takes NULL
const struct eng_info *eng_bench_info(const struct eng_bench *b);
// Fills the context with real passes, warms up, then times `runs` passes (1 .. 1000). ENG_EINVAL: the shape does not
// fit the options. ENG_ENOTSUP: the model has no block passes. Else the failure of the backend.
int eng_bench_pass(struct eng_bench *b, const struct eng_bench_shape *shape, int runs, struct eng_bench_time *ret);
// One sentence or phrase on the last failure of eng_bench_pass.
const char *eng_bench_error(const struct eng_bench *b, int code);

// ---- calibration ----------------------------------------------------------------------------------------------------

enum { ENG_MAX_CALIBRATION = 192, ENG_MAX_CHECKS = 8 };

struct eng_calibrated {
    struct eng_bench_shape shape;
    struct eng_cost_sample sample; // its pass and the shortest of its times
    bool adapter;
};

struct eng_calibration {
    struct eng_cost cost;
    int32_t n_passes, n_checks;
    struct eng_calibrated passes[ENG_MAX_CALIBRATION]; // what was fitted
    struct eng_calibrated checks[ENG_MAX_CHECKS];      // measured afterwards, of sizes that were not fitted
    double check_error;                                // median of the relative errors there
    double seconds;                                    // it took, without the opening
};

// Opens the model as eng_open does, measures its passes for about `seconds` (slow models: at least a few passes), fits
// and checks. options->progress is told "calibrate" and the fraction. No engine exists beside it. *ret is large; on
// failure it holds nothing of use and err one sentence.
int eng_calibrate(const struct eng_options *options, double seconds, struct eng_calibration *ret, char *err,
                  size_t err_size);
// Writes the file that options->cost_model reads. 0, or a negative code and one sentence.
int eng_cost_save(const char *path, const struct eng_cost *cost, char *err, size_t err_size);
