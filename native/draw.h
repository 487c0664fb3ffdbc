// Draws of one token a row: temperature, min_p, top_k, top_p, and noise by the Gumbel-max trick. See quire/ops/draw.py,
// which is the definition, and quire/ops/{noise,topk}.py.
#pragma once

#include <stdint.h>

#include "rows.h"

namespace qcpu {

constexpr long DRAW_BLOCK = 256;  // logits that one maximum stands for
constexpr long BINS = 41 * 128;  // of histograms; 128 for each power of two that a mass can be

// A row, and how it draws.
struct DrawLine {
    const void* logits;
    float* blocks;  // maxima of its blocks
    long vocab;
    int dtype;
    float top, inverse, log_min_p;  // inverse: of the temperature
    uint32_t keys[2];  // of its noise

    long block_count() const { return (vocab + DRAW_BLOCK - 1) / DRAW_BLOCK; }
    // Over temperature, with the maximum at 0.
    float scaled(float x) const { return (x - top) * inverse; }
};

// A token in the order of logits, equal ones by id: of two keys the larger comes first. `mass` is its probability
// relative to the most probable token's, in units of 2 to the -40.
struct Candidate {
    uint64_t key;
    int64_t mass;

    uint32_t id() const { return ~(uint32_t)key; }
    bool operator<(const Candidate& other) const { return key > other.key; }
};

// Logits from `low` to `high`.
struct Bracket {
    float low, high;
};

// The best token so far, and the last one in order that may be drawn.
struct Race {
    uint64_t last;  // its key; 0 lets all in
    float noisy;
    int64_t id;

    // Of equal ones the lower number wins.
    bool before(const Race& other) const { return noisy > other.noisy || (noisy == other.noisy && id < other.id); }
};

// 32 bits in the order of floats; -0 counts as 0.
static inline uint32_t ordered(float x) {
    union { float f; int32_t i; } both;
    both.f = x + 0.0f;
    return (uint32_t)(both.i ^ ((both.i >> 31) & 0x7fffffff)) ^ 0x80000000u;
}

static inline uint64_t key_of(float x, long id) { return (uint64_t)ordered(x) << 32 | ~(uint32_t)id; }

struct DrawTable {
    // The largest logit as in RowsTable, and the maximum of each block.
    Largest (*tops)(const void* logits, long count, int dtype, float* blocks);
    // Tokens of a block whose logits are at least `least`; returns how many.
    long (*gather)(const DrawLine&, long block, float least, Candidate* out);
    // The sum of a block's masses. What its tokens' probabilities are to that of the most probable one is kept.
    int64_t (*mass)(const DrawLine&, long block, float* kept);
    // Tokens of a block within the bracket, by what `mass` has kept; returns how many. The masses of those above it are
    // added to `above`.
    long (*split)(const DrawLine&, long block, const float* kept, Bracket, Candidate* out, int64_t* above);
    // Let the tokens of a block race.
    void (*race)(const DrawLine&, long block, Race&);
    // The sum over a block of e to the (logit - top).
    float (*sum)(const DrawLine&, long block);
    // How many tokens of a block come before that of `key`.
    long (*before)(const DrawLine&, long block, uint64_t key);
    float (*logit)(const void* logits, long at, int dtype);
};

}  // namespace qcpu
