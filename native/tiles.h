// Small products for attention: rows of A against a packed B, both in the cache. For kernels/*.cpp.
//
// B holds, for every step of the inner dimension, one vector per LANES columns: a float each, or with WITH_PAIRS two
// neighbouring values of bfloat16, which one instruction multiplies and adds.
#pragma once

#include "simd.h"

namespace qcpu {
namespace QCPU_ISA {
namespace {

struct OneByOne {
    using elem = float;  // of A
    using pack = float;  // of B: one column at one step
    static constexpr int depth = 1;
    INLINE vf spread(const elem* p) { return splat(*p); }
    INLINE vf dot(vf acc, vf a, vf b) { return acc + a * b; }
    INLINE vf read(const pack* p) { return read_as<vf>(p); }
    INLINE void put(elem* p, vf v) { write_as(p, v); }
    // The first LANES * depth numbers of n at p, zeros where there are fewer.
    INLINE vf some(const elem* p, long n) { return load_upto<Floats>(p, n); }
};

#ifdef WITH_PAIRS
struct TwoByTwo {
    using elem = uint16_t;
    using pack = int32_t;
    static constexpr int depth = 2;
    INLINE vf spread(const elem* p) { return (vf)splat_int(read_as<int32_t>(p)); }
    INLINE vf dot(vf acc, vf a, vf b) { return (vf)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b); }
    INLINE vf read(const pack* p) { return read_as<vf>(p); }
    INLINE void put(elem* p, vf v) { write_as(p, narrow(v)); }
    INLINE __m512i load(const elem* p, long n) {
        if (n >= 2 * LANES) return _mm512_loadu_si512(p);
        return _mm512_maskz_loadu_epi16((__mmask32)((1u << n) - 1), p);
    }
    INLINE vf some(const elem* p, long n) { return (vf)load(p, n); }
    // Pairs of the numbers of two rows, 2 * LANES of them (fewer, if n says so), in the order that `put_in_order` ends.
    INLINE void interleave(const elem* a, const elem* b, long n, vf* pairs) {
        const __m512i first = load(a, n), second = load(b, n);
        pairs[0] = (vf)_mm512_unpacklo_epi16(first, second);
        pairs[1] = (vf)_mm512_unpackhi_epi16(first, second);
    }
    INLINE void put_in_order(float* p, long n) {
        const vi low = {0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23};
        for (long i = 0; i < n; i += 2 * LANES) {
            const vf a = read_as<vf>(p + i), b = read_as<vf>(p + i + LANES);
            write_as(p + i, (vf)__builtin_shuffle(a, b, low));
            write_as(p + i + LANES, (vf)__builtin_shuffle(a, b, low + 8));
        }
    }
};
#endif

// c[r] = alpha[r] * c[r] + a[r] . b for M rows and N vectors of columns; without alpha c is overwritten.
template <class P, int M, int N>
static void tile(const typename P::elem* const* a, const typename P::pack* b, long b_stride, long steps, float* c,
                 long c_stride, const float* alpha) {
    vf acc[M][N];
#pragma GCC unroll 8
    for (int r = 0; r < M; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) acc[r][n] = vf{};
    for (long k = 0; k < steps; k++, b += b_stride) {
        vf column[N];
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) column[n] = P::read(b + n * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < M; r++) {
            const vf row = P::spread(a[r] + k * P::depth);
#pragma GCC unroll 8
            for (int n = 0; n < N; n++) acc[r][n] = P::dot(acc[r][n], row, column[n]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < M; r++)
#pragma GCC unroll 8
        for (int n = 0; n < N; n++) {
            float* at = c + r * c_stride + n * LANES;
            vf made = acc[r][n];
            if (alpha) made += read_as<vf>(at) * alpha[r];
            write_as(at, made);
        }
}

template <class P>
using TileOf = void (*)(const typename P::elem* const*, const typename P::pack*, long, long, float*, long,
                        const float*);

template <class P>
static TileOf<P> tile_of(int m, int n) {
    static constexpr TileOf<P> all[6][4] = {
        {tile<P, 1, 1>, tile<P, 1, 2>, tile<P, 1, 3>, tile<P, 1, 4>},
        {tile<P, 2, 1>, tile<P, 2, 2>, tile<P, 2, 3>, tile<P, 2, 4>},
        {tile<P, 3, 1>, tile<P, 3, 2>, tile<P, 3, 3>, tile<P, 3, 4>},
        {tile<P, 4, 1>, tile<P, 4, 2>, tile<P, 4, 3>, tile<P, 4, 4>},
        {tile<P, 5, 1>, tile<P, 5, 2>, tile<P, 5, 3>, tile<P, 5, 4>},
        {tile<P, 6, 1>, tile<P, 6, 2>, tile<P, 6, 3>, tile<P, 6, 4>},
    };
    return all[m - 1][n - 1];
}

// So many vectors of columns at once that sums, columns and a row stay in registers.
constexpr long WIDE = REGISTERS >= 32 ? 4 : 2;

// The same for any number of rows and of vectors of columns.
template <class P>
static void product(const typename P::elem* const* a, long rows, const typename P::pack* b, long vectors,
                    long b_stride, long steps, float* c, long c_stride, const float* alpha) {
    for (long n = 0; n < vectors; n += WIDE) {
        const int wide = vectors - n < WIDE ? vectors - n : WIDE;
        for (long r = 0; r < rows; r += 6) {
            const int high = rows - r < 6 ? rows - r : 6;
            tile_of<P>(high, wide)(a + r, b + n * LANES, b_stride, steps, c + r * c_stride + n * LANES, c_stride,
                                   alpha ? alpha + r : nullptr);
        }
    }
}

// v[i] of the result is the sum of v[i]; the vectors are used up.
INLINE vf sums_of(vf* v) {
#pragma GCC unroll 8
    for (int width = LANES / 2; width; width /= 2) {
        // Half of each vector is added to the other; two such halves make one vector.
        const vi at = ramp(), second = (at & width) != 0;
        const vi stay = second ? at + LANES : at, come = second ? at + LANES - width : at + width;
#pragma GCC unroll 16
        for (int i = 0; i < width; i++)
            v[i] = __builtin_shuffle(v[i], v[i + width], stay) + __builtin_shuffle(v[i], v[i + width], come);
    }
    return v[0];
}

// Transpose LANES vectors of 32 bits: afterwards v[i][j] is what v[j][i] was.
INLINE void transpose(vi* v) {
#pragma GCC unroll 8
    for (int width = 1; width < LANES; width *= 2) {
        const vi at = ramp(), in_high = (at & width) != 0;
        const vi low = in_high ? at - width + LANES : at;
        const vi high = in_high ? at + LANES : at + width;
#pragma GCC unroll 16
        for (int i = 0; i < LANES; i++)
            if (!(i & width)) {
                const vi a = v[i], b = v[i + width];
                v[i] = __builtin_shuffle(a, b, low);
                v[i + width] = __builtin_shuffle(a, b, high);
            }
    }
}

}  // namespace
}  // namespace QCPU_ISA
}  // namespace qcpu
