// What all of attention does with a head: norm and rotate it, write its pages, make weights of scores, keep the sums of
// chunks and add them up. For attention.cpp.
#pragma once

#include "../attention.h"

#include "../tiles.h"

namespace qcpu {
namespace QCPU_ISA {
namespace {

// T: how numbers lie in the pools and the result. P: how tiles are multiplied.
template <class T, class P>
struct Core {
    using elem = typename T::elem;
    using quer = typename P::elem;  // queries and weights, as tiles want them
    using pack = typename P::pack;

    const AttentionJob& job;
    quer* const queries;
    const long dim, group, padded, key_stride;

    explicit Core(const AttentionJob& j)
        : job(j), queries((quer*)j.queries), dim(j.shape.head_dim), group(j.group()), padded(j.padded()),
          key_stride(j.shape.kv_heads * dim) {}

    const elem* row_of(const void* pool, long sequence, long position, long head) const {
        const long page = job.step.pages[sequence * job.step.table_stride + position / job.step.page_size];
        const long slot = page * job.step.page_size + position % job.step.page_size;
        return (const elem*)pool + slot * key_stride + head * dim;
    }

    // ---- preparing: norm and rotate heads, write pages

    void norm(float* x, const void* weight) const {
        vf squares{};
        for (long i = 0; i < dim; i += LANES) {
            vf v = read_as<vf>(x + i);
            squares += v * v;
        }
        const float scale = 1.0f / sqrtf(sum(squares) / dim + (float)job.shape.norm_eps);
        for (long i = 0; i < dim; i += LANES) {
            vf w = load_upto<T>((const elem*)weight + i, dim - i);
            write_as(x + i, read_as<vf>(x + i) * scale * w);
        }
    }

    void rotate(float* x, const float* table) const {
        const long half = job.shape.rotary_dim / 2;
        long i = 0;
        for (; i + LANES <= half; i += LANES) {
            vf a = read_as<vf>(x + i), b = read_as<vf>(x + half + i);
            vf cosine = read_as<vf>(table + i), sine = read_as<vf>(table + half + i);
            write_as(x + i, a * cosine - b * sine);
            write_as(x + half + i, b * cosine + a * sine);
        }
        for (; i < half; i++) {
            const float a = x[i], b = x[half + i];
            x[i] = a * table[i] - b * table[half + i];
            x[half + i] = b * table[i] + a * table[half + i];
        }
    }

    void prepare(long token) const {
        alignas(64) float x[MAX_HEAD_DIM + LANES];
        const long heads = job.shape.heads, kv_heads = job.shape.kv_heads;
        const elem* from = (const elem*)job.qkv + token * (heads + 2 * kv_heads) * dim;
        elem* key = (elem*)job.k_pool + job.step.slots[token] * key_stride;
        elem* value = (elem*)job.v_pool + job.step.slots[token] * key_stride;
        const float* table = job.table + job.step.positions[token] * job.shape.rotary_dim;
        const long row = job.last ? job.rows[token] : token;
        for (long head = row < 0 ? heads : 0; head < heads + kv_heads; head++) {
            for (long i = 0; i < dim; i += LANES) write_as(x + i, load_upto<T>(from + head * dim + i, dim - i));
            if (job.shape.has_norm) norm(x, head < heads ? job.q_norm : job.k_norm);
            rotate(x, table);
            if (head < heads) {
                quer* to = queries + (row * heads + head) * dim;
                if constexpr (P::depth == 1) memcpy(to, x, dim * sizeof(float));
                else
                    for (long i = 0; i < dim; i += LANES) store_upto<T>(to + i, read_as<vf>(x + i), dim - i);
            } else {
                elem* to = key + (head - heads) * dim;
                for (long i = 0; i < dim; i += LANES) store_upto<T>(to + i, read_as<vf>(x + i), dim - i);
            }
        }
        memcpy(value, from + (heads + kv_heads) * dim, key_stride * sizeof(elem));
    }

    // ---- scores to weights

    // Scores s[0, n) of the keys [low, high) become weights, e to the (bounded score - maximum), and zeros elsewhere.
    // `most` is the maximum so far, in powers of two, and grows; returns the sum of the weights.
    float weigh(float* s, long n, long low, long high, float& most, quer* weights) const {
        const float scale = job.shape.scale, cap = job.shape.soft_cap;
        const float unit = (cap == 0 ? scale : cap) * 1.44269504f;
        if (cap != 0)
            for (long k = 0; k < n; k += LANES) write_as(s + k, hyperbolic_tangent(read_as<vf>(s + k) * (scale / cap)));
        // Only the ends can hold keys that are not seen.
        for (long k = 0; k < n; k += LANES) {
            if (k >= low && k + LANES <= high) continue;
            const vi at = ramp() + (int32_t)k;
            write_as(s + k, pick((at >= (int32_t)low) & (at < (int32_t)high), read_as<vf>(s + k), splat(-INFINITY)));
        }
        vf top = splat(-INFINITY);
        for (long k = 0; k < n; k += LANES) top = larger(read_as<vf>(s + k), top);
        const float found = largest(top) * unit;
        if (found > most) most = found;
        const float base = most == -INFINITY ? 0.0f : most;
        vf total{};
        for (long k = 0; k < n; k += LANES) {
            const vf w = power_of_two(read_as<vf>(s + k) * unit - base);
            total += w;
            P::put(weights + k, w);
        }
        return sum(total);
    }

    // ---- the sums of chunks

    // A chunk's sums: the result itself where there is no other chunk, else a part of it.
    void keep(long sequence, long chunk, long head, const float* sums, float most, float weight) const {
        if (job.first_part[sequence] < 0) {
            finish(job.first_row(sequence), head, sums, weight);
            return;
        }
        const long part = job.first_part[sequence] + chunk - job.first_chunk[sequence];
        float* to = job.parts + (part * job.shape.heads + head) * (padded + 2);
        memcpy(to, sums, padded * sizeof(float));
        to[padded] = most;
        to[padded + 1] = weight;
    }

    void finish(long token, long head, const float* sums, float weight) const {
        elem* to = (elem*)job.out + (token * job.shape.heads + head) * dim;
        const float scale = weight > 0 || weight != weight ? 1.0f / weight : 0.0f;
        for (long i = 0; i < dim; i += LANES) store_upto<T>(to + i, read_as<vf>(sums + i) * scale, dim - i);
    }

    // All chunks of a KV head of a sequence are there: add them up, in their order.
    void merge(long sequence, long kv_head) const {
        alignas(64) float sums[MAX_HEAD_DIM + LANES];
        const long count = job.chunks[sequence], stride = job.shape.heads * (padded + 2);
        for (long head = kv_head * group; head < (kv_head + 1) * group; head++) {
            const float* part = job.parts + (job.first_part[sequence] * job.shape.heads + head) * (padded + 2);
            float most = -INFINITY, weight = 0;
            for (long c = 0; c < count; c++)
                if (part[c * stride + padded] > most) most = part[c * stride + padded];
            for (long i = 0; i < padded; i += LANES) write_as(sums + i, vf{});
            for (long c = 0; c < count; c++) {
                const float* p = part + c * stride;
                const float share = exp2f(p[padded] - most);
                weight += share * p[padded + 1];
                for (long i = 0; i < padded; i += LANES)
                    write_as(sums + i, read_as<vf>(sums + i) + read_as<vf>(p + i) * share);
            }
            finish(job.first_row(sequence), head, sums, weight);
        }
    }
};

}  // namespace
}  // namespace QCPU_ISA
}  // namespace qcpu
