// 4 ROUTE  What drafts and blocks have yielded so far, and what the next one is expected to yield.
//
// Three things are learned, all as decayed counts of trials and successes:
//   by draft position   the chance that a draft is accepted once those before it are; of every request, and of all
//                       together, which is what a new request is believed to do (its prior)
//   by confidence       the chance that a draft of that confidence is accepted, which turns the confidences of one
//                       draft into the number of rows worth verifying
//   by block length     how many passes diffusion needs for a block, and how much of a draft is verified
// A draft that was not verified counts as accepted to the degree that its confidence says, so that leaving out unlikely
// rows does not make the others look better than they are. What nobody has tried is believed to be good: otherwise it
// would never be tried. Engine thread; pure but for the counts.
#pragma once

#include <stdbool.h>
#include <stdint.h>

enum { ENG_POSITION_CLASSES = 13, ENG_CONFIDENCE_CLASSES = 16, ENG_BLOCK_LENGTHS = 5 };

// 4, 8, 16, 32, 64.
static inline int32_t eng_block_length(int i)
{
    return 4 << i;
}
// The index of the shortest block length that is at least n (1 .. 64).
int eng_block_index(int32_t n);

// By draft position: classes 0 .. 6 are the positions 1 .. 7, later ones have 4, 4, 8, 8, 16 and 16 positions, so that
// every block length ends with a class.
struct eng_acceptance {
    float tried[ENG_POSITION_CLASSES], kept[ENG_POSITION_CLASSES];
    float drafts; // of a request: how many there were
};

// A row of verification that costs less than this part of a token is not worth waiting for the draft's confidences.
#define ENG_FREE_ROW_PRICE 0.02f

// Of all requests.
struct eng_experience {
    struct eng_acceptance prior;
    float sure_tried[ENG_CONFIDENCE_CLASSES], sure_kept[ENG_CONFIDENCE_CLASSES];
    float drafts[ENG_BLOCK_LENGTHS], verified[ENG_BLOCK_LENGTHS]; // rows
    float share[ENG_BLOCK_LENGTHS];                               // verified / drafts; 0: none yet
    float blocks[ENG_BLOCK_LENGTHS], passes[ENG_BLOCK_LENGTHS];   // of diffusion: denoise passes
    float hoped[ENG_BLOCK_LENGTHS]; // [0] above 0: believed of every request, whatever it is known to do
    int64_t learned_ns, faded_ns;   // when something was last learned, and forgotten
};

// What became of a draft of n tokens (1 .. 63).
struct eng_verified {
    int32_t n, kept;         // the first `kept` were accepted and came before the end of the text
    int32_t judged;          // the first `judged`, at least kept, were compared with what AR chooses
    bool ended;              // the text ended behind the kept ones: that is no fault of the next
    const float *confidence; // [n]
};
void eng_acceptance_learn(struct eng_acceptance *own, struct eng_experience *all, const struct eng_verified *v);
// A request that does not draft forgets a part of its own, so that it is believed again what all others are.
void eng_acceptance_forget(struct eng_acceptance *own);
// Diffusion filled a block of so many rows in so many denoise passes.
void eng_denoising_learn(struct eng_experience *all, int32_t rows, int32_t passes);
// Forgets what is old, so that something else is tried again: half of the counts for every ten seconds in which nothing
// was learned.
void eng_experience_fade(struct eng_experience *all, int64_t now_ns);

// As eng_acceptance_expect, where nothing is known.
void eng_acceptance_hope(float ret[ENG_BLOCK_LENGTHS]);
// Tokens that a block of each length yields: the accepted drafts and the token after them. 1 .. its length.
void eng_acceptance_expect(const struct eng_acceptance *own, const struct eng_experience *all,
                           float ret[ENG_BLOCK_LENGTHS]);
// The chance that a draft of this confidence is accepted once those before it are.
float eng_confidence_chance(const struct eng_experience *all, float confidence);
// Rows of a draft that verification should take: those that yield at least `price` tokens each, by the chance that all
// drafts up to them are accepted. 1 .. rows; confidence: [rows - 1].
int32_t eng_rows_worth_verifying(const struct eng_experience *all, const float *confidence, int32_t rows, float price);
// Rows of a verification of a block of so many rows, as a share of them. (0, 1]
float eng_verified_share(const struct eng_experience *all, int32_t rows);
// Tokens that diffusion yields a pass of a block of `rows`, the sealing one included.
float eng_denoising_tokens(const struct eng_experience *all, int32_t rows);
