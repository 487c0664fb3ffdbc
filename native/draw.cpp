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

// Columns of the integers of quire.ops.draw.RowTable.
enum Integer { TOP_K, SEED, INTEGERS };

struct DrawSettings {
    float temperature, top_p, log_min_p;
    int64_t top_k;
    uint64_t seed;
    int64_t position;
};

// Memory of a thread, and in how many parts, side by side, it works on a row.
struct DrawRoom {
    float *blocks, *sorted;
    Candidate* found;
    long parts;
};

// Parts of a row that is alone and has so many logits.
const long PARTS = 8, WORTH = 32768;

// Tokens among which the end of a nucleus is looked for.
const long SHORT = 128;

// Histograms have a bin for each beginning of a logit's bits.
const int SHIFT = 20;
const long BINS = 1L << (32 - SHIFT);

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
// They are put in order as far as is necessary.
const Candidate* last_before(Candidate* from, Candidate* to, int64_t wanted) {
    int64_t before = 0;
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
    int32_t bins[BINS] = {};
    for (long i = 0; i < line.vocab; i++) bins[ordered(table.logit(line.logits, i, line.dtype)) >> SHIFT]++;
    long bin = BINS;
    for (int64_t there = 0; there < count && bin > 0;) there += bins[--bin];
    const float least = unordered((uint32_t)bin << SHIFT);
    // Below the negative numbers there are none but NaN.
    return least != least ? -INFINITY : least;
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
    return last_before(room.found, room.found + k, share(by.top_p, total))->key;
}

// The key of the last of the first tokens that hold `wanted`, or 0 if they are more than a few.
uint64_t last_of_few(const DrawLine& line, const DrawTable& table, int64_t wanted, const DrawRoom& room) {
    const long count = gather(line, table, reached(line, table, std::min(SHORT, line.vocab), room), room);
    const Candidate* last = last_before(room.found, room.found + count, wanted);
    return last ? last->key : 0;
}

// Who wins among the tokens up to `last`, of which `first` is the most probable.
int64_t winner(const DrawLine& line, const DrawTable& table, const DrawRoom& room, uint64_t last, int64_t first) {
    Race race{last, -INFINITY, first};
    // Where the most probable token is first: the better the best is, the fewer of the others are looked at.
    const long begin = first / DRAW_BLOCK;
    table.race(line, begin, begin + 1, race);
    Race races[PARTS];
    by_parts(line.block_count(), room, [&](long first, long end, long part) {
        races[part] = race;
        table.race(line, first, end, races[part]);
    });
    for (long part = 0; part < room.parts; part++)
        if (races[part].before(race)) race = races[part];
    return race.id;
}

Masses masses(const DrawLine& line, const DrawTable& table, const DrawRoom& room, uint64_t key) {
    Masses each[PARTS] = {}, all{};
    by_parts(line.block_count(), room,
             [&](long first, long end, long part) { each[part] = table.masses(line, first, end, key); });
    for (const Masses& one : each) all.total += one.total, all.before += one.before;
    return all;
}

// Who wins among all tokens and is of the nucleus wins in it, too; who is not tells up to where to look again. So the
// nucleus need not be found: of tokens that hold 0.9 of all mass one in ten draws has a second race.
int64_t winner_of_nucleus(const DrawLine& line, const DrawTable& table, const DrawSettings& by, const DrawRoom& room,
                          int64_t first) {
    for (uint64_t last = 0;;) {
        const int64_t id = winner(line, table, room, last, first);
        const uint64_t key = key_of(table.logit(line.logits, id, line.dtype), id);
        const Masses mass = masses(line, table, room, key);
        const int64_t wanted = share(by.top_p, mass.total);
        if (mass.before < wanted) return id;
        // A small share would take many races, but is seldom held by many tokens.
        if (const uint64_t end = last ? 0 : last_of_few(line, table, wanted, room))
            return winner(line, table, room, end, first);
        last = key + 1;
    }
}

int64_t drawn(DrawLine& line, const DrawTable& table, const DrawSettings& by, const DrawRoom& room, int64_t first) {
    mix_keys(by, line.keys);
    if (by.top_k < line.vocab) return winner(line, table, room, last_of_k(line, table, by, room), first);
    return by.top_p < 1 ? winner_of_nucleus(line, table, by, room, first) : winner(line, table, room, 0, first);
}

bool is_finite(const Largest& top) { return !top.spoiled && fabsf(top.value) <= 3.4028234663852886e38f; }

// body(row, its logits, room) for all rows, side by side.
template <class F>
void by_lines(long count, long vocab, const void* logits, long stride_bytes, const F& body) {
    const long blocks = (vocab + DRAW_BLOCK - 1) / DRAW_BLOCK, padded = (blocks + 15) / 16 * 16;
    const long each = 8 * padded + ((long)sizeof(Candidate) * vocab + 63) / 64 * 64;
    char* const memory = (char*)scratch(SAMPLING, each * threads());
    const long step = count / 60000 + 1;
    parallel_for((count + step - 1) / step, [&](long part, int thread) {
        float* const maxima = (float*)(memory + thread * each);
        const long parts = count == 1 && vocab >= WORTH && threads() > 1 ? PARTS : 1;
        const DrawRoom room{maxima, maxima + padded, (Candidate*)(maxima + 2 * padded), parts};
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
