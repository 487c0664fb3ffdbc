// Kernels for x86-64 behind a plain C interface: no Python, no torch. Built by setup.py, loaded with ctypes by
// quire/platforms/native.py after torch, so that both use one pool of OpenMP threads.
//
// Each kernel is written once, in a file that is included below once per instruction set; `quire_start` picks the
// table of the best one that the processor has. Everything outside those namespaces is plain x86-64.

#include <atomic>
#include <cstdint>
#include <cstring>

#include <immintrin.h>
#include <omp.h>

#define API extern "C" __attribute__((visibility("default")))

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

struct Table {
    const char* name;
    void (*linear)(const Linear&, long, long);
};

static const Table TABLES[] = {
    {"avx512_bf16", avx512_bf16::linear_part},
    {"avx512", avx512::linear_part},
    {"avx2", avx2::linear_part},
};
static const Table* chosen = nullptr;

static bool has(int i) {
    __builtin_cpu_init();
    bool floor = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    bool wide = floor && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return i == 2 ? floor : i == 1 ? wide : wide && __builtin_cpu_supports("avx512bf16");
}

// Raised with every change of a signature; the caller refuses another.
API int quire_abi() { return 1; }

// Choose the instruction set called `wanted`, or the best with nullptr. Returns its name, nullptr if the processor
// lacks it (or everything).
API const char* quire_start(const char* wanted) {
    for (int i = 0; i < 3; i++)
        if ((!wanted || !strcmp(wanted, TABLES[i].name)) && has(i)) {
            chosen = &TABLES[i];
            return chosen->name;
        }
    return nullptr;
}

// out[rows, outputs] = x[rows, inputs] @ weight[outputs, inputs].T + bias; x has rows x_stride elements apart, the
// others are contiguous; bias may be null. dtype: 0 float32, 1 bfloat16. Uses up to `threads` of the pool.
API void quire_linear(const void* x, const void* weight, const void* bias, void* out, long rows, long inputs,
                      long outputs, long x_stride, int dtype, int threads) {
    const Linear job{x, weight, bias, out, rows, inputs, outputs, x_stride, dtype};
    const Table* table = chosen;
    if (threads < 2 || rows * inputs * outputs < 65536) return table->linear(job, 0, outputs);
    // Pieces are taken as threads get to them: a core that others use as well takes fewer. They are multiples of 6 and
    // 8, the weight rows of a tile.
    const long piece = outputs >= 2048 ? 48 : 24, pieces = (outputs + piece - 1) / piece;
    std::atomic<long> next{0};
#pragma omp parallel num_threads(threads)
    for (long i; (i = next.fetch_add(1)) < pieces;) {
        long first = i * piece, last = first + piece;
        table->linear(job, first, last < outputs ? last : outputs);
    }
}
