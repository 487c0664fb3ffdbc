// Checks attention, norms, gates and the greedy draw of the compiled kernels against the plainest loops, like driver.cpp,
// which calls this.
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#include <vector>

#include "attention.h"
#include "pool.h"
#include "values.h"

using namespace qcpu;

extern "C" {
void qcpu_norm(const void*, const void*, const void*, void*, void*, long, long, double, double, int);
void qcpu_gate(const void*, void*, long, long, int, int);
void qcpu_greedy(const void*, int64_t*, long, long, long, int);
}

namespace {

void same(const char* set, const char* what, int dtype, double got, double want) {
    const double slack = dtype ? 0.04 + 0.02 * fabs(want) : 2e-5 + 1e-4 * fabs(want);
    if (fabs(got - want) <= slack) return;
    if (failures++ < 20) printf("%s %s, dtype %d: is %g, not %g\n", set, what, dtype, got, want);
}

// A head as attention takes it: normed, rotated.
std::vector<double> prepared(const AttentionShape& s, const Values& x, long at, const Values* weight, const float* turn) {
    std::vector<double> v;
    double squares = 0;
    for (long i = 0; i < s.head_dim; i++) v.push_back(x.at(at + i)), squares += v.back() * v.back();
    if (weight)
        for (long i = 0; i < s.head_dim; i++) v[i] *= weight->at(i) / sqrt(squares / s.head_dim + s.norm_eps);
    const long half = s.rotary_dim / 2;
    for (long i = 0; i < half; i++) {
        const double a = v[i], b = v[half + i];
        v[i] = a * turn[i] - b * turn[half + i];
        v[half + i] = b * turn[i] + a * turn[half + i];
    }
    return v;
}

struct Attention {
    AttentionShape shape{};
    AttentionStep step{};
    std::vector<int64_t> positions, slots;
    std::vector<int32_t> starts{0}, lengths, pages;

    // Sequences that begin with `shared` pages that they have in common, or with none.
    Attention(int dtype) {
        const long kv_heads = between(1, 3), group = between(1, 5), sizes[] = {1, 5, 16, 64, 300};
        shape = {kv_heads * group, kv_heads, 2 * between(1, 70), 0, 0, long(next() % 2), dtype, long(next() % 2), 0.2, 0, 1e-6};
        shape.rotary_dim = 2 * between(1, shape.head_dim / 2);
        if (next() % 3 == 0) shape.window = between(1, 400);
        if (next() % 3 == 0) shape.soft_cap = 2;
        step.page_size = sizes[next() % 5];
        const long count = between(1, 5), shared = next() % 2 ? 256 / step.page_size * between(1, 2) : 0;
        step.table_stride = 2000 / step.page_size + 2;
        long page = shared + 1;
        pages.assign(size_t(count * step.table_stride), 0);
        for (long i = 0; i < count; i++) {
            const long queries = next() % 2 ? 1 : between(1, 90);
            const long past = shared * step.page_size + between(0, next() % 2 ? 3 : 300), length = past + queries;
            for (long p = 0; p * step.page_size < length; p++)
                pages[size_t(i * step.table_stride + p)] = int32_t(p < shared ? p + 1 : page++);
            for (long t = past; t < length; t++) {
                positions.push_back(t);
                slots.push_back(slot(i, t));
            }
            starts.push_back(starts.back() + int32_t(queries));
            lengths.push_back(int32_t(length));
        }
        pool_slots = page * step.page_size;
        step = {positions.data(), slots.data(), starts.data(), lengths.data(), pages.data(), long(positions.size()),
                count, step.table_stride, step.page_size};
    }

    long pool_slots;

