// Finds for each row which tokens it may draw, and has them race; tells the log-probabilities of tokens. See draw.h.
#include "draw.h"

#include <algorithm>
#include <math.h>
#include <numeric>
#include <string.h>

#include "isa.h"
#include "pool.h"

QCPU_TABLES(DrawTable, draw_table)

namespace qcpu {
namespace {

// Columns of quire.ops.draw.RowTable.
enum Number { TEMPERATURE, TOP_P, LOG_MIN_P, NUMBERS = 6 };
enum Integer { TOP_K, SEED, INTEGERS };

struct DrawSettings {
    float temperature, top_p, log_min_p;
    int64_t top_k;
    uint64_t seed;
    int64_t position;
};

// Memory of a thread, and in how many parts, side by side, it works on a row.
struct DrawRoom {
    float *blocks, *sorted, *kept;  // kept: whole blocks
    float* bins;
    Candidate* found;
    long parts;
};

// Parts of a row that is alone and has so many logits.
const long PARTS = 8, WORTH = 32768;

// Logits over temperature up to which tokens have no mass, being 0 at most.
const float NO_MASS = -27.8f;

// Tokens among which the end of a nucleus is looked for first.
const long SHORT = 128;

// Where that is in vain: of so many tokens one is looked at, to guess where the end may be. A guess may be off by so many
// of its deviations, and is none if that is more than this share of all.
const long SAMPLED = 7;
const double DEVIATIONS = 2.5, VAGUE = 0.15, EXACT = 1e-3;

// Candidates that are sorted; more of them are dealt out to two to the PLACES places first.
const long FEW = 32;
const int PLACES = 8;

void mix_keys(const DrawSettings& by, uint32_t* keys) {
    uint64_t state = by.seed + (uint64_t)(by.position + 1) * 0x9E3779B97F4A7C15u;
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9u;
    state = (state ^ state >> 27) * 0x94D049BB133111EBu;
    state ^= state >> 31;
    keys[0] = (uint32_t)state;
    keys[1] = (uint32_t)(state >> 32);
}

// body(first block, last block, part) for all parts of a row.
template <class F>
void by_parts(long blocks, const DrawRoom& room, const F& body) {
    parallel_for(room.parts, [&](long part, int) {
        body(blocks * part / room.parts, blocks * (part + 1) / room.parts, part);
    });
}

// The last candidate, in order, before which there is less mass than `wanted`, or null if it is not among these.
// `before`: the mass of those that come before all of these. They are put in order as far as is necessary.
const Candidate* last_before(Candidate* from, Candidate* to, int64_t before, int64_t wanted) {
    while (to - from > FEW) {
        uint64_t most = from->key, least = from->key;
        for (const Candidate* at = from; at < to; at++) most = std::max(most, at->key), least = std::min(least, at->key);
        const int shift = std::max(0, 64 - PLACES - __builtin_clzll(most - least));
        int64_t masses[1 << PLACES] = {};
        for (const Candidate* at = from; at < to; at++) masses[(most - at->key) >> shift] += at->mass;
        uint64_t place = 0, last = (most - least) >> shift;
        while (place < last && before + masses[place] < wanted) before += masses[place++];
        to = std::partition(from, to, [&](const Candidate& one) { return (most - one.key) >> shift == place; });
    }
    std::sort(from, to);
    for (; from < to; from++)
        if ((before += from->mass) >= wanted) return from;
    return nullptr;
}

int64_t share(float top_p, int64_t total) {
    const double wanted = ceil((double)top_p * (double)total);
    return wanted < 1 ? 1 : (int64_t)wanted;
}

// A logit that at least `count` tokens reach.
float reached(const DrawLine& line, const DrawTable& table, long count, const DrawRoom& room) {
    const long blocks = line.block_count();
    if (count <= blocks) {
        memcpy(room.sorted, line.blocks, blocks * sizeof(float));
        std::nth_element(room.sorted, room.sorted + count - 1, room.sorted + blocks,
                         [](float a, float b) { return a > b; });
        return room.sorted[count - 1];
    }
    // By the first twelve bits of all.
    memset(room.bins, 0, BINS * sizeof(float));
    for (long i = 0; i < line.vocab; i++) room.bins[ordered(table.logit(line.logits, i, line.dtype)) >> 20]++;
    long bin = BINS;
    for (int64_t there = 0; there < count && bin > 0;) there += room.bins[--bin];
    const uint32_t bits = (uint32_t)bin << 20;
    union { uint32_t i; float f; } both;
    both.i = bits & 0x80000000u ? bits ^ 0x80000000u : ~bits;
    // Below the negative numbers there are none but NaN.
    return both.f != both.f ? -INFINITY : both.f;
}

long gather(const DrawLine& line, const DrawTable& table, float least, const DrawRoom& room) {
    long count = 0;
    for (long block = 0; block < line.block_count(); block++)
        if (line.blocks[block] >= least) count += table.gather(line, block, least, room.found + count);
    return count;
}

// The key of the last of the first top_k tokens, or of those that hold top_p of their mass.
uint64_t last_of_k(const DrawLine& line, const DrawTable& table, const DrawSettings& by, const DrawRoom& room) {
    const long count = gather(line, table, reached(line, table, by.top_k, room), room), k = by.top_k;
    std::nth_element(room.found, room.found + k - 1, room.found + count);
    if (by.top_p >= 1) return room.found[k - 1].key;
    int64_t total = 0;
    for (long i = 0; i < k; i++) total += room.found[i].mass;
    // All of them have no more than all of their mass, so the last is among them.
    return last_before(room.found, room.found + k, 0, share(by.top_p, total))->key;
}

// A histogram of what every `stride`th token has kept, from the most probable on: its sum, and how uncertain the share of
// it is that lies before a place in the middle.
struct Sample {
    double total, deviation;
};

Sample sample(const DrawLine& line, long stride, const DrawRoom& room) {
    double total = 0, squares = 0;
    memset(room.bins, 0, BINS * sizeof(float));
    for (long i = 0; i < line.vocab; i += stride) {
        const float some = room.kept[i];
        uint32_t bits;
        memcpy(&bits, &some, 4);
        const long bin = 0x3f80 - (long)(bits >> 16);
        room.bins[bin < BINS ? bin : BINS - 1] += some;
        total += some;
        squares += (double)some * some;
    }
    return {total, stride == 1 ? EXACT : DEVIATIONS * sqrt(squares) / total};
}

// Where the end of a nucleus that holds top_p is thought to be.
Bracket guess(const DrawLine& line, float top_p, const DrawRoom& room) {
    Sample found = sample(line, SAMPLED, room);
    if (!(found.deviation * sqrt(top_p * (1 - top_p)) < VAGUE)) found = sample(line, 1, room);
    const double off = found.deviation * sqrt(top_p * (1 - top_p));
    Bracket made{-INFINITY, INFINITY};
    double before = 0;
    for (long bin = 0; bin < BINS - 1; bin++) {
        const auto at = [&](long next) {
            const uint32_t bits = (uint32_t)(0x3f80 - next) << 16;
            float edge;
            memcpy(&edge, &bits, 4);
            return line.top + logf(edge) / line.inverse;
        };
        const bool is_before = before < (top_p - off) * found.total;
        before += room.bins[bin];
        if (is_before && before >= (top_p - off) * found.total) made.high = at(bin - 1);
        if (before >= (top_p + off) * found.total) {
            made.low = at(bin);
            break;
        }
    }
    return made;
}

// Finds all tokens within the bracket; returns how many, and the mass of those above it.
long split(const DrawLine& line, const DrawTable& table, Bracket bracket, const DrawRoom& room, int64_t* above) {
    const long blocks = line.block_count();
    int64_t masses[PARTS] = {};
    Candidate* ends[PARTS];
    by_parts(blocks, room, [&](long first, long end, long part) {
        Candidate* found = room.found + first * DRAW_BLOCK;
        for (long block = first; block < end; block++)
            if (line.blocks[block] >= bracket.low)
                found += table.split(line, block, room.kept + block * DRAW_BLOCK, bracket, found, &masses[part]);
        ends[part] = found;
    });
    Candidate* end = ends[0];
    for (long part = 1; part < room.parts; part++)
        end = std::copy(room.found + blocks * part / room.parts * DRAW_BLOCK, ends[part], end);
    *above = std::accumulate(masses, masses + PARTS, int64_t(0));
    return end - room.found;
}

// The key of the last token of those that hold top_p of all mass. Most nuclei are short.
uint64_t last_of_nucleus(const DrawLine& line, const DrawTable& table, const DrawSettings& by, const DrawRoom& room) {
    int64_t totals[PARTS] = {};
    by_parts(line.block_count(), room, [&](long first, long end, long part) {
        for (long block = first; block < end; block++) {
            float* const kept = room.kept + block * DRAW_BLOCK;
            if (line.scaled(line.blocks[block]) > NO_MASS) totals[part] += table.mass(line, block, kept);
            else memset(kept, 0, DRAW_BLOCK * sizeof(float));
        }
    });
    const int64_t wanted = share(by.top_p, std::accumulate(totals, totals + PARTS, int64_t(0)));
    long count = gather(line, table, reached(line, table, std::min(SHORT, line.vocab), room), room);
    const Candidate* last = last_before(room.found, room.found + count, 0, wanted);
    if (last) return last->key;
    for (Bracket bracket = guess(line, by.top_p, room); !last;) {
        int64_t above = 0;
        count = split(line, table, bracket, room, &above);
        // A wrong guess says on which side the end is.
        if (above >= wanted) {
            bracket = {bracket.high, INFINITY};
            continue;
        }
        last = last_before(room.found, room.found + count, above, wanted);
        if (!last && bracket.low == -INFINITY) return 0;
        bracket = {-INFINITY, bracket.low};
    }
    return last->key;
}

int64_t drawn(DrawLine& line, const DrawTable& table, const DrawSettings& by, const DrawRoom& room, int64_t first) {
    mix_keys(by, line.keys);
    Race race{0, -INFINITY, first};
    if (by.top_k < line.vocab) race.last = last_of_k(line, table, by, room);
    else if (by.top_p < 1) race.last = last_of_nucleus(line, table, by, room);
    // Where the most probable token is first: the better the best is, the fewer of the others are looked at.
    const long begin = first / DRAW_BLOCK;
    table.race(line, begin, race);
    Race races[PARTS];
    by_parts(line.block_count(), room, [&](long first, long end, long part) {
        races[part] = race;
        for (long block = first; block < end; block++)
            if (block != begin) table.race(line, block, races[part]);
    });
    for (long part = 0; part < room.parts; part++)
        if (races[part].before(race)) race = races[part];
    return race.id;
}

bool is_finite(const Largest& top) { return !top.spoiled && fabsf(top.value) <= 3.4028234663852886e38f; }

// body(row, its logits, room) for all rows, side by side.
template <class F>
void by_lines(long count, long vocab, const void* logits, long stride_bytes, const F& body) {
    const long blocks = (vocab + DRAW_BLOCK - 1) / DRAW_BLOCK, padded = (blocks + 15) / 16 * 16;
    const long each = 4 * (2 * padded + blocks * DRAW_BLOCK + BINS) + ((long)sizeof(Candidate) * vocab + 63) / 64 * 64;
    char* const memory = (char*)scratch(SAMPLING, each * threads());
    const long step = count / 60000 + 1;
    parallel_for((count + step - 1) / step, [&](long part, int thread) {
        float *const maxima = (float*)(memory + thread * each), *const kept = maxima + 2 * padded;
        float* const bins = kept + blocks * DRAW_BLOCK;
        const long parts = count == 1 && vocab >= WORTH && threads() > 1 ? PARTS : 1;
        const DrawRoom room{maxima, maxima + padded, kept, bins, (Candidate*)(bins + BINS), parts};
        for (long i = part * step; i < (part + 1) * step && i < count; i++)
            body(i, (const char*)logits + i * stride_bytes, room);
    });
}

// The logarithm of what the probabilities of a line must be divided by.
float log_sum(const DrawLine& line, const DrawTable& table) {
    double total = 0;
    for (long block = 0; block < line.block_count(); block++)
        if (line.blocks[block] > line.top - 90) total += table.sum(line, block);
    return (float)log(total);
}

}  // namespace
}  // namespace qcpu

