// Draws of one token a row: temperature, min_p, top_k, top_p, and noise by the Gumbel-max trick. See quire/ops/draw.py,
// which is the definition, and quire/ops/{noise,topk}.py.
#pragma once

#include <stdint.h>

#include "rows.h"

namespace qcpu {

// Columns of the numbers of quire.ops.draw.RowTable.
enum Number { TEMPERATURE, TOP_P, LOG_MIN_P, REPETITION, FREQUENCY, PRESENCE, NUMBERS };

constexpr long DRAW_BLOCK = 256;  // logits that one maximum stands for

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

// Of all tokens, and of those that come before a certain one.
struct Masses {
    int64_t total, before;
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

static inline float unordered(uint32_t bits) {
    union { uint32_t i; float f; } both;
    both.i = bits & 0x80000000u ? bits ^ 0x80000000u : ~bits;
    return both.f;
}

static inline uint64_t key_of(float x, long id) { return (uint64_t)ordered(x) << 32 | ~(uint32_t)id; }

struct DrawTable {
    // The largest logit as in RowsTable, and the maximum of each block.
    Largest (*tops)(const void* logits, long count, int dtype, float* blocks);
    // Tokens of a block whose logits are at least `least`; returns how many.
    long (*gather)(const DrawLine&, long block, float least, Candidate* out);
    // Masses of the tokens of blocks, and of those among them that come before that of `key`.
    Masses (*masses)(const DrawLine&, long first, long end, uint64_t key);
    // Let the tokens of blocks race.
    void (*race)(const DrawLine&, long first, long end, Race&);
    // The sum over a block of e to the (logit - top).
    float (*sum)(const DrawLine&, long block);
    // How many tokens of a block come before that of `key`.
    long (*before)(const DrawLine&, long block, uint64_t key);
    float (*logit)(const void* logits, long at, int dtype);
};

}  // namespace qcpu