    long slot(long i, long t) const {
        return pages[size_t(i * step.table_stride + t / step.page_size)] * step.page_size + t % step.page_size;
    }
};

void check_attention(const char* set, int dtype) {
    const Attention a(dtype);
    const AttentionShape& s = a.shape;
    const long width = (s.heads + 2 * s.kv_heads) * s.head_dim, row = s.kv_heads * s.head_dim;
    const Values qkv(dtype, a.step.tokens * width), q_norm(dtype, s.head_dim), k_norm(dtype, s.head_dim);
    Values keys(dtype, a.pool_slots * row), values(dtype, a.pool_slots * row), out(dtype, a.step.tokens * s.heads * s.head_dim);
    std::vector<float> table;
    for (long t = 0; t < 2000; t++)
        for (long i = 0; i < s.rotary_dim; i++)
            table.push_back(i < s.rotary_dim / 2 ? cosf(t * 0.1f / (i + 1)) : sinf(t * 0.1f / (i + 1 - s.rotary_dim / 2)));
    AttentionJob job{};
    job.shape = s, job.step = a.step, job.qkv = qkv.data, job.table = table.data();
    job.q_norm = q_norm.data, job.k_norm = k_norm.data, job.k_pool = keys.data, job.v_pool = values.data, job.out = out.data;
    job.last = next() % 3 == 0;
    {
        Turn turn;
        attend(job);
    }

    const long group = s.heads / s.kv_heads;
    for (long i = 0; i < a.step.sequences; i++)
        for (long token = a.starts[i]; token < a.starts[i + 1]; token++) {
            const long head = between(0, s.heads - 1), kv = head / group, position = a.positions[token];
            const float* turn = &table[size_t(position * s.rotary_dim)];
            const auto q = prepared(s, qkv, token * width + head * s.head_dim, s.has_norm ? &q_norm : nullptr, turn);
            const auto k = prepared(s, qkv, token * width + (s.heads + kv) * s.head_dim, s.has_norm ? &k_norm : nullptr, turn);
            for (long d = 0; d < s.head_dim; d++) {
                same(set, "a key in its page", dtype, keys.at(a.slots[token] * row + kv * s.head_dim + d), k[d]);
                same(set, "a value in its page", dtype, values.at(a.slots[token] * row + kv * s.head_dim + d),
                     qkv.at(token * width + (s.heads + s.kv_heads + kv) * s.head_dim + d));
            }
            if (job.last && token + 1 < a.starts[i + 1]) continue;
            std::vector<double> sums(size_t(s.head_dim), 0.0);
            double total = 0;
            for (long t = s.window && position >= s.window ? position + 1 - s.window : 0; t <= position; t++) {
                const long at = a.slot(i, t) * row + kv * s.head_dim;
                double score = 0;
                for (long d = 0; d < s.head_dim; d++) score += q[d] * keys.at(at + d);
                score *= s.scale;
                if (s.soft_cap > 0) score = s.soft_cap * tanh(score / s.soft_cap);
                const double weight = exp(score - 20);
                total += weight;
                for (long d = 0; d < s.head_dim; d++) sums[d] += weight * values.at(at + d);
            }
            for (long d = 0; d < s.head_dim; d++)
                same(set, job.last ? "attention of a last token" : "attention", dtype,
                     out.at(((job.last ? i : token) * s.heads + head) * s.head_dim + d), sums[d] / total);
        }
}

void check_rows(const char* set, int dtype) {
    const long rows = between(1, 40), size = between(1, 1100), inner = between(1, 600), vocab = between(1, 40000);
    const Values x(dtype, rows * size), delta(dtype, rows * size), weight(dtype, size), gate(dtype, rows * 2 * inner);
    Values normed(dtype, rows * size), total(dtype, rows * size), gated(dtype, rows * inner), logits(dtype, 2 * vocab);
    qcpu_norm(x.data, delta.data, weight.data, normed.data, total.data, rows, size, 1e-6, 1.0, dtype);
    qcpu_gate(gate.data, gated.data, rows, inner, 0, dtype);
    for (long r = 0; r < rows; r++) {
        double squares = 0;
        for (long i = 0; i < size; i++) squares += double(total.at(r * size + i)) * total.at(r * size + i);
        for (long i = r * size; i < (r + 1) * size; i++) {
            same(set, "a sum", dtype, total.at(i), x.at(i) + delta.at(i));
            same(set, "a norm", dtype, normed.at(i), total.at(i) / sqrt(squares / size + 1e-6) * (1 + weight.at(i % size)));
        }
        for (long i = 0; i < inner; i++) {
            const double g = gate.at(r * 2 * inner + i);
            same(set, "a gate", dtype, gated.at(r * inner + i), g / (1 + exp(-g)) * gate.at(r * 2 * inner + inner + i));
        }
    }
    logits.set(between(0, vocab - 1), 9);
    logits.set(vocab + between(0, vocab - 1), NAN);
    int64_t drawn[4];
    qcpu_greedy(logits.data, drawn, 2, vocab, vocab, dtype);
    same(set, "the largest logit", 0, logits.at(drawn[0]), 9);
    same(set, "a row with NaN", 0, double(drawn[1] * 4 + drawn[2] * 2 + drawn[3]), 1);
}

}  // namespace

void check_step(const char* set, long rounds) {
    for (long i = 0; i < rounds; i++)
        for (int dtype = 0; dtype < 2; dtype++) check_attention(set, dtype), check_rows(set, dtype);
}
