// Mixture of experts: tokens sorted by expert, each expert's gated feed-forward on its own tokens, and their weighted
// sums. See quire/ops/stored_moe.py.
#include <math.h>
#include <string.h>

#include "bfloat16.h"
#include "isa.h"
#include "linear.h"
#include "pool.h"
#include "rows.h"

namespace qcpu {

// Mirrored in quire/kernels/cpu/experts.py. The experts' rows follow each other: each has a share of whole panels.
struct Experts {
    Matrix gate_up, down;
    int64_t count, top_k, dtype;
};

namespace {

Matrix of_expert(const Matrix& all, long count, long expert) {
    Matrix one = all;
    one.outputs = all.outputs / count;
    one.data = all.data + expert * panels(one) * panel_bytes(one);
    return one;
}

template <class T>
T* carve(char*& memory, long count) {
    T* const taken = reinterpret_cast<T*>(memory);
    memory += (count * (long)sizeof(T) + 63) / 64 * 64;
    return taken;
}

float value(const void* p, long at, int dtype) {
    return dtype ? from_bfloat16(((const uint16_t*)p)[at]) : ((const float*)p)[at];
}

struct ExpertsRun {
    const Experts& experts;
    const long tokens, entries, hidden, inner, item;
    // Entry i of those sorted by expert is slot order[i] of all tokens' slots; places[] is the other way round.
    int32_t *order, *places;
    long* begins;
    char *read, *product, *gated, *made;

    void sort(const int32_t* ids) const {
        memset(begins, 0, (experts.count + 1) * sizeof *begins);
        for (long i = 0; i < entries; i++) begins[ids[i] + 1]++;
        for (long e = 0; e < experts.count; e++) begins[e + 1] += begins[e];
        for (long i = 0; i < entries; i++) order[places[i] = (int32_t)begins[ids[i]]++] = (int32_t)i;
        // Each has moved to the beginning of the next.
        for (long e = experts.count; e > 0; e--) begins[e] = begins[e - 1];
        begins[0] = 0;
    }

    void expert(long number, const char* x) const {
        const long first = begins[number], rows = begins[number + 1] - first;
        if (!rows) return;
        const char* from = x + order[first] / experts.top_k * hidden * item;
        if (rows > 1) {
            for (long i = 0; i < rows; i++)
                memcpy(read + i * hidden * item, x + order[first + i] / experts.top_k * hidden * item, hidden * item);
            from = read;
        }
        const int dtype = (int)experts.dtype;
        linear(of_expert(experts.gate_up, experts.count, number), {from, hidden, rows, product, 2 * inner, dtype}, nullptr);
        gate({product, gated, inner, 0, dtype}, rows);
        char* const to = made + first * hidden * item;
        linear(of_expert(experts.down, experts.count, number), {gated, inner, rows, to, hidden, dtype}, nullptr);
    }

    // What a token's experts made, added up in the order of its slots.
    void add_up(long token, const float* weights, void* out) const {
        const long k = experts.top_k, at_once = 256;
        const int dtype = (int)experts.dtype;
        for (long first = 0; first < hidden; first += at_once) {
            const long count = hidden - first < at_once ? hidden - first : at_once;
            float sums[at_once] = {};
            for (long slot = token * k; slot < (token + 1) * k; slot++)
                for (long i = 0; i < count; i++)
                    sums[i] += weights[slot] * value(made, places[slot] * hidden + first + i, dtype);
            for (long i = 0; i < count; i++) {
                const long at = token * hidden + first + i;
                if (dtype) ((uint16_t*)out)[at] = to_bfloat16(sums[i]);
                else ((float*)out)[at] = sums[i];
            }
        }
    }
};

}  // namespace
}  // namespace qcpu

// out[tokens, hidden]: for each token the sum over its top_k experts `ids` of weights * down(silu(gate(x)) * up(x)).
QCPU_API void qcpu_experts(const qcpu::Experts* experts, const void* x, const int32_t* ids, const float* weights,
                           long tokens, void* out) {
    using namespace qcpu;
    Turn turn;
    const long entries = tokens * experts->top_k, item = experts->dtype ? 2 : 4;
    const long hidden = experts->gate_up.inputs, inner = experts->down.inputs;
    ExpertsRun run{*experts, tokens, entries, hidden, inner, item};
    const long whole = entries * (8 + (2 * hidden + 3 * inner) * item) + (experts->count + 1) * 8 + 7 * 64;
    char* memory = (char*)scratch(EXPERTS, whole);
    run.order = carve<int32_t>(memory, entries);
    run.places = carve<int32_t>(memory, entries);
    run.begins = carve<long>(memory, experts->count + 1);
    run.read = carve<char>(memory, entries * hidden * item);
    run.product = carve<char>(memory, entries * 2 * inner * item);
    run.gated = carve<char>(memory, entries * inner * item);
    run.made = carve<char>(memory, entries * hidden * item);
    run.sort(ids);
    for (long e = 0; e < experts->count; e++) run.expert(e, (const char*)x);
    const long step = tokens / 60000 + 1;
    parallel_for((tokens + step - 1) / step, [&](long part, int) {
        for (long t = part * step; t < (part + 1) * step && t < tokens; t++) run.add_up(t, weights, out);
    });
}

// The top_k experts of each token, best first and of equals the lower number, and their weights: a softmax over all
// experts, made to sum to 1 where `normalize`. logits (tokens, experts) are float (0) or bfloat16 (1).
QCPU_API void qcpu_route(const void* logits, long tokens, long experts, long top_k, int normalize, int dtype,
                         float* weights, int32_t* ids) {
    using namespace qcpu;
    for (long t = 0; t < tokens; t++, weights += top_k, ids += top_k) {
        float top = -INFINITY, all = 0, chosen = 0;
        for (long e = 0; e < experts; e++) top = fmaxf(top, value(logits, t * experts + e, dtype));
        long count = 0;
        for (long e = 0; e < experts; e++) {
            const float logit = value(logits, t * experts + e, dtype);
            all += expf(logit - top);
            if (count == top_k && !(logit > weights[count - 1])) continue;
            long at = count < top_k ? count++ : count - 1;
            for (; at > 0 && weights[at - 1] < logit; at--) weights[at] = weights[at - 1], ids[at] = ids[at - 1];
            weights[at] = logit;
            ids[at] = (int32_t)e;
        }
        for (long i = 0; i < top_k; i++) chosen += weights[i] = expf(weights[i] - top) / all;
        for (long i = 0; normalize && i < top_k; i++) weights[i] /= chosen;
    }
}
