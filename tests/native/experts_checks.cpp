// Checks mixtures of experts of the compiled kernels against plain loops over what was packed, like driver.cpp, which
// calls this.
#include <math.h>
#include <stdint.h>
#include <stdio.h>

#include <algorithm>
#include <vector>

#include "products.h"

using namespace qcpu;

struct Experts {
    Matrix gate_up, down;
    int64_t count, top_k, dtype;
};

extern "C" {
void qcpu_put(const Matrix*, long, long, const void*, long, int);
void qcpu_route(const void*, long, long, long, int, int, float*, int32_t*);
void qcpu_experts(const Experts*, const void*, const int32_t*, const float*, long, void*);
}

namespace {

// A packed matrix, and what it holds as floats.
struct Packed {
    std::vector<uint8_t> memory;
    Matrix matrix;
    std::vector<float> kept;

    Packed(long outputs, long inputs, int format, int dtype) : matrix{nullptr, outputs, inputs, format, 32, FLOATS, 0, 8} {
        memory = memory_for(matrix);
        Values values(dtype, outputs * inputs);
        for (long i = 0; i < outputs * inputs; i++) values.set(i, values.at(i) / sqrtf(float(inputs)));
        qcpu_put(&matrix, 0, outputs, values.data, inputs, dtype);
        kept = values_of(matrix);
    }
    double product(long row, const std::vector<double>& x) const {
        double sum = 0;
        for (size_t k = 0; k < x.size(); k++) sum += x[k] * kept[size_t(row) * x.size() + k];
        return sum;
    }
};

void check(const char* set, int format) {
    const int dtype = format == BFLOAT16 ? 1 : format == FLOAT32 ? 0 : int(next() % 2);
    const long count = between(1, 6), top_k = between(1, std::min(count, 3L)), tokens = between(1, 20);
    const long hidden = 32 * between(1, 4), inner = 32 * between(1, 3);
    const Packed gate_up(count * 2 * inner, hidden, format, dtype), down(count * hidden, inner, format, dtype);
    const Values x(dtype, tokens * hidden), logits(dtype, tokens * count), out(dtype, tokens * hidden);
    std::vector<float> weights(size_t(tokens * top_k));
    std::vector<int32_t> ids(size_t(tokens * top_k));
    qcpu_route(logits.data, tokens, count, top_k, 1, dtype, weights.data(), ids.data());
    const Experts experts{gate_up.matrix, down.matrix, count, top_k, dtype};
    qcpu_experts(&experts, x.data, ids.data(), weights.data(), tokens, out.data);
    for (long t = 0; t < tokens; t++) {
        std::vector<double> token, sums(size_t(hidden), 0.0);
        for (long i = 0; i < hidden; i++) token.push_back(x.at(t * hidden + i));
        float total = 0;
        for (long slot = t * top_k; slot < (t + 1) * top_k; slot++) {
            const long expert = ids[size_t(slot)];
            total += weights[size_t(slot)];
            std::vector<double> made;
            for (long i = 0; i < inner; i++) {
                const double gate = gate_up.product(expert * 2 * inner + i, token);
                made.push_back(gate / (1 + exp(-gate)) * gate_up.product((expert * 2 + 1) * inner + i, token));
            }
            for (long i = 0; i < hidden; i++) sums[size_t(i)] += weights[size_t(slot)] * down.product(expert * hidden + i, made);
        }
        for (long i = 0; i < hidden; i++) {
            const double got = out.at(t * hidden + i), want = sums[size_t(i)];
            const double slack = format == FLOAT32 ? 1e-4 : 0.06 + 0.03 * fabs(want);
            if (fabs(got - want) <= slack && fabsf(total - 1) < 1e-4f) continue;
            if (failures++ < 20) printf("%s experts, format %d: is %g, not %g\n", set, format, got, want);
        }
    }
}

}  // namespace

void check_experts(const char* set, long rounds) {
    for (long i = 0; i < rounds; i++)
        for (int format = FLOAT32; format <= INT4; format++) check(set, format);
}