// A token for each of `count` rows of logits, `stride` values apart: drawn (2, count), with 1 in the second line where
// the largest logit is not finite. `rows` are their lines in numbers (max_rows, 6), integers (max_rows, 2) and known.
QCPU_API void qcpu_draw(const void* logits, long count, long vocab, long stride, int dtype, const int64_t* rows,
                        const int32_t* known, const float* numbers, const int64_t* integers, int64_t* result) {
    using namespace qcpu;
    Turn turn;
    const DrawTable& table = the_draw_table();
    by_lines(count, vocab, logits, stride * (dtype ? 2 : 4), [&](long i, const void* mine, const DrawRoom& room) {
        const float* number = numbers + rows[i] * NUMBERS;
        const int64_t* integer = integers + rows[i] * INTEGERS;
        const DrawSettings by{number[TEMPERATURE], number[TOP_P],           number[LOG_MIN_P],
                              integer[TOP_K],      (uint64_t)integer[SEED], known[rows[i]]};
        const Largest top = table.tops(mine, vocab, dtype, room.blocks);
        DrawLine line{mine, room.blocks, vocab, dtype, top.value, 1 / by.temperature, by.log_min_p, {0, 0}};
        result[count + i] = !is_finite(top);
        result[i] = !is_finite(top) ? 0 : by.temperature == 0 ? top.at : drawn(line, table, by, room, top.at);
    });
}

