// Passes over the logits of a row, for one instruction set; see draw.h.
#include "../draw.h"

#include "../simd.h"

namespace qcpu {
namespace QCPU_ISA {
extern const DrawTable draw_table;
namespace {

// Where a token is in the order of logits.
struct Place {
    float logit;
    int32_t id;

    explicit Place(uint64_t key) : logit(unordered((uint32_t)(key >> 32))), id((int32_t)~key) {}

    // Which of the tokens `ids`, whose logits are `x`, come before it.
    vi is_after(vf x, vi ids) const { return (x > logit) | ((x == logit) & (ids < id)); }
};

// Masses have up to 41 bits; their upper and lower halves are added up apart.
struct MassSum {
    vi upper{}, lower{};

    int64_t total() const {
        int64_t all = 0;
        for (int j = 0; j < LANES; j++) all += ((int64_t)upper[j] << 20) + lower[j];
        return all;
    }
};

// Logits over temperature up to which tokens have no mass, being 0 at most.
const float NO_MASS = -27.8f;

// Blocks whose masses a MassSum can hold.
const long SUMMED = 16;

template <class T>
struct Line {
    using elem = typename T::elem;

    const DrawLine& line;
    const elem* logits;
    const long first, count;  // of a block

    Line(const DrawLine& l, long block)
        : line(l), logits((const elem*)l.logits + block * DRAW_BLOCK), first(block * DRAW_BLOCK),
          count(l.vocab - first < DRAW_BLOCK ? l.vocab - first : DRAW_BLOCK) {}

    // The first LANES tokens.
    vi ids() const { return ramp() + (int32_t)first; }

    // Logits from `i` on, -infinity behind the last.
    vf load(long i) const {
        const vf x = load_upto<T>(logits + i, count - i);
        return count - i >= LANES ? x : pick(ramp() < (int32_t)(count - i), x, splat(-INFINITY));
    }

    // Over temperature, -infinity where min_p drops them.
    vf scaled(vf x) const {
        const vf s = (x - line.top) * line.inverse;
        return line.log_min_p == -INFINITY ? s : pick(s >= line.log_min_p, s, splat(-INFINITY));
    }

    // What a token's probability is to that of the most probable one.
    vf relative(vf x) const { return power_of_two(scaled(x) * 1.44269504f); }

    static int64_t mass(float e) { return (int64_t)(e * 1099511627776.0f); }

    // The candidates among LANES tokens from `i` on, those of them that are wanted.
    Candidate* append(Candidate* out, long i, vi wanted, vf x, vf kept) const {
        float values[LANES], masses[LANES];
        write_as(values, x);
        write_as(masses, kept);
        for (uint32_t left = lanes_of(wanted); left; left &= left - 1) {
            const long j = __builtin_ctz(left);
            if (i + j < count) *out++ = {key_of(values[j], first + i + j), mass(masses[j])};
        }
        return out;
    }

    long gather(float least, Candidate* out) const {
        Candidate* end = out;
        for (long i = 0; i < count; i += LANES) {
            const vf x = load(i);
            const vi wanted = x >= least;
            if (any(wanted)) end = append(end, i, wanted, x, relative(x));
        }
        return end - out;
    }

    // `is_before` says of logits and tokens which are added to `before`, too.
    template <class F>
    void add_masses(MassSum& total, MassSum& before, const F& is_before) const {
        vi id = ids();
        for (long i = 0; i < count; i += LANES, id += LANES) {
            const vf x = load(i), kept = relative(x) * 1048576.0f;
            const vi upper = __builtin_convertvector(kept, vi);
            const vi lower = __builtin_convertvector((kept - __builtin_convertvector(upper, vf)) * 1048576.0f, vi);
            const vi here = is_before(x, id);
            total.upper += upper;
            total.lower += lower;
            before.upper = here ? before.upper + upper : before.upper;
            before.lower = here ? before.lower + lower : before.lower;
        }
    }

    void add_masses(MassSum& total, MassSum& before, const Place& own) const {
        if (own.id < first) add_masses(total, before, [&](vf x, vi) { return x > own.logit; });
        else if (own.id >= first + count) add_masses(total, before, [&](vf x, vi) { return x >= own.logit; });
        else add_masses(total, before, [&](vf x, vi id) { return own.is_after(x, id); });
    }

    float sum() const {
        vf total{};
        for (long i = 0; i < count; i += LANES) total += exponential(load(i) - line.top);
        return qcpu::QCPU_ISA::sum(total);
    }

    long before(const Place& own) const {
        vi id = ids(), found{};
        for (long i = 0; i < count; i += LANES, id += LANES) found -= own.is_after(load(i), id);
        long total = 0;
        for (int j = 0; j < LANES; j++) total += found[j];
        return total;
    }

    // 31 random bits of each token: triple32 (Chris Wellons, hash-prospector) with a key before and one half-way.
    vi noise_bits(vi ids) const {
        vu state = (vu)ids ^ line.keys[0];
        state = (state ^ state >> 17) * 0xED5AD4BBu;
        state = (state ^ state >> 11) * 0xAC4C1B51u;
        state += line.keys[1];
        state = (state ^ state >> 15) * 0x31848BABu;
        return (vi)((state ^ state >> 14) & 0x7fffffffu);
    }

