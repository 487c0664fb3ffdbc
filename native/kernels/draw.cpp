// Passes over the logits of a row, for one instruction set; see draw.h.
#include "../draw.h"

#include "../simd.h"

namespace qcpu {
namespace QCPU_ISA {
extern const DrawTable draw_table;
namespace {

template <class T>
struct Line {
    using elem = typename T::elem;

    const DrawLine& line;
    const elem* logits;
    const long first, count;  // of a block

    Line(const DrawLine& l, long block)
        : line(l), logits((const elem*)l.logits + block * DRAW_BLOCK), first(block * DRAW_BLOCK),
          count(l.vocab - first < DRAW_BLOCK ? l.vocab - first : DRAW_BLOCK) {}

    // Logits from `i` on, -infinity behind the last.
    vf load(long i) const {
        const vf x = load_upto<T>(logits + i, count - i);
        return count - i >= LANES ? x : pick(ramp() < (int32_t)(count - i), x, splat(-INFINITY));
    }

    // Over temperature, -infinity where min_p drops them.
    vf scaled(vf x) const {
        const vf s = (x - line.top) * line.inverse;
        return pick(s >= line.log_min_p, s, splat(-INFINITY));
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

    // Masses have up to 41 bits; their upper and lower halves are added up apart.
    struct Masses {
        vi upper{}, lower{};

        void add(vf kept) {
            const vf all = kept * 1048576.0f;
            const vi whole = __builtin_convertvector(all, vi);
            upper += whole;
            lower += __builtin_convertvector((all - __builtin_convertvector(whole, vf)) * 1048576.0f, vi);
        }

        int64_t total() const {
            int64_t all = 0;
            for (int j = 0; j < LANES; j++) all += ((int64_t)upper[j] << 20) + lower[j];
            return all;
        }
    };

    int64_t mass(float* kept) const {
        Masses masses;
        for (long i = 0; i < count; i += LANES) {
            const vf some = relative(load(i));
            masses.add(some);
            write_as(kept + i, some);
        }
        return masses.total();
    }

    long split(const float* kept, Bracket bracket, Candidate* out, int64_t* above) const {
        Candidate* end = out;
        Masses masses;
        for (long i = 0; i < count; i += LANES) {
            const vf x = load(i), some = read_as<vf>(kept + i);
            const vi higher = x > bracket.high, wanted = (x >= bracket.low) & ~higher;
            masses.add(pick(higher, some, vf{}));
            if (any(wanted)) end = append(end, i, wanted, x, some);
        }
        *above += masses.total();
        return end - out;
    }

    float sum() const {
        vf total{};
        for (long i = 0; i < count; i += LANES) total += exponential(load(i) - line.top);
        return qcpu::QCPU_ISA::sum(total);
    }

    long before(uint64_t key) const {
        const uint32_t bits = (uint32_t)(key >> 32), raw = bits & 0x80000000u ? bits ^ 0x80000000u : ~bits;
        float own;
        memcpy(&own, &raw, 4);
        // Equal ones with lower numbers.
        const long id = ~(uint32_t)key, lower = id - first < 0 ? 0 : id - first < count ? id - first : count;
        vi found{};
        for (long i = 0; i < count; i += LANES) {
            const vf x = load(i);
            const vi is_lower = ramp() < (int32_t)(lower - i > LANES ? LANES : lower - i);
            found -= (x > own) | ((x == own) & is_lower);
        }
        long total = 0;
        for (int j = 0; j < LANES; j++) total += found[j];
        return total;
    }

    // 31 random bits of each token: triple32 (Chris Wellons, hash-prospector) with a key before and one half-way.
    vi noise_bits(long i) const {
        vu state = ((vu)ramp() + (uint32_t)(first + i)) ^ line.keys[0];
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
        for (long i = 0; i < count; i += LANES) {
            const vi bits = noise_bits(i);
            if (!any(bits <= limit)) continue;
            int32_t each[LANES];
            write_as(each, bits);
            for (long j = 0; j < LANES && i + j < count; j++)
                if (each[j] <= limit && enters(race, i + j, each[j])) limit = low_enough(top, race.noisy);
        }
    }

    // Whether token i of the block becomes the best.
    bool enters(Race& race, long i, int32_t bits) const {
        const float x = T::wide(logits[i]), s = line.scaled(x);
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

int64_t mass(const DrawLine& line, long block, float* kept) {
    return with(line, block, [&](const auto& some) { return some.mass(kept); });
}

long split(const DrawLine& line, long block, const float* kept, Bracket bracket, Candidate* out, int64_t* above) {
    return with(line, block, [&](const auto& some) { return some.split(kept, bracket, out, above); });
}

void race(const DrawLine& line, long block, Race& result) {
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
    return with(line, block, [&](const auto& some) { return some.before(key); });
}

float logit(const void* logits, long at, int dtype) {
    return dtype ? Halves::wide(((const uint16_t*)logits)[at]) : ((const float*)logits)[at];
}

}  // namespace

const DrawTable draw_table{tops, gather, mass, split, race, sum_of, before, logit};

}  // namespace QCPU_ISA
}  // namespace qcpu
