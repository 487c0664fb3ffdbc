// Kernels for x86-64 behind a plain C interface: no Python, no torch.

#include <cstdint>
#include <cstring>

#include <immintrin.h>
#include "isa.h"
#include "pool.h"

enum Dtype { FLOAT32 = 0, BFLOAT16 = 1 };

struct Linear {
    const void *x, *weight, *bias;
    void* out;
    long rows, inputs, outputs, x_stride;
    int dtype;
};

static inline float bf16_to_float(uint16_t e) {
    uint32_t bits = (uint32_t)e << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// Round to nearest, ties to even; NaN stays NaN.
static inline uint16_t float_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

#pragma GCC push_options
#pragma GCC target("avx2,fma")
namespace avx2 {
#include "isa_avx2.inc"
#include "linear.inc"
}
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq")
namespace avx512 {
#include "isa_avx512.inc"
#include "linear.inc"
}
#pragma GCC pop_options

#define WITH_BF16
#pragma GCC push_options
#pragma GCC target("avx2,fma,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
namespace avx512_bf16 {
#include "isa_avx512.inc"
#include "linear.inc"
}
#pragma GCC pop_options

typedef void (*Part)(const Linear&, long, long);
static const Part TABLE[] = {avx2::linear_part, avx512::linear_part, avx512_bf16::linear_part, avx512_bf16::linear_part};

// out[rows, outputs] = x[rows, inputs] @ weight[outputs, inputs].T + bias; x has rows x_stride elements apart, the
// others are contiguous; bias may be null. dtype: 0 float32, 1 bfloat16.
QCPU_API void qcpu_linear(const void* x, const void* weight, const void* bias, void* out, long rows, long inputs,
                      long outputs, long x_stride, int dtype) {
    qcpu::Turn turn;
    const Linear job{x, weight, bias, out, rows, inputs, outputs, x_stride, dtype};
    const Part run = TABLE[qcpu::isa()];
    if (qcpu::threads() < 2 || rows * inputs * outputs < 65536) return run(job, 0, outputs);
    // Multiples of 6 and 8, the weight rows of a tile.
    const long piece = outputs >= 2048 ? 48 : 24, pieces = (outputs + piece - 1) / piece;
    qcpu::parallel_for(pieces, [&](long i, int) {
        const long first = i * piece, last = first + piece;
        run(job, first, last < outputs ? last : outputs);
    });
}