    // The bits up to which noise is low enough to bring a token with this logit, over temperature, before the best:
    // the exponential variate of bits b is at least b / 2**31.
    static int32_t low_enough(float scaled, float best) {
        const float most = expf(scaled - best) * 2147483648.0f * 1.0001f + 2.0f;
        return most < 2147483520.0f ? (int32_t)most : 2147483647;
    }

    void race(Race& race) const {
        const float top = line.scaled(line.blocks[first / DRAW_BLOCK]);
        // No noise is below -22.2.
        if (top < line.log_min_p || top + 22.3f < race.noisy) return;
        if (key_of(line.blocks[first / DRAW_BLOCK], 0) < race.last) return;
        int32_t limit = low_enough(top, race.noisy);
        // That of a whole block is looked at first, and is seldom low enough.
        vi id = ids(), least = splat_int(2147483647);
        for (int i = 0; i < DRAW_BLOCK; i += LANES) {
            const vi bits = noise_bits(id + i);
            least = bits < least ? bits : least;
        }
        if (!any(least <= limit)) return;
        for (long i = 0; i < count; i += LANES) {
            int32_t bits[LANES];
            const vi all = noise_bits(id + (int32_t)i);
            write_as(bits, all);
            for (uint32_t left = lanes_of(all <= limit); left; left &= left - 1) {
                const long j = __builtin_ctz(left);
                if (i + j < count && enters(race, i + j, bits[j])) limit = low_enough(top, race.noisy);
            }
        }
    }

    // Whether token i of the block becomes the best.
    bool enters(Race& race, long i, int32_t bits) const {
        const float x = T::wide(logits[i]), s = line.scaled(x);
        // By the power of two that the bits reach, which spares most tokens the logarithms.
        if (s + (float)(__builtin_clz(bits | 1) + (bits == 0)) * 0.6932f < race.noisy) return false;
        if (!(s >= line.log_min_p) || key_of(x, first + i) < race.last) return false;
        const float uniform = ((float)bits + 0.5f) * -(float)((1.0 - 1.0 / 16777216.0) / 2147483648.0);
        const float noisy = s - logf(-log1pf(uniform));
        const Race entered{race.last, noisy, first + i};
        if (!entered.before(race)) return false;
        race = entered;
        return true;
    }
};

// f(Line) of a block, whatever its logits are.
template <class F>
auto with(const DrawLine& line, long block, const F& f) {
    return line.dtype ? f(Line<Halves>(line, block)) : f(Line<Floats>(line, block));
}

long gather(const DrawLine& line, long block, float least, Candidate* out) {
    return with(line, block, [&](const auto& some) { return some.gather(least, out); });
}

Masses masses(const DrawLine& line, long first, long end, uint64_t key) {
    const Place own(key);
    Masses made{};
    for (long from = first; from < end; from += SUMMED) {
        MassSum total, before;
        for (long block = from; block < from + SUMMED && block < end; block++)
            if (line.scaled(line.blocks[block]) > NO_MASS)
                with(line, block, [&](const auto& some) { some.add_masses(total, before, own); });
        made.total += total.total();
        made.before += before.total();
    }
    return made;
}

void race(const DrawLine& line, long first, long end, Race& result) {
    for (long block = first; block < end; block++)
        with(line, block, [&](const auto& some) { some.race(result); });
}

template <class T>
Largest tops_of(const typename T::elem* p, long count, float* blocks) {
    Largest found{-INFINITY, 0, 0};
    vi spoiled{};
    for (long first = 0; first < count; first += DRAW_BLOCK) {
        const long here = count - first < DRAW_BLOCK ? count - first : DRAW_BLOCK;
        vf top = splat(-INFINITY);
        long i = 0;
        for (; i + LANES <= here; i += LANES) {
            const vf v = T::load(p + first + i);
            top = larger(v, top);
            spoiled |= v != v;
        }
        if (i < here) {
            const vf v = load_some<T>(p + first + i, here - i);
            top = larger(pick(ramp() < (int32_t)(here - i), v, splat(-INFINITY)), top);
            spoiled |= v != v;
        }
        const float most = blocks[first / DRAW_BLOCK] = largest(top);
        if (most > found.value) found.value = most, found.at = first;
    }
    found.spoiled = any(spoiled);
    while (!found.spoiled && found.at < count && T::wide(p[found.at]) != found.value) found.at++;
    return found;
}

Largest tops(const void* logits, long count, int dtype, float* blocks) {
    return dtype ? tops_of<Halves>((const uint16_t*)logits, count, blocks)
                 : tops_of<Floats>((const float*)logits, count, blocks);
}

float sum_of(const DrawLine& line, long block) {
    return with(line, block, [&](const auto& some) { return some.sum(); });
}

long before(const DrawLine& line, long block, uint64_t key) {
    return with(line, block, [&](const auto& some) { return some.before(Place(key)); });
}

float logit(const void* logits, long at, int dtype) {
    return dtype ? Halves::wide(((const uint16_t*)logits)[at]) : ((const float*)logits)[at];
}

}  // namespace

const DrawTable draw_table{tops, gather, masses, race, sum_of, before, logit};

}  // namespace QCPU_ISA
}  // namespace qcpu