// Of each row its token `chosen[row]` and then the `top` most probable ones (at most `vocab`): ids and logarithms of
// their probabilities (count, 1 + top), and the place of the chosen one among all, from 1. See quire/ops/logprobs.py.
QCPU_API void qcpu_describe(const void* logits, long count, long vocab, long stride, int dtype, const int64_t* chosen,
                            long most, int64_t* ids, float* values, int64_t* ranks) {
    using namespace qcpu;
    Turn turn;
    const DrawTable& table = the_draw_table();
    by_lines(count, vocab, logits, stride * (dtype ? 2 : 4), [&](long i, const void* mine, const DrawRoom& room) {
        const Largest top = table.tops(mine, vocab, dtype, room.blocks);
        const DrawLine line{mine, room.blocks, vocab, dtype, top.value, 1, -INFINITY, {0, 0}};
        const float by = is_finite(top) ? top.value + log_sum(line, table) : NAN;
        const float own = table.logit(mine, chosen[i], dtype);
        int64_t* id = ids + i * (1 + most);
        float* value = values + i * (1 + most);
        *id++ = chosen[i];
        *value++ = own - by;
        ranks[i] = 1;
        for (long block = 0; block < line.block_count(); block++)
            if (room.blocks[block] >= own) ranks[i] += table.before(line, block, key_of(own, chosen[i]));
        if (!most) return;
        const float least = is_finite(top) ? reached(line, table, most, room) : -INFINITY;
        const long found = gather(line, table, least, room);
        std::partial_sort(room.found, room.found + std::min(most, found), room.found + found);
        for (long j = 0; j < most; j++) {
            // Of a row that is lost nothing is known.
            id[j] = j < found ? room.found[j].id() : j;
            value[j] = j < found ? table.logit(mine, id[j], dtype) - by : NAN;
        }
    });
}
