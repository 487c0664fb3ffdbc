// Norms, gates and the largest logit, for one instruction set.
#include "../rows.h"

#include "../simd.h"

namespace qcpu {
namespace QCPU_ISA {
extern const RowsTable rows_table;
namespace {

// RMS norm of residual + delta, rounded to its dtype before it is normed. Zhang and Sennrich, 2019.
template <class T>
void norm_rows(const NormJob& job, long first, long last) {
    using elem = typename T::elem;
    const elem* weight = (const elem*)job.weight;
    const long size = job.size;
    for (long row = first; row < last; row++) {
        const elem* x = (const elem*)job.residual + row * size;
        if (job.delta) {
            const elem* delta = (const elem*)job.delta + row * size;
            elem* total = (elem*)job.total + row * size;
            for (long i = 0; i < size; i += LANES)
                store_upto<T>(total + i, load_upto<T>(x + i, size - i) + load_upto<T>(delta + i, size - i), size - i);
            x = total;
        }
        vf squares{};
        for (long i = 0; i < size; i += LANES) {
            const vf v = load_upto<T>(x + i, size - i);
            squares += v * v;
        }
        const float scale = 1.0f / sqrtf(sum(squares) / size + job.eps);
        elem* out = (elem*)job.normed + row * size;
        for (long i = 0; i < size; i += LANES) {
            const vf v = load_upto<T>(x + i, size - i) * scale;
            store_upto<T>(out + i, v * (load_upto<T>(weight + i, size - i) + job.offset), size - i);
        }
    }
}

void norm(const NormJob& job, long first, long last) {
    if (job.dtype) norm_rows<Halves>(job, first, last);
    else norm_rows<Floats>(job, first, last);
}

INLINE vf silu(vf x) { return x / (1.0f + exponential(-x)); }

INLINE vf gelu(vf x) {
    const vf inner = 0.7978845608f * (x + 0.044715f * x * x * x);
    return 0.5f * x * (1.0f + hyperbolic_tangent(inner));
}

template <class T>
void gate_rows(const GateJob& job, long first, long last) {
    using elem = typename T::elem;
    const long inner = job.inner;
    for (long row = first; row < last; row++) {
        const elem *gate = (const elem*)job.gate_up + row * 2 * inner, *up = gate + inner;
        elem* out = (elem*)job.out + row * inner;
        for (long i = 0; i < inner; i += LANES) {
            const vf g = load_upto<T>(gate + i, inner - i), u = load_upto<T>(up + i, inner - i);
            store_upto<T>(out + i, (job.gelu ? gelu(g) : silu(g)) * u, inner - i);
        }
    }
}

void gate(const GateJob& job, long first, long last) {
    if (job.dtype) gate_rows<Halves>(job, first, last);
    else gate_rows<Floats>(job, first, last);
}

template <class T>
Largest largest_of(const typename T::elem* p, long count) {
    // Neighbouring vectors are looked at apart, so that none waits for what became of the one before.
    const int STREAMS = 4;
    vf top[STREAMS];
    vi where[STREAMS] = {}, spoiled{};  // in each lane: which vector its largest value came from, the first of equals
    for (vf& one : top) one = splat(-INFINITY);
    long i = 0;
    for (; i + STREAMS * LANES <= count; i += STREAMS * LANES)
        for (int s = 0; s < STREAMS; s++) {
            const vf v = T::load(p + i + s * LANES);
            const vi more = v > top[s];
            top[s] = pick(more, v, top[s]);
            where[s] = more ? splat_int((int32_t)i + s * LANES) : where[s];
            spoiled |= v != v;
        }
    Largest found{-INFINITY, 0, 0};
    const auto look = [&](float v, long at) {
        if (v > found.value || (v == found.value && at < found.at)) found.value = v, found.at = at;
    };
    for (int s = 0; s < STREAMS; s++)
        for (int lane = 0; lane < LANES; lane++) look(top[s][lane], where[s][lane] + lane);
    found.spoiled = any(spoiled);
    for (; i < count; i++) {
        const float v = T::wide(p[i]);
        look(v, i);
        found.spoiled |= v != v;
    }
    return found;
}

Largest largest_logit(const void* logits, long count, int dtype) {
    return dtype ? largest_of<Halves>((const uint16_t*)logits, count) : largest_of<Floats>((const float*)logits, count);
}

}  // namespace

const RowsTable rows_table{norm, gate, largest_logit};

}  // namespace QCPU_ISA
}  // namespace qcpu
