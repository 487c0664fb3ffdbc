// Hands rows of activations to the threads; see rows.h and quire/ops/{norm,activation,greedy}.py.
#include "rows.h"

#include "isa.h"
#include "pool.h"

QCPU_TABLES(RowsTable, rows_table)

namespace qcpu {
namespace {

const long WORTH = 32768;  // values that are worth waking another thread for

// body(first row, last row), side by side where there is enough to do.
template <class F>
void by_rows(long rows, long size, const F& body) {
    const long block = WORTH / 2 / size + rows / 16384 + 1;
    if (rows * size < WORTH) return body(0, rows);
    parallel_for((rows + block - 1) / block, [&](long part, int) {
        const long last = (part + 1) * block;
        body(part * block, last < rows ? last : rows);
    });
}

}  // namespace

void norm(const NormJob& job, long rows) {
    const auto run = the_rows_table().norm;
    by_rows(rows, job.size, [&](long first, long last) { run(job, first, last); });
}

void gate(const GateJob& job, long rows) {
    const auto run = the_rows_table().gate;
    by_rows(rows, job.inner * 4, [&](long first, long last) { run(job, first, last); });
}

}  // namespace qcpu

// normed = RMS norm of residual + delta, total = residual + delta; see NormJob.
QCPU_API void qcpu_norm(const void* residual, const void* delta, const void* weight, void* normed, void* total,
                        long rows, long size, double eps, double offset, int dtype) {
    qcpu::Turn turn;
    qcpu::norm({residual, delta, weight, normed, total, size, (float)eps, (float)offset, dtype}, rows);
}

// out = activation(gate) * up; see GateJob.
QCPU_API void qcpu_gate(const void* gate_up, void* out, long rows, long inner, int gelu, int dtype) {
    qcpu::Turn turn;
    qcpu::gate({gate_up, out, inner, gelu, dtype}, rows);
}

// The most probable token of each row, stride values apart, and 1 where the largest logit is not finite: drawn (2, rows).
QCPU_API void qcpu_greedy(const void* logits, int64_t* drawn, long rows, long vocab, long stride, int dtype) {
    using namespace qcpu;
    Turn turn;
    const auto run = the_rows_table().largest;
    const long block = 16384, blocks = (vocab + block - 1) / block, size = dtype ? 2 : 4;
    Largest* found = (Largest*)scratch(SAMPLING, rows * blocks * (long)sizeof(Largest));
    const auto look = [&](long part) {
        const long first = part % blocks * block, count = vocab - first < block ? vocab - first : block;
        found[part] = run((const char*)logits + (part / blocks * stride + first) * size, count, dtype);
        found[part].at += first;
    };
    const long all = rows * blocks, step = all / 60000 + 1;
    if (rows * vocab < WORTH) for (long part = 0; part < all; part++) look(part);
    else
        parallel_for((all + step - 1) / step, [&](long part, int) {
            for (long i = part * step; i < (part + 1) * step && i < all; i++) look(i);
        });
    for (long row = 0; row < rows; row++) {
        Largest best = found[row * blocks];
        for (long i = 1; i < blocks; i++) {
            const Largest& other = found[row * blocks + i];
            const int spoiled = best.spoiled | other.spoiled;
            if (other.value > best.value) best = other;
            best.spoiled = spoiled;
        }
        const float size_of = best.value < 0 ? -best.value : best.value;
        const bool bad = best.spoiled || !(size_of <= 3.4028234663852886e38f);
        drawn[row] = bad ? 0 : best.at;
        drawn[rows + row] = bad;
    }
}
