// Finds for each row which tokens it may draw, and has them race; tells the log-probabilities of tokens. See draw.h.
#include "draw.h"

#include <algorithm>
#include <math.h>
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

// Memory of a thread.
struct DrawRoom {
    float *blocks, *sorted;
    int64_t* bins;
    Candidate* found;
};

// Logits over temperature up to which tokens have no mass, being 0 at most.
const float NO_MASS = -27.8f;

// Tokens among which the end of a nucleus is looked for first.
const long SHORT = 256;

void mix_keys(const DrawSettings& by, uint32_t* keys) {
    uint64_t state = by.seed + (uint64_t)(by.position + 1) * 0x9E3779B97F4A7C15u;
    state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9u;
    state = (state ^ state >> 27) * 0x94D049BB133111EBu;
    state ^= state >> 31;
    keys[0] = (uint32_t)state;
    keys[1] = (uint32_t)(state >> 32);
}

// The place of the last of candidates in order before which there is less than `wanted`, or -1 if it is not among them.
long last_before(const Candidate* found, long count, int64_t before, int64_t wanted) {
    for (long i = 0; i < count; i++) {
        before += found[i].mass;
        if (before >= wanted) return i;
    }
    return -1;
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
    memset(room.bins, 0, BINS * sizeof(int64_t));
    for (long i = 0; i < line.vocab; i++) room.bins[ordered(table.logit(line.logits, i, line.dtype)) >> 20]++;
    long bin = BINS;
    for (int64_t there = 0; there < count && bin > 0;) there += room.bins[--bin];
    const uint32_t bits = (uint32_t)bin << 20;
    union { uint32_t i; float f; } both;
    both.i = bits & 0x80000000u ? bits ^ 0x80000000u : ~bits;
    // Below the negative numbers there are none but NaN.
    return both.f != both.f ? -INFINITY : both.f;
}

long gather(const DrawLine& line, const DrawTable& table, float least, long bin, const DrawRoom& room) {
    long count = 0;
    for (long block = 0; block < line.block_count(); block++)
        if (line.blocks[block] >= least) count += table.gather(line, block, least, bin, room.found + count);
    return count;
}

// The key of the last of the first top_k tokens, or of those that hold top_p of their mass.
uint64_t last_of_k(const DrawLine& line, const DrawTable& table, const DrawSettings& by, const DrawRoom& room) {
    const long count = gather(line, table, reached(line, table, by.top_k, room), -1, room), k = by.top_k;
    std::nth_element(room.found, room.found + k - 1, room.found + count);
    if (by.top_p >= 1) return room.found[k - 1].key;
    std::sort(room.found, room.found + k);
    int64_t total = 0;
    for (long i = 0; i < k; i++) total += room.found[i].mass;
    // All of them have no more than all of their mass, so the last is among them.
    return room.found[last_before(room.found, k, 0, share(by.top_p, total))].key;
}

// The key of the last token of those that hold top_p of all mass. Most nuclei are short.
uint64_t last_of_nucleus(const DrawLine& line, const DrawTable& table, const DrawSettings& by, const DrawRoom& room) {
    int64_t total = 0, before = 0;
    const auto with_mass = [&](auto f) {
        for (long block = 0; block < line.block_count(); block++)
            if (line.scaled(line.blocks[block]) > NO_MASS) f(block);
    };
    with_mass([&](long block) { total += table.mass(line, block); });
    const int64_t wanted = share(by.top_p, total);
    long count = gather(line, table, reached(line, table, std::min(SHORT, line.vocab), room), -1, room);
    std::sort(room.found, room.found + count);
    long last = last_before(room.found, count, 0, wanted);
    if (last >= 0) return room.found[last].key;
    memset(room.bins, 0, BINS * sizeof(int64_t));
    with_mass([&](long block) { table.weigh(line, block, room.bins); });
    long bin = 0;
    while (bin < BINS - 1 && before + room.bins[bin] < wanted) before += room.bins[bin++];
    count = gather(line, table, -INFINITY, bin, room);
    std::sort(room.found, room.found + count);
    last = last_before(room.found, count, before, wanted);
    return last < 0 ? 0 : room.found[last].key;
}

int64_t drawn(DrawLine& line, const DrawTable& table, const DrawSettings& by, const DrawRoom& room, int64_t first) {
    mix_keys(by, line.keys);
    Race race{0, -INFINITY, first};
    if (by.top_k < line.vocab) race.last = last_of_k(line, table, by, room);
    else if (by.top_p < 1) race.last = last_of_nucleus(line, table, by, room);
    // Where the most probable token is first: the better the best is, the fewer of the others are looked at.
    const long begin = first / DRAW_BLOCK;
    table.race(line, begin, race);
    for (long block = 0; block < line.block_count(); block++)
        if (block != begin) table.race(line, block, race);
    return race.id;
}

bool is_finite(const Largest& top) { return !top.spoiled && fabsf(top.value) <= 3.4028234663852886e38f; }

// body(row, its logits, room) for all rows, side by side.
template <class F>
void by_lines(long count, long vocab, const void* logits, long stride_bytes, const F& body) {
    const long blocks = (vocab + DRAW_BLOCK - 1) / DRAW_BLOCK, padded = (blocks + 15) / 16 * 16;
    const long each = 8 * padded + 8 * BINS + ((long)sizeof(Candidate) * vocab + 63) / 64 * 64;
    char* const memory = (char*)scratch(SAMPLING, each * threads());
    const long step = count / 60000 + 1;
    parallel_for((count + step - 1) / step, [&](long part, int thread) {
        float* const maxima = (float*)(memory + thread * each);
        int64_t* const bins = (int64_t*)(maxima + 2 * padded);
        const DrawRoom room{maxima, maxima + padded, bins, (Candidate*)(bins + BINS)};
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
        DrawLine line{mine, room.blocks, vocab, dtype, top.value, by.temperature, by.log_min_p, {0, 0}};
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
        const long found = gather(line, table, least, -1, room);
        std::partial_sort(room.found, room.found + std::min(most, found), room.found + found);
        for (long j = 0; j < most; j++) {
            // Of a row that is lost nothing is known.
            id[j] = j < found ? room.found[j].id() : j;
            value[j] = j < found ? table.logit(mine, id[j], dtype) - by : NAN;
        }
    });
}
