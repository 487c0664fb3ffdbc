// Kernels that go over rows of activations: norms, gates, the largest logit. Table of what an instruction set has.
#pragma once

#include <stdint.h>

namespace qcpu {

struct NormJob {
    const void *residual, *delta, *weight;  // (rows, size) twice, (size); without a delta the sum is the residual
    void *normed, *total;                   // (rows, size); total may be null
    long size;
    float eps, offset;  // offset is added to the weight
    int dtype;
};

struct GateJob {
    const void* gate_up;  // (rows, 2 inner): gate, then up
    void* out;            // (rows, inner)
    long inner;
    int gelu;  // tanh's approximation of GELU; else SiLU
    int dtype;
};

// All rows, on all threads. Within a Turn.
void norm(const NormJob& job, long rows);
void gate(const GateJob& job, long rows);

// The largest of a run of logits, the first of equals, and whether one is not a number.
struct Largest {
    float value;
    int32_t spoiled;
    int64_t at;
};

struct RowsTable {
    void (*norm)(const NormJob&, long first, long last);
    void (*gate)(const GateJob&, long first, long last);
    Largest (*largest)(const void* logits, long count, int dtype);
};

}  // namespace qcpu
