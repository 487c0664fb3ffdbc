// Vectors of LANES floats, written with the compiler's own vector types so that one source serves every instruction
// set. For kernels/*.cpp; everything here belongs to the file that includes it.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define REGISTERS 32
#elif defined(__AVX2__)
#define LANES 8
#define REGISTERS 16
#else
#define LANES 4
#define REGISTERS 32
#endif

// Products of pairs of bfloat16 are one instruction.
#if defined(__AVX512BF16__)
#define WITH_PAIRS
#endif

#define INLINE static inline __attribute__((always_inline))

namespace qcpu {
namespace QCPU_ISA {
namespace {

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));

template <class V>
INLINE V read_as(const void* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
}

template <class V>
INLINE void write_as(void* p, V v) {
    memcpy(p, &v, sizeof v);
}

INLINE vf splat(float f) { return f - vf{}; }
INLINE vi splat_int(int32_t i) { return i - vi{}; }
INLINE vf pick(vi mask, vf a, vf b) { return mask ? a : b; }
INLINE vf larger(vf a, vf b) { return a > b ? a : b; }

// A bit for each lane of a mask that is set.
INLINE uint32_t lanes_of(vi mask) {
#if defined(__AVX512F__)
    return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask);
#elif defined(__AVX2__)
    return (uint32_t)_mm256_movemask_ps((__m256)mask);
#else
    return (uint32_t)((mask[0] & 1) | (mask[1] & 2) | (mask[2] & 4) | (mask[3] & 8));
#endif
}

INLINE bool any(vi mask) { return lanes_of(mask); }

// 0, 1, 2, ...
INLINE vi ramp() {
    vi v;
    for (int i = 0; i < LANES; i++) v[i] = i;
    return v;
}

INLINE vf widen(vh v) {
#if defined(__AVX512F__)
    // Of the conversion below the compiler makes four instructions.
    return (vf)((vu)_mm512_cvtepu16_epi32((__m256i)v) << 16);
#else
    return (vf)(__builtin_convertvector(v, vu) << 16);
#endif
}

// Rounded to nearest, ties to even; NaN stays NaN.
INLINE vh narrow(vf v) {
#ifdef WITH_PAIRS
    return (vh)_mm512_cvtneps_pbh((__m512)v);
#else
    vu bits = (vu)v;
    vu rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    vu nan = (bits >> 16) | 0x40u;
    vi is_nan = (vi)((bits & 0x7fffffffu) > 0x7f800000u);
    return __builtin_convertvector((vu)(is_nan ? (vi)nan : (vi)rounded), vh);
#endif
}

INLINE float sum(vf v) {
    float parts[LANES];
    for (int width = LANES / 2; width; width /= 2) {
        vi turn = (ramp() + width) & (LANES - 1);
        v += __builtin_shuffle(v, turn);
    }
    write_as(parts, v);
    return parts[0];
}

INLINE float largest(vf v) {
    float parts[LANES];
    for (int width = LANES / 2; width; width /= 2) {
        vi turn = (ramp() + width) & (LANES - 1);
        v = larger(v, __builtin_shuffle(v, turn));
    }
    write_as(parts, v);
    return parts[0];
}

// 2 to the v, for v <= 0 or NaN: relative error below 3e-7, 0 below -126.
INLINE vf power_of_two(vf v) {
#if defined(__AVX512F__)
    const vf n = (vf)_mm512_roundscale_ps((__m512)v, 0);
#else
    const float magic = 12582912.0f;  // adding and taking it away rounds to an integer
    const vf kept = v < -126.0f ? splat(-126.0f) : v;
    const vf n = (kept + magic) - magic;
#endif
    const vf r = v - n;
    vf p = splat(1.32647264e-3f);
    p = p * r + 9.67151270e-3f;
    p = p * r + 5.55073375e-2f;
    p = p * r + 2.40222421e-1f;
    p = p * r + 6.93146978e-1f;
    p = p * r + 1.0f;
#if defined(__AVX512F__)
    return (vf)_mm512_scalef_ps((__m512)p, (__m512)n);
#else
    return v < -126.0f ? vf{} : p * (vf)((__builtin_convertvector(n, vi) + 127) << 23);
#endif
}

// e to the v: relative error below 2e-7, 0 below -87.3, infinity above 88.7, NaN for NaN.
INLINE vf exponential(vf v) {
    vf low = splat(-87.3f), high = splat(88.8f);
    vf x = v < low ? low : v;
    x = x > high ? high : x;
    const float magic = 12582912.0f;  // adding and taking it away rounds to an integer
    vf n = (x * 1.44269504f + magic) - magic;
    vf r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // In two factors, so that neither leaves the range.
    vi whole = __builtin_convertvector(n, vi);
    vi half = whole >> 1;
    vf e = p * (vf)((half + 127) << 23) * (vf)((whole - half + 127) << 23);
    return v < low ? vf{} : e;
}

INLINE vf hyperbolic_tangent(vf v) { return 1.0f - 2.0f / (exponential(v + v) + 1.0f); }

INLINE float bf16_to_float(uint16_t e) {
    const uint32_t bits = (uint32_t)e << 16;
    float f;
    memcpy(&f, &bits, 4);
    return f;
}

// Rounded to nearest, ties to even; NaN stays NaN.
INLINE uint16_t float_to_bf16(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

// How numbers lie in memory.
struct Floats {
    using elem = float;
    INLINE vf load(const elem* p) { return read_as<vf>(p); }
    INLINE void store(elem* p, vf v) { write_as(p, v); }
    INLINE float wide(elem e) { return e; }
    INLINE elem thin(float f) { return f; }
};

struct Halves {
    using elem = uint16_t;
    INLINE vf load(const elem* p) { return widen(read_as<vh>(p)); }
    INLINE void store(elem* p, vf v) { write_as(p, narrow(v)); }
    INLINE float wide(elem e) { return bf16_to_float(e); }
    INLINE elem thin(float f) { return float_to_bf16(f); }
};

// The first n < LANES numbers at p, zeros after them.
template <class T>
INLINE vf load_some(const typename T::elem* p, long n) {
    float parts[LANES] = {};
    for (long i = 0; i < n; i++) parts[i] = T::wide(p[i]);
    return read_as<vf>(parts);
}

template <class T>
INLINE void store_some(typename T::elem* p, vf v, long n) {
    float parts[LANES];
    write_as(parts, v);
    for (long i = 0; i < n; i++) p[i] = T::thin(parts[i]);
}

template <class T>
INLINE vf load_upto(const typename T::elem* p, long n) {
    return n >= LANES ? T::load(p) : load_some<T>(p, n);
}

template <class T>
INLINE void store_upto(typename T::elem* p, vf v, long n) {
    if (n >= LANES) T::store(p, v);
    else store_some<T>(p, v, n);
}

}  // namespace
}  // namespace QCPU_ISA
}  // namespace qcpu
