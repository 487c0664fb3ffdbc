// A whole layer of a decoder in one call: norm, attention, norm, gated feed-forward.
#include <string.h>

#include "attention.h"
#include "isa.h"
#include "linear.h"
#include "pool.h"
#include "rows.h"

namespace qcpu {

// A product's weights, whose outputs lie side by side, and their bias, which may be null.
struct LayerProduct {
    const Matrix* weights;
    long count, inputs, outputs;
    const void* bias;
};

struct LayerNorm {
    const void* weight;
    double eps, offset;
};

// Mirrored in quire/kernels/cpu/layer.py.
struct Layer {
    LayerProduct qkv, out, gate_up, down;
    LayerNorm before_attention, before_mlp;
    AttentionShape attention;
    const float* table;  // of rotations
    const void *q_norm, *k_norm;
    int64_t gelu, dtype;
};

namespace {

struct LayerRun {
    const Layer& layer;
    const long rows;
    const int dtype;

    // result[rows, outputs] of rows that lie one after another.
    void product(const LayerProduct& p, const void* x, void* result) const {
        const long item = dtype ? 2 : 4;
        for (long i = 0, first = 0; i < p.count; first += p.weights[i++].outputs) {
            const void* const bias = p.bias ? (const char*)p.bias + first * item : nullptr;
            linear(p.weights[i], {x, p.inputs, rows, (char*)result + first * item, p.outputs, dtype}, bias);
        }
    }

    void normed(const LayerNorm& n, const void* residual, const void* delta, void* result, void* total) const {
        const long size = layer.qkv.inputs;
        norm({residual, delta, n.weight, result, total, size, (float)n.eps, (float)n.offset, dtype}, rows);
    }
};

// The rows, of `size` bytes, of each sequence's last token; anything for one without tokens.
const void* gather_last(const AttentionStep& step, const void* rows, long size, void* out) {
    for (long i = 0; i < step.sequences; i++) {
        const long token = step.query_start[i + 1] > 0 ? step.query_start[i + 1] - 1 : 0;
        memcpy((char*)out + i * size, (const char*)rows + token * size, size_t(size));
    }
    return out;
}

}  // namespace
}  // namespace qcpu

// residual + delta, through a layer: `total` is what is added up so far and `added` what the layer would add last, both
// (tokens, hidden), or with `last` of each sequence's last token alone, (sequences, hidden). delta may be null. See
// quire/ops/layer.py.
QCPU_API void qcpu_layer(const qcpu::Layer* layer, const qcpu::AttentionStep* step, const void* residual,
                         const void* delta, void* k_pool, void* v_pool, void* total, void* added, int last) {
    using namespace qcpu;
    Turn turn;
    const LayerRun all{*layer, step->tokens, (int)layer->dtype};
    const LayerRun run{*layer, last ? step->sequences : step->tokens, (int)layer->dtype};
    const long item = layer->dtype ? 2 : 4, hidden = layer->qkv.inputs, inner = layer->down.inputs;
    const long attended = layer->out.inputs, fused = layer->qkv.outputs, both = layer->gate_up.outputs;
    const long wide = (fused > both ? fused : both) * item, narrow = (attended > inner ? attended : inner) * item;
    const long most = all.rows > run.rows ? all.rows : run.rows;
    char* const normed = (char*)scratch(ROWS, most * (2 * hidden * item + wide + narrow));
    char* const sum = normed + most * hidden * item;
    char* const product = sum + most * hidden * item;
    char* const made = product + most * wide;

    all.normed(layer->before_attention, residual, delta, normed, sum);
    all.product(layer->qkv, normed, product);
    AttentionJob job{};
    job.shape = layer->attention;
    job.step = *step;
    job.qkv = product;
    job.table = layer->table;
    job.q_norm = layer->q_norm;
    job.k_norm = layer->k_norm;
    job.k_pool = k_pool;
    job.v_pool = v_pool;
    job.last = last;
    job.out = made;
    attend(job);
    run.product(layer->out, made, added);
    const void* before = delta ? sum : residual;
    if (last) before = gather_last(*step, before, hidden * item, total);
    run.normed(layer->before_mlp, before, added, normed, total);
    run.product(layer->gate_up, normed, product);
    gate({product, made, inner, (int)layer->gelu, run.dtype}, run.rows);
    run.product(layer->down, made, added);
}
