// One query of one sequence against one chunk of keys: keys and values are read once, as they lie. For attention.cpp.
#pragma once

#include "attention_core.h"

namespace qcpu {
namespace QCPU_ISA {
namespace {

template <int N>
struct Number {
    static constexpr int value = N;
};

template <class T, class P>
struct Single : Core<T, P> {
    using Base = Core<T, P>;
    using typename Base::elem;
    using typename Base::quer;
    using Base::Base, Base::dim, Base::group, Base::job, Base::keep, Base::queries, Base::row_of, Base::weigh;

    // Scores of LANES / G keys from rows[k] on, for G queries of a KV head, dim apart; rows beyond n repeat the last.
    template <int G>
    void dots(const elem* const* rows, long k, long n, long head, const quer* q, float (*s)[CHUNK]) const {
        constexpr int KEYS = LANES / G;
        vf acc[LANES];
        const elem* key[KEYS];
#pragma GCC unroll 16
        for (int j = 0; j < KEYS; j++) {
            key[j] = rows[k + j < n ? k + j : n - 1] + head * dim;
            prefetch(rows[k + j + AHEAD < n ? k + j + AHEAD : n - 1] + head * dim);
        }
#pragma GCC unroll 16
        for (int j = 0; j < LANES; j++) acc[j] = vf{};
        for (long i = 0; i < dim; i += LANES * P::depth) {
            vf query[G];
#pragma GCC unroll 4
            for (int g = 0; g < G; g++) query[g] = P::some(q + g * dim + i, dim - i);
#pragma GCC unroll 16
            for (int j = 0; j < KEYS; j++) {
                const vf v = keys_at(key[j] + i, dim - i);
#pragma GCC unroll 4
                for (int g = 0; g < G; g++) acc[g * KEYS + j] = P::dot(acc[g * KEYS + j], v, query[g]);
            }
        }
        float sums[LANES];
        write_as(sums, sums_of(acc));
#pragma GCC unroll 4
        for (int g = 0; g < G; g++) memcpy(s[g] + k, sums + g * KEYS, KEYS * sizeof(float));
    }

    // Depth numbers per lane of a key, zeros beyond the n that there are.
    static vf keys_at(const elem* p, long n) {
        if constexpr (P::depth == 2) return P::some(p, n);
        else return load_upto<T>(p, n);
    }

    // Adds ROWS weighted values to the sums of G queries, (G, padded).
    template <int G>
    void add(const elem* const* rows, long k, long n, long head, const quer* weights, float* sums) const {
        constexpr int ROWS = 8;
        const elem* value[ROWS];
#pragma GCC unroll 8
        for (int j = 0; j < ROWS; j++) {
            value[j] = rows[k + j < n ? k + j : n - 1] + head * dim;
            prefetch(rows[k + j + AHEAD < n ? k + j + AHEAD : n - 1] + head * dim);
        }
        constexpr int V = P::depth;
        for (long i = 0; i < dim; i += LANES * V) {
            vf acc[G][V];
#pragma GCC unroll 4
            for (int g = 0; g < G; g++)
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) acc[g][v] = read_as<vf>(sums + g * stride() + i + v * LANES);
#pragma GCC unroll 8
            for (int j = 0; j < ROWS; j += V) {
                vf column[V];
                if constexpr (V == 2) P::interleave(value[j] + i, value[j + 1] + i, dim - i, column);
                else column[0] = load_upto<T>(value[j] + i, dim - i);
#pragma GCC unroll 4
                for (int g = 0; g < G; g++) {
                    const vf share = P::spread(weights + g * CHUNK + k + j);
#pragma GCC unroll 2
                    for (int v = 0; v < V; v++) acc[g][v] = P::dot(acc[g][v], share, column[v]);
                }
            }
#pragma GCC unroll 4
            for (int g = 0; g < G; g++)
#pragma GCC unroll 2
                for (int v = 0; v < V; v++) write_as(sums + g * stride() + i + v * LANES, acc[g][v]);
        }
    }

    static constexpr long AHEAD = 8;  // keys

    // Sums of a query of a sequence that computes one token are so far apart.
    long stride() const { return (dim + 31) / 32 * 32; }

    void prefetch(const elem* p) const {
        for (long i = 0; i < dim; i += 64 / (long)sizeof(elem)) __builtin_prefetch(p + i, 0, 2);
    }

    // All queries of a KV head are worked on four, two or one at a time: f(count as a constant, first query).
    template <class F>
    void by_fours(const F& f) const {
        long g = 0;
        for (; g + 4 <= group; g += 4) f(Number<4>(), g);
        for (; g + 2 <= group; g += 2) f(Number<2>(), g);
        for (; g < group; g++) f(Number<1>(), g);
    }

    // Heads [begin, end) of a sequence that computes one token.
    void decode_one(long sequence, long chunk, long begin, long end, char* scratch) const {
        const long length = job.step.lengths[sequence], token = job.first_row(sequence);
        long from = chunk * CHUNK, to = from + CHUNK < length ? from + CHUNK : length;
        const long first = job.first_key(length - 1);
        if (from < first) from = first;
        const elem* rows[CHUNK];
        const long n = to - from, heads = (end - begin) * group;
        for (long k = 0; k < n; k++) rows[k] = row_of(job.k_pool, sequence, from + k, 0);
        float (*s)[CHUNK] = (float (*)[CHUNK])scratch;
        quer* weights = (quer*)(s + heads);
        float *sums = (float*)(weights + heads * CHUNK), *most = sums + heads * stride(), *total = most + heads;
        const quer* q = queries + (token * job.shape.heads + begin * group) * dim;
        for (long k = 0; k < n; k += LANES / 4)
            for (long head = begin; head < end; head++)
                by_fours([&](auto count, long g) {
                    constexpr int G = decltype(count)::value;
                    const long h = (head - begin) * group + g;
                    if (k % (LANES / G) == 0) dots<G>(rows, k, n, head, q + h * dim, s + h);
                });
        for (long h = 0; h < heads; h++) {
            most[h] = -INFINITY;
            // Values are added 8 at a time: what is missing has weights of 0.
            total[h] = weigh(s[h], (n + 15) / 16 * 16, 0, n, most[h], weights + h * CHUNK);
            for (long i = 0; i < stride(); i += LANES) write_as(sums + h * stride() + i, vf{});
        }
        const long shift = (const elem*)job.v_pool - (const elem*)job.k_pool;
        for (long k = 0; k < n; k++) rows[k] += shift;
        for (long k = 0; k < n; k += 8)
            for (long head = begin; head < end; head++)
                by_fours([&](auto count, long g) {
                    const long h = (head - begin) * group + g;
                    add<decltype(count)::value>(rows, k, n, head, weights + h * CHUNK, sums + h * stride());
                });
        for (long h = 0; h < heads; h++) {
            if constexpr (P::depth == 2) P::put_in_order(sums + h * stride(), stride());
            keep(sequence, chunk, begin * group + h, sums + h * stride(), most[h], total[h]);
        }
    }
};

}  // namespace
}  // namespace QCPU_ISA
}  // namespace qcpu
